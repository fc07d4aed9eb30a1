"""Services that lead nowhere: no pod, no ready pod, no such port."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.probes import ports_in_log
from workshop_lib.production.diagnosis.view import Json, View, conditions, fits, ref

__all__ = ["service_causes"]


def service_causes(view: View, notes: list[str]) -> Iterator[Cause]:
    """Services without anybody behind them."""
    for service in view.items("services"):
        spec = service.get("spec") or {}
        if not spec.get("selector") or spec.get("type") == "ExternalName":
            continue
        if service["metadata"].get("deletionTimestamp"):
            continue
        pods = view.selected(service)
        if not pods and "ray.io/serve" in spec["selector"]:
            # KubeRay gives pods this label when Serve answers; why it does not is said of them.
            notes.append(f"{ref(service)}: no Ray pod serves yet")
        elif not pods:
            yield from _nobody(view, service, notes)
        else:
            yield from _somebody(view, service, pods)
        yield from _load_balancer(view, service, notes)


def _labels(selector: Json) -> str:
    return ", ".join(f"{key}={value}" for key, value in selector.items())


def _templates(view: View) -> Iterator[tuple[Json, Json]]:
    """Controllers with the labels that their pods get."""
    for key in ("deployments", "statefulsets", "replicasets", "jobs"):
        for body in view.items(key):
            template = (body.get("spec") or {}).get("template") or {}
            yield body, (template.get("metadata") or {}).get("labels") or {}
    for key in ("rayclusters", "rayservices"):
        for body in view.items(key):
            yield body, {"ray.io/cluster": body["metadata"]["name"]}


def _nobody(view: View, service: Json, notes: list[str]) -> Iterator[Cause]:
    name, spec = service["metadata"]["name"], service.get("spec") or {}
    selector = spec["selector"]
    ended = [p for p in view.pods if fits({"matchLabels": selector}, p["metadata"].get("labels"))]
    makers = [body for body, labels in _templates(view) if fits({"matchLabels": selector}, labels)]
    if any(key.startswith("ray.io/") for key in selector):
        makers += [b for key in ("rayclusters", "rayservices") for b in view.items(key)]
    waits_for = {ref(p) for p in ended} | {ref(m) for m in makers}
    for pod in ended:
        waits_for.update(view.owners(pod))
    if not makers:  # whose pods were refused is known only by name
        words = [name, *map(str, selector.values())]
        waits_for |= {
            s for s in view.event_subjects()
            if s.partition("/")[0] in ("ReplicaSet", "Job", "StatefulSet", "RayCluster")
            and (any(s.partition("/")[2].startswith(w) for w in words) or not view.pods)
        }  # fmt: skip
    done = [m for m in makers if m.get("kind") == "Job"
            and conditions(m).get("Complete", {}).get("status") == "True"]  # fmt: skip
    if done or (ended and all((p.get("status") or {}).get("phase") == "Succeeded" for p in ended)):
        return
    zero = next((m for m in makers if m.get("kind") in ("Deployment", "StatefulSet")
                 and (m.get("spec") or {}).get("replicas") == 0), None)  # fmt: skip
    if zero is not None:
        yield Cause(
            "scaled-to-zero", ref(zero),
            f"The Service {name!r} has nobody behind it, because {ref(zero)} is scaled to zero.",
            ['"replicas": 0'],
            f"kubectl scale {ref(zero).lower()} --replicas=1, or apply its component again",
            Lesson.SCALING, [ref(service), ref(zero)], Depth.SERVICE,
        )  # fmt: skip
        return
    if makers and not ended:  # the selector is right; its pods are still to come
        notes.append(f"{ref(service)}: nobody is behind it yet; {ref(makers[0])} has no pods")
        return
    near = None if ended else _nearest(view, selector)
    have = f" The nearest, {ref(near[0])}, has {near[1]}." if near else ""
    quote = [f'"{key}": "{value}"' for key, value in selector.items()]
    yield Cause(
        "service-selector", ref(service),
        f"The Service {name!r} selects pods with {_labels(selector)}, and no pod has these labels: "
        f"whoever dials it is refused.{have}",
        quote, "make the Service's selector and the labels in the pod template agree: kubectl get "
        "pods --show-labels; kubectl get endpointslices", Lesson.VLLM_DEPLOY,
        [ref(service), *([ref(near[0])] if near else [])], Depth.SERVICE,
        waits_for=waits_for - ({ref(near[0])} if near else set()),
    )  # fmt: skip


def _nearest(view: View, selector: Json) -> tuple[Json, str] | None:
    """A pod with one of the selector's keys or values, and its labels for these keys."""
    best: tuple[int, Json] | None = None
    for pod in view.pods:
        labels = pod["metadata"].get("labels") or {}
        score = sum(2 if labels.get(k) == v else k in labels for k, v in selector.items())
        if score and (best is None or score > best[0]):
            best = (score, pod)
    if best is None:
        return None
    labels = best[1]["metadata"].get("labels") or {}
    return best[1], _labels({k: labels.get(k, "nothing") for k in selector})


