"""Why a container ended, or runs and is not ready: its log and probes, joined with other facts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis import logs
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.network import dialled, listens_on, the_way
from workshop_lib.production.diagnosis.patterns import Match, fact, patterns, says
from workshop_lib.production.diagnosis.view import Container, Event, Pod, View
from workshop_lib.production.probes import probe_budget_s

__all__ = ["former_head", "from_log", "host_of", "level_of", "runs", "who_is", "why_ended"]

WAITS_S, LOADS_S, RECENT_S = 40.0, 900.0, 600.0
"""How long a container waits for another before that means something, how long a model loads, and
for how long a restart is news."""

_ADDRESSES = ("FQ_RAY_IP", "RAY_IP", "HEAD_ADDRESS", "RAY_ADDRESS", "MASTER_ADDR")
"""Variables that name the head, where a log only says that it waits."""
_TRIVIAL = ("true", "false", "token", "0.0.0.0", "localhost", "127.0.0.1")


def who_is(pod: Pod, container: Container) -> str:
    """A container in words."""
    return f"{'init ' * container.init}container {container.name} of {pod.name}{pod.role}"


# -- what a log says ------------------------------------------------------------------------------


def level_of(reading: logs.Reading, running: bool = False) -> Level:
    """How much a reading explains."""
    if reading.kind == "unknown":
        return Level.WAITS if reading.waits else Level.FAILED
    if reading.kind == "peer" and running:
        return Level.WAITS
    return Level.KNOWN if reading.kind in ("own", "weak") else Level.NOTICED


def host_of(pod: Pod, each: Container, reading: logs.Reading) -> tuple[str, int]:
    """Whom a container dials: as the line says, or as its environment names the head."""
    groups = reading.match.groups if reading.match else {}
    named = [groups[key] for key in ("host", "gcs", "head", "address") if groups.get(key)]
    host, port = dialled(reading.line)
    if not (named or host) and (reading.kind == "peer" or reading.match is None):
        named = [each.env[key].rpartition("//")[2] for key in _ADDRESSES if each.env.get(key)]
    if named:
        host, _, number = named[0].rstrip(".").partition(":")
        port = int(number) if number.isdigit() else port * (named[0] == host)
    return host, port


def from_log(view: View, pod: Pod, each: Container, reading: logs.Reading, stage: Stage) -> Cause:
    """A cause from what a log says, with the facts that the snapshot has on it."""
    quotes, (host, port) = list(reading.quotes), host_of(pod, each, reading)
    level, match = level_of(reading, each.running), reading.match
    follows = reading.kind == "consequence"
    quotes = [*quotes[1:], *quotes[:1]] if follows else quotes
    about_another = reading.kind == "peer" or reading.waits
    resolves = bool(match and match.rule == "name-not-resolved")
    way = the_way(view, pod, host if about_another else "", port, name_fails=resolves)
    waits_for = way.waits_for | (view.companions(pod) if level >= Level.NOTICED else set())
    if match and match.rule.startswith(("gpu", "cuda", "nccl")):
        waits_for.add(f"Node/{pod.node}")  # a fault of its GPU explains them all
    known = match is not None
    match = way.wrong or match or _unknown(view, pod, each, reading.waits, way.checked)
    if match.rule == "ray-infeasible" and (missing := _not_offered(view, pod, quotes)):
        match, level = missing, Level.KNOWN
    shown, who = f"{host}:{port}" if host and port else host, f"the {who_is(pod, each)}"
    match = match.add(
        **{"who": who, "line": reading.line, "host": host, "pod": pod.name},
        **{"at_host": shown and f" at {shown}", "host_named": shown and f": {shown}"},
        **{"host_or_server": shown or "a server", "host_or_something": shown or "something"},
        **{"first": f" The first error in its log: {quotes[0]}" if follows and quotes[1:] else ""},
    )
    shape = "" if known or host else re.sub(r"[\d.:x]+", "#", reading.line)[:80]
    cause = cause_of(
        Match(match.pattern, match.groups, view.facts(pod)),
        [*way.objects, pod.ref],
        [*quotes, *_origins(pod, quotes)] or [str(each.ended.get("reason") or "no log")],
        Stage.HEALTH if way.wrong else stage,
        Level.KNOWN if way.wrong else level,
        key=way.objects[0] if way.objects else f"{pod.top}/{each.name}/{host}/{shape}",
        waits_for=() if way.wrong else waits_for,
        since=each.ended_at,
    )
    if way.checked and known and not way.wrong:
        words = {"who": who, "pod": pod.name, "host": host, "shown": shown}
        well = fact("peer-though-well", checked=way.checked, **words)
        cause.cause, cause.fix = well.cause, well.fix
    return cause


def _unknown(view: View, pod: Pod, each: Container, waits: bool, checked: str) -> Match:
    name = pod.name if len(pod.containers) == 1 else f"{pod.name} -c {each.name}"
    before = " --previous" if each.running and each.restarts else ""
    words = {"logs": f"kubectl logs {name}{before}", "age": f"{view.age_s(each.started):.0f} s"}
    if waits:
        known = f" Not known yet why: {checked}." if checked else ""
        rule = "waits-though-well" if checked else "init-waiting" if each.init else "waits-for-peer"
        return fact(rule, known=known, **words)
    code = each.ended.get("exitCode")
    ends = f"ends with exit code {code}" if code is not None else "fails"
    rule = "container-exit" if each.last_run.strip() else "container-exit-silent"
    return fact(rule, ends=ends, **words)


def _origins(pod: Pod, quotes: list[str]) -> list[str]:
    """The pod's environment variables whose value a quote repeats: where it comes from."""
    text = "\n".join(quotes)
    every = {(name, value) for each in pod.containers for name, value in each.env.items()}
    telling = [(n, v) for n, v in every if len(v) > 3 and not v.isdigit() and v not in _TRIVIAL]
    return sorted(f"env {n}={v}" for n, v in telling if v in text and n not in text)[:2]


