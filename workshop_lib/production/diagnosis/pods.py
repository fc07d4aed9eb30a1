"""One pod, as a person looks at it: node, scheduling, volumes, image, start, health.

The first step that fails is the cause; the later ones are its consequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.cluster.kube import conditions, is_true
from workshop_lib.production.diagnosis import containers, logs
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.network import the_way
from workshop_lib.production.diagnosis.patterns import apply_claim, fact, patterns
from workshop_lib.production.diagnosis.scheduling import unscheduled
from workshop_lib.production.diagnosis.view import Container, Pod, View, is_on

__all__ = ["pod_causes"]

IMAGE_REASONS = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
PREPARES = (
    *("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox"),
    *("NetworkNotReady", "FailedPrepareDynamicResources", "FailedCreatePodContainer"),
)
CREATING_S, PULLING_S, INIT_S, WAITS_S = 180.0, 1800.0, 900.0, 40.0
"""How long it takes at most to make a container, to pull an image, to run an init container, and
how long one waits for another pod before that means something."""


def pod_causes(view: View, report: Report, pod: Pod) -> Iterator[Cause]:
    """Why a pod does not do its work; nothing when it does, or may still come to it."""
    if pod.deleted:
        grace = float(pod.body["metadata"].get("deletionGracePeriodSeconds") or 30)
        if view.age_s(pod.deleted) <= grace + 60:
            report.starts([pod.ref], f"{pod.ref}: is being deleted")
        elif not pod.over:
            match, held = fact("pod-terminating", pod=pod.name), pod.body["metadata"]
            held = f"finalizers: {held['finalizers']}" if held.get("finalizers") else "Terminating"
            node = {f"Node/{pod.node}"}
            yield cause_of(match, [pod.ref], [held], Stage.NODE, Level.FAILED, waits_for=node)
    elif pod.phase == "Succeeded":
        for each in pod.containers:
            yield from containers.former_head(view, pod, each)
    else:
        steps = (_disrupted, _lost_node, unscheduled, _unprepared, _containers)
        yield from next((found for step in steps if (found := list(step(view, report, pod)))), [])


def _replaced(view: View, pod: Pod) -> bool:
    """Whether its controller has what it wants without it: a retry worked, another pod serves."""
    for owner in pod.owners:
        body = view.get(owner)
        if body and is_on(conditions(body), "Complete"):
            return True
        mates = [p for p in view.pods_of(owner) if p is not pod and p.rank == pod.rank]
        if any((p.ready or p.phase == "Succeeded") and p.made >= pod.made for p in mates):
            return True
    return False


def _disrupted(view: View, _: Report, pod: Pod) -> Iterator[Cause]:
    """A pod that somebody ended: the kubelet, the scheduler, a drain."""
    target = pod.conditions.get("DisruptionTarget", {})
    reason, message = str(pod.status.get("reason") or ""), str(pod.status.get("message") or "")
    said = (message or str(target.get("message") or "")).strip()
    text = f"{reason} {said} {target.get('reason') or ''}".strip()
    if match := patterns("disruption").match(text) if pod.over and text else None:
        match = match.add(pod=pod.name, node=pod.node or "?", message=said or text)
        key, quote = f"{pod.top}/{match.rule}", f"{reason}: {said}".strip(": ")
        past = _replaced(view, pod)
        yield cause_of(match, [pod.ref], [quote or text], Stage.NODE, key=key, past=past)


def _lost_node(view: View, _: Report, pod: Pod) -> Iterator[Cause]:
    """A pod whose node is not ready; its own event says so where nodes may not be listed."""
    told, main = view.events(pod.ref, "NodeNotReady"), [c for c in pod.containers if not c.init]
    well = bool(main) and all(each.ready for each in main)
    lost = (told and well) or pod.status.get("reason") == "NodeLost"
    node = view.find("Node", pod.node)
    if pod.over or pod.ready or not lost or (node and not is_true(node, "Ready")):
        return  # of a node that is in the snapshot, the node itself says more
    said = told[-1].message if told else str(pod.status.get("message") or "NodeLost")
    unread = "" if view.read("Node") else " (this snapshot may not list nodes, to say more)"
    match = fact("node-not-ready", pod=pod.name, node=pod.node, unread=unread)
    yield cause_of(match, [f"Node/{pod.node}", pod.ref], [f"NodeNotReady: {said}"], Stage.NODE)


def _unprepared(view: View, report: Report, pod: Pod) -> Iterator[Cause]:
    early = (None, "ContainerCreating", "PodInitializing")
    begun = any(
        c.ended or c.running or c.waiting.get("reason") not in early for c in pod.containers
    )
    if pod.over or begun or not pod.node:
        return
    age_s = view.age_s(pod.began)
    events = [e for e in view.events(pod.ref, *PREPARES) if "failed to sync" not in e.message]
    said = [(e.reason, e.message) for e in events]
    said = [each for each in said if "Unable to attach or mount" not in each[1]] or said
    if not said:
        slow = [e.reason for e in view.events(pod.ref, "Pulling", "Pulled")][-1:] == ["Pulling"]
        if age_s <= (PULLING_S if slow else CREATING_S):
            doing = "pulls an image" if slow else "is being made"
            report.starts([pod.ref], f"{pod.ref}: {doing} ({age_s:.0f} s)")
        return
    reason, message = said[-1]
    sandbox = reason in ("FailedCreatePodSandBox", "NetworkNotReady")
    match = None if sandbox else patterns("start").match(message, view.facts(pod))
    match = match or patterns("event").match(f"{reason} {message}")
    level = Level.KNOWN if match else Level.FAILED
    match = match or fact("sandbox" if sandbox else "volume-mount", message=message[-300:])
    match = match.add(pod=pod.name, who=pod.name, **_volume_words(pod, message))
    match = match.add(apply_claim=apply_claim(match.groups.get("name", "")))
    key = match.about or pod.top
    yield cause_of(match, [pod.ref], [message], Stage.VOLUMES, level, key=key)


def _volume_words(pod: Pod, message: str) -> dict[str, str]:
    """What a volume of the pod is made of, for a message that names the volume only."""
    found = re.search(r'volume "([^"]+)"', message)
    words = {"volume": found[1]} if found else {}
    for volume in pod.volumes:
        if words and volume.get("name") == words["volume"]:
            sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
            parts = [s[kind] for s in sources for kind in ("configMap", "secret") if kind in s]
            words["name"] = ", ".join(str(p.get("name") or p.get("secretName")) for p in parts)
    return words


def _containers(view: View, report: Report, pod: Pod) -> Iterator[Cause]:
    if pod.over and _replaced(view, pod):
        report.starts([], f"{pod.ref}: failed, and another pod did its work")
        report.done.add(pod.ref)
        return
    for each in pod.containers:
        found = list(_container(view, report, pod, each))
        yield from found
        if (each.init and not each.sidecar and each.running) or (each.init and found):
            return  # the others only start when this one has done its part


def _container(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    reason, ended = str(each.waiting.get("reason") or ""), str(each.ended.get("reason") or "")
    refused = reason not in ("", "ContainerCreating", "PodInitializing", "CrashLoopBackOff")
    if reason in IMAGE_REASONS:
        yield _image(view, pod, each, reason)
    elif refused or (ended in ("StartError", "ContainerCannotRun") and not each.running):
        if "failed to sync" not in str(each.waiting.get("message")):
            yield _not_started(view, pod, each, reason)
    elif each.running and each.init and not each.sidecar:
        yield from _init(view, report, pod, each)
    elif each.running:
        yield from containers.runs(view, report, pod, each)
    elif each.ended and (each.ended.get("exitCode") or ended in ("OOMKilled", "Error")):
        if view.events(pod.ref, "FailedPostStartHook"):
            yield _not_started(view, pod, each, "PostStartHookError")
        else:
            yield containers.why_ended(view, pod, each)
    elif each.ended and not each.init and pod.spec.get("restartPolicy", "Always") == "Always":
        match = fact("container-completes", who=containers.who_is(pod, each))
        quotes = [logs.last_line(each.last_run) or "Completed"]
        yield cause_of(match, [pod.ref], quotes, Stage.START, key=f"{pod.top}/{each.name}")
    elif not each.ended and not pod.over and not each.init and view.age_s(pod.began) <= CREATING_S:
        report.starts([pod.ref], f"{pod.ref}: container {each.name} is being made")


def _image(view: View, pod: Pod, each: Container, reason: str) -> Cause:
    image, message = str(each.spec.get("image") or ""), str(each.waiting.get("message") or "")
    events = [e.message for e in view.events(pod.ref, warnings=True) if image in e.message]
    full = re.search(r"rpc error|failed to|manifest|denied|not found", message)
    said = message if full else [message, *(e for e in events if not e.startswith("Error: "))][-1]
    lookup = re.search(r"lookup ([\w.-]+)|https?://([^/\"\s]+)", said)
    host = (lookup[1] or lookup[2]) if lookup else image.partition("/")[0]
    host = host if "." in host or ":" in host else "docker.io"
    node = view.find("Node", pod.node)
    arch = (node["status"].get("nodeInfo") or {}).get("architecture") if node else ""
    match = patterns("image").match(f"{reason} {said.replace(image, '')}") or fact("image-pull")
    retrieved = view.events(pod.ref, "FailedToRetrieveImagePullSecret")
    secrets = re.findall(r"\(([^)]+)\)", retrieved[-1].message) if retrieved else []
    missing = f" The pod's pull secret {secrets[0]} does not exist, or is empty." if secrets else ""
    words = {"image": image, "host": host, "arch": arch or "arm64 or amd64", "pod": pod.name}
    key, match = host if "registry" in match.rule else image, match.add(missing=missing, **words)
    return cause_of(match, [pod.ref], [said or reason], Stage.IMAGE, key=key)


def _not_started(view: View, pod: Pod, each: Container, reason: str) -> Cause:
    hooks = view.events(pod.ref, "FailedPostStartHook")
    first, second = each.waiting, each.ended
    states = (second, first) if reason == "CrashLoopBackOff" else (first, second)
    message = next((str(state["message"]) for state in states if state.get("message")), "")
    events = hooks or ([] if message else view.events(pod.ref, "Failed"))
    message = events[-1].message if events else message
    match = patterns("start").match(f"{reason}: {message}", view.facts(pod))
    match = fact("post-start-hook") if hooks else match
    level = Level.KNOWN if match else Level.FAILED
    match = match or fact("container-start", message=message[-300:] or reason)
    match = match.add(who=f"the {containers.who_is(pod, each)}", program=message[-160:])
    match = match.add(apply_claim=apply_claim(match.groups.get("name", "")))
    key = match.about or f"{pod.top}/{each.name}"
    return cause_of(match, [pod.ref], [message or reason], Stage.START, level, key=key)


def _init(view: View, report: Report, pod: Pod, each: Container) -> Iterator[Cause]:
    age_s, reading = view.age_s(each.started), logs.still_waits(each.log, view.facts(pod))
    named = the_way(view, pod, *containers.host_of(pod, each, reading)).wrong is not None
    patient = age_s < WAITS_S or not (reading.line or each.name.startswith("wait"))
    if patient and age_s < INIT_S and not named:
        report.starts([pod.ref], f"{pod.ref}: init container {each.name} runs ({age_s:.0f} s)")
        return
    reading = reading if reading.line else logs.Reading(waits=True)
    yield containers.from_log(view, pod, each, reading, Stage.START)
