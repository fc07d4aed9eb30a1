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
from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.kube import LABELS, WORKLOAD_KINDS, readiness
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, ConflictError, OperatorError, WorkshopError
from workshop_lib.production.budget import budget
from workshop_lib.production.room.board import put_board, read_board, wipe_board
from workshop_lib.production.room.roster import Learner
from workshop_lib.progress import Progress, track

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROOM", "Room", "in_namespace", "room_objects", "room_price"]

ROOM = "workshop.techpulse/room"
"""Label of a learner's namespace: the room that it belongs to."""

AT_ONCE = 8
"""Learners that are looked at at once: a row is some thirty questions to the API server."""

SHOWN_CAUSES = 2
OURS = ",".join(f"{key}={value}" for key, value in LABELS.items())


def room_objects(learner: Learner, profile: str, room: str) -> dict[str, list[Object]]:
    """What a learner gets: component to its objects, as they are applied.

    Args:
        learner: Who.
        profile: `eks` or `kind`.
        room: The room's name.

    Example:
        >>> found = room_objects(Learner("ada", gpus=1), "eks", "friday")
        >>> [name for name in found], found["namespace"][0].body["metadata"]["labels"][ROOM]
        (['namespace', 'learner'], 'friday')
    """
    known = manifests.parameters_of(profile, "namespace")
    # kind has no GPUs to give: its component has no such parameter.
    values = {"learners": learner.group or learner.name, "gpus": learner.gpus}
    chosen = {key: value for key, value in values.items() if key in known}
    namespace = manifests.render(profile, "namespace", chosen)
    for item in namespace:
        if item.kind == "Namespace":
            item.body["metadata"]["name"] = learner.name
            item.body["metadata"].setdefault("labels", {})[ROOM] = room
    account = manifests.render(profile, "learner", {"namespace": learner.name})
    return {"namespace": namespace, "learner": account}


def room_price(learners: int, *, spot: bool = False) -> str:
    """What the whole workshop costs for so many learners, in a line for each fact.

    Args:
        learners: How many.
        spot: Machines as spot instances.
    """
    whole = budget(learners, spot=spot)
    each = f"${whole.usd / learners:,.2f} a learner"
    return "\n".join([f"{whole.line()} ({each})", *whole.notes])


def in_namespace(cluster: KubernetesCluster, namespace: str) -> KubernetesCluster:
    """The same cluster and connection, with another namespace."""
    found = copy.copy(cluster)
    found.namespace = namespace
    return found