def _not_offered(view: View, pod: Pod, quotes: list[str]) -> Match | None:
    """Which resource of a request no Ray node has, when the snapshot has Ray's nodes."""
    asked = dict(re.findall(r"'([\w.:-]+)': ([\d.]+)", " ".join(quotes)))
    alive = [node for node in view.ray("nodes") if node.get("state") == "ALIVE"]
    totals = [node.get("resources_total") or {} for node in alive]
    missing = [key for key in asked if totals and not any(total.get(key) for total in totals)]
    if not missing:
        return None
    kind = missing[0].partition(":")[0]
    have = sorted({k for total in totals for k in total if k.partition(":")[0] == kind})
    rest = [f"{sum(t.get(k, 0) for t in totals):g} {k}" for k in asked if k not in missing]
    names = [each.removeprefix("env ").partition("=")[0] for each in _origins(pod, quotes)]
    words = {"missing": ", ".join(missing), "nodes": len(totals), "env": ", ".join(names)}
    words |= {"have": ", ".join(k for k in have if "__" not in k) or "none of that kind"}
    rule = "ray-node-name" if kind == "node" else "ray-resource-missing"
    return fact(rule, rest=f" The rest exists: {', '.join(rest)}." if rest else "", **words)


# -- why a container ended ------------------------------------------------------------------------


def why_ended(view: View, pod: Pod, each: Container) -> Cause:
    """Why a container ended: a probe, its memory limit, what its log says, its exit code."""
    code, who, text = int(each.ended.get("exitCode") or 0), who_is(pod, each), each.last_run
    oom = each.ended.get("reason") == "OOMKilled"
    by_probe = None if oom or code not in (0, 137, 143) else _stopped_by_probe(view, pod, each)
    if by_probe:
        return by_probe
    reading, key = logs.read(text, view.facts(pod)), f"{pod.top}/{each.name}"
    last = logs.last_line(text)
    if oom and not (reading.match and reading.match.rule == "ray-out-of-memory"):
        limit = each.limits.get("memory")
        bound = f"its memory limit of {limit}" if limit else "the memory of its node"
        match, since = fact("oom-killed", who=who, bound=bound), each.ended_at
        return cause_of(match, [pod.ref], ["OOMKilled", last], Stage.START, key=key, since=since)
    from_outside, exits = code in (137, 143), patterns("exit").match(str(code))
    raised = re.search(r"Error|Exception", reading.line) and reading.kind in ("own", "unknown")
    own = reading.kind == "own" or (reading.kind == "peer" and not from_outside) or raised
    if exits is None or own:
        return from_log(view, pod, each, reading, Stage.START)
    by = [e.message for e in view.events(pod.ref, "Killing", "Preempted", "TaintManagerEviction")]
    waits_for = view.companions(pod) | set(pod.owners) if from_outside else set()
    level, quotes = Level.NOTICED if from_outside else Level.KNOWN, [last or str(code), *by[-1:]]
    options = {"key": key, "waits_for": waits_for, "since": each.ended_at}
    cause = cause_of(exits, [pod.ref], quotes, Stage.START, level, **options)  # type: ignore[arg-type]
    cause.cause = f"The {who} ended with exit code {code}: {cause.cause}."
    return cause


