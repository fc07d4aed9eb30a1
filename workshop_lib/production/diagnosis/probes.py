"""Containers that run and are not ready: which probe fails, how, and whether it may still pass.

The kubelet's events: `Unhealthy` ("Readiness probe failed: ..."), `Killing` ("Container x failed
liveness probe, will be restarted"), `ProbeWarning`.
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, event_time, ref, seconds

__all__ = ["kill_time", "killed_by_probe", "not_ready", "ports_in_log",
           "starting_window_s"]  # fmt: skip

_LOADING = re.compile(
    r"Loading safetensors|Loading checkpoint shards|Starting to load model|Loading model|"
    r"Capturing (?:CUDA )?graph|torch\.compile|Downloading|Fetching \d+ files|loading weights|"
    r"Initializing a V1 LLM engine|still loading|warming up|Warmup|it/s\]|\d+%\|", re.IGNORECASE,
)  # fmt: skip
_LISTENS = re.compile(
    r"(?:running on|listening (?:on|at)|serving (?:HTTP )?on|starting .*server.* on|bound to)"
    r"(?: address| port|:)? *(?:https?://|tcp://)?(?:[\w.\[\]*-]*:|[\d.]+ port |port |)"
    r"(\d{2,5})(?![\d.])", re.IGNORECASE,
)  # fmt: skip

PATIENCE_S = 900.0
"""A server whose log shows that it loads a model is given so long."""


def _spec(pod: Json, name: str) -> Json:
    spec = pod.get("spec") or {}
    every = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    return next((each for each in every if each.get("name") == name), {})


def starting_window_s(probe: Json) -> float:
    """How long after its start a container may fail a probe before that means something.

    Example:
        >>> starting_window_s({"periodSeconds": 10, "failureThreshold": 30})
        310.0
    """
    return float(
        (probe.get("initialDelaySeconds") or 0)
        + (probe.get("periodSeconds") or 10) * (probe.get("failureThreshold") or 3)
        + (probe.get("periodSeconds") or 10)
    )


def _unhealthy(view: View, pod: Json, name: str, kind: str, since: float) -> str:
    """The last message of a failed probe of one kind, since a time."""
    found, answered = "", ""
    times = {"": 0}
    for event in view.events(pod, "Unhealthy"):
        field = str((event.get("involvedObject") or {}).get("fieldPath") or "")
        if field and f"{{{name}}}" not in field:
            continue
        message = str(event.get("message") or "")
        if message.startswith(f"{kind} probe") and event_time(event) >= since - 1:
            found = message
            times[found] = max(_times(event), times.get(found, 0))
            answered = found if "statuscode" in found else answered
    # A busy machine makes some probes late; what the server answers otherwise says more.
    late = re.search(r"deadline exceeded|timeout", found)
    return answered if late and times.get(answered, 0) > times[found] else found


def _times(event: Json) -> int:
    """How often an event was seen."""
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def killed_by_probe(view: View, pod: Json, status: Json) -> Cause | None:
    """The probe that stopped a container, when one did.

    Args:
        view: The snapshot.
        pod: The pod.
        status: The status of a container that ended or was restarted.
    """
    name = str(status.get("name"))
    kills = [
        event
        for event in view.events(pod, "Killing")
        if re.search(rf"[Cc]ontainer {re.escape(name)} failed (liveness|startup) probe",
                     str(event.get("message")))
    ]  # fmt: skip
    if not kills:
        return None
    message = str(kills[-1].get("message"))
    kind = "Startup" if "failed startup" in message else "Liveness"
    detail = _unhealthy(view, pod, name, kind, 0.0) or message
    spec = _spec(pod, name)
    probe = spec.get(f"{kind.lower()}Probe") or {}
    log = view.log(pod["metadata"]["name"], name, previous=True) or view.log(
        pod["metadata"]["name"], name
    )
    evidence = [detail] if detail == message else [detail, message]
    window = starting_window_s(probe) if probe else 0.0
    port = _wrong_port(view, pod, spec, probe, log) if "refused" in detail else None
    if port:
        return _port_cause(view, pod, name, kind, probe, port, evidence)
    if kind == "Startup" or (_LOADING.search(log) and not spec.get("startupProbe")):
        rule = "startup-probe-too-short" if kind == "Startup" else "liveness-kills-loading"
        return Cause(
            rule, f"{view.top(pod)}/{name}",
            f"The {kind.lower()} probe gives container {name} of {pod['metadata']['name']} "
            f"{window:.0f} s and then restarts it, again and again: the server needs longer to "
            "load, or never comes up.",
            evidence,
            "give it a startupProbe sized for loading (failureThreshold x periodSeconds, for "
            "example 60 x 10 s); liveness begins only after it. If the log shows an error, that "
            "comes first", Lesson.HEALTH, [ref(pod)], Depth.PROBE,
        )  # fmt: skip
    return Cause(
        "liveness-probe", f"{view.top(pod)}/{name}",
        f"The liveness probe of container {name} of {pod['metadata']['name']} fails, so Kubernetes "
        f"restarts it: {_meaning(detail)}.", evidence,
        _fix(detail, probe), Lesson.HEALTH, [ref(pod)], Depth.PROBE,
    )  # fmt: skip


def kill_time(view: View, pod: Json, status: Json) -> float:
    """When a probe last had a container stopped, as seconds since 1970; 0 when none had."""
    name = re.escape(str(status.get("name")))
    times = [
        event_time(event)
        for event in view.events(pod, "Killing")
        if re.search(rf"[Cc]ontainer {name} failed (?:liveness|startup) probe",
                     str(event.get("message")))
    ]  # fmt: skip
    return max(times, default=0.0)


def not_ready(view: View, pod: Json, status: Json) -> tuple[Cause | None, str]:
    """Why a container that runs is not ready; or, in words, that it still starts.

    Returns:
        The cause, and a note when it is too early for one.
    """
    name = str(status.get("name"))
    spec = _spec(pod, name)
    running = (status.get("state") or {}).get("running") or {}
    since = seconds(running.get("startedAt"))
    age_s = view.age_s(running.get("startedAt"))
    startup = spec.get("startupProbe")
    kind = "Startup" if startup and not status.get("started") else "Readiness"
    probe = spec.get(f"{kind.lower()}Probe") or {}
    detail = _unhealthy(view, pod, name, kind, since)
    log = view.log(pod["metadata"]["name"], name)
    window = starting_window_s(probe)
    note = (f"{ref(pod)}: container {name} still starts ({age_s:.0f} s of the {window:.0f} s that "
            f"its {kind.lower()} probe allows)")  # fmt: skip
    if not probe and not detail:
        return None, ""
    port = _wrong_port(view, pod, spec, probe, log) if "refused" in detail else None
    told = re.search(r"statuscode: 404", detail)
    if age_s <= window and not (port and log) and not told:
        return None, note
    if (
        not (port or told)
        and _LOADING.search("\n".join(log.splitlines()[-15:]))
        and (age_s < PATIENCE_S)
    ):
        return None, (f"{ref(pod)}: container {name} still loads ({age_s:.0f} s); its "
                      f"{kind.lower()} probe expected it within {window:.0f} s")  # fmt: skip
    if kind == "Startup" and age_s <= window:
        return None, note
    if port:
        return _port_cause(view, pod, name, kind, probe, port, [detail]), ""
    if not detail:
        return None, ""
    return Cause(
        f"{kind.lower()}-probe", f"{view.top(pod)}/{name}",
        f"The container {name} of {pod['metadata']['name']} has run for {age_s:.0f} s, but its "
        f"{kind.lower()} probe fails, so it gets no requests: {_meaning(detail)}.",
        [detail], _fix(detail, probe), Lesson.HEALTH, [ref(pod)], Depth.PROBE,
    ), ""  # fmt: skip


def _meaning(detail: str) -> str:
    if re.search(r"refused", detail):
        return "nobody listens on the probed port (yet, any more, or on another port)"
    if found := re.search(r"statuscode: (\d+)", detail):
        code = int(found[1])
        if code == 404:
            return "the server answers 404: it runs, and does not know the probed path"
        if code in (401, 403):
            return f"the server answers {code}: it wants credentials that a probe does not have"
        if code >= 500:
            return f"the server answers {code}: it runs, and says itself that it is not well"
        return f"the server answers {code}, and only 200 to 399 count"
    if re.search(r"no such host|lookup", detail):
        return "the probe dials a host name that does not resolve"
    if re.search(r"deadline exceeded|timed? ?out|timeout", detail, re.IGNORECASE):
        return "the server does not answer within the probe's timeoutSeconds"
    if re.search(r"server gave HTTP response to HTTPS client|malformed HTTP", detail):
        return "probe and server do not speak the same protocol (http against https)"
    if re.search(r"executable file not found|no such file", detail):
        return "the probe's command does not exist in the image"
    if re.search(r"reset by peer|EOF", detail):
        return "the server closes the connection: it crashes or is overloaded"
    return "the probe's check says no"


def _fix(detail: str, probe: Json) -> str:
    action = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
    port = action.get("port", "the probed port")
    if "statuscode: 404" in detail:
        return f"correct the probe's path {action.get('path', '/')} (vLLM and Ray Serve: /health " \
               "and /-/healthz)"  # fmt: skip
    if "refused" in detail:
        return (f"compare port {port} of the probe with the port that the server listens on (its "
                "log, its --port); a server must listen on 0.0.0.0, not on 127.0.0.1")  # fmt: skip
    if re.search(r"deadline exceeded|timed? ?out|timeout", detail, re.IGNORECASE):
        return "raise timeoutSeconds of the probe; a busy server answers late (kubectl logs)"
    return "kubectl logs says what the server does; try the check by hand: kubectl exec"


def _wrong_port(view: View, pod: Json, spec: Json, probe: Json, log: str) -> int | None:
    """The port that the server listens on, when it is not the one that is probed."""
    action = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
    probed = _number(spec, action.get("port"))
    if probed is None:
        return None
    told = ports_in_log(pod, log)
    if told:
        return None if probed in told else told[-1]
    words = " ".join([*(spec.get("command") or []), *(spec.get("args") or [])])
    asked = [int(each) for each in re.findall(r"--(?:\w+-)?port[= ](\d{2,5})", words)]
    asked += [int(each) for each in re.findall(r"http\.server (\d{2,5})", words)]
    if asked and probed not in asked:
        return asked[-1]
    declared = [p.get("containerPort") for p in spec.get("ports") or []]
    if declared and probed not in declared and not asked:
        return int(declared[0])
    return None


def ports_in_log(pod: Json, log: str) -> list[int]:
    """The ports that a server says in its log it listens on.

    Args:
        pod: Its pod.
        log: What it wrote.
    """
    # On this machine every pod's ports have been given other numbers.
    local = (pod.get("spec") or {}).get("nodeName") == "this-machine"
    return [] if local else [int(each) for each in _LISTENS.findall(log)]


def _number(spec: Json, port: object) -> int | None:
    if isinstance(port, int):
        return port
    for each in spec.get("ports") or []:
        if each.get("name") == port:
            return int(each["containerPort"])
    return int(port) if isinstance(port, str) and port.isdigit() else None


def _port_cause(view: View, pod: Json, name: str, kind: str, probe: Json, port: int,
                evidence: list[str]) -> Cause:  # fmt: skip
    action = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
    return Cause(
        "probe-wrong-port", f"{view.top(pod)}/{name}",
        f"The {kind.lower()} probe of container {name} asks port {action.get('port')}, and the "
        f"server listens on port {port}.", evidence,
        f"set the probe's port to {port}, or let the server listen on {action.get('port')}",
        Lesson.HEALTH, [ref(pod)], Depth.PROBE,
    )  # fmt: skip
