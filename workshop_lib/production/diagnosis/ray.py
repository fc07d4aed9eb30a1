"""What KubeRay's objects, Ray's own state and Serve's status say, when no pod explains it.

Conditions and reasons of KubeRay 1.7 (`apis/ray/v1/*_types.go`): RayCluster `HeadPodReady`,
`RayClusterProvisioned`, `ReplicaFailure`; RayService `Ready`, `UpgradeInProgress`,
`activeServiceStatus.applicationStatuses`; RayJob `jobStatus`, `jobDeploymentStatus`, `reason`.
Ray's state API and Serve's REST API (`/api/v0/...`, `/api/serve/applications/`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from workshop_lib.production.diagnosis.admission import refused
from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.containers import ALL_SIGNS
from workshop_lib.production.diagnosis.logs import last_words, search
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref

__all__ = ["ray_causes"]

_STARTING_S = 600.0
_UNPLACED = re.compile(r"taken more than \d+s to be scheduled|cannot be scheduled|infeasible")
_BAD_APP = ("DEPLOY_FAILED", "UNHEALTHY")


def ray_causes(view: View, notes: list[str]) -> Iterator[Cause]:
    """What is wrong with Ray clusters, services and jobs."""
    for body in view.items("rayclusters"):
        yield from _cluster(view, body, notes)
    for body in view.items("rayservices"):
        yield from _service(view, body, notes)
    for body in view.items("rayjobs"):
        yield from _job(view, body)
    yield from _serve(view, notes)
    yield from _state(view)
    yield from _operator(view)


def _pods(view: View, body: Json) -> set[str]:
    name = body["metadata"]["name"]
    names = {name, *_clusters(body)}
    return {
        ref(pod) for pod in view.pods
        if (pod["metadata"].get("labels") or {}).get("ray.io/cluster") in names
        or (pod["metadata"].get("labels") or {}).get("ray.io/originated-from-cr-name") == name
    }  # fmt: skip


def _clusters(body: Json) -> list[str]:
    status = body.get("status") or {}
    found = [status.get("rayClusterName")]
    for key in ("activeServiceStatus", "pendingServiceStatus"):
        found.append((status.get(key) or {}).get("rayClusterName"))
    return [name for name in found if name]


def _invalid(view: View, body: Json) -> Iterator[Cause]:
    events = view.events(body, "InvalidRayClusterSpec", "InvalidRayClusterMetadata",
                         "InvalidRayClusterStatus", "InvalidRayServiceSpec",
                         "InvalidRayServiceMetadata", "InvalidRayJobSpec", "InvalidRayJobMetadata",
                         "InvalidRayJobStatus")  # fmt: skip
    if events:
        yield Cause(
            "ray-spec-invalid", ref(body),
            f"KubeRay does not accept {ref(body)}: its spec is wrong.",
            [str(events[-1].get("message") or "")],
            "correct the field that the message names, and apply it again", Lesson.KUBERAY,
            [ref(body)], Depth.CONTROLLER,
        )  # fmt: skip


def _cluster(view: View, body: Json, notes: list[str]) -> Iterator[Cause]:
    yield from _invalid(view, body)
    spec, status, found = body.get("spec") or {}, body.get("status") or {}, conditions(body)
    if spec.get("suspend"):
        yield Cause(
            "ray-suspended", ref(body), "The RayCluster is suspended: it has no pods until "
            "suspend is false.", ['"suspend": true'], "kubectl patch raycluster "
            f"{body['metadata']['name']} --type=merge -p '{{\"spec\":{{\"suspend\":false}}}}'",
            Lesson.KUBERAY, [ref(body)], Depth.CONTROLLER,
        )  # fmt: skip
        return
    head, pods = found.get("HeadPodReady", {}), _pods(view, body)
    age_s = view.age_s(body["metadata"].get("creationTimestamp") or head.get("lastTransitionTime"))
    if head.get("status") == "False" and age_s > 45:
        no_pod = not any(_is_head(view, each) for each in pods)
        message = str(head.get("message") or head.get("reason") or "HeadPodReady")
        if no_pod or age_s > _STARTING_S:
            yield Cause(
                "ray-head-not-ready", ref(body),
                "The head of the RayCluster is not ready" + (": it has no head pod." if no_pod
                else ", and its pod does not say why."), [message],
                f"kubectl describe raycluster {body['metadata']['name']}; the operator's log: "
                "kubectl logs deployment/kuberay-operator -A", Lesson.KUBERAY, [ref(body)],
                Depth.CONTROLLER, waits_for={*pods, *view.owners(body)}, vague=True,
            )  # fmt: skip
        else:
            notes.append(f"{ref(body)}: its head still starts")
    wanted = status.get("desiredWorkerReplicas") or 0
    ready = status.get("readyWorkerReplicas") or 0
    if ready < wanted:
        notes.append(f"{ref(body)}: {ready} of {wanted} workers ready")
    reason = str(status.get("reason") or "")
    if reason and (status.get("state") == "failed" or "forbidden" in reason):
        known = refused(reason)
        rule, cause, fix = (known[0], known[1], known[2]) if known else (
            "ray-cluster-failed", "KubeRay could not make the RayCluster's pods.",
            "correct what the message says")  # fmt: skip
        key = (known[3].get("name") if known else "") or ref(body)
        yield Cause(rule, key, cause, [reason], fix, Lesson.KUBERAY, [ref(body)],
                    Depth.ADMISSION)  # fmt: skip


def _is_head(view: View, pod: str) -> bool:
    labels = ((view.by_ref.get(pod) or {}).get("metadata") or {}).get("labels") or {}
    return labels.get("ray.io/node-type") == "head"


def _service(view: View, body: Json, notes: list[str]) -> Iterator[Cause]:
    yield from _invalid(view, body)
    status, found = body.get("status") or {}, conditions(body)
    waits_for = {*_pods(view, body), *(f"RayCluster/{name}" for name in _clusters(body))}
    bad = False
    for key in ("activeServiceStatus", "pendingServiceStatus"):
        applications = (status.get(key) or {}).get("applicationStatuses") or {}
        for cause in _applications(view, applications, [ref(body)], waits_for, notes, SERVE_CR):
            bad = True
            yield cause
    if found.get("UpgradeInProgress", {}).get("status") == "True":
        notes.append(f"{ref(body)}: an upgrade is under way; the old cluster serves until the new "
                     "one is ready")  # fmt: skip
    ready = found.get("Ready", {})
    age_s = view.age_s(ready.get("lastTransitionTime"))
    if ready.get("status") == "False" and not bad:
        if ready.get("reason") in ("InitializingTimeout", "ValidationFailed") or (
            age_s > 2 * _STARTING_S
        ):
            yield Cause(
                "ray-service-not-ready", ref(body),
                "The RayService has not become ready"
                + (" within its time limit." if "Timeout" in str(ready.get("reason")) else "."),
                [str(ready.get("message") or ready.get("reason"))],
                f"kubectl describe rayservice {body['metadata']['name']}; Serve's status: GET "
                "/api/serve/applications/ on the head's port 8265", Lesson.VLLM_SERVE, [ref(body)],
                Depth.UNKNOWN, waits_for=waits_for, vague=True,
            )  # fmt: skip
        else:
            notes.append(f"{ref(body)}: Serve still starts")
    warning = view.events(body, "ServeNotReady", "FailedToUpdateServeApplications",
                          "FailedToGetServeDeploymentStatuses")  # fmt: skip
    if warning and ready.get("status") != "True" and not bad:
        message = str(warning[-1].get("message") or "")
        if re.search(r"HTTP 4\d\d|validation error|invalid|Unsupported", message):
            yield Cause(
                "serve-config-invalid", ref(body),
                "Serve refuses the configuration of the RayService (serveConfigV2).", [message],
                "correct what the message names in serveConfigV2: import_path, names, arguments",
                Lesson.VLLM_SERVE, [ref(body)], Depth.APPLICATION, waits_for=waits_for,
            )  # fmt: skip


SERVE_CR = "serveDeploymentStatuses"


def _applications(view: View, applications: Mapping[str, Any], objects: list[str],
                  waits_for: set[str], notes: list[str],
                  deployments_key: str) -> Iterator[Cause]:  # fmt: skip
    """Applications that Serve could not deploy, or that are not well."""
    for name, app in applications.items():
        state, message = str(app.get("status") or ""), str(app.get("message") or "")
        below = app.get(deployments_key) or app.get("deployments") or {}
        sick = {n: d for n, d in below.items()
                if d.get("status") in ("UNHEALTHY", "DEPLOY_FAILED")}  # fmt: skip
        short = next((m for d in below.values() if _UNPLACED.search(
            m := str(d.get("message") or ""))), "")  # fmt: skip
        if short and not sick:
            yield Cause(
                "ray-infeasible", f"{objects[0]}/{name}",
                f"The Serve application {name!r} waits for resources that the Ray cluster does not "
                "have: a replica asks for more than any of its nodes has free.", [short[:500]],
                "compare ray_actor_options (or placement_group_bundles) with the workers' "
                "resources; add workers, or ask for less", Lesson.RAY_GPUS, objects,
                Depth.APPLICATION, waits_for=waits_for,
            )  # fmt: skip
            continue
        if state == "DEPLOYING" and not sick:
            notes.append(f"Serve application {name}: still deploying")
            continue
        if state not in _BAD_APP and not sick:
            continue
        texts = [str(d.get("message") or "") for d in sick.values()]
        texts = [t for t in [*texts, message] if t]
        whole = "\n".join(texts)
        match = search(whole, ALL_SIGNS)
        which = f" (deployment {', '.join(sick)})" if sick else ""
        if match is not None and not match.sign.vague:
            yield Cause(
                match.sign.rule, f"{objects[0]}/{name}",
                f"The Serve application {name!r}{which} cannot run. "
                + match.text(match.sign.cause, who="its replica", host="a server"),
                [match.line], match.text(match.sign.fix, who="its replica", host="it"),
                match.sign.taught_in, objects, Depth.CRASH, waits_for=waits_for,
            )  # fmt: skip
            continue
        words = last_words(whole) or state
        verb = "could not be deployed" if state == "DEPLOY_FAILED" else "is not healthy"
        yield Cause(
            "serve-deploy-failed" if state == "DEPLOY_FAILED" else "serve-unhealthy",
            f"{objects[0]}/{name}",
            f"The Serve application {name!r}{which} {verb}; Serve's last word: {words}",
            [words], "read the whole message: GET /api/serve/applications/, or the replica's log "
            "under /tmp/ray/session_latest/logs/serve; correct the application and apply it again",
            Lesson.VLLM_SERVE, objects, Depth.APPLICATION, waits_for=waits_for, vague=True,
        )  # fmt: skip


_JOB_REASONS = {
    "AppFailed": "the program that it ran failed",
    "SubmissionFailed": "it could not be submitted to the cluster",
    "DeadlineExceeded": "it ran longer than activeDeadlineSeconds allows",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "its submitter ended, and Ray's own status "
    "of the job did not follow",
    "JobStatusCheckTimeoutExceeded": "KubeRay could not read the job's status for too long",
    "PreRunningDeadlineExceeded": "it did not start to run in time",
    "ValidationFailed": "its spec is wrong",
}


def _job(view: View, body: Json) -> Iterator[Cause]:
    yield from _invalid(view, body)
    status = body.get("status") or {}
    failed = status.get("jobStatus") in ("FAILED", "STOPPED")
    if not failed and status.get("jobDeploymentStatus") not in ("Failed", "ValidationFailed"):
        return
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    match = search(message, ALL_SIGNS)
    waits_for = {*_pods(view, body), *(f"RayCluster/{n}" for n in _clusters(body))}
    submitter = f"Job/{body['metadata']['name']}"
    waits_for |= {submitter, *(ref(p) for p in view.pods_of(submitter))}
    what = _JOB_REASONS.get(reason, "it did not end well")
    telling = match is not None and not match.sign.vague
    cause = f"The RayJob failed: {what}."
    if match is not None and telling:
        cause += " " + match.text(match.sign.cause, who="its driver", host="a server")
    yield Cause(
        match.sign.rule if match and telling else "ray-job-failed", ref(body), cause,
        [match.line if match and telling else last_words(message) or reason or "FAILED"],
        match.text(match.sign.fix, who="its driver", host="it") if match and telling else
        "ray job logs, through the head's dashboard, shows the driver's output; then apply it "
        "again", Lesson.KUBERAY, [ref(body)], Depth.APPLICATION, waits_for=waits_for,
        vague=not telling,
    )  # fmt: skip


def _serve(view: View, notes: list[str]) -> Iterator[Cause]:
    """Serve's own status, where the snapshot has it."""
    serve = view.raw.get("serve") or {}
    answers = serve if isinstance(serve, list) else [serve]
    for answer in answers:
        if not isinstance(answer, Mapping):
            continue
        services = [ref(b) for b in view.items("rayservices")]
        pods = {ref(p) for p in view.pods}
        applications = answer.get("applications") or {}
        if not isinstance(applications, Mapping):
            continue
        objects = services[:1] or ["Serve/applications"]
        yield from _applications(view, applications, objects, pods, notes, "deployments")
        yield from _at_maximum(applications, notes)