def _stopped_by_probe(view: View, pod: Pod, each: Container) -> Cause | None:
    text = rf"ontainer {re.escape(each.name)} failed (?:liveness|startup) probe"
    kills = [e for e in view.events(pod.ref, "Killing") if re.search(text, e.message)]
    if not kills:
        return None
    kind = "Startup" if "failed startup" in kills[-1].message else "Liveness"
    detail = _typical(_probe_events(view, pod, each, kind, 0.0)) or kills[-1].message
    if wrong := _wrong_port(pod, each, kind, detail):
        return wrong
    loading = says("loads").search(each.last_run) and not each.probe("startup")[0]
    reading = logs.read(each.last_run, view.facts(pod))
    if reading.kind == "own":
        return from_log(view, pod, each, reading, Stage.START)
    rule = "liveness-kills-loading" if loading else "liveness-probe"
    rule = "startup-probe-too-short" if kind == "Startup" else rule
    waiting = logs.still_waits(each.last_run, view.facts(pod)) if not loading else logs.Reading()
    way = the_way(view, pod, *host_of(pod, each, waiting)) if waiting.line else None
    waits_for = view.companions(pod) | way.waits_for if way else set()
    meaning, fix, _ = _meaning(each, kind, detail)
    words = {"who": who_is(pod, each), "meaning": meaning, "mends": fix, "kind": kind.lower()}
    match = fact(rule, window=f"{_window_s(each, kind):.0f} s", **words)
    quotes, key = [detail, kills[-1].message, waiting.line], f"{pod.top}/{each.name}"
    level = Level.WAITS if waits_for else Level.KNOWN
    return cause_of(match, [pod.ref], quotes, Stage.HEALTH, level, key=key, waits_for=waits_for)


# -- containers that run --------------------------------------------------------------------------


