"""Containers that run: is it ready, and does it go on? Probes are read with the log beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis import logs
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.crashes import crash, from_log, host_of, who_is
from workshop_lib.production.diagnosis.network import listens_on, the_way
from workshop_lib.production.diagnosis.patterns import fact, patterns
from workshop_lib.production.diagnosis.view import Container, Event, Pod, View
from workshop_lib.production.probes import probe_budget_s

__all__ = ["former_head", "runs", "why_ended", "window_s"]

WAITS_S, LOADS_S, RECENT_S = 40.0, 900.0, 600.0
"""How long a container waits for another before that means something, how long a model loads, and
for how long a restart is news."""

_LOADING = re.compile(
    r"Loading safetensors|Loading checkpoint shards|Starting to load model|Loading model|"
    r"Capturing (?:CUDA )?graph|torch\.compile|Downloading|Fetching \d+ files|loading weights|"
    r"Initializing a V1 LLM engine|still loading|warming up|Warmup|it/s\]|\d+%\|",
    re.IGNORECASE,
)
_SERVES = re.compile(r"startup complete|200 OK|Uvicorn running")
_DIALS = re.compile(
    r"(?:dials|GCS at address|(?:[Mm]aster|[Hh]ead)[ _-](?:IP|ip|address)(?: is|:|=)?) *['\"]?"
    r"(?P<host>[\w.-]+)"
)


def runs(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    """Why a container that runs is not ready, does not go on, or was started again."""
    ready = each.ready or pod.ready or not pod.conditions
    failed = each.restarts and each.ended.get("exitCode")
    if failed and not (each.ready and view.age_s(each.ended_at) > RECENT_S):
        cause = why_ended(view, pod, each)
        cause.past = each.ready
        yield cause
    elif ready:
        yield from _goes_on(view, pod, each)
    else:
        yield from _unready(view, report, pod, each)


def why_ended(view: View, pod: Pod, each: Container) -> Cause:
    """Why a container ended: a probe had it stopped, or by itself."""
    oom, code = each.ended.get("reason") == "OOMKilled", int(each.ended.get("exitCode") or 0)
    stopped = None if oom or code not in (0, 137, 143) else _stopped_by_probe(view, pod, each)
    return stopped or crash(view, pod, each)


def _goes_on(view: View, pod: Pod, each: Container) -> Iterator[Cause]:
    """A container that is ready, and whose log ends with something that hangs."""
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
        if found := _DIALS.search(line):
            way = the_way(view, pod, found["host"].rstrip("."), 0)
            if way.wrong and way.wrong.rule == "stale-head-address":
                objects = [*way.objects, pod.ref]
                yield cause_of(way.wrong, objects, [line.strip()], Stage.HEALTH, key=pod.top)
            return


def _unready(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    """A container that runs and is not ready: a probe, a wait, or it still starts."""
    age_s, facts = view.age_s(each.started), view.facts(pod)
    kind = "Readiness" if each.up or not each.probe("startup")[0] else "Startup"
    detail = _typical(_probe_events(view, pod, each, kind, each.started))
    window = max(window_s(each, kind), WAITS_S)
    loading = _LOADING.search("\n".join(each.log.splitlines()[-15:])) and age_s < LOADS_S
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


def _probe_events(view: View, pod: Pod, each: Container, kind: str, since: float) -> list[Event]:
    events = [e for e in view.events(pod.ref, "Unhealthy", "ProbeWarning") if e.time >= since - 1]
    own = [e for e in events if not e.field or f"{{{each.name}}}" in e.field]
    return [event for event in own if re.search(rf"\b{kind} probe ", event.message)]


def window_s(each: Container, kind: str) -> float:
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
    """A probe that asks another port than its server listens on."""
    asked, told = each.probe(kind)[2], listens_on(pod, each)
    if "refused" not in detail or not asked or not told or asked in told:
        return None
    log = [line for line in (each.log or each.previous).splitlines() if str(told[-1]) in line]
    words = {"kind": kind.lower(), "who": who_is(pod, each), "asked": asked, "told": told[-1]}
    match, key = fact("probe-wrong-port", **words), f"{pod.top}/{each.name}"
    return cause_of(match, [pod.ref], [detail, *log[:1]], Stage.HEALTH, key=key)


def _stopped_by_probe(view: View, pod: Pod, each: Container) -> Cause | None:
    """The liveness or startup probe that had a container stopped, when one had."""
    text = rf"ontainer {re.escape(each.name)} failed (?:liveness|startup) probe"
    kills = [e for e in view.events(pod.ref, "Killing") if re.search(text, e.message)]
    if not kills:
        return None
    kind = "Startup" if "failed startup" in kills[-1].message else "Liveness"
    detail = _typical(_probe_events(view, pod, each, kind, 0.0)) or kills[-1].message
    if wrong := _wrong_port(pod, each, kind, detail):
        return wrong
    loading = _LOADING.search(each.last_run) and not each.probe("startup")[0]
    reading = logs.read(each.last_run, view.facts(pod))
    if reading.kind == "own":
        return from_log(view, pod, each, reading, Stage.START)
    rule = "liveness-probe"
    if kind == "Startup" or loading:
        rule = "startup-probe-too-short" if kind == "Startup" else "liveness-kills-loading"
    waiting = logs.still_waits(each.last_run, view.facts(pod)) if not loading else logs.Reading()
    way = the_way(view, pod, *host_of(pod, each, waiting)) if waiting.line else None
    waits_for = view.companions(pod) | way.waits_for if way else set()
    meaning, fix = _meaning(each, kind, detail)
    words = {"who": who_is(pod, each), "meaning": meaning, "mends": fix, "kind": kind.lower()}
    match = fact(rule, window=f"{window_s(each, kind):.0f} s", **words)
    quotes = [detail, kills[-1].message, waiting.line]
    level = Level.WAITS if waits_for else Level.KNOWN
    key = f"{pod.top}/{each.name}"
    return cause_of(match, [pod.ref], quotes, Stage.HEALTH, level, key=key, waits_for=waits_for)


def _meaning(each: Container, kind: str, detail: str) -> tuple[str, str]:
    """What a failed probe says, and what mends it."""
    _, action, port = each.probe(kind)
    match = patterns("probe").match(detail) or fact("probe-says", said=detail[-160:])
    match = match.add(path=action.get("path"), port=port or action.get("port"))
    return match.cause[:1].lower() + match.cause[1:], match.fix


def _probe_fails(view: View, pod: Pod, each: Container, kind: str, detail: str) -> Cause:
    reading = logs.read(each.log, view.facts(pod))
    if reading.kind in ("own", "peer") and not _SERVES.search(each.log[-4000:]):
        found = from_log(view, pod, each, reading, Stage.HEALTH)
        found.evidence.append(detail)
        return found
    (meaning, fix), quotes, rule = _meaning(each, kind, detail), [detail], f"{kind.lower()}-probe"
    known = patterns("probe").match(detail) is not None and "refused" not in detail
    failed = "" if patterns("probe").match(detail) else _failed_part(each, kind, detail)
    if failed:
        quotes.append(failed)
        proxy = _no_proxy(view) if "/-/healthz" in failed else ""
        words = {"part": failed, "pod": pod.name, "container": each.name}
        part = fact("probe-part-proxy" if "/-/healthz" in failed else "probe-part", **words)
        meaning, fix, known = part.cause[:1].lower() + part.cause[1:], part.fix, True
        if proxy:
            quotes, rule = [*quotes, proxy], "serve-proxy-missing"
            meaning += (
                f" {proxy}: no Serve proxy runs on workers, and the applications run all the same"
            )
    worker = pod.kind == "worker" or pod.rank not in (None, "0")
    age = f"{view.age_s(each.started):.0f} s"
    words = {"who": who_is(pod, each), "age": age, "kind": kind.lower(), "mends": fix}
    cause = cause_of(
        fact("probe-fails", meaning=meaning, **words),
        [pod.ref],
        [*quotes, logs.last_line(each.log) if not known else ""],
        Stage.HEALTH,
        Level.KNOWN if known else Level.FAILED,
        key=f"{pod.top}/{each.name}",
        waits_for=view.companions(pod) if worker and not known else (),
    )
    cause.rule = rule
    return cause


def _failed_part(each: Container, kind: str, detail: str) -> str:
    """Of several checks joined by &&, the one that fails, by what those before it print."""
    probe, _, _ = each.probe(kind)
    command = str(((probe.get("exec") or {}).get("command") or [""])[-1])
    parts, passed = re.split(r"\s*&&\s*", command), len(re.findall("success", detail))
    return parts[passed] if len(parts) > 1 and passed < len(parts) else ""


def _no_proxy(view: View) -> str:
    """The setting of a RayService that keeps Serve's proxy off the workers."""
    for service in view.items("RayService"):
        config = str(service["spec"].get("serveConfigV2") or "")
        if place := re.search(r"proxy_location: *(?:HeadOnly|Disabled)", config):
            return place[0]
    return ""
