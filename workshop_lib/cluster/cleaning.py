"""Whether a lesson left the cluster as it found it: objects, pods or processes, ports."""

from __future__ import annotations

import time
from collections.abc import Sequence

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.records import Remains

__all__ = ["check_clean"]


def check_clean(cluster: Cluster, before: Remains, *, timeout_s: float = 15.0) -> CheckList:
    """Whether nothing is left of what was started since, and everything else is still there.

    Args:
        cluster: The cluster.
        before: What was there before, `cluster.remains()` at the beginning.
        timeout_s: How long something that is on its way out may take.

    Example:
        >>> before = cluster.remains()                                      # doctest: +SKIP
        >>> cluster.apply("autoscale"); cluster.delete("autoscale")         # doctest: +SKIP
        >>> check_clean(cluster, before).passed                             # doctest: +SKIP
        True
    """
    deadline = time.monotonic() + timeout_s
    while True:
        now = cluster.remains()
        objects = _new(now.objects, before.objects)
        running = _new(now.running, before.running)
        ports = _new(now.ports or (), before.ports or ())
        if not (objects or running or ports) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    missing = _new(before.objects, now.objects)
    fix = "cluster.delete(...) what it belongs to, then cluster.clean()"
    return CheckList(
        [
            Check("no object of the workshop is left", not objects, _listed(objects), fix),
            Check("no pod or process of it is left", not running, _listed(running), fix),
            Check("no port of it is open", not ports,
                  "ports are the pods' own" if now.ports is None else _listed(ports), fix,
                  applies=now.ports is not None),
            Check("what was there before is still there", not missing,
                  f"missing: {_listed(missing)}" if missing else f"{len(before.objects)} objects",
                  "apply its component again"),
            Check("data on volumes was kept", not _new(before.claims, now.claims),
                  ", ".join(now.claims) or "there is no volume", "restore it from its origin",
                  applies=bool(before.claims or now.claims)),
        ]
    )  # fmt: skip


def _new(now: Sequence[str], before: Sequence[str]) -> list[str]:
    return [each for each in now if each not in before]


def _listed(left: Sequence[str]) -> str:
    return "; ".join(left[:3]) + (f"; {len(left) - 3} more" if len(left) > 3 else "") or "nothing"
