"""A room's board: from the last cell of a learner's notebook to the instructor's table.

The board is ConfigMaps in the learner's own namespace: `workshop-room`, which says that the
namespace belongs to a room, and `workshop-checks-01`, … with what each lesson's checks said. They
carry none of the workshop's labels: a learner's clean-up leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.errors import NotFoundError
from workshop_lib.results import shared_predictions

if TYPE_CHECKING:
    from workshop_lib.checklist import CheckList

BOARD = "workshop-room"
LESSON = "workshop.techpulse/lesson"
"""Label of a lesson's checks."""

CONFIG_MAP = resource_of_kind("ConfigMap")


def share_checks(cluster: Cluster, lesson: str, checks: CheckList) -> None:
    """Show a lesson's checks in the instructor's table, where there is a room; else do nothing.

    What is shared: how many passed, of how many, the names of the others, and the predictions
    that were entered beside what the run said.

    Args:
        cluster: The learner's cluster.
        lesson: Such as `01`.
        checks: The lesson's checks.

    Raises:
        NotFoundError: There are no checks to share.

    Example:
        >>> from workshop_lib import connect
        >>> from workshop_lib.checklist import Check, CheckList
        >>> checks = CheckList([Check("two nodes", True, "2 alive")])
        >>> share_checks(connect("local"), "01", checks)  # a laptop: nobody else looks
    """
    asked = [check for check in checks if check.outcome != "not applicable"]
    if not asked:
        raise NotFoundError(f"lesson {lesson} has no checks that apply here")
    if not isinstance(cluster, KubernetesCluster):
        return
    board = cluster._api.get(CONFIG_MAP, cluster.namespace, BOARD)
    if board is None:
        return
    passed = sum(check.outcome == "pass" for check in asked)
    data = {
        "lesson": lesson,
        "passed": f"{passed}/{len(asked)}",
        "open": "; ".join(check.name for check in checks.open),
        "predictions": shared_predictions(),
    }
    _put(cluster, f"workshop-checks-{lesson}", {LESSON: lesson}, data)
    room = board["data"]["name"]
    print(f"shared with the instructor of room {room}: {passed} of {len(asked)} checks")


def put_board(cluster: KubernetesCluster, room: str) -> None:
    """Say that a namespace belongs to a room; again changes nothing."""
    _put(cluster, BOARD, {}, {"name": room})


def read_board(cluster: KubernetesCluster) -> tuple[str, str, str]:
    """What was shared of each lesson: passed of all, the others' names, predictions."""
    shared = [body["data"] for body in _shared(cluster)]

    def told(key: str) -> str:
        return "; ".join(f"{each['lesson']}: {each[key]}" for each in shared if each[key]) or "-"

    return told("passed"), told("open"), told("predictions")


def wipe_board(cluster: KubernetesCluster) -> None:
    """Remove what was shared; the namespace stays the room's."""
    for body in _shared(cluster):
        cluster._api.delete(CONFIG_MAP, cluster.namespace, body)


def _shared(cluster: KubernetesCluster) -> list[dict[str, Any]]:
    maps = cluster._api.list(CONFIG_MAP, cluster.namespace, labels=LESSON)
    return sorted(maps, key=lambda body: str(body["metadata"]["name"]))


def _put(
    cluster: KubernetesCluster, name: str, labels: Mapping[str, str], data: Mapping[str, str]
) -> None:
    metadata = {"name": name, "labels": dict(labels)}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
    answer = cluster._api.apply(CONFIG_MAP, cluster.namespace, body)
    cluster._api.checked(answer, f"ConfigMap/{name}", CONFIG_MAP)
