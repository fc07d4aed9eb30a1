"""What a profile's components ask of a cluster, read from their manifests as rendered."""

from __future__ import annotations

import functools
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import (
    CLAIM,
    EFA,
    GPU,
    POOL,
    Json,
    parse_quantity,
    pod_specs,
    requests_of,
)

__all__ = ["Needs", "needs_of"]


@dataclass
class Needs:
    """What components ask for.

    Attributes:
        images: Container images, each with the components that use it.
        storage_classes: Names of storage classes.
        rules: What a learner's Role grants, as it is rendered: `(group, resource, verb)`.
        amounts: Component to what all of its pods request together, in cores, bytes, devices.
        gpus_of_a_pod: The most GPUs that a pod of the usual components asks for.
        efa: Components that ask for EFA devices.
        pools: Values of the node label `workshop.techpulse/pool` that pods select.
        kinds: Kinds of objects.
    """

    images: dict[str, list[str]] = field(default_factory=dict)
    storage_classes: set[str] = field(default_factory=set)
    rules: set[tuple[str, str, str]] = field(default_factory=set)
    amounts: dict[str, defaultdict[str, float]] = field(default_factory=dict)
    gpus_of_a_pod: int = 0
    efa: list[str] = field(default_factory=list)
    pools: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)


@functools.cache
def needs_of(profile: str) -> Needs:
    """What the components of a profile ask for; rendering them takes a few seconds, once."""
    names = manifests.components(profile)
    with ThreadPoolExecutor(4) as pool:
        rendered = list(pool.map(lambda name: manifests.render(profile, name), names))
    found = Needs()
    for name, objects in zip(names, rendered, strict=True):
        for item in objects:
            _add(found, name, item.body)
    return found


def _add(needs: Needs, component: str, body: Json) -> None:
    spec = body.get("spec") or {}
    needs.kinds.add(body["kind"])
    total = needs.amounts.setdefault(component, defaultdict(float))
    if body["kind"] == CLAIM:
        if spec.get("storageClassName"):  # empty: a volume that is there already
            needs.storage_classes.add(spec["storageClassName"])
        total["requests.storage"] += parse_quantity(spec["resources"]["requests"]["storage"])
    for rule in body["rules"] if body["kind"] == "Role" else []:
        needs.rules |= {
            (group, resource, verb)
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
    for count, pod in pod_specs(body):
        requests = requests_of(pod)
        for name, amount in {**requests, "pods": 1}.items():
            total[name] += count * amount
        if requests.get(EFA):
            needs.efa.append(component)
        else:
            needs.gpus_of_a_pod = max(needs.gpus_of_a_pod, int(requests.get(GPU, 0)))
        if value := (pod.get("nodeSelector") or {}).get(POOL):
            needs.pools.add(value)
        for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
            users = needs.images.setdefault(container["image"], [])
            if component not in users:
                users.append(component)
