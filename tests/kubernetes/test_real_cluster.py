"""Against a real cluster, when one is named (`real_cluster.py` says how); nothing of it is kept.

The tests of `tests/protocol` run against it too. Here is what only a real server can tell.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from local_helpers import until
from objects import job, objects
from real_cluster import IMAGE, KUBECONFIG, REASON, real_namespace

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import pod_specs
from workshop_lib.cluster.kubernetes.applying import prepared
from workshop_lib.cluster.kubernetes.resources import resource_of, resource_of_kind
from workshop_lib.errors import WaitTimeoutError


def set_labels(cluster, labels):
    answer = cluster._api.request(
        "PATCH", f"/api/v1/namespaces/{cluster.namespace}",
        body={"metadata": {"name": cluster.namespace, "labels": labels}},
        content_type="application/merge-patch+json",
    )  # fmt: skip
    assert answer.ok


pytestmark = pytest.mark.skipif(not KUBECONFIG, reason=REASON)


@pytest.mark.parametrize("profile", ["eks", "kind"])
def test_every_object_is_accepted(profile):
    """Strictly validated as a dry run: no pod is made and no image pulled."""
    refused, unknown = [], set()
    with real_namespace(profile) as cluster:
        for component in manifests.components(profile):
            found = manifests.render(profile, component, {})
            for body in prepared(component, found, cluster.namespace):
                resource = resource_of(body)
                answer = cluster._api.apply(resource, cluster.namespace, body, dry_run=True)
                if answer.is_missing_kind:
                    unknown.add(resource.group)
                elif not answer.ok and not answer.fixed_fields:  # there already, with other values
                    refused.append(f"{component}: {answer.message}")
    assert refused == []
    assert unknown <= {"ray.io", "monitoring.coreos.com"}, "these come with operators"


def test_a_pod_that_the_namespace_does_not_admit():
    """The Job is made, its pod is not: only an event of the Job tells why."""
    with real_namespace() as cluster:
        body = job(image=IMAGE)
        body["spec"]["template"]["spec"]["hostNetwork"] = True
        set_labels(cluster, {"pod-security.kubernetes.io/enforce": "baseline"})
        work = cluster.apply_objects("demo", objects(body))
        with pytest.raises(WaitTimeoutError, match="violates PodSecurity"):
            work.wait_ready(timeout_s=15)


def test_an_operators_defaults_are_no_conflict():
    """KubeRay fills the list of worker groups with defaults, and then owns it."""
    with real_namespace("eks") as cluster:
        cluster.apply("autoscale")
        service = resource_of_kind("RayService")

        def owned():
            body = cluster._api.get(service, cluster.namespace, "recommender")
            return any(entry["manager"] == "kuberay-operator" and "f:rayClusterConfig" in
                       entry["fieldsV1"].get("f:spec", {})
                       for entry in body["metadata"]["managedFields"])  # fmt: skip

        until(owned)
        again = cluster.apply("autoscale", max_replicas=3)
        assert again.actions["RayService/recommender"] == "configured"


def test_many_commands_at_once():
    """One in a hundred was lost while a thread read the TLS connection that another one wrote."""
    with real_namespace() as cluster:
        body = job(image=IMAGE)
        body["spec"]["template"]["spec"]["containers"][0]["command"] = ["sleep", "600"]
        pod = cluster.apply_objects("demo", objects(body)).wait_ready(timeout_s=300).pods[0]
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda n: cluster.exec(pod, ["echo", str(n)]), range(300)))
        assert [each.stdout for each in done] == [f"{n}\n" for n in range(300)]


@pytest.mark.parametrize("profile", ["eks", "kind"])
def test_every_pod_is_admitted_by_the_namespaces_pod_security(profile):
    """As a dry run, with the level of the component `namespace`; only EFA asks for more."""
    labels = next(item.body["metadata"]["labels"] for item in manifests.render(profile, "namespace")
                  if item.kind == "Namespace")  # fmt: skip
    refused, asked = set(), 0
    with real_namespace(profile) as cluster:
        set_labels(cluster, {k: v for k, v in labels.items() if k.startswith("pod-security")})
        for component in manifests.components(profile):
            for item in manifests.render(profile, component):
                for _, spec in pod_specs(item.body):
                    spec = {**spec, "serviceAccountName": "default"}
                    body = {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": "x"},
                        "spec": spec,
                    }
                    pods = resource_of_kind("Pod")
                    answer = cluster._api.create(pods, cluster.namespace, body, dry_run=True)
                    asked += 1
                    if "violates PodSecurity" in answer.message:
                        refused.add(component)
                    else:
                        assert answer.ok or answer.status == 422, answer.message
    assert asked > 10
    assert refused == {each for each in manifests.components(profile) if each.endswith("-efa")}
