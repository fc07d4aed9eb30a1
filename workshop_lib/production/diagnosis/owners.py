"""What nodes, claims, controllers and operators say: refused pods, Jobs, KubeRay, Ray and Serve."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from workshop_lib.cluster.kube import conditions
from workshop_lib.production.diagnosis import logs
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.containers import level_of
from workshop_lib.production.diagnosis.network import closed
from workshop_lib.production.diagnosis.patterns import Match, fact, patterns, says
from workshop_lib.production.diagnosis.view import Event, Json, View, is_on, made, ref, seconds

__all__ = ["lacks", "owner_causes"]

RAY_KINDS = ("RayCluster", "RayService", "RayJob")
PROVISIONS_S, CLAIM_S, SERVE_STARTS_S, RECENT_S = 45.0, 600.0, 1200.0, 900.0
"""How long a driver takes to begin, a volume to be made, a Serve application to load; and for how
long an event is news."""

_FAILS = re.compile(r"\b(?:fail(?:ed|s)? to|err(?:or)?:|invalid)", re.IGNORECASE)
_REFUSED = re.compile(r"^Failed(?:Create|ToCreate)")
_CREATED = {
    "FailedToCreateHeadPod": "CreatedHeadPod",
    "FailedToCreateWorkerPod": "CreatedWorkerPod",
}
_NO_VOLUME = (
    *("ProvisioningFailed", "FailedBinding", "VolumeMismatch", "ClaimMisbound", "ClaimLost"),
)


def owner_causes(view: View, report: Report) -> Iterator[Cause]:
    """What everything but pods and Services says."""
    for node in view.items("Node"):
        yield from _node(view, node)
    for claim in view.items("PersistentVolumeClaim"):
        yield from _claim(view, report, claim)
    yield from _refusals(view)
    for job in view.items("Job"):
        yield from _job(view, job)
    for body in view.items(*RAY_KINDS):
        yield from _ray_object(view, report, body)
    yield from _ray_state(view)
    serve = view.raw.get("serve") or {}
    for answer in serve if isinstance(serve, list) else [serve]:
        apps = answer.get("applications") if isinstance(answer, Mapping) else None
        services = [ref(body) for body in view.items("RayService")][:1] or ["Serve/applications"]
        yield from _applications(report, apps or {}, "deployments", services, set(view.pod_of))


def lacks(view: View, body: Json) -> str:
    """What a workload or claim has less of than it wants; empty when it has all."""
    kind, spec, status, found = body["kind"], body["spec"], body["status"], conditions(body)
    pods, wanted = view.pods_of(ref(body)), spec.get("replicas", 1)
    if kind in ("Deployment", "StatefulSet", "ReplicaSet"):
        have = status.get("availableReplicas") or status.get("readyReplicas") or 0
        return f"has {have} of {wanted} pods ready" if have < wanted else ""
    if kind == "Job":
        idle = spec.get("suspend") or spec.get("parallelism", 1) == 0
        ended = is_on(found, "Complete", "SuccessCriteriaMet", "Suspended")
        return "" if idle or ended else "is not complete" if pods else "has no pod"
    if kind == "RayCluster":
        head = is_on(found, "HeadPodReady") or any(p.ready and p.kind == "head" for p in pods)
        have = max(int(status.get(f"{word}WorkerReplicas") or 0) for word in ("ready", "available"))
        wanted = status.get("desiredWorkerReplicas") or 0
        parts = ["has no ready head"] * (not head and "HeadPodReady" in found)
        parts += [f"has {have} of {wanted} workers"] * (have < wanted)
        return ", ".join(parts) or ("" if head or pods else "has no pod")
    if kind == "PersistentVolumeClaim":
        return "has no volume" if status.get("phase") == "Pending" else ""
    return "" if is_on(found, "Ready") or kind not in RAY_KINDS else "is not ready"


# -- nodes and claims -----------------------------------------------------------------------------


def _node(view: View, node: Json) -> Iterator[Cause]:
    name, found = node["metadata"]["name"], conditions(node)
    ready = found.pop("Ready", {}) or {}
    on_it = [pod.ref for pod in view.pods if pod.node == name and not pod.over]
    events = view.events(f"Node/{name}", warnings=True)
    told = [
        e.message for e in events if says("gpu").search(e.message) and view.age_s(e.time) < 3600
    ]
    for kind, each in found.items():
        good = "False" if says("bad when true").search(kind) else "True"
        watched = good == "False" or kind.endswith(("Ready", "Healthy"))
        if watched and each.get("status") in {"True", "False"} - {good}:
            told.append(f"{kind}: {each.get('reason') or ''} {each.get('message') or ''}".strip())
    rule = said = "gpu-fault-node" if any(map(says("gpu").search, told)) else "node-unhealthy"
    if ready.get("status") in ("False", "Unknown"):
        told = [str(ready.get("message") or ready.get("reason") or "NotReady")]
        rule, said = "node-not-ready", "node-silent"
        said = said if ready["status"] == "Unknown" else "node-unready"
    if told:
        match, objects = fact(said, node=name, said=told[-1]), [f"Node/{name}", *on_it]
        cause = cause_of(match, objects, told[-1:], Stage.NODE, past=not on_it)
        cause.rule = rule
        yield cause


def _claim(view: View, report: Report, claim: Json) -> Iterator[Cause]:
    name, wanted = claim["metadata"]["name"], claim["spec"].get("storageClassName")
    users = [pod.ref for pod in view.pods if not pod.over and name in pod.claims]
    phase, age_s = claim["status"].get("phase"), view.age_s(made(claim))
    said = [f"{e.reason}: {e.message}" for e in view.events(ref(claim), *_NO_VOLUME)]
    if wanted and view.items("StorageClass") and view.find("StorageClass", wanted) is None:
        said.append(f'storageclass "{wanted}" not found')
    external = [e.message for e in view.events(ref(claim), "ExternalProvisioning")]
    idle = external and age_s > PROVISIONS_S and not view.events(ref(claim), "Provisioning")
    match: Match | None = None
    if phase == "Lost":
        match, said = fact("volume-lost-claim", name=name), said or ["Lost"]
    elif phase == "Pending" and said:
        match = patterns("claim").match(said[-1]) or fact("provisioning-failed", said=said[-1])
    elif phase == "Pending" and idle:
        driver = re.search(r"provisioner ['\"]([\w./-]+)['\"]", external[-1])
        match, said = fact("provisioner-missing", driver=driver[1] if driver else ""), external
    elif phase == "Pending" and (age_s < CLAIM_S or not users):
        later = "" if users else "; its class makes one when a pod mounts it"
        report.starts([ref(claim)] if users else [], f"{ref(claim)}: has no volume yet{later}")
    if match:
        yield cause_of(match.add(name=name), [ref(claim), *users], said[-1:], Stage.VOLUMES)


# -- pods that are never made, and Jobs -----------------------------------------------------------


def _refusals(view: View) -> Iterator[Cause]:
    """Controllers whose pods the API server refuses now, by their events and conditions."""
    kinds = ("ReplicaSet", "Job", "StatefulSet", "Deployment", *RAY_KINDS)
    said: dict[str, tuple[str, float]] = {}
    for subject in view.subjects(*kinds):
        refused = [e for e in view.events(subject) if _REFUSED.match(e.reason)]
        which = _CREATED.get(refused[-1].reason, "SuccessfulCreate") if refused else ""
        created = view.events(subject, which)
        if refused and not any(event.time > refused[-1].time for event in created):
            said[subject] = (refused[-1].message, refused[-1].time)
    for body in view.items(*kinds):
        found, reason = conditions(body), str(body["status"].get("reason") or "")
        failed = found.get("ReplicaFailure") or found.get("RayClusterReplicaFailure") or {}
        if failed.get("status") == "True" or "forbidden" in reason:
            said.setdefault(ref(body), (str(failed.get("message") or reason), 0.0))
    for subject, (message, time) in said.items():
        body_of = view.get(subject)
        owners = view.owners(body_of) if body_of else []
        if not owners and subject.startswith("ReplicaSet/"):
            owners = [f"Deployment/{subject.partition('/')[2].rpartition('-')[0]}"]
        above = [each for name in (subject, *owners) if (each := view.get(name))]
        if any(
            each["metadata"].get("deletionTimestamp") or not lacks(view, each) for each in above
        ):
            continue
        match = patterns("refusal").match(message)
        level = Level.KNOWN if match else Level.FAILED
        match = match or fact("pod-not-created", subject=subject, message=message)
        objects, key = [*reversed(owners), subject], match.about or [subject, *owners][-1]
        yield cause_of(match, objects, [message], Stage.SCHEDULING, level, key=key, since=time)


def _job(view: View, job: Json) -> Iterator[Cause]:
    name, found = job["metadata"]["name"], conditions(job)
    pods = {pod.ref for pod in view.pods_of(ref(job))}
    if is_on(found, "Complete", "SuccessCriteriaMet"):
        return
    if is_on(found, "Failed", "FailureTarget"):
        failed = found.get("Failed") or found.get("FailureTarget") or {}
        said = f"{failed.get('reason')}: {failed.get('message')}"
        match = patterns("job").match(said) or fact("job-failed", said=said)
        direct, quotes = match.pattern.kind == "own", [str(failed.get("message"))]
        level, waits_for = (Level.KNOWN, set()) if direct else (Level.FOLLOWS, pods)
        objects, match = [ref(job), *(sorted(pods) if direct else ())], match.add(name=name)
        yield cause_of(match, objects, quotes, Stage.DEPENDANTS, level, waits_for=waits_for)
    elif job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        about = [ref(job), *view.subjects("Workload")]
        told = [e.message for each in about for e in view.events(each) if e.reason != "Suspended"]
        match = fact("job-queued" if queue else "job-suspended", name=name, queue=queue)
        yield cause_of(match, [ref(job)], told[-1:] or ['"suspend": true'], Stage.SCHEDULING)


# -- KubeRay, Ray, Serve --------------------------------------------------------------------------


def _ray_pods(view: View, body: Json) -> set[str]:
    """The pods of a Ray object, and the clusters that KubeRay made for it."""
    status, name = body["status"], body["metadata"]["name"]
    inner = [
        status,
        *(status.get(f"{which}ServiceStatus") or {} for which in ("active", "pending")),
    ]
    names = {name, *(str(each.get("rayClusterName")) for each in inner)}
    owners = [ref(body), f"Job/{name}", *(f"RayCluster/{each}" for each in names)]
    return ({p.ref for owner in owners for p in view.pods_of(owner)} | set(owners)) - {ref(body)}


def _ray_object(view: View, report: Report, body: Json) -> Iterator[Cause]:
    """What KubeRay's events, conditions and application statuses say of one of its objects."""
    name, status, pods = ref(body), body["status"], _ray_pods(view, body)
    telling = [e for e in view.events(name) if e.warning or _FAILS.search(e.message)]
    events = [e for e in telling if not _REFUSED.match(e.reason) or "Pod" not in e.reason]
    invalid = [e for e in events if e.reason.startswith("Invalid")]
    # What was said before the object became ready is over: a killed replica that came back.
    ready = conditions(body).get("Ready", {})
    changed_s = seconds(ready.get("lastTransitionTime"))
    ready_s = changed_s if ready.get("status") == "True" else 0.0
    recent = [e for e in events if view.age_s(e.time) < RECENT_S and e.time > ready_s]
    orphan = not (status or view.events(name) or pods & set(view.pod_of))
    if body["spec"].get("suspend"):
        match, quotes = fact("ray-suspended", name=name), ['"suspend": true']
        yield cause_of(match, [name], quotes, Stage.SCHEDULING)
    elif invalid or recent:
        yield _said(view, body, (invalid or recent)[-1], pods)
    elif orphan and view.age_s(made(body)) > PROVISIONS_S:
        match = fact("ray-operator-missing", name=name)
        yield cause_of(match, [name], ["no status, no event, no pod"], Stage.SCHEDULING)
    failed = status.get("jobDeploymentStatus") == "Failed"
    if failed or status.get("jobStatus") in ("FAILED", "STOPPED"):
        said = str(status.get("message") or status.get("reason") or "FAILED")
        yield _of_message(said, "ray-job-failed", f"The RayJob {name} failed.", [name], pods)
    for which in ("active", "pending"):
        apps = (status.get(f"{which}ServiceStatus") or {}).get("applicationStatuses") or {}
        yield from _applications(report, apps, "serveDeploymentStatuses", [name], pods)
    if ready.get("status") == "False" and name.startswith("RayService"):
        age_s = view.age_s(changed_s)
        if "Timeout" not in str(ready.get("reason")) and age_s < SERVE_STARTS_S:
            report.starts([name], f"{name}: Serve still starts ({age_s:.0f} s)")
            return
        match = fact("ray-service-not-ready", name=name, age=f"{age_s:.0f} s")
        quotes, level = [str(ready.get("message") or ready.get("reason"))], Level.FOLLOWS
        yield cause_of(match, [name], quotes, Stage.DEPENDANTS, level, waits_for=pods)


