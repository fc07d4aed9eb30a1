"""Wrong manifests: one line with file, object and field, and nothing is started."""

import functools

import pytest
from local_helpers import body, config_map, job, objects, pod_spec, secret

from workshop_lib.cluster.local.objects import COMPONENT, action
from workshop_lib.cluster.local.schema import checked
from workshop_lib.cluster.manifests import Object, render
from workshop_lib.errors import ClusterError, ManifestError

IMAGE = "localhost/this-environment"
SPEC = "spec.template.spec"
CONTAINER = f"{SPEC}.containers[0]"


def changed(folder, kind, **changes):
    """The objects of a folder; `a__0__b=value` sets a place of the first object of a kind."""
    items = objects(folder)
    for place, value in changes.items():
        *way, last = (int(part) if part.isdigit() else part for part in place.split("__"))
        node = functools.reduce(lambda node, part: node[part], way, body(items, kind))
        node[last] = value
    return items


JOB = functools.partial(changed, "job", "Job")
INDEXED = functools.partial(changed, "indexed", "Job")
DEPLOYMENT = functools.partial(changed, "server", "Deployment")
SERVICE = functools.partial(changed, "server", "Service")
MAIN = "spec__template__spec__containers__0__"
PODS = "spec__template__spec__"


def ray(kind="RayCluster", memory="1Gi", replicas=1, **container):
    limits = {"limits": {"memory": memory}}
    main = {"name": "ray", "image": IMAGE, "resources": limits, **container}
    group = {"template": {"spec": {"containers": [main]}}}
    workers = [{**group, "groupName": "w", "replicas": replicas}]
    spec = {"headGroupSpec": group, "workerGroupSpecs": workers}
    if kind == "RayService":
        spec = {"rayClusterConfig": spec, "serveConfigV2": "applications: [}"}
    metadata = {"name": "r", "labels": {COMPONENT: "ray"}}
    return [
        Object({"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}, "f")
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (JOB(spec__backofLimit=1),
         "spec.backofLimit is not played on this machine; did you mean backoffLimit"),
        (JOB(spec__backoffLimit="0"), "spec.backoffLimit: '0': input should be a"),
        (JOB(metadata__name="../../x"), "metadata.name: '../../x': string"),
        (JOB(metadata={}), "metadata.name is missing"),
        (JOB(**{f"{PODS}containers": []}), f"{SPEC}.containers: []: list should"),
        (JOB(**{f"{MAIN}image": "ubuntu"}), f"{CONTAINER}.image: 'ubuntu': input should be"),
        (JOB(**{f"{PODS}restartPolicy": "OnFailure"}), f"{SPEC}.restartPolicy: 'OnFailure': inp"),
        (JOB(**{f"{MAIN}resources": {"limits": {"memory": "2 GB"}}}),
         f"{CONTAINER}.resources.limits.memory: '2 GB': '2 GB' is not a Kubernetes quan"),
        (JOB(**{f"{MAIN}env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}),
         f"{CONTAINER}.env[0].valueFrom.secretKeyRef is not played"),
        (JOB(**{f"{MAIN}env": [{"name": "A", "value": "x", "valueFrom": {
            "fieldRef": {"fieldPath": "metadata.name"}}}]}),
         "container main: env A: exactly one source is needed"),
        (JOB(**{f"{MAIN}volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
         "container main: there is no volume 'v'"),
        (JOB(**{f"{PODS}volumes": [{"name": "v", "configMap": {
            "name": "c", "items": [{"key": "a", "path": "../x"}]}}]}),
         f"{SPEC}.volumes[0].configMap.items[0].path: '../x': it must be a relative"),
        (JOB(**{f"{MAIN}workingDir": "/app"}),
         "container main: workingDir /app is in no mounted volume"),
        (JOB(**{f"{MAIN}livenessProbe": {"httpGet": {"port": "web"}}}),
         "container main: livenessProbe: there is no port named 'web'"),
        (JOB(**{f"{MAIN}livenessProbe": {"exec": {"command": ["true"]}}}),
         f"{CONTAINER}.livenessProbe.exec is not played"),
        (JOB(spec__successPolicy={"rules": [{"succeededIndexes": "0"}]}),
         "successPolicy and subdomain need completionMode Indexed"),
        (INDEXED(spec__successPolicy={"rules": [{"succeededIndexes": "5"}]}),
         "successPolicy: there is no such index among 2 completions"),
        (DEPLOYMENT(spec__replicas=10**6), "spec.replicas: 1000000: input should"),
        (DEPLOYMENT(spec__selector__matchLabels={"app": "x"}),
         "selector.matchLabels.app: 'x' is not the template's 'server'"),
        (SERVICE(spec__type="LoadBalancer"), "spec.type is not played on this machine; remove it"),
        (ray(command=["x"]), f"spec.headGroupSpec.{SPEC[5:]}.containers[0].command is not played"),
        (ray("RayService"), "spec.serveConfigV2: 'applications: [}': "),
        ([config_map("c", **{"../x": "y"})], "data.../x"),
        ([config_map("c", a=5)], "data.a: 5: input should be a valid string"),
        ([secret("s", token=12345)], "stringData.token: the value: input should"),
        ([Object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}, "f")],
         "kind Pod is not played on this machine; it plays ConfigMap, Deployment, Job"),
    ],
)  # fmt: skip
def test_wrong_manifest_is_refused(cluster, items, expected):
    with pytest.raises(ManifestError) as error:
        cluster.apply_objects("work", items)
    line = str(error.value)
    assert "\n" not in line and len(line) < 600
    file, key, rest = line.split(": ", 2)
    assert (file, key) in {(item.origin, item.key) for item in items}
    assert rest.startswith(expected)
    assert not cluster.paths.runtime.exists() and not cluster.paths.objects.exists()


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "component 'work' has no objects"),
        ([config_map("c"), config_map("c")], "component 'work': ConfigMap/c is there 2 times"),
        ([*ray(), secret("r")], "component 'work': Secret/r is there 2 times"),
    ],
)
def test_wrong_component_is_refused(cluster, items, expected):
    with pytest.raises(ManifestError, match=expected):
        cluster.apply_objects("work", items)


def test_nulls_mean_nothing_and_fields_without_effect_are_said(cluster):
    items = job("true")
    pod_spec(items)["volumes"] = pod_spec(items)["containers"][0]["env"] = None
    pod_spec(items)["nodeSelector"] = {"a": "b"}
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert work.notes == {"Job/work.spec.template.spec.nodeSelector": "one machine, one node"}
    assert "Not run here: nodeSelector (one machine, one node)" in work._repr_html_()


def test_ray_brings_its_services_and_its_secret():
    bodies, _ = checked("raycluster", render("local", "raycluster"))
    keys = [f"{body['kind']}/{body['metadata']['name']}" for body in bodies]
    assert keys == ["Secret/raycluster", "Service/raycluster-head-svc", "RayCluster/raycluster"]
    bodies, _ = checked("ray-service", render("local", "ray-service"))
    kinds = [body["kind"] for body in bodies]
    assert kinds.count("Service") == 2 and kinds[-1] == "RayService"


def test_ray_cluster_that_exists_changes_only_its_replicas():
    (old,), (more,), (other,) = ray(), ray(replicas=2), ray(memory="2Gi")
    assert action(old.body, old.body, "ray") == "unchanged"
    assert action(old.body, more.body, "ray") == "configured"
    with pytest.raises(ClusterError, match="RayCluster/r: a Ray cluster's pods cannot change"):
        action(old.body, other.body, "ray")
