"""Jobs, Deployments, claims on scaling: what their own status says when no pod explains it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.scheduling import claim_names
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref, seconds

__all__ = ["controller_causes"]


def controller_causes(view: View, notes: list[str]) -> Iterator[Cause]:
    """What Jobs, Deployments, namespaces and autoscalers say of themselves."""
    for job in view.items("jobs"):
        yield from _job(view, job)
    for deployment in view.items("deployments"):
        yield from _deployment(view, deployment, notes)
    for namespace in view.items("namespaces"):
        yield from _namespace(namespace)
    for claim in view.items("persistentvolumeclaims"):
        yield from _deleting(view, claim)
    for scaler in view.items("horizontalpodautoscalers"):
        yield from _autoscaler(view, scaler, notes)


def _dependents(view: View, body: Json) -> set[str]:
    own = ref(body)
    found = {ref(pod) for pod in view.pods_of(own)}
    for pod in view.pods_of(own):
        found.update(view.owners(pod))
    for subject in view.event_subjects():
        kind, _, name = subject.partition("/")
        if kind == "ReplicaSet" and name.rpartition("-")[0] == body["metadata"]["name"]:
            found.add(subject)
    return found - {own}


# A Failed condition's reason to what it means, what mends it.
_JOB_REASONS: dict[str, tuple[str, str, str]] = {
    "DeadlineExceeded": (
        "job-deadline",
        "The Job ran longer than its activeDeadlineSeconds ({deadline}) allows, and was stopped; "
        "its pods were deleted.",
        "raise activeDeadlineSeconds, or find out what took so long (waiting for nodes, images and "
        "downloads counts too)"),
    "BackoffLimitExceeded": (
        "job-backoff-limit",
        "The Job's pods failed more often than its backoffLimit ({backoff}) allows, and none is "
        "left that says why.",
        "apply it again and follow its logs; with ttlSecondsAfterFinished or Never pods stay to be "
        "read"),
    "PodFailurePolicy": (
        "job-failure-policy",
        "A rule of the Job's podFailurePolicy ended it at once: a pod failed {how}in a way that is "
        "not worth a retry.",
        "read that pod's log for what it means by this exit code; change the rule when it should "
        "be retried"),
    "FailedIndexes": (
        "job-failed-indexes", "Some ranks of the Indexed Job failed for good ({indexes}).",
        "read the logs of these ranks"),
    "MaxFailedIndexesExceeded": (
        "job-failed-indexes",
        "More ranks of the Indexed Job failed ({indexes}) than maxFailedIndexes allows.",
        "read the logs of these ranks"),
}  # fmt: skip


def _job(view: View, job: Json) -> Iterator[Cause]:
    spec, status = job.get("spec") or {}, job.get("status") or {}
    found = conditions(job)
    ends_well = ("Complete", "SuccessCriteriaMet")
    if any(found.get(each, {}).get("status") == "True" for each in ends_well):
        return
    failed = found.get("Failed") or found.get("FailureTarget") or {}
    if failed.get("status") == "True":
        yield _failed_job(view, job, failed)
        return
    if spec.get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        yield Cause(
            "job-suspended", ref(job),
            "The Job is suspended: it makes no pods until suspend is false"
            + (f"; the queue {queue} decides when." if queue else "."),
            ['"suspend": true'],
            f"kubectl get workloads, clusterqueues (is there room in {queue}?)" if queue else
            f"kubectl patch job {job['metadata']['name']} --type=merge -p "
            "'{\"spec\":{\"suspend\":false}}'", Lesson.RAY_JOB, [ref(job)], Depth.CONTROLLER,
        )  # fmt: skip
        return
    yield from _ranks(view, job, spec, status)


def _failed_job(view: View, job: Json, failed: Json) -> Cause:
    spec, status = job.get("spec") or {}, job.get("status") or {}
    reason, message = str(failed.get("reason") or ""), str(failed.get("message") or "")
    waits_for = _dependents(view, job)
    if reason == "DeadlineExceeded":
        over = seconds(failed.get("lastTransitionTime"))
        waits_for = {ref(p) for p in view.pods_of(ref(job)) if _ended_before(p, over)}
    rule, cause, fix = _JOB_REASONS.get(
        reason, ("unknown", "The Job failed: {said}.", "kubectl describe job "
                 f"{job['metadata']['name']}"))  # fmt: skip
    code = re.search(r"exit code \d+", message)
    words = {"deadline": f"{spec.get('activeDeadlineSeconds', '?')} s",
             "backoff": spec.get("backoffLimit", 6),
             "indexes": status.get("failedIndexes", "?"), "said": message or reason,
             "how": f"with {code[0]}, " if code else ""}  # fmt: skip
    vague = reason in ("BackoffLimitExceeded", "FailedIndexes", "MaxFailedIndexesExceeded")
    pods = [ref(p) for p in view.pods_of(ref(job))] if reason == "DeadlineExceeded" else []
    return Cause(
        rule, ref(job), cause.format(**words), [message or reason], fix, Lesson.RAY_ENDS,
        [ref(job), *(p for p in pods if p not in waits_for)],
        Depth.UNKNOWN if rule == "unknown" else Depth.CONTROLLER, waits_for=waits_for,
        vague=vague or rule == "unknown",
    )  # fmt: skip


def _ended_before(pod: Json, moment: float) -> bool:
    """Whether a pod failed by itself before its Job was stopped."""
    for each in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (each.get("state") or {}).get("terminated") or {}
        if ended and (seconds(ended.get("finishedAt")) >= moment - 1 or not ended.get("exitCode")):
            return False
        if "running" in (each.get("state") or {}):
            return False
    return True


def _ranks(view: View, job: Json, spec: Json, status: Json) -> Iterator[Cause]:
    """Ranks of an Indexed Job that have no pod while the others wait for them."""
    if spec.get("completionMode") != "Indexed":
        return
    completions, parallelism = spec.get("completions") or 1, spec.get("parallelism", 1)
    pods = view.pods_of(ref(job))
    have = {
        (pod["metadata"].get("annotations") or {}).get("batch.kubernetes.io/job-completion-index")
        for pod in pods
    } | _indexes(str(status.get("completedIndexes") or ""))
    missing = [str(i) for i in range(completions) if str(i) not in have]
    running = [p for p in pods if (p.get("status") or {}).get("phase") == "Running"]
    age_s = view.age_s(status.get("startTime"))
    if not missing or not running or age_s < 45:
        return
    waiting = any(
        re.search(r"wait|timed? ?out|retry", view.log(p["metadata"]["name"], c["name"])[-2000:],
                  re.IGNORECASE)
        for p in running for c in (p.get("spec") or {}).get("containers") or []
    )  # fmt: skip
    unready = any(conditions(p).get("Ready", {}).get("status") != "True" for p in running)
    if parallelism < completions and (waiting or unready):
        yield Cause(
            "job-parallelism", ref(job),
            f"The Indexed Job runs {parallelism} of its {completions} ranks at a time, and they "
            f"wait for rank {', '.join(missing[:8])}, which only starts when one of them ends.",
            [f'"parallelism": {parallelism}', f'"completions": {completions}'],
            f"set parallelism: {completions}, so that all ranks run at once", Lesson.RAY_JOB,
            [ref(job)], Depth.CONTROLLER,
        )  # fmt: skip
    elif parallelism >= completions and pods:
        yield Cause(
            "job-rank-missing", ref(job),
            f"The Indexed Job has no pod for rank {', '.join(missing[:8])}.",
            [f'"completions": {completions}'],
            f"kubectl describe job {job['metadata']['name']} says whether it may make it",
            Lesson.RAY_JOB, [ref(job)], Depth.CONTROLLER, waits_for=_dependents(view, job),
        )  # fmt: skip


def _indexes(text: str) -> set[str]:
    """`0,2-4` as a set of numbers."""
    found: set[str] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found |= {str(i) for i in range(int(first), int(last or first) + 1)}
    return found


def _deployment(view: View, body: Json, notes: list[str]) -> Iterator[Cause]:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    wanted, ready = spec.get("replicas", 1), status.get("availableReplicas") or 0
    progressing = conditions(body).get("Progressing", {})
    if ready >= wanted and (status.get("updatedReplicas") or 0) >= wanted:
        return
    if spec.get("paused") and progressing.get("reason") == "DeploymentPaused":
        yield Cause(
            "deployment-paused", ref(body),
            "The Deployment is paused: changes of its template are not rolled out.",
            [str(progressing.get("message") or progressing.get("reason"))],
            f"kubectl rollout resume deployment {body['metadata']['name']}", Lesson.VLLM_DEPLOY,
            [ref(body)], Depth.CONTROLLER, waits_for=_dependents(view, body),
        )  # fmt: skip
    elif progressing.get("reason") == "ProgressDeadlineExceeded":
        yield Cause(
            "unknown", ref(body),
            f"The Deployment has {ready} of {wanted} pods available and makes no progress; no rule "
            "knows why.", [str(progressing.get("message") or "ProgressDeadlineExceeded")],
            f"kubectl describe deployment {body['metadata']['name']}; kubectl get events",
            Lesson.VLLM_DEPLOY, [ref(body)], Depth.UNKNOWN, waits_for=_dependents(view, body),
            vague=True,
        )  # fmt: skip


def _namespace(body: Json) -> Iterator[Cause]:
    if not body["metadata"].get("deletionTimestamp"):
        return
    stuck = [c for c in conditions(body).values() if c.get("status") == "True"]
    telling = [c for c in stuck if c.get("type") in ("NamespaceFinalizersRemaining",
                                                     "NamespaceContentRemaining",
                                                     "NamespaceDeletionDiscoveryFailure")
    ]  # fmt: skip
    said = str(telling[0].get("message")) if telling else "Terminating"
    yield Cause(
        "namespace-terminating", ref(body),
        f"The namespace {body['metadata']['name']} is being deleted: nothing new can be made in "
        "it.", [said], "wait; what is left, and which finalizer holds it, is in: kubectl describe "
        f"namespace {body['metadata']['name']}", Lesson.WHEN, [ref(body)], Depth.ADMISSION,
    )  # fmt: skip


def _deleting(view: View, body: Json) -> Iterator[Cause]:
    stamp = body["metadata"].get("deletionTimestamp")
    users = [
        ref(pod) for pod in view.pods
        if body["metadata"]["name"] in claim_names(pod)
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]  # fmt: skip
    if stamp and users:
        yield Cause(
            "pvc-deleting", body["metadata"]["name"],
            f"The claim {body['metadata']['name']!r} was deleted, and stays until the last pod "
            "that mounts it is gone (kubernetes.io/pvc-protection).",
            [str((body["metadata"].get("finalizers") or [stamp])[0])],
            "delete these pods (their component) if the data is to go; the deletion itself cannot "
            "be taken back", Lesson.WHEN, [ref(body), *users], Depth.STORAGE,
        )  # fmt: skip
        return
    others = [f for f in body["metadata"].get("finalizers") or []
              if f != "kubernetes.io/pvc-protection"]  # fmt: skip
    if stamp and others and view.age_s(stamp) > 60:
        yield Cause(
            "stuck-finalizer", ref(body),
            f"{ref(body)} was deleted and stays: the finalizer {others[0]} waits for its "
            "controller.", [others[0]], "see that this controller runs", Lesson.WHEN, [ref(body)],
            Depth.CONTROLLER,
        )  # fmt: skip


def _autoscaler(view: View, body: Json, notes: list[str]) -> Iterator[Cause]:
    found = conditions(body)
    able, active = found.get("AbleToScale", {}), found.get("ScalingActive", {})
    limited = found.get("ScalingLimited", {})
    broken = next((c for c in (able, active) if c.get("status") == "False"
                   and c.get("reason") != "ScalingDisabled"), None)  # fmt: skip
    if broken and broken.get("reason") == "FailedGetScale":
        target = (body.get("spec") or {}).get("scaleTargetRef") or {}
        yield Cause(
            "autoscaler-target", ref(body),
            f"The autoscaler {body['metadata']['name']} is to scale {target.get('kind', '?')} "
            f"{target.get('name', '?')!r}, and cannot: there is none of that name.",
            [str(broken.get("message") or broken.get("reason"))],
            "correct scaleTargetRef, or apply what it names", Lesson.SCALING, [ref(body)],
            Depth.CONTROLLER,
        )  # fmt: skip
    elif broken and "missing request for" in str(broken.get("message")):
        yield Cause(
            "autoscaler-no-request", ref(body),
            "The autoscaler scales by a share of what the pods request, and a container of them "
            "requests nothing of that kind.", [str(broken.get("message"))],
            "set resources.requests in every container of the pods that it scales",
            Lesson.SCALING, [ref(body)], Depth.CONTROLLER,
        )  # fmt: skip
    elif broken:
        yield Cause(
            "autoscaler-blind", ref(body),
            "The autoscaler cannot read the metric that it scales by, so it does nothing.",
            [str(broken.get("message") or broken.get("reason"))],
            "kubectl top pods must work (metrics-server), or the custom metric's adapter",
            Lesson.SCALING, [ref(body)], Depth.CONTROLLER,
        )  # fmt: skip
    elif limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
        most = (body.get("spec") or {}).get("maxReplicas", "?")
        notes.append(
            f"{ref(body)}: at its maximum of {most} replicas, and would have more; requests above "
            "that queue up (raise maxReplicas, if the nodes have room)"
        )
