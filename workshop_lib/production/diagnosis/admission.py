"""Pods that are never made: quota, limits, pod security, webhooks, accounts.

A controller's `FailedCreate` event carries the API server's refusal: "Error creating: pods
"x" is forbidden: ..." (plugin/pkg/admission: resourcequota, limitranger, serviceaccount,
priority, runtimeclass; staging/src/k8s.io/pod-security-admission; webhooks).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, conditions, event_time, ref

__all__ = ["admission_causes", "refused"]

_FAILED = ("FailedCreate", "FailedToCreateHeadPod", "FailedToCreateWorkerPod",
           "FailedToCreatePod", "FailedCreateHeadPod", "FailedCreateWorkerPod",
           "FailedToCreateRayCluster", "FailedToCreateJob", "FailedToCreateServiceAccount"
)  # fmt: skip
_MADE = ("SuccessfulCreate", "CreatedHeadPod", "CreatedWorkerPod")

# Rule, words, what it means, what mends it.
_REFUSALS: list[tuple[str, str, str, str]] = [
    ("quota-exceeded", r"exceeded quota: (?P<name>[\w.-]+), requested: (?P<asked>[^ ]+), used: "
     r"(?P<used>[^ ]+), limited: (?P<limited>[^ ]+)",
     "The namespace's quota {name} lets no more pods in: the next one would take {asked}, {used} "
     "is in use, and the limit is {limited}.",
     "delete what is not needed (cluster.components(), cluster.delete(...)), ask for less, or have "
     "the quota raised: kubectl describe resourcequota {name}"),
    ("quota-needs-requests", r"failed quota: (?P<name>[\w.-]+): must specify (?P<asked>.*)",
     "The namespace has a quota ({name}), and under it every container must say what it takes: "
     "the pod lacks {asked}.",
     "set resources.requests and limits in every container, init containers too"),
    ("limit-range", r"(?P<asked>(?:minimum|maximum) .{0,80}? usage per \w+ is [^,]+, but [^.;\]]+|"
     r"(?:cpu|memory) max limit to request ratio.*)",
     "The namespace's LimitRange does not allow what the pod asks for: {asked}.",
     "choose requests and limits within it: kubectl describe limitrange"),
    ("pod-security", r'violates PodSecurity "(?P<name>[^"]+)": (?P<asked>.*)',
     "The namespace admits only pods of the level {name}, and this one is not: {asked}",
     "set in the pod's spec what the message names (securityContext: runAsNonRoot, seccompProfile, "
     "capabilities.drop ALL, allowPrivilegeEscalation false), or, for EFA, have the namespace's "
     "level raised by who administers it"),
    ("webhook-denied", r'admission webhook "(?P<name>[^"]+)" denied the request:? ?(?P<asked>.*)',
     "A policy of the cluster ({name}) refuses the pod: {asked}",
     "change the manifest as the policy asks, or talk to who runs it"),
    ("webhook-down", r'failed calling webhook "(?P<name>[^"]+)"',
     "The cluster asks the webhook {name} about every pod, and it does not answer; so none can be "
     "made.",
     "look at the webhook's pods and Service (kubectl get mutatingwebhookconfigurations,"
     "validatingwebhookconfigurations); restart or remove it"),
    ("service-account-missing", r'serviceaccount "(?P<name>[^"]+)" not found',
     "The pod is to run as the service account {name}, and there is none of that name.",
     "apply the account, or correct serviceAccountName: kubectl get serviceaccounts"),
    ("priority-class-missing", r"no PriorityClass with name (?P<name>\S+) was found",
     "The pod names the priority class {name}, and there is none.",
     "kubectl get priorityclasses; correct priorityClassName or take it out"),
    ("runtime-class", r'RuntimeClass "?(?P<name>[\w.-]+)"? not found',
     "The pod names the runtime class {name}, and there is none.",
     "kubectl get runtimeclasses; correct runtimeClassName or take it out (EKS's GPU nodes need "
     "none)"),
    ("pod-invalid", r"is invalid: (?P<asked>.*)",
     "The API server calls the pod invalid: {asked}",
     "correct that field in the manifest's pod template"),
    ("not-allowed", r"is forbidden: (?P<asked>.*)",
     "The API server forbids the pod: {asked}", "change what the message names, or ask who "
     "administers the cluster"),
]  # fmt: skip


def refused(message: str) -> tuple[str, str, str, dict[str, str]] | None:
    """What a refusal means: rule, cause, fix and the words it caught.

    Example:
        >>> refused('pods "a" is forbidden: error looking up service account x/b: serviceaccount '
        ...         '"b" not found')[0]
        'service-account-missing'
    """
    for rule, words, cause, fix in _REFUSALS:
        if found := re.search(words, message):
            groups = {k: (v or "").strip() for k, v in found.groupdict().items()}
            return rule, cause.format(**groups), fix.format(**groups), groups
    return None


def admission_causes(view: View) -> Iterator[Cause]:
    """Controllers whose pods the API server refuses now."""
    for subject in list(view.event_subjects()):
        kind, _, name = subject.partition("/")
        events = view.events(subject, *_FAILED)
        if not events or kind == "Pod":
            continue
        body = view.find(kind, name)
        if body is not None:
            events = view.events(body, *_FAILED)
        if not events or _went_on(view, subject, body, event_time(events[-1])):
            continue
        yield _cause(view, subject, body, str(events[-1].get("message") or ""))
    for key in ("deployments", "replicasets", "rayclusters"):
        for body in view.items(key):
            found = conditions(body).get("ReplicaFailure") or conditions(body).get(
                "RayClusterReplicaFailure") or {}  # fmt: skip
            if found.get("status") == "True" and not _satisfied(body):
                yield _cause(view, ref(body), body, str(found.get("message") or ""))


def _went_on(view: View, subject: str, body: Json | None, failed: float) -> bool:
    """Whether the refusal is of yesterday."""
    if body is not None and (_satisfied(body) or body["metadata"].get("deletionTimestamp")):
        return True
    for owner in _owners_by_name(view, subject, body):
        kind, _, name = owner.partition("/")
        above = view.find(kind, name)
        if above is not None and _satisfied(above):
            return True
    return any(event_time(e) > failed for e in view.events(subject, *_MADE))


def _owners_by_name(view: View, subject: str, body: Json | None) -> list[str]:
    if body is not None:
        return view.owners(body)
    kind, _, name = subject.partition("/")
    return [f"Deployment/{name.rpartition('-')[0]}"] if kind == "ReplicaSet" else []


def _satisfied(body: Json) -> bool:
    """Whether a controller has what it wants."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    kind = body.get("kind")
    if kind == "Job":
        done = conditions(body)
        return any(done.get(each, {}).get("status") == "True" for each in ("Complete", "Suspended"))
    if kind in ("Deployment", "ReplicaSet", "StatefulSet"):
        wanted = spec.get("replicas", 1)
        ready = status.get("availableReplicas") or status.get("readyReplicas") or 0
        return bool(ready >= wanted)
    if kind == "RayCluster":
        desired = status.get("desiredWorkerReplicas")
        ready = conditions(body).get("HeadPodReady", {}).get("status") == "True"
        return ready and (status.get("readyWorkerReplicas") or 0) >= (desired or 0)
    return False


def _cause(view: View, subject: str, body: Json | None, message: str) -> Cause:
    owners = _owners_by_name(view, subject, body)
    about = [*reversed(owners), subject]
    found = refused(message)
    if found is None:
        return Cause(
            "pod-not-created", subject,
            f"{subject.replace('/', ' ')} cannot make its pods.", [message],
            "read the message; kubectl describe the object", Lesson.WHEN, about, Depth.ADMISSION,
        )  # fmt: skip
    rule, cause, fix, groups = found
    first = {"quota-exceeded": "ResourceQuota", "quota-needs-requests": "ResourceQuota",
             "service-account-missing": "ServiceAccount"}.get(rule)  # fmt: skip
    name = groups.get("name", "")
    if first:
        name = name.rpartition("/")[2]
        about = [f"{first}/{name}", *about]
    key = name if rule in ("quota-exceeded", "webhook-down", "service-account-missing",
                           "priority-class-missing") else about[0]  # fmt: skip
    lesson = Lesson.RAY_GPUS if "gpu" in message else Lesson.WHEN
    return Cause(rule, key, cause, [message], fix, lesson, about, Depth.ADMISSION)
