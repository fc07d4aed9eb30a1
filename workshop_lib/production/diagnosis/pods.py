"""One pod, step by step, as a person would look at it: node, volumes, image, start, health.

The first step that fails is the cause; the later ones are its consequences.
"""

from __future__ import annotations

from collections.abc import Iterator

from workshop_lib.production.diagnosis import containers, images, probes, scheduling, setup
from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.disruptions import disrupted, node_down
from workshop_lib.production.diagnosis.logs import repeated_line
from workshop_lib.production.diagnosis.node_groups import node_comes
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref, seconds
from workshop_lib.production.diagnosis.waits import wait_cause

__all__ = ["PodRules"]

_CREATING_S = 300.0
"""Making a container takes no longer, images apart."""
_PULLING_S = 1800.0
_INIT_S = 900.0


class PodRules:
    """The rules for single pods.

    Args:
        view: The snapshot.

    Attributes:
        notes: What still starts.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.notes: list[str] = []

    def causes(self, pod: Json) -> Iterator[Cause]:
        """Why a pod does not do its work; nothing when it does, or may still come to it."""
        status = pod.get("status") or {}
        phase = status.get("phase")
        if pod["metadata"].get("deletionTimestamp"):
            yield from self._terminating(pod)
        elif phase == "Succeeded":
            return
        elif phase == "Failed":
            yield from self._failed(pod)
        elif node := self._lost_node(pod):
            yield node
        elif scheduling.is_unscheduled(pod) and (coming := node_comes(self.view, pod)):
            self.notes.append(f"{ref(pod)}: waits for a node that is being added: {coming}")
        elif scheduling.is_unscheduled(pod):
            found = list(scheduling.unscheduled(self.view, pod))
            if not found:
                self.notes.append(f"{ref(pod)}: the scheduler has not come to it yet")
            yield from found
        else:
            yield from self._on_its_node(pod)

    # -- the whole pod --------------------------------------------------------------------------

    def _lost_node(self, pod: Json) -> Cause | None:
        """The pod's node, when it is not there or not ready."""
        name = (pod.get("spec") or {}).get("nodeName")
        node = self.view.find("Node", name) if name else None
        ready = conditions(pod).get("Ready", {})
        phase = (pod.get("status") or {}).get("phase")
        if node is not None and conditions(node).get("Ready", {}).get("status") in (
            "False", "Unknown",
        ):  # fmt: skip
            return node_down(node, [ref(pod)])
        gone = (self.view.has_nodes and name and node is None and name != "this-machine"
                and ready.get("status") != "True")  # fmt: skip
        if gone or ready.get("reason") == "NodeNotReady" or phase == "Unknown":
            return Cause(
                "node-lost", str(name),
                f"The node {name} of the pod is gone or does not answer, and the pod with it.",
                [str(ready.get("reason") or name)],
                "kubectl get nodes; a spot instance that was taken back is replaced by its node "
                "group; kubectl delete pod --force frees the pod's name when the node never "
                "returns", Lesson.BELOW_SERVE, [f"Node/{name}", ref(pod)], Depth.NODE,
            )  # fmt: skip
        return None

    def _terminating(self, pod: Json) -> Iterator[Cause]:
        """A pod that was deleted and stays."""
        metadata = pod["metadata"]
        late_s = self.view.age_s(metadata["deletionTimestamp"])
        keepers = [f for f in metadata.get("finalizers") or [] if "job-tracking" not in f]
        over = all("terminated" in (s.get("state") or {}) for s, _ in self._statuses(pod))
        if late_s < 60 and not (keepers and over):
            return
        if node := self._lost_node(pod):
            yield node
            return
        events = self.view.events(pod, "FailedKillPod")
        if keepers:
            yield Cause(
                "stuck-finalizer", keepers[0],
                f"The pod was deleted and its containers are gone, but it stays: the finalizer "
                f"{keepers[0]} waits for a controller that does not answer.", [keepers[0]],
                f"see that this controller runs; as a last resort: kubectl patch pod "
                f"{metadata['name']} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'",
                Lesson.WHEN, [ref(pod)], Depth.CONTROLLER,
            )  # fmt: skip
            return
        said = str(events[-1].get("message")) if events else str(metadata["deletionTimestamp"])
        yield Cause(
            "stuck-terminating", ref(pod),
            f"The pod was to be gone {late_s:.0f} s ago and is still there: its node cannot stop "
            "it (a process that hangs in the kernel, a volume that cannot be unmounted).",
            [said], f"kubectl describe pod {metadata['name']}; look at its node; then kubectl "
            f"delete pod {metadata['name']} --grace-period=0 --force", Lesson.WHEN, [ref(pod)],
            Depth.CONTROLLER,
        )  # fmt: skip

    def _failed(self, pod: Json) -> Iterator[Cause]:
        """A pod that ended badly, unless what made it got over that."""
        if self._got_over(pod):
            self.notes.append(f"{ref(pod)} failed, and what it was part of has gone on without it")
            return
        status = pod.get("status") or {}
        reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
        target = conditions(pod).get("DisruptionTarget", {})
        if found := disrupted(pod, reason, message, target):
            if found.rule == "node-refused":  # why nothing takes the next one says more
                mates = self.view.pods_of(self.view.top(pod))
                found.waits_for |= {ref(m) for m in mates if scheduling.is_unscheduled(m)}
            yield found
            return
        found_any = False
        for each, init in self._statuses(pod):
            ended = (each.get("state") or {}).get("terminated") or {}
            if ended.get("exitCode") and (cause := self._ended(pod, each, init=init)):
                found_any = True
                yield cause
        if not found_any:
            yield Cause(
                "unknown" if not (reason or message) else "pod-failed", ref(pod),
                f"The pod failed{': ' + (message or reason) if message or reason else ''}, and "
                "none of its containers says why.", [message or reason or "Failed"],
                f"kubectl describe pod {pod['metadata']['name']}", Lesson.WHEN, [ref(pod)],
                Depth.UNKNOWN, vague=True,
            )  # fmt: skip

    def _got_over(self, pod: Json) -> bool:
        """Whether a failed pod's work was done, or is done, by another one."""
        for owner in self.view.owners(pod):
            kind, _, name = owner.partition("/")
            body = self.view.find(kind, name)
            done = conditions(body) if body else {}
            if done.get("Complete", {}).get("status") == "True" or (
                done.get("SuccessCriteriaMet", {}).get("status") == "True"
            ):
                return True
            if kind == "Job" and done.get("Failed", {}).get("status") == "True":
                return False
        mates = self.view.pods_of(self.view.top(pod))
        index = _index(pod)
        born = seconds(pod["metadata"].get("creationTimestamp"))
        for mate in mates:
            same = _index(mate) == index and _role(mate) == _role(pod)
            newer = seconds(mate["metadata"].get("creationTimestamp")) >= born
            phase = (mate.get("status") or {}).get("phase")
            well = phase == "Succeeded" or conditions(mate).get("Ready", {}).get("status") == "True"
            if mate is not pod and same and newer and well:
                return True
        return False

    # -- its containers -------------------------------------------------------------------------

    def _statuses(self, pod: Json) -> Iterator[tuple[Json, bool]]:
        """The container statuses in the order in which they matter, and whether each is an init."""
        status, spec = pod.get("status") or {}, pod.get("spec") or {}
        sidecars = {c.get("name") for c in spec.get("initContainers") or []
                    if c.get("restartPolicy") == "Always"}  # fmt: skip
        for each in status.get("initContainerStatuses") or []:
            yield each, each.get("name") not in sidecars
        for each in status.get("containerStatuses") or []:
            yield each, False

    def _on_its_node(self, pod: Json) -> Iterator[Cause]:
        found: list[Cause] = []
        for each, init in self._statuses(pod):
            if cause := self._container(pod, each, init=init):
                found.append(cause)
                if init:
                    break  # nothing after it has begun
        telling = [cause for cause in found if not cause.vague]
        seen: set[tuple[str, str]] = set()
        for cause in telling or found[:1]:
            if (cause.rule, cause.cause) not in seen:
                seen.add((cause.rule, cause.cause))
                yield cause
        if not found:
            yield from self._without_complaint(pod)

    def _container(self, pod: Json, status: Json, *, init: bool) -> Cause | None:
        state = status.get("state") or {}
        waiting = state.get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason in images.IMAGE_REASONS:
            return images.image_trouble(self.view, pod, status)
        if reason == "CreateContainerConfigError":
            return setup.config_trouble(pod, status)
        if reason in ("CreateContainerError", "RunContainerError", "PreCreateHookError",
                      "PreStartHookError", "PostStartHookError"):  # fmt: skip
            return setup.start_trouble(self.view, pod, status, message)
        if reason == "CrashLoopBackOff" or "terminated" in state:
            return self._ended_state(pod, status, init=init)
        if "running" in state:
            return self._running(pod, status, init=init)
        if reason in ("ContainerCreating", "PodInitializing", ""):
            return None
        return Cause(
            "unknown", f"{ref(pod)}/{reason}",
            f"The container {status.get('name')} waits, and no rule knows the reason {reason}.",
            [message or reason], f"kubectl describe pod {pod['metadata']['name']}", Lesson.WHEN,
            [ref(pod)], Depth.UNKNOWN,
        )  # fmt: skip

    def _ended_state(self, pod: Json, status: Json, *, init: bool) -> Cause | None:
        """A container that ended, or waits to be started again."""
        ended = (status.get("state") or {}).get("terminated") or {}
        if ended and not ended.get("exitCode"):
            always = (pod.get("spec") or {}).get("restartPolicy", "Always") == "Always"
            if init or not always or not status.get("restartCount"):
                return None
        if not ended and not (status.get("lastState") or {}).get("terminated"):
            return None
        return self._ended(pod, status, init=init)

    def _ended(self, pod: Json, status: Json, *, init: bool) -> Cause | None:
        state, last = status.get("state") or {}, status.get("lastState") or {}
        ended = state.get("terminated") or last.get("terminated") or {}
        if ended.get("reason") in ("StartError", "ContainerCannotRun"):
            return setup.start_trouble(self.view, pod, status, str(ended.get("message") or ""))
        if hook := setup.hook_trouble(self.view, pod, status):
            return hook
        killed = probes.killed_by_probe(self.view, pod, status)
        found = containers.crash(self.view, pod, status, init=init)
        if killed is None or (found is not None and found.rule == "oom-killed"):
            return found
        stopped = ended.get("exitCode") in (137, 143)
        vague = found is None or found.vague or found.rule == "container-completes"
        return killed if vague or stopped else found

    def _running(self, pod: Json, status: Json, *, init: bool) -> Cause | None:
        """A container that runs: restarted lately, not ready, or without progress."""
        running = (status.get("state") or {}).get("running") or {}
        last = (status.get("lastState") or {}).get("terminated") or {}
        age_s = self.view.age_s(running.get("startedAt"))
        often = int(status.get("restartCount") or 0)
        lasted_s = max(0.0, seconds(last.get("finishedAt")) - seconds(last.get("startedAt")))
        settled_s = _settled_s(often, lasted_s)
        killed = probes.killed_by_probe(self.view, pod, status)
        if (
            killed
            and not last
            and probes.kill_time(self.view, pod, status) >= seconds(running.get("startedAt"))
        ):
            return killed  # it was told to stop, and takes its time
        if last and often and age_s < settled_s and (last.get("exitCode") or killed):
            return self._ended(pod, status, init=init)
        if init:
            return self._init_running(pod, status, age_s)
        ready = bool(status.get("ready")) or not self._wants_ready(pod)
        if found := containers.stall(self.view, pod, status):
            return found
        spec = self._spec(pod, status)
        probed = any(each in spec for each in ("readinessProbe", "startupProbe"))
        if found := wait_cause(self.view, pod, spec, age_s, ready=ready or probed):
            return found
        if ready:
            return None
        cause, note = probes.not_ready(self.view, pod, status)
        if note:
            self.notes.append(note)
        return cause

    @staticmethod
    def _spec(pod: Json, status: Json) -> Json:
        """The spec of a container, given its status."""
        spec = pod.get("spec") or {}
        every = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
        name = status.get("name")
        return next((each for each in every if each.get("name") == name), {"name": name})

    def _wants_ready(self, pod: Json) -> bool:
        return conditions(pod).get("Ready", {}).get("status") != "True"

    def _init_running(self, pod: Json, status: Json, age_s: float) -> Cause | None:
        """An init container that does not come to its end."""
        name = str(status.get("name"))
        if found := containers.stall(self.view, pod, status, Depth.STALL, init=True):
            return found
        text = self.view.log(pod["metadata"]["name"], name)
        line = repeated_line(text) if age_s > 30 else ""
        mates = containers.companions(self.view, pod)
        heads = {m for m in mates if self._is_head(m)}
        if "gcs" in name:
            ready = [m for m in heads if self._is_ready(m)]
            if not ready or age_s < 60:
                self.notes.append(f"{ref(pod)}: waits for the Ray head")
                if not heads or age_s < 600:
                    return self._waits(pod, name, line or name, heads) if age_s > 30 else None
            return self._waits(pod, name, line or name, heads)
        if found := wait_cause(self.view, pod, self._spec(pod, status), age_s, init=True):
            return found
        if line or age_s > _INIT_S:
            return Cause(
                "init-waiting", f"{self.view.top(pod)}/{name}",
                f"The init container {name} has run for {age_s:.0f} s and waits for something that "
                "does not come; until it ends, the pod's containers do not start.",
                [line or name], f"kubectl logs {pod['metadata']['name']} -c {name} says what it "
                "waits for; see whether that is there", Lesson.RAY_WHEN, [ref(pod)], Depth.STALL,
                waits_for=mates,
            )  # fmt: skip
        self.notes.append(f"{ref(pod)}: init container {name} still runs ({age_s:.0f} s)")
        return None

    def _waits(self, pod: Json, name: str, line: str, heads: set[str]) -> Cause | None:
        """A Ray worker whose init container waits for the head's GCS."""
        if any(not self._is_ready(head) for head in heads):
            cause = "the head is not ready"
        elif heads:
            cause = ("the head is ready, so what lies between them is in the way: DNS, a "
                     "NetworkPolicy, the wrong address")  # fmt: skip
        else:
            cause = "there is no head pod"
        return Cause(
            "ray-wait-head", self.view.top(pod),
            f"The Ray worker waits in its init container {name} for the head's GCS: {cause}.",
            [line], "look at the head pod first; then: kubectl exec into the worker, and try the "
            "head's Service on port 6379", Lesson.KUBERAY, [ref(pod)], Depth.STALL,
            waits_for={*heads, self.view.top(pod)} - {ref(pod)}, vague=not heads,
        )  # fmt: skip

    def _is_head(self, pod: str) -> bool:
        body = self.view.by_ref.get(pod) or {}
        labels = (body.get("metadata") or {}).get("labels") or {}
        return labels.get("ray.io/node-type") == "head"

    def _is_ready(self, pod: str) -> bool:
        return conditions(self.view.by_ref.get(pod) or {}).get("Ready", {}).get("status") == "True"

    def _without_complaint(self, pod: Json) -> Iterator[Cause]:
        """A pod whose containers have no trouble of their own, and that may still not work."""
        status = pod.get("status") or {}
        if status.get("phase") == "Pending":
            yield from self._creating(pod)
            return
        ready = conditions(pod).get("Ready", {})
        if ready.get("status") != "False" or any(ref(pod) in note for note in self.notes):
            return
        gates = [
            g.get("conditionType") for g in (pod.get("spec") or {}).get("readinessGates") or []
        ]
        shut = [g for g in gates if conditions(pod).get(g, {}).get("status") != "True"]
        age_s = self.view.age_s(ready.get("lastTransitionTime"))
        if shut:
            yield Cause(
                "readiness-gate", str(shut[0]),
                f"The pod's containers are ready, but its readiness gate {shut[0]} is not: a "
                "controller (of a load balancer) has not said yes.",
                [str(shut[0])], "see that this controller runs and that the target is healthy in "
                "the load balancer", Lesson.WHEN, [ref(pod)], Depth.PROBE,
            )  # fmt: skip
        elif age_s > 45 and any("running" in (s.get("state") or {})
                                for s, _ in self._statuses(pod)):  # fmt: skip
            yield Cause(
                "unknown", ref(pod), "The pod runs and is not ready, and nothing says why.",
                [str(ready.get("message") or ready.get("reason") or "Ready")],
                f"kubectl describe pod {pod['metadata']['name']}; kubectl logs "
                f"{pod['metadata']['name']}", Lesson.HEALTH, [ref(pod)], Depth.UNKNOWN,
                waits_for=containers.companions(self.view, pod),
            )  # fmt: skip

    def _creating(self, pod: Json) -> Iterator[Cause]:
        """A pod that has its node and no container yet."""
        if cause := setup.mount_trouble(self.view, pod):
            yield cause
            return
        status = pod.get("status") or {}
        placed = conditions(pod).get("PodScheduled", {})
        since = status.get("startTime") or placed.get("lastTransitionTime")
        age_s = self.view.age_s(since)
        pulling = self.view.events(pod, "Pulling")
        limit_s = _PULLING_S if pulling else _CREATING_S
        if age_s <= limit_s:
            what = "its image is pulled" if pulling else "it is set up"
            self.notes.append(f"{ref(pod)}: {what} ({age_s:.0f} s)")
            return
        if not pulling and (cause := setup.config_map_missing(self.view, pod)):
            yield cause
            return
        yield Cause(
            "image-slow" if pulling else "unknown", ref(pod),
            f"The pod has been made for {age_s:.0f} s"
            + (": its image is still being pulled." if pulling else ", and nothing says why."),
            [str(pulling[-1].get("message")) if pulling else "ContainerCreating"],
            "use a smaller image, a registry nearby, or nodes with the image in advance" if pulling
            else f"kubectl describe pod {pod['metadata']['name']}; look at its node",
            Lesson.BELOW_SERVE, [ref(pod)], Depth.IMAGE if pulling else Depth.UNKNOWN,
        )  # fmt: skip


def _index(pod: Json) -> str | None:
    metadata = pod["metadata"]
    name = "batch.kubernetes.io/job-completion-index"
    found = (metadata.get("annotations") or {}).get(name) or (metadata.get("labels") or {}).get(
        name
    )
    return None if found is None else str(found)


def _role(pod: Json) -> tuple[str | None, str | None]:
    labels = pod["metadata"].get("labels") or {}
    return labels.get("ray.io/node-type"), labels.get("ray.io/group")


def _settled_s(restarts: int, lasted_s: float) -> float:
    """How long a restarted container must run to be believed: well past where it failed before.

    Args:
        restarts: How often it was restarted.
        lasted_s: How long the run that failed lasted, seconds.
    """
    if restarts > 1:
        return min(600.0, max(120.0, 5 * lasted_s))
    return min(120.0, max(30.0, 3 * lasted_s))