def _at_maximum(applications: Mapping[str, Any], notes: list[str]) -> Iterator[Cause]:
    for name, app in applications.items():
        for each, deployment in (app.get("deployments") or {}).items():
            config = (deployment.get("deployment_config") or {}).get("autoscaling_config") or {}
            most = config.get("max_replicas")
            replicas = deployment.get("replicas") or []
            states = {str(r.get("state")) for r in replicas}
            if (
                most
                and len(replicas) >= most
                and states == {"RUNNING"}
                and most > (config.get("min_replicas") or 0)
            ):
                notes.append(f"Serve deployment {name}/{each}: at its maximum of {most} replicas; "
                             "more requests wait in line")  # fmt: skip
    return iter(())


def _items(view: View, key: str) -> list[Json]:
    """A list of Ray's state, as the dashboard answers or as a plain list."""
    found = (view.raw.get("ray") or {}) if isinstance(view.raw.get("ray"), Mapping) else {}
    body: Any = found.get(key) or []
    for step in ("data", "result", "result"):
        if isinstance(body, Mapping):
            body = body.get(step) or []
    return [each for each in body if isinstance(each, Mapping)] if isinstance(body, list) else []


def _state(view: View) -> Iterator[Cause]:
    pods = {ref(p) for p in view.pods}
    for node in _items(view, "nodes"):
        if node.get("state") == "DEAD":
            why = str(node.get("state_message") or "DEAD")
            expected = re.search(r"[Ee]xpected termination|autoscaler|idle", why)
            by_ip = [p for p in view.pods
                     if (p.get("status") or {}).get("podIP") == node.get("node_ip")]  # fmt: skip
            if expected and "unexpected" not in why.lower():
                continue
            yield Cause(
                "ray-worker-lost", str(node.get("node_ip") or node.get("node_id")),
                f"Ray has lost the node {node.get('node_ip') or node.get('node_id')}: it was part "
                "of the cluster and does not answer any more; what ran there has failed.",
                [why], "kubectl get pods and events say what became of its pod (OOM, eviction, "
                "spot); resume from the last checkpoint", Lesson.WHEN,
                [ref(p) for p in by_ip] or [f"RayNode/{node.get('node_ip')}"], Depth.APPLICATION,
                waits_for=pods, vague=True,
            )  # fmt: skip
    for group in _items(view, "placement_groups"):
        if group.get("state") in ("PENDING", "INFEASIBLE", "RESCHEDULING"):
            detail = str((group.get("stats") or {}).get("scheduling_state") or group.get("state"))
            yield Cause(
                "ray-infeasible", "placement-groups",
                "A placement group waits for resources that no set of Ray nodes has free: "
                f"{_bundles(group)}.", [detail],
                "ray status: is a worker missing (still in Init), are its GPUs taken, does one "
                "node hold a whole STRICT_PACK? Ask for less, or add workers", Lesson.RAY_GPUS,
                [f"PlacementGroup/{group.get('name') or group.get('placement_group_id')}"],
                Depth.APPLICATION, waits_for=pods,
            )  # fmt: skip
    for job in _items(view, "jobs"):
        if job.get("status") == "FAILED":
            message = str(job.get("message") or "")
            match = search(message, ALL_SIGNS)
            name = str(job.get("submission_id") or job.get("job_id"))
            telling = match is not None and not match.sign.vague
            yield Cause(
                match.sign.rule if match and telling else "ray-job-failed", name,
                f"The Ray job {name} failed. "
                + (match.text(match.sign.cause, who="its driver", host="a server")
                   if match and telling else ""),
                [match.line if match and telling else last_words(message) or "FAILED"],
                match.text(match.sign.fix, who="its driver", host="it") if match and telling else
                f"ray job logs {name}", Lesson.RAY_WHEN, [f"RayJob/{name}"], Depth.APPLICATION,
                waits_for=pods, vague=not telling,
            )  # fmt: skip


def _bundles(group: Json) -> str:
    found = [b.get("unit_resources") or b.get("resources") or b for b in group.get("bundles") or []]
    return ", ".join(str(dict(each)) for each in found[:4] if isinstance(each, Mapping)) or "?"


def _operator(view: View) -> Iterator[Cause]:
    """Ray objects that nobody looks after: no status, no event, no pod."""
    for key in ("rayclusters", "rayservices", "rayjobs"):
        for body in view.items(key):
            made = body["metadata"].get("creationTimestamp")
            if body.get("status") or view.events(body) or _pods(view, body):
                continue
            if view.age_s(made) > 45:
                yield Cause(
                    "ray-operator-missing", "kuberay",
                    f"Nobody looks after {ref(body)}: it has no status, no event and no pod, so "
                    "the KubeRay operator does not run, or does not watch this namespace.",
                    [body["metadata"]["name"]],
                    "kubectl get pods -A | grep kuberay-operator; install it with Helm",
                    Lesson.KUBERAY, [ref(body)], Depth.ADMISSION,
                )  # fmt: skip
