"""What KubeRay's controller refuses although its CRD's schema admits it.

The rules are those of ray-operator/controllers/ray/utils/validation.go of KubeRay 1.7.0, as far
as they speak of fields that the workshop sets. An object that breaks one is taken by the API
server, and then nothing happens but an event.
"""

import copy
import re

import pytest
from manifest_checks import pod_specs

from workshop_lib.cluster import manifests

LONGEST = {"RayCluster": 53, "RayService": 47, "RayJob": 47}  # constant.go
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
OF_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
REDIS = ("RAY_REDIS_ADDRESS", "REDIS_USERNAME")


def rendered():
    for profile in ("eks", "kind"):
        for component in manifests.components(profile):
            for item in manifests.render(profile, component):
                if item.kind in LONGEST:
                    yield pytest.param(item.body, id=f"{profile}-{component}")


BODIES = list(rendered())


def environment(template):
    return {each["name"]: each.get("value") for each in template["containers"][0].get("env") or []}


def problems(body):
    """Every rule that an object breaks."""
    kind, name = body["kind"], body["metadata"]["name"]
    spec = body["spec"].get("rayClusterConfig") or body["spec"]
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs") or []
    scales = bool(spec.get("enableInTreeAutoscaling"))
    options = spec.get("autoscalerOptions") or {}
    found = []

    def rule(holds, words):
        if not holds:
            found.append(words)

    rule(len(name) <= LONGEST[kind], "name too long")
    rule(DNS_1035.fullmatch(name), "name is no DNS label")
    for group in (head, *workers):
        template, start = group["template"]["spec"], group.get("rayStartParams") or {}
        rule(template.get("containers"), "no container")
        rule("labels" not in start, "labels among the start parameters")
        both = group.get("resources") and any(start.get(key) for key in OF_RESOURCES)
        rule(not both, "resources twice")
        rule(all(isinstance(value, str) for value in start.values()), "a parameter is no text")
        if scales and options.get("version") == "v2":
            rule(template.get("restartPolicy", "Never") == "Never", "restartPolicy with v2")
    for group in workers:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        rule(scales or None not in (least, most), "minReplicas or maxReplicas missing")
        rule((least or 0) >= 0 and (most is None or most >= (least or 0)), "min above max")
        # Not refused but cut in silence (GetWorkerGroupDesiredReplicas).
        rule(most is None or (least or 0) <= group["replicas"] <= most, "replicas cut")
        idle = group.get("idleTimeoutSeconds")
        rule(idle is None or (scales and options.get("version") == "v2"), "idle needs v2")
        rule(not group.get("suspend"), "suspended")
    seen = environment(head["template"]["spec"])
    rule(not any(key in seen for key in REDIS), "Redis")
    v2 = seen.get("RAY_enable_autoscaler_v2")
    rule(scales or v2 not in ("1", "true"), "v2 asked for without the autoscaler")
    rule(v2 is None or "version" not in options, "v2 asked for twice")
    rule(options.get("idleTimeoutSeconds", 0) >= 0, "negative idle time")
    if (spec.get("authOptions") or {}).get("mode") == "token":
        version = tuple(map(int, str(spec.get("rayVersion", "0")).split(".")))
        rule(version >= (2, 52, 0), "token needs Ray 2.52")
    else:
        found.append("no token")  # the workshop's own rule: a dashboard runs anybody's code
    for feature in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        rule(feature not in spec, f"{feature} needs a feature gate")
    if kind == "RayService":
        rule(not (head.get("headService") or {}).get("metadata", {}).get("name"), "head's Service")
    return found


@pytest.mark.parametrize("body", BODIES)
def test_kuberay_takes_it(body):
    assert problems(body) == []


@pytest.mark.parametrize("body", BODIES)
def test_the_version_said_is_the_images(body):
    """`rayVersion` decides which probes and commands KubeRay writes into the pods."""
    spec = body["spec"].get("rayClusterConfig") or body["spec"]
    for template in pod_specs(body):
        assert f":{spec['rayVersion']}-" in template["containers"][0]["image"]


def broken(change):
    body = copy.deepcopy(next(each.values[0] for each in BODIES if "autoscale" in each.id))
    change(body, body["spec"]["rayClusterConfig"])
    return problems(body)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body, _: body["metadata"].update(name="a" * 48), "name too long"),
        (lambda body, _: body["metadata"].update(name="1a"), "name is no DNS label"),
        (lambda _, spec: spec["workerGroupSpecs"][0].update(replicas=3), "replicas cut"),
        (lambda _, spec: spec["workerGroupSpecs"][0].update(minReplicas=3), "min above max"),
        (lambda _, spec: spec.update(rayVersion="2.51.0"), "token needs Ray 2.52"),
        (lambda _, spec: spec.pop("authOptions"), "no token"),
        (lambda _, spec: spec.update(enableInTreeAutoscaling=False, autoscalerOptions={})
         or spec["workerGroupSpecs"][0].pop("maxReplicas"), "minReplicas or maxReplicas missing"),
        (lambda _, spec: spec["headGroupSpec"]["template"]["spec"].update(restartPolicy="Always"),
         "restartPolicy with v2"),
        (lambda _, spec: spec["headGroupSpec"].update(resources={"CPU": "1"}), "resources twice"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_found(change, words):
    assert words in broken(change)
