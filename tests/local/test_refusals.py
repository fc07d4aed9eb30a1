"""Wrong manifests: one line with file, object and field, and nothing is started."""

import copy

import pytest
from local_helpers import body, config_map, job, pod_spec, secret, server

from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, ManifestError


def setting(path, value):
    """A change to a Job's or Deployment's body: set, or with None delete, a place."""

    def change(found):
        *way, last = path
        node = found
        for part in way:
            node = node[part]
        if value is None:
            del node[last]
        elif isinstance(node, list):
            node.insert(last, value)
        else:
            node[last] = value

    return change


POD = ("spec", "template", "spec")
MAIN = (*POD, "containers", 0)
SPEC = "spec.template.spec"
CONTAINER = f"{SPEC}.containers[0]"

IMAGE = "localhost/this-environment"
BROKEN_JOBS = {
    "misspelt field": (setting(("spec", "backofLimit"), 1),
                       "spec.backofLimit is not played on this machine; did you mean backoffLimit"),
    "type": (setting(("spec", "backoffLimit"), "0"), "spec.backoffLimit: '0': input should be a"),
    "too many": (setting(("spec", "completions"), 100000), "spec.completions: 100000: input shou"),
    "no name": (setting(("metadata", "name"), None), "metadata.name is missing"),
    "path as name": (setting(("metadata", "name"), "../../x"), "metadata.name: '../../x': string"),
    "no containers": (setting((*POD, "containers"), []), f"{SPEC}.containers: []: list should"),
    "image": (setting((*MAIN, "image"), "ubuntu"), f"{CONTAINER}.image: 'ubuntu': input should be"),
    "no command": (setting((*MAIN, "command"), None), f"{CONTAINER}.command is missing"),
    "retried in its pod": (setting((*POD, "restartPolicy"), "OnFailure"),
                           f"{SPEC}.restartPolicy: 'OnFailure': input should be 'Never'"),
    "two of a name": (setting((*POD, "containers", 0),
                              {"name": "main", "image": IMAGE, "command": ["true"]}),
                      f"{SPEC}: container 'main' is there 2 times"),
    "sidecar": (setting((*POD, "initContainers"), [{"name": "x", "image": IMAGE, "command": ["a"],
                                                    "restartPolicy": "Always"}]),
                f"{SPEC}.initContainers[0].restartPolicy is not played"),
    "quantity": (setting((*MAIN, "resources"), {"limits": {"memory": "2 GB"}}),
                 f"{CONTAINER}.resources.limits.memory: '2 GB': '2 GB' is not a Kubernetes quan"),
    "two sources": (setting((*MAIN, "env"), [{"name": "A", "value": "x", "valueFrom": {
                        "fieldRef": {"fieldPath": "metadata.name"}}}]),
                    f"{CONTAINER}.env[0]: exactly one source is needed"),
    "secret as variable": (setting((*MAIN, "env"), [{"name": "A", "valueFrom": {
                               "secretKeyRef": {"name": "a", "key": "b"}}}]),
                           f"{CONTAINER}.env[0].valueFrom.secretKeyRef is not played"),
    "mount without volume": (setting((*MAIN, "volumeMounts"), [{"name": "v", "mountPath": "/v"}]),
                             f"{SPEC}: container main: there is no volume 'v'"),
    "file upwards": (setting((*POD, "volumes"), [{"name": "v", "configMap": {
                         "name": "c", "items": [{"key": "a", "path": "../x"}]}}]),
                     f"{SPEC}.volumes[0].configMap.items[0].path: '../x': it must be a relative"),
    "folder of an image": (setting((*MAIN, "workingDir"), "/app"),
                           f"{SPEC}: container main: workingDir /app is in no mounted volume"),
    "port twice": (setting((*MAIN, "ports"), [{"containerPort": 80}, {"containerPort": 80}]),
                   f"{CONTAINER}: containerPort 80 is there 2 times"),
    "probe of a name": (setting((*MAIN, "livenessProbe"), {"httpGet": {"port": "web"}}),
                        f"{CONTAINER}: livenessProbe: there is no port named 'web'"),
    "probe by command": (setting((*MAIN, "livenessProbe"), {"exec": {"command": ["true"]}}),
                         f"{CONTAINER}.livenessProbe.exec is not played"),
    "policy without index": (setting(("spec", "successPolicy"), {"rules": [{"succeededCount": 1}]}),
                             "spec: successPolicy needs completionMode Indexed"),
}  # fmt: skip


