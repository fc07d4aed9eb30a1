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
NAMED = f"{SPEC}.containers[name=main]"
PROBE = {"httpGet": {"port": 80}}

BROKEN_JOBS = {
    "unknown field": (setting(("spec", "suspend"), True),
                      "spec.suspend is not played on this machine; known: "),
    "misspelt field": (setting(("spec", "backofLimit"), 1),
                       "spec.backofLimit is not played on this machine; did you mean backoffLimit"),
    "type": (setting(("spec", "backoffLimit"), "0"), "spec.backoffLimit: '0' is not a whole"),
    "bool as number": (setting(("spec", "backoffLimit"), True), "spec.backoffLimit: True is not"),
    "negative": (setting(("spec", "completions"), -1), "spec.completions: -1 is not a whole"),
    "too many": (setting(("spec", "completions"), 100000), "spec.completions: 100000 is not"),
    "version": (setting(("apiVersion",), "batch/v2"), "apiVersion: 'batch/v2' is not known; write"),
    "no name": (setting(("metadata", "name"), None), "metadata.name is missing"),
    "path as name": (setting(("metadata", "name"), "../../x"), "metadata.name: '../../x' is not a"),
    "long name": (setting(("metadata", "name"), "x" * 64), "metadata.name: 'xxxx"),
    "no spec": (setting(("spec",), None), "spec is missing"),
    "no template": (setting(("spec", "template"), None), "spec.template is missing"),
    "no containers": (setting((*POD, "containers"), []), f"{SPEC}.containers is empty"),
    "containers as text": (setting((*POD, "containers"), "x"),
                           f"{SPEC}.containers: 'x' is not a list"),
    "image": (setting((*MAIN, "image"), "ubuntu"), f"{CONTAINER}.image: 'ubuntu' is not played"),
    "no command": (setting((*MAIN, "command"), None), f"{NAMED}.command is missing"),
    "empty command": (setting((*MAIN, "command"), []), f"{CONTAINER}.command is empty"),
    "NUL": (setting((*MAIN, "command"), ["a\0b"]), f"{CONTAINER}.command[0]: 'a\\x00b' is not"),
    "always": (setting((*POD, "restartPolicy"), "Always"), f"{SPEC}.restartPolicy: 'Always': a"),
    "no policy": (setting((*POD, "restartPolicy"), None), f"{SPEC}.restartPolicy: None: a Job"),
    "two of a name": (setting((*POD, "containers", 0),
                              {"name": "main", "image": "localhost/this-environment",
                               "command": ["true"]}),
                      f"{SPEC}: containers: 'main' is there 2 times"),
    "sidecar": (setting((*POD, "initContainers"),
                        [{"name": "x", "image": "localhost/this-environment", "command": ["true"],
                          "restartPolicy": "Always"}]),
                f"{SPEC}.initContainers[0].restartPolicy is not played"),
    "quantity": (setting((*MAIN, "resources"), {"limits": {"memory": "2 GB"}}),
                 f"{CONTAINER}.resources.limits.memory: '2 GB' is not a Kubernetes quantity"),
    "number as value": (setting((*MAIN, "env"), [{"name": "A", "value": 5}]),
                        f"{CONTAINER}.env[0].value: 5 is not text"),
    "variable": (setting((*MAIN, "env"), [{"name": "A=B", "value": "x"}]),
                 f"{CONTAINER}.env[0].name: 'A=B' is not a variable's name"),
    "two sources": (setting((*MAIN, "env"), [{"name": "A", "value": "x", "valueFrom": {
                        "fieldRef": {"fieldPath": "metadata.name"}}}]),
                    f"{NAMED}.env[0] (A): exactly one source"),
    "unknown field path": (setting((*MAIN, "env"), [{"name": "A", "valueFrom": {
                               "fieldRef": {"fieldPath": "status.qosClass"}}}]),
                           f"{CONTAINER}.env[0].valueFrom.fieldRef.fieldPath: 'status.qosClass'"),
    "mount without volume": (setting((*MAIN, "volumeMounts"), [{"name": "v", "mountPath": "/v"}]),
                             f"{NAMED}.volumeMounts: there is no volume 'v'"),
    "mount on root": (setting((*MAIN, "volumeMounts"), [{"name": "v", "mountPath": "/"}]),
                      f"{CONTAINER}.volumeMounts[0].mountPath: '/' is not an absolute path"),
    "relative mount": (setting((*MAIN, "volumeMounts"), [{"name": "v", "mountPath": "v"}]),
                       f"{CONTAINER}.volumeMounts[0].mountPath: 'v' is not an absolute path"),
    "sub path upwards": (setting((*MAIN, "volumeMounts"),
                                 [{"name": "v", "mountPath": "/v", "subPath": "a/../../b"}]),
                         f"{CONTAINER}.volumeMounts[0].subPath: 'a/../../b' is not a relative"),
    "file upwards": (setting((*POD, "volumes"), [{"name": "v", "configMap": {
                         "name": "c", "items": [{"key": "a", "path": "../x"}]}}]),
                     f"{SPEC}.volumes[0].configMap.items[0].path: '../x' is not a relative path"),
    "host path": (setting((*POD, "volumes"), [{"name": "v", "hostPath": {"path": "/"}}]),
                  f"{SPEC}.volumes[0].hostPath is not played"),
    "folder of an image": (setting((*MAIN, "workingDir"), "/app"),
                           f"{NAMED}.workingDir: /app is in no mounted volume"),
    "port": (setting((*MAIN, "ports"), [{"containerPort": 70000}]),
             f"{CONTAINER}.ports[0].containerPort: 70000 is not a whole number from 1 up to 65535"),
    "port twice": (setting((*MAIN, "ports"), [{"containerPort": 80}, {"containerPort": 80}]),
                   f"{SPEC}: containerPort: 80 is there 2 times"),
    "probe of nothing": (setting((*MAIN, "livenessProbe"), {"periodSeconds": 1}),
                         f"{NAMED}.livenessProbe: exactly one of"),
    "probe of two": (setting((*MAIN, "livenessProbe"), {**PROBE, "tcpSocket": {"port": 1}}),
                     f"{NAMED}.livenessProbe: exactly one of"),
    "probe of a name": (setting((*MAIN, "livenessProbe"), {"httpGet": {"port": "web"}}),
                        f"{NAMED}.livenessProbe: there is no port named 'web'"),
    "probe path": (setting((*MAIN, "livenessProbe"), {"httpGet": {"port": 1, "path": "x"}}),
                   f"{NAMED}.livenessProbe.httpGet.path: it must begin with /"),
    "probe by grpc": (setting((*MAIN, "livenessProbe"), {"grpc": {"port": 1}}),
                      f"{CONTAINER}.livenessProbe.grpc is not played"),
    "probe that must succeed twice": (setting((*MAIN, "livenessProbe"),
                                              {**PROBE, "successThreshold": 2}),
                                      f"{NAMED}.livenessProbe.successThreshold: it must be 1"),
    "work queue": (setting(("spec", "parallelism"), 2), "spec.completions is missing; parallelism"),
    "policy without index": (setting(("spec", "successPolicy"), {"rules": [{"succeededCount": 1}]}),
                             "spec.successPolicy needs completionMode Indexed"),
    "indexed without number": (setting(("spec", "completionMode"), "Indexed"),
                               "spec.completions is missing"),
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


def ray(kind="RayCluster", **container):
    head = {"template": {"spec": {"containers": [
        {"name": "ray", "image": "localhost/this-environment", **container}]}}}  # fmt: skip
    spec = {"headGroupSpec": head}
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
        (indexed(**rules({"succeededIndexes": "0-x"})), ".rules[0].succeededIndexes: '0-x' is not"),
        (indexed(**rules({"succeededIndexes": "5"})), "there is no index 5 among 2 completions"),
        (indexed(**rules({})), "spec.successPolicy.rules[0] needs succeededIndexes or"),
        (indexed(**rules({"succeededCount": 3})), ".rules[0].succeededCount: at most 2 can"),
        (deployment(setting(("spec", "replicas"), 10**6)), "spec.replicas: 1000000 is not"),
        (deployment(setting((*POD, "restartPolicy"), "Never")), "a Deployment needs 'Always'"),
        (deployment(setting(("spec", "selector", "matchLabels", "app"), "x")),
         "Deployment/server: spec.selector.matchLabels.app: the template's label is 'server', not"),
        (service(ports=...), "Service/server: spec.ports is missing"),
        (service(type="LoadBalancer"), "spec.type: 'LoadBalancer' is not played"),
        (service(ports=[{"port": 1}, {"port": 1}]), "spec.ports: 1 is there 2 times"),
        (ray(command=["x"]),
         "f: RayCluster/r: spec.headGroupSpec.template.spec.containers[name=ray].command is not"),
        (ray(ports=[{"containerPort": 1234}]), ".ports: 1234 is not played on this machine; a Ray"),
        (ray("RayService"), "f: RayService/r: spec.serveConfigV2: no YAML: "),
        ([config_map("c", **{"../x": "y"})], "ConfigMap/c: data: '../x' is not a key"),
        ([config_map("c", a=5)], "ConfigMap/c: data.a: 5 is not text"),
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


def test_object_of_another_component_is_not_taken(cluster):
    cluster.apply_objects("one", [config_map("c", a="1")])
    with pytest.raises(ClusterError, match="ConfigMap/c belongs to component 'one' already"):
        cluster.apply_objects("two", [config_map("c", a="1")])
    assert cluster.components() == ["one"]


def test_parallelism_of_a_job_that_exists_is_not_lowered(cluster):
    cluster.apply_objects("work", job("sleep 600", completions=3, parallelism=2))
    again = cluster.apply_objects("work", job("sleep 600", completions=3, parallelism=3))
    assert again.actions == {"Job/work": "configured"}
    with pytest.raises(ClusterError, match="Job/work: parallelism cannot be lowered"):
        cluster.apply_objects("work", job("sleep 600", completions=3, parallelism=1))


def test_ray_cluster_that_exists_changes_only_its_replicas():
    from workshop_lib.cluster.local import changes

    def cluster_of(replicas, memory):
        (item,) = ray(resources={"limits": {"memory": memory}})
        template = item.body["spec"]["headGroupSpec"]["template"]
        item.body["spec"]["workerGroupSpecs"] = [
            {"groupName": "w", "replicas": replicas, "template": template}
        ]
        item.body["metadata"]["labels"] = {changes.COMPONENT: "ray"}
        return item.body

    old = cluster_of(1, "1Gi")
    assert changes.action(old, cluster_of(1, "1Gi"), "ray") == "unchanged"
    assert changes.action(old, cluster_of(2, "1Gi"), "ray") == "configured"
    with pytest.raises(ClusterError, match="RayCluster/r: a Ray cluster's pods cannot change"):
        changes.action(old, cluster_of(1, "2Gi"), "ray")


def test_unknown_component_is_answered_with_the_known_ones(cluster):
    for name in ("nonsense", "../local/vllm"):
        with pytest.raises(ManifestError, match=r"there is no component .* it has .*vllm"):
            cluster.apply(name)
    with pytest.raises(ClusterError, match="component 'vllm' is not applied"):
        cluster.get("vllm")
    assert_untouched(cluster)