def _said(view: View, body: Json, event: Event, pods: set[str]) -> Cause:
    """What KubeRay said of an object, joined with the head's NetworkPolicies."""
    match, text = patterns("operator").match(f"{event.reason}: {event.message}"), event.message
    own = match is not None and match.pattern.kind == "own"
    level = Level.KNOWN if own else Level.WAITS if match else Level.NOTICED
    match = match or fact("operator-warning", name=ref(body), message=text)
    objects, port = [ref(body)], int(match.groups.get("port") or 0)
    heads = [pod for p in sorted(pods) if (pod := view.pod_of.get(p)) and pod.kind == "head"]
    if policies := closed(view, None, heads[0], port) if port and heads else []:
        listed = ", ".join(each.partition("/")[2] for each in policies)
        match = fact("policy-closes-head", policies=listed, port=port, head=heads[0].name)
        objects, own, level = [*objects, *policies], True, Level.KNOWN
    waits_for = () if own else pods
    return cause_of(match, objects, [text], Stage.DEPENDANTS, level, waits_for=waits_for)


def _ray_state(view: View) -> Iterator[Cause]:
    everybody = set(view.pod_of)
    for job in view.ray("jobs"):
        if job.get("status") == "FAILED":
            name = str(job.get("submission_id") or job.get("job_id"))
            said, what = str(job.get("message") or "FAILED"), f"The Ray job {name} failed."
            yield _of_message(said, "ray-job-failed", what, [f"RayJob/{name}"], everybody)
    for node in view.ray("nodes"):
        why, address = str(node.get("state_message") or "DEAD"), str(node.get("node_ip"))
        if node.get("state") == "DEAD" and not re.match(r"[Ee]xpected", why):
            there = [pod.ref for pod in view.pods if pod.status.get("podIP") == address]
            match = fact("ray-node-dead", node=address, why=why)
            objects, level = there or [f"RayNode/{address}"], Level.NOTICED
            yield cause_of(match, objects, [why], Stage.HEALTH, level, waits_for=everybody)
    for group in view.ray("placement_groups"):
        if group.get("state") in ("PENDING", "INFEASIBLE", "RESCHEDULING"):
            state = str((group.get("stats") or {}).get("scheduling_state") or group["state"])
            bundles = [each.get("unit_resources") or each for each in group.get("bundles") or []]
            match = fact("ray-group-waits", asked=str(bundles[:4]))
            objects, level = [f"PlacementGroup/{group.get('name')}"], Level.WAITS
            yield cause_of(match, objects, [state], Stage.HEALTH, level, waits_for=everybody)