def _somebody(view: View, service: Json, pods: list[Json]) -> Iterator[Cause]:
    ready = [p for p in pods if conditions(p).get("Ready", {}).get("status") == "True"]
    if not ready or _by_ray(service):
        return  # why its pods are not ready is said of the pods
    name = service["metadata"]["name"]
    for port in (service.get("spec") or {}).get("ports") or []:
        target = port.get("targetPort", port.get("port"))
        numbers, names = _ports(ready[0])
        if not isinstance(target, str | int):
            continue
        if isinstance(target, str) and not target.isdigit():
            if all(target not in _ports(pod)[1] for pod in ready):
                known = ", ".join(sorted(names)) or "none"
                yield Cause(
                    "service-target-port", f"{ref(service)}/{target}",
                    f"The Service {name!r} sends to the port named {target!r}, and its pods have "
                    f"no port of that name (they have: {known}); so it has no endpoints.",
                    [target], f"correct targetPort in the Service, or name the container's port "
                    f"{target}", Lesson.VLLM_DEPLOY, [ref(service), *map(ref, ready)],
                    Depth.SERVICE,
                )  # fmt: skip
            continue
        listens = _known_ports(view, ready[0]) | numbers
        if (
            listens
            and int(target) not in listens
            and ((service.get("spec") or {}).get("clusterIP") != "None")
        ):
            yield Cause(
                "service-target-port", f"{ref(service)}/{target}",
                f"The Service {name!r} sends to port {target} of its pods, and they listen on port "
                f"{', '.join(map(str, sorted(listens)))}: connections are refused.",
                [f'"targetPort": {target}'] if "targetPort" in port else [f'"port": {target}'],
                f"set targetPort: {min(listens)} in the Service, or let the server listen on "
                f"{target}", Lesson.VLLM_DEPLOY, [ref(service), *map(ref, ready)], Depth.SERVICE,
            )  # fmt: skip


def _by_ray(service: Json) -> bool:
    """Whether KubeRay made it: then its ports are right."""
    owners = service["metadata"].get("ownerReferences") or []
    return any(str(o.get("kind", "")).startswith("Ray") for o in owners)


def _ports(pod: Json) -> tuple[set[int], set[str]]:
    """The numbers and names of the ports that a pod declares."""
    found = [
        p for c in (pod.get("spec") or {}).get("containers") or [] for p in c.get("ports") or []
    ]
    return ({int(p["containerPort"]) for p in found if p.get("containerPort")},
            {str(p["name"]) for p in found if p.get("name")})  # fmt: skip


def _known_ports(view: View, pod: Json) -> set[int]:
    """Ports that a pod's command line and probes name."""
    found: set[int] = set()
    for each in (pod.get("spec") or {}).get("containers") or []:
        found |= set(ports_in_log(pod, view.log(pod["metadata"]["name"], str(each.get("name")))))
        words = " ".join([*(each.get("command") or []), *(each.get("args") or [])])
        found |= {int(n) for n in re.findall(r"--(?:\w+-)*port[= ](\d{2,5})", words)}
        found |= {int(n) for n in re.findall(r"http\.server (\d{2,5})", words)}
        for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
            probe = each.get(kind) or {}
            action = probe.get("httpGet") or probe.get("tcpSocket") or {}
            if isinstance(action.get("port"), int):
                found.add(action["port"])
    return found


def _load_balancer(view: View, service: Json, notes: list[str]) -> Iterator[Cause]:
    if (service.get("spec") or {}).get("type") != "LoadBalancer":
        return
    if ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        return
    failed = view.events(service, "SyncLoadBalancerFailed", "FailedBuildModel",
                         "FailedDeployModel")  # fmt: skip
    if failed:
        yield Cause(
            "load-balancer", ref(service),
            f"The load balancer of the Service {service['metadata']['name']!r} could not be made.",
            [str(failed[-1].get("message") or "")],
            "mend what the message says (subnet tags, rights of the controller), or use "
            "cluster.forward(...), which needs none", Lesson.WHEN, [ref(service)], Depth.SERVICE,
        )  # fmt: skip
    else:
        notes.append(f"{ref(service)}: has no load balancer (yet); cluster.forward needs none")
