"""A room of learners on one cluster: made, watched and removed by the instructor.

Everything goes through the components `namespace` and `learner`, so one learner's namespace is the
same whether a room or an administrator made it. The namespaces carry the room's name as a label;
nothing without it is ever touched.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import LABELS, is_true
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, ConflictError, WorkshopError
from workshop_lib.production.diagnosis import diagnose
from workshop_lib.production.room.board import put_board, read_board, wipe_board
from workshop_lib.production.room.roster import Learner
from workshop_lib.progress import Progress, track

if TYPE_CHECKING:
    import pandas as pd

ROOM = "workshop.techpulse/room"
"""Label of a learner's namespace: the room that it belongs to."""

AT_ONCE = 8
"""Learners that are looked at at once: a row is some thirty questions to the API server."""

SHOWN_CAUSES = 2
OURS = ",".join(f"{key}={value}" for key, value in LABELS.items())
NAMESPACE, CLAIM = resource_of_kind("Namespace"), resource_of_kind("PersistentVolumeClaim")


def room_objects(learner: Learner, profile: str, room: str) -> dict[str, list[Object]]:
    """What a learner gets: component to its objects, as they are applied."""
    values = {"learners": learner.group or learner.name, "gpus": learner.gpus}
    known = manifests.parameters_of(profile, "namespace")  # kind has no GPUs to give
    chosen = {key: value for key, value in values.items() if key in known}
    namespace = manifests.render(profile, "namespace", chosen)
    for item in namespace:
        if item.kind == "Namespace":
            item.body["metadata"]["name"] = learner.name
            item.body["metadata"].setdefault("labels", {})[ROOM] = room
    account = manifests.render(profile, "learner", {"namespace": learner.name})
    return {"namespace": namespace, "learner": account}


class Room:
    """The namespaces with a room's label; credentials are an administrator's or instructor's."""

    def __init__(self, cluster: KubernetesCluster, name: str = "workshop") -> None:
        self.cluster, self.name, self._api = cluster, name, cluster._api

    def of(self, learner: str) -> KubernetesCluster:
        """The same cluster and connection, with a learner's namespace."""
        found = copy.copy(self.cluster)
        found.namespace = learner
        return found

    def namespaces(self) -> list[str]:
        """The namespaces of this room that are there."""
        found = self._api.list(NAMESPACE, "", labels=f"{OURS},{ROOM}={self.name}")
        return sorted(body["metadata"]["name"] for body in found)

    def plan(self, learners: Sequence[Learner]) -> pd.DataFrame:
        """What `apply` would do with each learner's namespace; nothing is changed."""
        import pandas as pd

        rows = []
        for learner in learners:
            objects = room_objects(learner, self.cluster.profile, self.name)["namespace"]
            quota = next(o.body["spec"]["hard"] for o in objects if o.kind == "ResourceQuota")
            rows.append(
                {
                    "learner": learner.name,
                    "gpus": quota.get("requests.nvidia.com/gpu", "no limit"),
                    "group": learner.group or learner.name,
                    "would": self._would(self._api.get(NAMESPACE, "", learner.name)),
                }
            )
        return pd.DataFrame(rows)

    def _would(self, live: Mapping[str, Any] | None) -> str:
        if live is None:
            return "create"
        labels = live["metadata"].get("labels") or {}
        if live["metadata"].get("deletionTimestamp"):
            return "refuse: it is being deleted"
        if not LABELS.items() <= labels.items():
            return "refuse: not the workshop's"
        others = {None: "adopt", self.name: "update"}
        return others.get(labels.get(ROOM), f"refuse: of room {labels.get(ROOM)}")

    def apply(self, learners: Sequence[Learner]) -> pd.DataFrame:
        """Make every learner's namespace, or none if one of them is somebody else's."""
        import pandas as pd

        plan = self.plan(learners)
        refused = plan[plan["would"].str.startswith("refuse")]
        if len(refused):
            told = "; ".join(refused["learner"] + refused["would"].str.removeprefix("refuse"))
            raise ConflictError(
                f"{told}; choose other names in the list, or another room; nothing was changed"
            )
        rows, words, profile = [], ("created", "configured", "unchanged"), self.cluster.profile
        for learner in track(learners, "namespaces"):
            there, parts = self.of(learner.name), room_objects(learner, profile, self.name)
            done = [
                action
                for component, objects in parts.items()
                for action in there.apply_objects(component, objects).actions.values()
            ]
            put_board(there, self.name)
            rows.append({"learner": learner.name, **{word: done.count(word) for word in words}})
        return pd.DataFrame(rows)

    def clean(self, *, data: bool = False, timeout_s: float = 900.0) -> None:
        """Remove what learners made, with `data` also volumes, which else stay, and namespaces."""
        names = self.namespaces()
        for name in track(names, "cleaning"):
            there = self.of(name)
            bodies = self._api.list(CLAIM, name, labels=OURS) if data else []
            # First what runs, so that a machine is not paid for while a namespace ends.
            there.clean(claims=[b["metadata"]["name"] for b in bodies], timeout_s=timeout_s)
            wipe_board(there)
        if not data:
            return
        for name in names:
            if body := self._api.get(NAMESPACE, "", name):
                self._api.delete(NAMESPACE, "", body)
        deadline = time.monotonic() + timeout_s
        with Progress(total=len(names), label="deleting namespaces") as progress:
            while left := self.namespaces():
                progress.update(done=len(names) - len(left), text=", ".join(left)[:60])
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"namespaces {', '.join(left)} are still being deleted after "
                        f"{timeout_s:g} s; see what holds one: kubectl describe namespace {left[0]}"
                    )
                time.sleep(0.5)

    def table(self) -> pd.DataFrame:
        """How far everyone is; problems are what `diagnose` found, the root cause first."""
        import pandas as pd

        names = self.namespaces()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = list(track(pool.map(self._row, names), "looking", total=len(names)))
        columns = ["learner", "components", "pods", "checks", "open", "predictions", "problems"]
        return pd.DataFrame(rows, columns=columns)

    def _row(self, name: str) -> list[str]:
        """A learner's row; what cannot be read of one learner does not hide the others."""
        there = self.of(name)
        try:
            applied = sorted({*there.components()} - {"namespace", "learner"})
            snapshot = there.snapshot()
            found, pods = diagnose(snapshot), snapshot["pods"]
            ready = sum(is_true(pod, "Ready") for pod in pods)
            ended = sum(pod["status"].get("phase") == "Succeeded" for pod in pods)
            causes = [finding.cause for finding in found]
            more = [f"{len(causes) - SHOWN_CAUSES} more"] if len(causes) > SHOWN_CAUSES else []
            problems = "; ".join(causes[:SHOWN_CAUSES] + more) or str(found.verdict)
            counted = f"{ready}/{len(pods) - ended}"
            return [name, ", ".join(applied) or "-", counted, *read_board(there), problems]
        except WorkshopError as error:
            return [name, "?", "?", "?", "?", "?", f"cannot be read: {error}"]