class Room:
    """The namespaces of a room.

    Args:
        cluster: The cluster, with credentials that may make namespaces: an administrator's, or
            those of the component `instructor`.
        name: The room's name, a label's value; two rooms know nothing of each other.

    Raises:
        WorkshopError: The cluster is a laptop: there are no namespaces.

    Example:
        >>> room = Room(connect("eks"), "friday")   # doctest: +SKIP
        >>> room.plan(read_roster("learners.csv"))   # doctest: +SKIP
        >>> room.apply(read_roster("learners.csv"))   # doctest: +SKIP
    """

    def __init__(self, cluster: Cluster, name: str = "workshop") -> None:
        if not isinstance(cluster, KubernetesCluster):
            raise WorkshopError(
                "a room needs a Kubernetes cluster (profile eks or kind): on a laptop everyone has "
                "the machine to themselves; room_objects() shows what a cluster would get"
            )
        self.cluster = cluster
        self.name = name
        self._api, self._namespaces = cluster._api, resource_of_kind("Namespace")

    def namespaces(self) -> list[str]:
        """The namespaces of this room that are there."""
        found = self._api.list(self._namespaces, "", labels=f"{OURS},{ROOM}={self.name}")
        return sorted(body["metadata"]["name"] for body in found)

    def plan(self, learners: Sequence[Learner]) -> pd.DataFrame:
        """What `apply` would do; nothing is changed.

        Args:
            learners: The list.

        Returns:
            One row a learner: `learner`, `gpus` (what the quota allows), `group`, `would`: create,
            update, adopt (an administrator made it for the workshop), or refuse (not ours).
        """
        import pandas as pd

        rows = []
        for learner in learners:
            objects = room_objects(learner, self.cluster.profile, self.name)["namespace"]
            quota = next(o.body["spec"]["hard"] for o in objects if o.kind == "ResourceQuota")
            gpus = quota.get("requests.nvidia.com/gpu", "no limit")
            group = learner.group or learner.name
            live = self._api.get(self._namespaces, "", learner.name)
            rows.append([learner.name, gpus, group, self._would(live)])
        return pd.DataFrame(rows, columns=["learner", "gpus", "group", "would"])

    def _would(self, live: Mapping[str, Any] | None) -> str:
        if live is None:
            return "create"
        labels = live["metadata"].get("labels") or {}
        if live["metadata"].get("deletionTimestamp"):
            return "refuse: it is being deleted"
        if any(labels.get(key) != value for key, value in LABELS.items()):
            return "refuse: not the workshop's"
        other = labels.get(ROOM)
        if other is None:
            return "adopt"
        return "update" if other == self.name else f"refuse: of room {other}"

    def apply(self, learners: Sequence[Learner]) -> pd.DataFrame:
        """Make every learner's namespace, quota, rights and account; again changes nothing.

        All are looked at before the first is made: a namespace that is somebody else's refuses
        the whole list.

        Args:
            learners: The list.

        Returns:
            One row a learner: `learner`, and how many objects were `created`, `configured` and
            `unchanged`.

        Raises:
            ConflictError: A namespace is not the workshop's, or another room's.
            ForbiddenError: The credentials may not do it; the line names the missing rule.
        """
        import pandas as pd

        plan = self.plan(learners)
        if refused := [
            f"{row['learner']}: {row['would'].removeprefix('refuse: ')}"
            for row in plan.to_dict("records")
            if row["would"].startswith("refuse")
        ]:
            raise ConflictError(
                f"{'; '.join(refused)}; choose other names in the list, or another room; nothing "
                "was changed"
            )
        rows, words = [], ("created", "configured", "unchanged")
        for learner in track(learners, "namespaces"):
            there = in_namespace(self.cluster, learner.name)
            done: list[str] = []
            parts = room_objects(learner, self.cluster.profile, self.name)
            for component, objects in parts.items():
                done += there.apply_objects(component, objects).actions.values()
            put_board(there, self.name)
            rows.append([learner.name, *(done.count(word) for word in words)])
        return pd.DataFrame(rows, columns=["learner", *words])

    def clean(self, *, data: bool = False, timeout_s: float = 900.0) -> list[str]:
        """Remove what the learners of this room made, by the room's label.

        Args:
            data: Also the volumes with their data, and the namespaces themselves. Without it both
                stay, and with them the price of the volumes.
            timeout_s: The longest to wait for each namespace.

        Returns:
            The namespaces that were cleaned or, with `data`, deleted.

        Raises:
            WaitTimeoutError: Something is left; the line says what.
        """
        found, claim = self.namespaces(), resource_of_kind("PersistentVolumeClaim")
        for name in track(found, "cleaning"):
            there = in_namespace(self.cluster, name)
            bodies = self._api.list(claim, name, labels=OURS) if data else []
            # First what runs, so that a machine is not paid for while a namespace ends.
            there.clean(claims=[b["metadata"]["name"] for b in bodies], timeout_s=timeout_s)
            wipe_board(there)
        if data:
            self._delete_namespaces(found, timeout_s)
        return found

    def _delete_namespaces(self, names: Sequence[str], timeout_s: float) -> None:
        def there(name: str) -> dict[str, Any] | None:
            return self._api.get(self._namespaces, "", name)

        for body in filter(None, map(there, names)):
            self._api.delete(self._namespaces, "", body)
        deadline = time.monotonic() + timeout_s
        with Progress(total=len(names), label="deleting namespaces") as progress:
            while left := [name for name in names if there(name) is not None]:
                progress.update(done=len(names) - len(left), text=", ".join(left)[:60])
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"namespaces {', '.join(left)} are still being deleted after "
                        f"{timeout_s:g} s; see what holds one: kubectl describe namespace {left[0]}"
                    )
                time.sleep(0.5)

    def table(self) -> pd.DataFrame:
        """How far everyone is: one row a namespace of this room.

        Returns:
            `learner`, `components` (what is applied), `pods` (ready of wanted), `checks` (passed
            of shared, for each lesson), `open` (checks that did not pass),
            `predictions` (what was expected -> what the run said), and `problems` (what
            `diagnose` found, the root cause first).
        """
        import pandas as pd

        names = self.namespaces()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = list(track(pool.map(self._row, names), "looking", total=len(names)))
        columns = ["learner", "components", "pods", "checks", "open", "predictions", "problems"]
        return pd.DataFrame(rows, columns=columns)

    def _row(self, namespace: str) -> list[str]:
        """A learner's row; what cannot be read of one learner does not hide the others."""
        there = in_namespace(self.cluster, namespace)
        try:
            applied = [name for name in there.components() if name not in ("namespace", "learner")]
            found = there.diagnose()
            causes = [finding.cause for finding in found]
            more = [f"{len(causes) - SHOWN_CAUSES} more"] if len(causes) > SHOWN_CAUSES else []
            told = "; ".join(causes[:SHOWN_CAUSES] + more)
            problems = told if found.verdict == "problems" else str(found.verdict)
            return [
                namespace,
                ", ".join(applied) or "-",
                _pods(there),
                *read_board(there),
                problems,
            ]
        except WorkshopError as error:
            return [namespace, "?", "?", "?", "?", "?", f"cannot be read: {error}"]


def _pods(there: KubernetesCluster) -> str:
    """Pods that are ready, of those that are wanted."""
    ready = wanted = 0
    for kind in WORKLOAD_KINDS:
        try:
            bodies = there._api.list(resource_of_kind(kind), there.namespace, labels=OURS)
        except OperatorError:
            continue  # no operator knows this kind here
        for body in bodies:
            if not body["metadata"].get("ownerReferences"):
                now, all_of_it, _ = readiness(body)
                ready, wanted = ready + now, wanted + all_of_it
    return f"{ready}/{wanted}"