def runs(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    """Why a container that runs is not ready, does not go on, or was started again."""
    # Who fails again and again is well only when it has run longer than it usually does.
    usual_s = 2 * view.age_s(pod.began) / (each.restarts + 1)
    news = view.age_s(each.ended_at) <= max(RECENT_S, usual_s)
    if each.restarts and each.ended.get("exitCode") and (news or not each.ready):
        cause = why_ended(view, pod, each)
        cause.past = each.ready
        yield cause
    elif each.ready or pod.ready or not pod.conditions:
        yield from _goes_on(view, pod, each)
    else:
        yield from _unready(view, report, pod, each)


def _goes_on(view: View, pod: Pod, each: Container) -> Iterator[Cause]:
    reading = logs.still_waits(each.log, view.facts(pod), ready=True)
    if reading.match:
        cause = from_log(view, pod, each, reading, Stage.HEALTH)
        cause.past = reading.kind == "weak"
        yield cause
    else:
        yield from former_head(view, pod, each)


def former_head(view: View, pod: Pod, each: Container) -> Iterator[Cause]:
    """A rank that dials the rank 0 of a former run, and may end well with what that one left."""
    for line in reversed(each.log.splitlines()[-100:] if pod.rank not in (None, "0") else []):
        if found := says("dials head").search(line):
            way = the_way(view, pod, found["host"].rstrip("."), 0)
            if way.wrong and way.wrong.rule == "stale-head-address":
                objects = [*way.objects, pod.ref]
                yield cause_of(way.wrong, objects, [line.strip()], Stage.HEALTH, key=pod.top)
            return


def _unready(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    age_s, facts = view.age_s(each.started), view.facts(pod)
    kind = "Readiness" if each.up or not each.probe("startup")[0] else "Startup"
    detail = _typical(_probe_events(view, pod, each, kind, each.started))
    window = max(_window_s(each, kind), WAITS_S)
    loading = says("loads").search("\n".join(logs.lines_of(each.log)[-15:])) and age_s < LOADS_S
    if wrong := _wrong_port(pod, each, kind, detail):
        yield wrong
        return
    reading = logs.still_waits(each.log, facts)
    if reading.line and not loading and (age_s >= WAITS_S or reading.match):
        cause = from_log(view, pod, each, reading, Stage.HEALTH)
        if cause.level < Level.WAITS or age_s >= WAITS_S:
            cause.evidence += [detail] if reading.match and detail else []
            yield cause
            return
    if "statuscode: 404" not in detail and (age_s <= window or loading):
        most = max(window, LOADS_S if loading else 0.0)
        note = f"{pod.ref}: container {each.name} still starts ({age_s:.0f} of {most:.0f} s)"
        report.starts([pod.ref], note)
    elif detail:
        yield _probe_fails(view, pod, each, kind, detail)


# -- probes ---------------------------------------------------------------------------------------


def _probe_events(view: View, pod: Pod, each: Container, kind: str, since: float) -> list[Event]:
    events = [e for e in view.events(pod.ref, "Unhealthy", "ProbeWarning") if e.time >= since - 1]
    own = [e for e in events if not e.field or f"{{{each.name}}}" in e.field]
    return [event for event in own if f"{kind} probe " in event.message]


def _window_s(each: Container, kind: str) -> float:
    """How long after its start a container may fail a probe before that means something."""
    probe, _, _ = each.probe(kind)
    return float(probe_budget_s(probe) + probe.get("periodSeconds", 10)) if probe else 0.0


def _typical(events: list[Event]) -> str:
    """What a failed probe usually says: a busy machine also makes some late."""
    answers = [e for e in events if not re.search("deadline exceeded|timeout", e.message)]
    most = sum(e.count for e in answers) * 2 >= sum(e.count for e in events)
    chosen = answers if answers and most else events
    return chosen[-1].message if chosen else ""


def _wrong_port(pod: Pod, each: Container, kind: str, detail: str) -> Cause | None:
    asked = each.probe(kind)[2]
    told = listens_on(pod, each) if "refused" in detail and asked else []
    if not told or asked in told:
        return None
    log = [line for line in (each.log or each.previous).splitlines() if str(told[-1]) in line]
    words = {"kind": kind.lower(), "who": who_is(pod, each), "asked": asked, "told": told[-1]}
    match, key = fact("probe-wrong-port", **words), f"{pod.top}/{each.name}"
    return cause_of(match, [pod.ref], [detail, *log[:1]], Stage.HEALTH, key=key)


def _meaning(each: Container, kind: str, detail: str) -> tuple[str, str, bool]:
    """What a failed probe says, what mends it, and whether its wording is known."""
    _, action, port = each.probe(kind)
    known = patterns("probe").match(detail)
    match = known or fact("probe-says", said=detail[-160:])
    match = match.add(path=action.get("path"), port=port or action.get("port"))
    return match.cause[:1].lower() + match.cause[1:], match.fix, known is not None


def _probe_fails(view: View, pod: Pod, each: Container, kind: str, detail: str) -> Cause:
    reading = logs.read(each.log, view.facts(pod))
    if reading.kind in ("own", "peer") and not says("serves").search(each.log[-4000:]):
        found = from_log(view, pod, each, reading, Stage.HEALTH)
        found.evidence.append(detail)
        return found
    quotes, rule = [detail], f"{kind.lower()}-probe"
    meaning, fix, worded = _meaning(each, kind, detail)
    known = worded and "refused" not in detail
    if not worded and (failed := _failed_part(each, kind, detail)):
        quotes.append(failed)
        words = {"part": failed, "pod": pod.name, "container": each.name}
        part = fact("probe-part-proxy" if "/-/healthz" in failed else "probe-part", **words)
        meaning, fix, known = part.cause[:1].lower() + part.cause[1:], part.fix, True
        if "/-/healthz" in failed and (proxy := _no_proxy(view)):
            quotes, rule = [*quotes, proxy], "serve-proxy-missing"
            meaning += f" {proxy}: no Serve proxy runs on workers, and the applications run anyway"
    worker = pod.kind == "worker" or pod.rank not in (None, "0")
    age, waits_for = f"{view.age_s(each.started):.0f} s", view.companions(pod) if worker else set()
    words = {"who": who_is(pod, each), "age": age, "kind": kind.lower(), "mends": fix}
    quotes.append("" if known else logs.last_line(each.log))
    level, waits_for = (Level.KNOWN, set()) if known else (Level.FAILED, waits_for)
    match, key = fact("probe-fails", meaning=meaning, **words), f"{pod.top}/{each.name}"
    cause = cause_of(match, [pod.ref], quotes, Stage.HEALTH, level, key=key, waits_for=waits_for)
    cause.rule = rule
    return cause


def _failed_part(each: Container, kind: str, detail: str) -> str:
    """Of several checks joined by &&, the one that fails, by what those before it print."""
    probe, _, _ = each.probe(kind)
    command = str(((probe.get("exec") or {}).get("command") or [""])[-1])
    parts, passed = re.split(r"\s*&&\s*", command), len(re.findall("success", detail))
    return parts[passed] if len(parts) > 1 and passed < len(parts) else ""


def _no_proxy(view: View) -> str:
    configs = (str(body["spec"].get("serveConfigV2") or "") for body in view.items("RayService"))
    found = (re.search(r"proxy_location: *(?:HeadOnly|Disabled)", each) for each in configs)
    return next((place[0] for place in found if place), "")
