"""Why a container ended or does not go on: what its log says, joined with other facts."""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis import logs
from workshop_lib.production.diagnosis.cause import Cause, Level, Stage, cause_of
from workshop_lib.production.diagnosis.network import dialled, the_way
from workshop_lib.production.diagnosis.patterns import Match, fact, patterns
from workshop_lib.production.diagnosis.view import Container, Pod, View

__all__ = ["crash", "from_log", "host_of", "level_of", "who_is"]

_ADDRESSES = ("FQ_RAY_IP", "RAY_IP", "HEAD_ADDRESS", "RAY_ADDRESS", "MASTER_ADDR")
"""Variables that name the head, where a log only says that it waits."""
_TRIVIAL = ("true", "false", "token", "0.0.0.0", "localhost", "127.0.0.1")


def who_is(pod: Pod, container: Container) -> str:
    """A container in words."""
    return f"{'init ' * container.init}container {container.name} of {pod.name}{pod.role}"


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
    level = level_of(reading, each.running)
    follows = reading.kind == "consequence"
    quotes = [*quotes[1:], *quotes[:1]] if follows else quotes
    about_another = reading.kind == "peer" or reading.waits
    resolves = bool(reading.match and reading.match.rule == "name-not-resolved")
    way = the_way(view, pod, host if about_another else "", port, name_fails=resolves)
    waits_for = way.waits_for | (view.companions(pod) if level >= Level.NOTICED else set())
    if reading.match and reading.match.rule.startswith(("gpu", "cuda", "nccl")):
        waits_for.add(f"Node/{pod.node}")  # a fault of its GPU explains them all
    match = way.wrong or reading.match or _unknown(view, pod, each, reading.waits, way.checked)
    if match.rule == "ray-infeasible" and (missing := _not_offered(view, pod, quotes)):
        match, level = missing, Level.KNOWN
    shown, facts = f"{host}:{port}" if host and port else host, view.facts(pod)
    match = match.add(
        **{"who": f"the {who_is(pod, each)}", "line": reading.line, "host": host, "pod": pod.name},
        **{"at_host": shown and f" at {shown}", "host_named": shown and f": {shown}"},
        **{"host_or_server": shown or "a server", "host_or_something": shown or "something"},
        **{"first": f" The first error in its log: {quotes[0]}" if follows and quotes[1:] else ""},
    )
    shape = re.sub(r"[\d.:x]+", "#", reading.line)[:80] if reading.match is None else ""
    key = way.objects[0] if way.objects else f"{pod.top}/{each.name}/{host}/{shape * (not host)}"
    cause = cause_of(
        Match(match.pattern, match.groups, facts),
        [*way.objects, pod.ref],
        [*quotes, *_origins(pod, quotes)] or [str(each.ended.get("reason") or "no log")],
        Stage.HEALTH if way.wrong else stage,
        Level.KNOWN if way.wrong else level,
        key=key,
        waits_for=() if way.wrong else waits_for,
        since=each.ended_at,
    )
    if way.checked and reading.match and not way.wrong:
        words = {"who": f"the {who_is(pod, each)}", "pod": pod.name, "host": host, "shown": shown}
        known = fact("peer-though-well", checked=way.checked, **words)
        cause.cause, cause.fix = known.cause, known.fix
    return cause


def _unknown(view: View, pod: Pod, each: Container, waits: bool, checked: str) -> Match:
    """What is said of a container when no pattern knows its line."""
    name = pod.name if len(pod.containers) == 1 else f"{pod.name} -c {each.name}"
    before = " --previous" if each.running and each.restarts else ""
    words = {"logs": f"kubectl logs {name}{before}", "age": f"{view.age_s(each.started):.0f} s"}
    if waits:
        known = f" Not known yet why: {checked}." if checked else ""
        rule = "waits-though-well" if checked else "init-waiting" if each.init else "waits-for-peer"
        return fact(rule, known=known, **words)
    code = each.ended.get("exitCode")
    ends = f"ends with exit code {code}" if code is not None else "fails"
    return fact(
        "container-exit" if each.last_run.strip() else "container-exit-silent", ends=ends, **words
    )


def _origins(pod: Pod, quotes: list[str]) -> list[str]:
    """The pod's environment variables whose value a quote repeats: where it comes from."""
    text = "\n".join(quotes)
    every = [(name, value) for each in pod.containers for name, value in each.env.items()]
    telling = [(n, v) for n, v in every if len(v) > 3 and not v.isdigit() and v not in _TRIVIAL]
    found = [f"env {n}={v}" for n, v in telling if v in text and n not in text]
    return list(dict.fromkeys(found))[:2]


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


def crash(view: View, pod: Pod, each: Container) -> Cause:
    """Why a container ended: its memory limit, its log, its exit code."""
    code, who, text = int(each.ended.get("exitCode") or 0), who_is(pod, each), each.last_run
    reading, key = logs.read(text, view.facts(pod)), f"{pod.top}/{each.name}"
    by_ray = reading.match is not None and reading.match.rule == "ray-out-of-memory"
    if each.ended.get("reason") == "OOMKilled" and not by_ray:
        limit = each.limits.get("memory")
        bound = f"its memory limit of {limit}" if limit else "the memory of its node"
        match, quotes = (
            fact("oom-killed", who=who, bound=bound),
            ["OOMKilled", logs.last_line(text)],
        )
        return cause_of(match, [pod.ref], quotes, Stage.START, key=key, since=each.ended_at)
    stopped_from_outside = code in (137, 143)
    exits = patterns("exit").match(str(code))
    raised = re.search(r"Error|Exception", reading.line) and reading.kind in ("own", "unknown")
    telling = (
        reading.kind == "own" or (reading.kind == "peer" and not stopped_from_outside) or raised
    )
    if exits is None or telling:
        return from_log(view, pod, each, reading, Stage.START)
    killers = ("Killing", "Preempted", "TaintManagerEviction")
    by = [event.message for event in view.events(pod.ref, *killers)]
    level = Level.NOTICED if stopped_from_outside else Level.KNOWN
    waits_for = view.companions(pod) | set(pod.owners) if stopped_from_outside else set()
    cause = cause_of(
        exits,
        [pod.ref],
        [logs.last_line(text) or str(code), *by[-1:]],
        Stage.START,
        level,
        key=key,
        waits_for=waits_for,
        since=each.ended_at,
    )
    cause.cause = f"The {who} ended with exit code {code}: {cause.cause}."
    return cause
