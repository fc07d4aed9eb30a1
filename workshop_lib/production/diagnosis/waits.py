"""Containers that wait for somebody who does not come: by their last line, or by their command.

A loop such as `until nslookup ray-head; do sleep 2; done` may print nothing, so the command
is read, too.
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.containers import companions, who_is
from workshop_lib.production.diagnosis.dialled import dialled, service_named, targets
from workshop_lib.production.diagnosis.logs import repeated_line, shown
from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["wait_cause"]

_WAITS = re.compile(r"\bwait(?:s|ing|ed)?\b|\bretry|\btrying\b|not (?:yet )?(?:ready|reachable|up)"
                    r"\b|unreachable|still no", re.IGNORECASE)  # fmt: skip
_IDLE = re.compile(r"request|connections?\b|\bjobs?\b|\bwork\b|event|message|task|signal|ctrl",
                   re.IGNORECASE)  # fmt: skip
_NCCL = re.compile(
    r"NCCL INFO (?!.*(?:Init COMPLETE|Connected all|Launch mode|Abort|Destroy|"
    r"opCount))"
)
_LOOP = re.compile(r"\b(?:until|while)\b")
_NAMES = re.compile(
    r"(?:nslookup|getent hosts|host|dig|ping(?: -\w+ ?\d*)*|nc(?: -\w+)*|curl(?: -\w+)*|"
    r"wget(?: -\w+)*|/dev/tcp/|https?://)[ ]*(?:https?://)?(?P<host>[a-zA-Z][\w-]*(?:\.[\w-]+)*)"
)
_FOR = re.compile(r"(?:for|at|to|on) (?:the )?(?:\w+ at )?(?P<host>[a-z0-9][\w-]*(?:\.[\w-]+)*)")

SOON_S, NCCL_S = 45.0, 45.0


def wait_cause(view: View, pod: Json, spec: Json, age_s: float, *, init: bool = False,
               ready: bool = False) -> Cause | None:  # fmt: skip
    """Why a container that runs only waits; None when it does not, or not for long.

    Args:
        view: The snapshot.
        pod: The pod.
        spec: The container's spec.
        age_s: How long it has run, seconds.
        init: It is an init container.
        ready: The pod is ready: then only who waits for what is not there is at fault.
    """
    name = str(spec.get("name"))
    who = who_is(pod, name, init=init)
    text = view.log(pod["metadata"]["name"], name)
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if age_s >= NCCL_S and _NCCL.search(last):
        return Cause(
            "nccl-hang", view.top(pod),
            f"NCCL has begun to connect the GPUs and does not come to its end: nothing follows "
            f"this line in the log of {who}, though it has run for {age_s:.0f} s.",
            [shown(last)],
            "do all ranks run? Can they reach each other: EFA's security group must name itself "
            "for ingress and egress; tx counters that rise without rx say that it does not; try "
            "NCCL_DEBUG=INFO and fi_pingpong", Lesson.GRPO_WHEN, [ref(pod)], Depth.STALL,
            waits_for=companions(view, pod),
        )  # fmt: skip
    if age_s < SOON_S:
        return None
    words = " ".join([*(spec.get("command") or []), *(spec.get("args") or [])])
    loop = _LOOP.search(words) if init else None
    says = _WAITS.search(last) and not (_IDLE.search(last) and not init)
    if not (says or loop):
        return None
    host = _host(view, last) if says else ""
    if not host and loop:
        found = _NAMES.search(words[loop.start() :])
        host = found["host"] if found else ""
    quote = [shown(last)] if last else [host or name]
    if host:
        service, _ = service_named(view, host)
        outside = "." in host and not (".svc" in host or view.find("Service", host.split(".")[-1])
                                       or host.count(".") == 1)  # fmt: skip
        if (
            service is None
            and view.knows("services")
            and not outside
            and (not re.fullmatch(r"[\d.]+", host))
        ):
            known = [s["metadata"]["name"] for s in view.items("services")]
            there = f"; there are: {', '.join(sorted(known)[:6])}" if known else ""
            return Cause(
                "service-name-unknown", host,
                f"The {who} waits for {host!r}, and there is no Service of that name{there}.",
                quote, f"correct the name, or apply the Service {host.split('.')[-1]} that brings "
                "it", Lesson.RAY_WHEN, [ref(pod)], Depth.STALL, waits_for=companions(view, pod),
            )  # fmt: skip
    if ready or not (loop or repeated_line(text) or age_s > 120):
        return None
    return Cause(
        "init-waiting" if init else "waits-for-peer", f"{view.top(pod)}/{host or name}",
        f"The {who} has run for {age_s:.0f} s and waits for {host or 'something'} that does not "
        "come" + ("; until it ends, the pod's containers do not start." if init else "."),
        quote, f"kubectl logs {pod['metadata']['name']} -c {name} says what it waits for; see "
        "whether that runs, and is reached under this name and port", Lesson.RAY_WHEN, [ref(pod)],
        Depth.STALL, waits_for=(targets(view, host) if host else set()) | companions(view, pod),
        vague=True,
    )  # fmt: skip


def _host(view: View, line: str) -> str:
    """The host that a line waits for, when it names one."""
    host, _ = dialled(line)
    if host:
        return host
    found = _FOR.search(line)
    host = found["host"] if found else ""
    # A plain word is a host only when it is a Service's name or has a dot or dash in it.
    return host if view.find("Service", host) or re.search(r"[.-]", host) else ""
