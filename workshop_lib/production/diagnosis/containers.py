"""Containers that ended, restart, or run and hang: exit codes read together with logs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.dialled import dialled, dialled_near, service_named, targets
from workshop_lib.production.diagnosis.isolation import BLOCKED, by_policy, isolating
from workshop_lib.production.diagnosis.logs import Match, Sign, first_error, last_words, search
from workshop_lib.production.diagnosis.nodes import gpu_broken
from workshop_lib.production.diagnosis.signs_general import CONNECTION_SIGNS, PROGRAM_SIGNS
from workshop_lib.production.diagnosis.signs_gpu import GPU_SIGNS, NETWORK_SIGNS
from workshop_lib.production.diagnosis.signs_ray import RAY_DEATHS, RAY_SIGNS
from workshop_lib.production.diagnosis.signs_training import TRAINING_SIGNS
from workshop_lib.production.diagnosis.signs_vllm import MODEL_SIGNS, VLLM_SIGNS
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref

__all__ = ["ALL_SIGNS", "crash", "log_cause", "logs_of_end", "stall"]

CERTIFICATE = tuple(sign for sign in PROGRAM_SIGNS if sign.rule in ("certificate", "proxy"))
"""Before all that failed for want of trust, or of a way out."""

ALL_SIGNS: tuple[Sign, ...] = (
    *CERTIFICATE, *GPU_SIGNS, *VLLM_SIGNS, *RAY_SIGNS, *NETWORK_SIGNS, *PROGRAM_SIGNS[:5],
    *CONNECTION_SIGNS, *PROGRAM_SIGNS[5:], *TRAINING_SIGNS, *MODEL_SIGNS, *RAY_DEATHS,
)  # fmt: skip

_STANDALONE = ("nccl-over-tcp",)
"""Signs that only count when the pod was given EFA devices."""


_SLOW_START = tuple(sign for sign in RAY_SIGNS if sign.rule == "ray-registration-timeout")
"""What a server that got ready may have said, too: it counts only in one that did not."""

_OF_GPUS = frozenset({"gpu-not-visible", "gpu-fault", "gpu-driver", "cuda-illegal-access"})
"""Signs that follow from a broken GPU of the node, when something says that there is one."""

_ABOUT_OTHERS = frozenset({
    "ray-head-unreachable", "ray-token", "ray-infeasible", "nccl-timeout", "nccl-init",
    "rendezvous-timeout", "ray-out-of-memory",
})  # fmt: skip
"""Signs that may follow from the trouble of a pod that works together with this one."""


def who_is(pod: Json, name: str, *, init: bool = False) -> str:
    """A container in words."""
    return f"{'init container' if init else 'container'} {name} of {pod['metadata']['name']}"


def logs_of_end(view: View, pod: Json, status: Json) -> str:
    """What a container wrote in the run that ended: the previous run when another one runs now."""
    name, container = pod["metadata"]["name"], str(status.get("name"))
    now = view.log(name, container)
    before = view.log(name, container, previous=True)
    state = status.get("state") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    said = str(ended.get("message") or "")
    text = (before or now) if "running" in state and before else (now or before)
    return f"{text}\n{said}" if said and said not in text else text


def log_cause(view: View, pod: Json, name: str, match: Match, depth: Depth, *,
              init: bool = False) -> Cause:  # fmt: skip
    """A cause from a line of a log."""
    sign = match.sign
    host, port = dialled(match.line) if sign.target else ("", 0)
    if sign.target and match.groups.get("host"):
        named = str(match.groups["host"])
        host, _, number = named.partition(":")
        port = int(number) if number.isdigit() else port
    if sign.target and not host:
        host, port = dialled_near(match.near)
    shown = f"{host}:{port}" if host and port else host or "a server"
    waits_for = targets(view, host) if host else set()
    waits_for.discard(ref(pod))
    if sign.rule in _ABOUT_OTHERS or sign.vague:
        waits_for |= {*companions(view, pod), *view.owners(pod)}
    node = (pod.get("spec") or {}).get("nodeName")
    if sign.rule in _OF_GPUS and gpu_broken(view, view.find("Node", node)):
        waits_for.add(f"Node/{node}")
    words = {"who": who_is(pod, name, init=init)}
    cause = match.text(sign.cause, **{**words, "host": shown})
    cause = cause[0].upper() + cause[1:]
    fix = match.text(sign.fix, **{**words, "host": shown})
    found = Cause(
        sign.rule, f"{view.top(pod)}/{host}", cause, [match.line], fix, sign.taught_in,
        [ref(pod)], depth, waits_for=waits_for, vague=sign.vague,
    )  # fmt: skip
    if found.rule in BLOCKED and (policies := isolating(view, pod, found.rule, host, port)):
        return by_policy(found, policies, shown)
    return _by_service(view, pod, found, host, port) if host else found


def companions(view: View, pod: Json) -> set[str]:
    """The pods that work together with one: of its Ray cluster or Job."""
    labels = pod["metadata"].get("labels") or {}
    cluster = labels.get("ray.io/cluster")
    same = [p for p in view.pods if cluster
            and (p["metadata"].get("labels") or {}).get("ray.io/cluster") == cluster]  # fmt: skip
    same += view.pods_of(view.top(pod))
    return {ref(each) for each in same} - {ref(pod)}


def _by_service(view: View, pod: Json, found: Cause, host: str, port: int) -> Cause:
    """The same, said more exactly when the Services show what is wrong with the address."""
    service, behind = service_named(view, host)
    inside = "." not in host or host.endswith((".svc", ".local")) or ".svc." in host
    name = host.split(".")[0]
    if found.rule == "name-not-resolved":
        if service is None:
            if inside and view.knows("services"):
                known = [s["metadata"]["name"] for s in view.items("services")]
                found.rule = "service-name-unknown"
                found.cause = f"The pod dials {host!r}, and there is no Service of that name" + (
                    f"; there are: {', '.join(sorted(known)[:6])}." if known else "."
                )
                found.fix = f"correct the name, or apply the Service {name} that brings it"
                found.key = host
            return found
        spec = service.get("spec") or {}
        hidden = spec.get("clusterIP") == "None" and not spec.get("publishNotReadyAddresses")
        ready = any(conditions(p).get("Ready", {}).get("status") == "True" for p in behind)
        if hidden and "." in host and not ready:
            found.rule, found.key = "headless-not-published", ref(service)
            found.objects.insert(0, ref(service))
            found.cause = (
                f"The headless Service {service['metadata']['name']!r} gives a pod's name only "
                "when the pod is ready, and the pods need each other's names to get ready."
            )
            found.fix = (
                f"set spec.publishNotReadyAddresses: true in Service {service['metadata']['name']}"
            )
            found.taught_in = Lesson.RAY_JOB
            found.waits_for.discard(ref(service))
        return found
    if service is not None and port:
        ports = [p.get("port") for p in (service.get("spec") or {}).get("ports") or []]
        headless = (service.get("spec") or {}).get("clusterIP") == "None"
        if ports and port not in ports and not headless:
            found.rule, found.key = "service-port", f"{ref(service)}:{port}"
            found.objects.insert(0, ref(service))
            found.cause = (
                f"The pod dials port {port} of the Service {service['metadata']['name']!r}, which "
                f"has only port {', '.join(map(str, ports))}."
            )
            found.fix = f"dial port {ports[0]}, or add a port {port} to the Service"
            found.taught_in = Lesson.VLLM_DEPLOY
    return found


# Exit code to rule, what it means, what mends it, where it is taught.
_CODES: dict[int, tuple[str, str, str, str]] = {
    126: ("command-not-allowed", "the command was found and could not be executed",
          "chmod +x it, or call it through its interpreter: command: [bash, script.sh]",
          Lesson.WHEN),
    127: ("command-not-found", "the command, or one that its script calls, does not exist in the "
          "image", "correct command: and the image", Lesson.WHEN),
    132: ("illegal-instruction", "the program uses instructions that this processor does not have",
          "use a build for this processor, or another node", Lesson.VLLM_WHEN),
    134: ("aborted", "the program gave itself up (SIGABRT): a failed assertion in native code",
          "read the lines before its end", Lesson.WHEN),
    135: ("shm-too-small", "the program touched memory that could not be had (SIGBUS): nearly "
          "always a full /dev/shm", "mount an emptyDir with medium: Memory at /dev/shm",
          Lesson.RAY_JOB),
    137: ("killed", "the program was killed (SIGKILL), and Kubernetes names no memory limit: a "
          "probe, a grace period that ran out, or the kernel for the whole node's memory",
          "kubectl describe pod shows Killing events; dmesg on the node shows an OOM kill",
          Lesson.HEALTH),
    139: ("segfault", "the program crashed in native code (SIGSEGV): often packages or a driver "
          "that do not fit together",
          "compare the versions of torch, CUDA and driver; try a stock image", Lesson.VLLM_WHEN),
    143: ("terminated", "the program was told to stop (SIGTERM)",
          "kubectl get events shows who: a probe, a drain, a deleted or scaled-down owner",
          Lesson.HEALTH),
}  # fmt: skip


def crash(view: View, pod: Json, status: Json, *, init: bool = False) -> Cause | None:
    """Why a container ended: memory limit first, then its log, then its exit code.

    Args:
        view: The snapshot.
        pod: The pod.
        status: The status of a container that ended, or waits to be started again.
        init: It is an init container.
    """
    state, last = status.get("state") or {}, status.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    name = str(status.get("name"))
    who = who_is(pod, name, init=init)
    text = logs_of_end(view, pod, status)
    reason, code = str(ended.get("reason") or ""), int(ended.get("exitCode") or 0)
    match = search(text, ALL_SIGNS)
    if match and match.sign.rule in _STANDALONE and not _has_efa(pod):
        match = None
    if reason == "OOMKilled":
        if match and match.sign.rule == "ray-out-of-memory":
            return log_cause(view, pod, name, match, Depth.CRASH, init=init)
        return _oom(view, pod, name, who, text)
    if code == 143 and match is not None and match.sign.running:
        match = None  # it was told to stop while it waited: why it was stopped comes first
    if match and not (match.sign.vague and code in (137, 139)):
        found = log_cause(view, pod, name, match, Depth.CRASH, init=init)
        return _with_root(found, text) if match.sign.vague else found
    if not code and reason in ("", "Completed"):
        return _ends_well(view, pod, name, who, text)
    if code in _CODES:
        rule, text_of_code, fix, lesson = _CODES[code]
        words = last_words(text)
        return Cause(
            rule, f"{view.top(pod)}/{name}", f"The {who} ends with exit code {code}: "
            f"{text_of_code}.", [words or reason or str(code)], fix, lesson, [ref(pod)],
            Depth.CRASH, vague=code in (137, 143),
            waits_for={*view.owners(pod), *(companions(view, pod) if code == 143 else ())},
        )  # fmt: skip
    words = last_words(text)
    said = f"its last words: {words}" if words else "it wrote nothing that was kept"
    key = f"{view.top(pod)}/{name}/" + re.sub(r"[\d.:x]+", "#", words)[:80]
    return Cause(
        "container-exit", key, f"The {who} ends with exit code {code}; {said}",
        [words or reason or "Error"],
        f"kubectl logs {pod['metadata']['name']} -c {name} --previous; the first error in it is "
        "the cause", Lesson.WHEN, [ref(pod)], Depth.CRASH,
        waits_for={*companions(view, pod), *view.owners(pod)}, vague=True,
    )  # fmt: skip


_CONSEQUENCE = re.compile("|".join(s.pattern for s in (*MODEL_SIGNS, *RAY_DEATHS)), re.IGNORECASE)


def _with_root(found: Cause, text: str) -> Cause:
    """A cause that only says what died, with the first error of the log, or its last words."""
    if words := first_error(text, _CONSEQUENCE):
        found.cause += f" The first error in its log: {words}"
        found.evidence.insert(0, words)
    elif (words := last_words(text)) and words not in found.evidence:
        found.evidence.append(words)
    return found


def _oom(view: View, pod: Json, name: str, who: str, text: str) -> Cause:
    limits: Json = next(
        (c.get("resources", {}).get("limits", {}) for c in _specs(pod) if c.get("name") == name), {}
    )
    limit = limits.get("memory")
    bound = f"its memory limit of {limit}" if limit else "the memory of its node"
    evidence = ["OOMKilled"]
    if (words := last_words(text)) and re.search(r"[Kk]illed|memory", words):
        evidence.append(words)
    return Cause(
        "oom-killed", f"{view.top(pod)}/{name}",
        f"The kernel killed {who}, because it used more than {bound} (main memory, not the GPU's).",
        evidence,
        "raise resources.limits.memory (kubectl top pod shows the use), or let it need less: "
        "smaller batches, fewer workers, a smaller /dev/shm (a memory-backed volume counts)",
        Lesson.VLLM_MEMORY, [ref(pod)], Depth.CRASH,
    )  # fmt: skip


def _ends_well(view: View, pod: Json, name: str, who: str, text: str) -> Cause | None:
    if (pod.get("spec") or {}).get("restartPolicy", "Always") != "Always":
        return None
    return Cause(
        "container-completes", f"{view.top(pod)}/{name}",
        f"The {who} ends by itself, without an error, and is started again and again: its command "
        "is done at once, and a Deployment's pods must never be.",
        [last_words(text) or "Completed"],
        "run a command that stays in the foreground (ray start --block, a server), or use a Job",
        Lesson.RAY_JOB, [ref(pod)], Depth.CRASH,
    )  # fmt: skip


def _specs(pod: Json) -> Iterator[Json]:
    spec = pod.get("spec") or {}
    yield from spec.get("initContainers") or []
    yield from spec.get("containers") or []


def _has_efa(pod: Json) -> bool:
    return any(
        "efa" in resource
        for each in _specs(pod)
        for resource in (each.get("resources") or {}).get("limits") or {}
    )


_GOT_OVER = re.compile(
    r"\b(?:connected|reconnected|succeeded|established|is (?:now )?(?:ready|up|reachable)|"
    r"serving|started|startup complete|joined|resumed|recovered)\b|\b200 OK\b|listening on|"
    r"running on http", re.IGNORECASE,
)  # fmt: skip
"""What a log says when a server that did not answer does."""


def stall(view: View, pod: Json, status: Json, depth: Depth = Depth.STALL, *,
          init: bool = False) -> Cause | None:  # fmt: skip
    """Why a container that runs makes no progress, when the end of its log says so."""
    name = str(status.get("name"))
    text = view.log(pod["metadata"]["name"], name)
    if not text:
        return None
    match = search(text, NETWORK_SIGNS) if _has_efa(pod) else None
    if match and match.sign.rule in _STANDALONE:
        return log_cause(view, pod, name, match, Depth.APPLICATION, init=init)
    # What a server that is ready says last is how it is; what came before it has got over.
    ready = bool(status.get("ready"))
    match = search(text, ALL_SIGNS, running=True, last=10 if ready else 40)
    if match and ready and match.sign in CONNECTION_SIGNS:
        match = search(text, CONNECTION_SIGNS, running=True, last=3)
    if match and match.sign in CONNECTION_SIGNS and any(map(_GOT_OVER.search, match.after)):
        return None
    if match and match.sign.vague and (root := search(text, ALL_SIGNS)) and not root.sign.vague:
        match = root  # what died has said why, further up
    if match is None and not ready:
        match = search(text, _SLOW_START, last=40)
    if match is None:
        return None
    found = log_cause(view, pod, name, match, depth, init=init)
    return _with_root(found, text) if match.sign.vague else found