def lines(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def assert_untouched(cluster):
    assert not cluster.paths.runtime.exists() and not cluster.paths.objects.exists()


@pytest.mark.parametrize("name", BROKEN_JOBS)
def test_broken_job_is_refused(cluster, name):
    change, expected = BROKEN_JOBS[name]
    items = job("true")
    change(body(items, "Job"))
    with pytest.raises(ManifestError) as error:
        cluster.apply_objects("work", items)
    line = lines(error)
    file = "tests/local/manifests/job/job.yaml: Job/"
    assert line.startswith(file)
    assert line.removeprefix(file).partition(": ")[2].startswith(expected), line
    assert_untouched(cluster)


def indexed(**spec):
    items = job("true", folder="indexed")
    body(items, "Job")["spec"] |= spec
    return items


def deployment(change):
    items = server()
    change(body(items, "Deployment"))
    return items


def service(**spec):
    items = server()
    found = body(items, "Service")["spec"]
    found |= spec
    for key in [key for key, value in spec.items() if value is ...]:
        del found[key]
    return items


def ray(kind="RayCluster", groups=0, **container):
    head = {"template": {"spec": {"containers": [{"name": "ray", "image": IMAGE, **container}]}}}
    spec = {"headGroupSpec": head}
    spec["workerGroupSpecs"] = [{**head, "groupName": f"g{number}"} for number in range(groups)]
    if kind == "RayService":
        spec = {"rayClusterConfig": spec, "serveConfigV2": "applications: [}"}
    metadata = {"name": "r"}
    return [
        Object({"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}, "f")
    ]


def rules(*entries):
    return {"successPolicy": {"rules": list(entries)}}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (indexed(**rules({"succeededIndexes": "0-x"})), "rules[0].succeededIndexes: '0-x': string"),
        (indexed(**rules({"succeededIndexes": "5"})), "there is no index 5 among 2 completions"),
        (indexed(**rules({})), "spec: successPolicy.rules[0] needs succeededIndexes or"),
        (indexed(**rules({"succeededCount": 3})), "succeededCount: at most 2 can"),
        (deployment(setting(("spec", "replicas"), 10**6)), "spec.replicas: 1000000: input should"),
        (deployment(setting((*POD, "restartPolicy"), "Never")), "input should be 'Always'"),
        (deployment(setting(("spec", "selector", "matchLabels", "app"), "x")),
         "Deployment/server: spec: selector.matchLabels.app: the template's label is 'server'"),
        (service(ports=...), "Service/server: spec: ports is missing"),
        (service(type="LoadBalancer"), "spec.type: 'LoadBalancer': input should be 'ClusterIP'"),
        (service(ports=[{"port": 1}, {"port": 1}]), "spec: port 1 is there 2 times"),
        (ray(command=["x"]),
         "f: RayCluster/r: spec.headGroupSpec.template.spec.containers[0].command is not played"),
        (ray(groups=2), "RayCluster/r: spec.workerGroupSpecs: [{"),
        (ray("RayService"), "f: RayService/r: spec.serveConfigV2: 'applications: [}': "),
        ([config_map("c", **{"../x": "y"})], "ConfigMap/c: data.../x"),
        ([config_map("c", a=5)], "ConfigMap/c: data.a: 5: input should be a valid string"),
        ([Object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}, "f")],
         "f: Pod/p: kind Pod is not played on this machine; it plays ConfigMap, Deployment, Job"),
        ([], "component 'work' has no objects"),
        ([config_map("c"), config_map("c")], "component 'work': ConfigMap/c is there 2 times"),
        ([*ray(), secret("r")], "component 'work': Secret/r is there 2 times"),
    ],
)  # fmt: skip
def test_broken_object_is_refused(cluster, items, expected):
    with pytest.raises(ManifestError) as error:
        cluster.apply_objects("work", copy.deepcopy(items))
    assert expected in lines(error)
    assert_untouched(cluster)


def test_nulls_mean_nothing(cluster):
    items = job("true")
    pods = pod_spec(items)
    pods["volumes"], pods["initContainers"] = None, None
    pods["containers"][0]["env"] = None
    body(items, "Job")["metadata"]["labels"] = None
    cluster.apply_objects("work", items).wait_complete(timeout_s=300)


def test_fields_without_effect_are_said(cluster):
    items = job("true")
    pod_spec(items)["nodeSelector"] = {"a": "b"}
    work = cluster.apply_objects("work", items)
    assert work.notes == {"Job/work.spec.template.spec.nodeSelector": "one machine, one node"}
    assert "Not run here: nodeSelector (one machine, one node)" in work._repr_html_()


def test_ray_cluster_that_exists_changes_only_its_replicas():
    from workshop_lib.cluster.local import objects

    def cluster_of(replicas, memory):
        (item,) = ray(resources={"limits": {"memory": memory}})
        template = item.body["spec"]["headGroupSpec"]["template"]
        item.body["spec"]["workerGroupSpecs"] = [
            {"groupName": "w", "replicas": replicas, "template": template}
        ]
        item.body["metadata"]["labels"] = {objects.COMPONENT: "ray"}
        return item.body

    old = cluster_of(1, "1Gi")
    assert objects.action(old, cluster_of(1, "1Gi"), "ray") == "unchanged"
    assert objects.action(old, cluster_of(2, "1Gi"), "ray") == "configured"
    with pytest.raises(ClusterError, match="RayCluster/r: a Ray cluster's pods cannot change"):
        objects.action(old, cluster_of(1, "2Gi"), "ray")