def _applications(
    report: Report, apps: Mapping[str, Any], below: str, objects: list[str], pods: set[str]
) -> Iterator[Cause]:
    for name, app in apps.items():
        state, inner = str(app.get("status") or ""), app.get(below) or {}
        sick = [n for n, d in inner.items() if d.get("status") in ("UNHEALTHY", "DEPLOY_FAILED")]
        texts = [str(each.get("message") or "") for each in (*inner.values(), app)]
        text = "\n".join(filter(None, texts))
        unplaced = re.search(r"more than \d+s to be scheduled|cannot be scheduled|infeasible", text)
        if state in ("DEPLOY_FAILED", "UNHEALTHY") or sick or unplaced:
            which, failed = f" (deployment {', '.join(sick)})" * bool(sick), "FAILED" in state
            ends = "could not be deployed." if failed else "is not well."
            rule = "serve-deploy-failed" if failed else "serve-unhealthy"
            what = f"The Serve application {name}{which} {ends}"
            yield _of_message(text or state, rule, what, objects, pods)
        elif state in ("DEPLOYING", "NOT_STARTED"):
            report.starts(objects, f"Serve application {name}: still {state.lower()}")


def _of_message(text: str, rule: str, what: str, objects: list[str], pods: set[str]) -> Cause:
    """A cause from the message of a Serve application or a Ray job, read like a log."""
    reading = logs.read(text)
    quotes = list(reading.quotes) or [text[-400:]]
    known = reading.match if reading.kind in ("own", "peer", "weak") else None
    who = "its replica" if "Serve" in what else "its driver"
    match = known or fact("message-of-ray", line=quotes[0])
    level, key = level_of(reading), objects[0] + quotes[0][:60]
    options = {"key": key, "waits_for": pods if level else set()}
    match = match.add(who=who, line=reading.line)
    cause = cause_of(match, objects, quotes, Stage.START, level, **options)  # type: ignore[arg-type]
    cause.rule, cause.cause = cause.rule if known else rule, f"{what} {cause.cause}"
    return cause
