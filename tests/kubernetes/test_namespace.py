"""The component `namespace`: who may do what in it, and which of its pods may talk to which."""

import contextlib
import functools
import ipaddress
import itertools

import pytest
from manifest_checks import pod_templates
from objects import config_map, deployment, job, objects, service

from workshop_lib.cluster import kube, manifests
from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.kubernetes import KubernetesCluster
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.errors import ConflictError, ManifestError

PROFILES = ("eks", "kind")
ADMINISTRATORS = ("namespace", "monitoring", "learner", "instructor", "models-s3")


@functools.cache
def namespace(profile, kind, **parameters):
    """The objects of a kind in the component, by name."""
    found = manifests.render(profile, "namespace", parameters)
    return {item.name: item.body for item in found if item.kind == kind}


def components(profile):
    overlays = manifests.manifests_dir() / "overlays" / profile
    return sorted(path.parent.name for path in overlays.glob("*/kustomization.yaml"))


# -- applying it ----------------------------------------------------------------------------------


@pytest.fixture
def administrator(config, quick):
    """Connected with a namespace that is not there yet."""
    found = KubernetesCluster("eks", kubeconfig=config, namespace="ada")
    yield found
    found.close()


def test_an_administrator_makes_a_namespace(emulator, administrator):
    made = administrator.apply("namespace", learners="ada", pod_security="privileged")
    assert made.wait_ready() is made
    actions = dict(made.actions)
    # Kubernetes makes it together with the namespace.
    assert actions.pop("ServiceAccount/default") in ("created", "configured")
    assert set(actions.values()) == {"created"} and "Namespace/ada" in actions
    labels = emulator.store.get(emulator.kind("Namespace"), "", "ada")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    account = emulator.store.get(emulator.kind("ServiceAccount"), "ada", "default")
    assert account["automountServiceAccountToken"] is False
    binding = emulator.store.get(emulator.kind("RoleBinding"), "ada", "workshop-learner")
    assert binding["subjects"][0]["name"] == "ada"
    again = administrator.apply("namespace", learners="ada", pod_security="privileged")
    assert set(again.actions.values()) == {"unchanged"}


def test_it_stays_when_a_learner_cleans_up_and_its_namespace_always(emulator, administrator):
    administrator.apply("namespace")
    administrator.apply_objects("demo", objects(config_map()))
    administrator.clean()
    assert administrator.components() == ["namespace"]
    assert administrator.get("namespace").kind == "ServiceAccount"
    administrator.delete("namespace")
    assert administrator.components() == []
    assert emulator.store.get(emulator.kind("Namespace"), "", "ada") is not None


def test_a_service_account_that_others_have_labelled_is_theirs(emulator, cluster):
    emulator.put({"apiVersion": "v1", "kind": "ServiceAccount",
                  "metadata": {"name": "default", "labels": {"owner": "them"}}})  # fmt: skip
    with pytest.raises(ConflictError, match="ServiceAccount/default is there already"):
        cluster.apply("namespace")


def test_on_a_laptop_it_is_shown_and_not_run():
    cluster = LocalCluster(state="t-namespace")
    try:
        shown = cluster.apply("namespace")
        assert set(shown.actions.values()) == {"created"}
        text = shown._repr_html_()
        assert "Not run here" in text and "API server or operator does this" in text
        assert shown.wait_ready() is shown
        cluster.delete("namespace")
        assert cluster.components() == []
    finally:
        cluster.clean()


# -- the learner's Role ---------------------------------------------------------------------------


def granted(role):
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_a_learner_may_do_what_the_library_asks_and_nothing_else(emulator, cluster):
    """A learner's whole day, with every request judged by the Role."""
    role = namespace("kind", "Role")["workshop-learner"]
    assert role == namespace("eks", "Role")["workshop-learner"]
    emulator.rules = role["rules"]
    emulator.asked.clear()

    for profile in PROFILES:
        cluster.profile = profile
        for name in components(profile):
            if name in ADMINISTRATORS or (profile, name) == ("eks", "storage"):
                continue  # an administrator's
            work = cluster.apply(name)
            cluster.apply(name)
            work.table(), work.events()
            if name != "storage":
                assert cluster.get(name).name == work.name
            if name == "ray-cluster":
                assert len(cluster.secret("ray-cluster-auth", "auth_token")) == 64
            cluster.delete(name)
        cluster.clean(claims=["models", "prestage", "shared"])

    work = cluster.apply_objects("demo", objects(service(), deployment(), job()))
    emulator.add_pod(emulator.get("Job", "talk"), "talk-0-abcde", index=0)
    emulator.kubelet.log("talk-0-abcde").write("hello")
    assert [line.text for line in Workload(cluster, "demo", "Job", "talk").logs()] == ["hello"]
    assert cluster.exec("talk-0", ["true"]).exit_code == 0
    assert cluster.snapshot("demo")["logs"] == {"talk-0-abcde/main": "hello\n"}
    emulator.add_pod(None, "server-a", labels={"app": "server"})
    with cluster.forward("server-a", 8000) as url, contextlib.suppress(Exception):
        import httpx

        httpx.get(url, timeout=120)
    assert cluster.components() == ["demo"]
    emulator.stuck = {"talk-0-abcde"}  # it is asked for until it is gone
    with contextlib.suppress(Exception):
        cluster.delete("demo", timeout_s=0.1)
    emulator.stuck = set()
    cluster.clean()

    assert emulator.asked - emulator.refused == granted(role)
    # A component that is not there may be one that the whole cluster shares, and a snapshot looks
    # at the nodes: that cannot be granted in one namespace, and a refusal is an answer.
    assert emulator.refused <= {
        ("storage.k8s.io", "storageclasses", "list"), ("", "nodes", "list"),
        ("", "persistentvolumes", "list"), ("apps", "daemonsets", "list"),
        ("rbac.authorization.k8s.io", "clusterroles", "list"),
        ("rbac.authorization.k8s.io", "clusterrolebindings", "list"),
    }  # fmt: skip


# -- quota, and what pods may be ------------------------------------------------------------------


def asked_for(body):
    """Resource to the amount that an object's pods and claims request together."""
    if body["kind"] == "PersistentVolumeClaim":
        return {
            "requests.storage": parse_quantity(body["spec"]["resources"]["requests"]["storage"])
        }
    total = {}
    for count, pod in kube.pod_specs(body, largest=True):
        for resource, amount in {"pods": 1.0, **kube.requests_of(pod)}.items():
            key = resource if resource == "pods" else f"requests.{resource}"
            total[key] = total.get(key, 0) + count * amount
    return total


@pytest.mark.parametrize("profile", PROFILES)
def test_every_component_fits_the_quota_at_its_largest(profile):
    hard = namespace(profile, "ResourceQuota")["workshop"]["spec"]["hard"]
    limits = {key: parse_quantity(value) for key, value in hard.items()}
    assert limits["services.loadbalancers"] == limits["services.nodeports"] == 0
    for component in components(profile):
        total = {}
        for item in manifests.render(profile, component):
            for key, amount in asked_for(item.body).items():
                total[key] = total.get(key, 0) + amount
        for key, amount in total.items():
            assert amount <= limits.get(key, float("inf")), f"{component} wants {amount} {key}"


# -- network policies -----------------------------------------------------------------------------


def fits(selector, labels):
    """Whether a label selector fits."""
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions") or []
    )


def peer_fits(peer, other):
    if "ipBlock" in peer:
        if not isinstance(other, str):
            return False
        address, block = ipaddress.ip_address(other), peer["ipBlock"]
        outside = [ipaddress.ip_network(each) for each in block.get("except", [])]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in network for network in outside
        )
    if isinstance(other, str):
        return False
    where, labels = other
    if "namespaceSelector" in peer:
        if not fits(peer["namespaceSelector"], {"kubernetes.io/metadata.name": where}):
            return False
    elif where != "workshop":
        return False
    return fits(peer.get("podSelector", {}), labels)


def admitted(profile, direction, pod, other, port):
    """Whether the policies let a pod's traffic of one direction through (all of it is TCP)."""
    where, labels = pod
    if where != "workshop":
        return True  # another namespace's affair
    rules, isolated = [], False
    for policy in namespace(profile, "NetworkPolicy").values():
        spec = policy["spec"]
        if fits(spec["podSelector"], labels) and direction in spec["policyTypes"]:
            isolated = True
            rules += spec.get(direction.lower()) or []
    side = "from" if direction == "Ingress" else "to"
    return not isolated or any(
        any(peer_fits(peer, other) for peer in rule[side])
        and ("ports" not in rule
             or any(p["port"] == port and p["protocol"] == "TCP" for p in rule["ports"]))
        for rule in rules
    )  # fmt: skip


def reaches(profile, source, target, port):
    inwards = isinstance(target, str) or admitted(profile, "Ingress", target, source, port)
    return admitted(profile, "Egress", source, target, port) and inwards


OUTSIDE = {
    "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "dns": ("kube-system", {"k8s-app": "kube-dns"}),
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "impostor": ("default", {"app.kubernetes.io/name": "prometheus"}),
    "grafana": ("monitoring", {"app.kubernetes.io/name": "grafana"}),
    "stranger": ("default", {"app": "ray-cluster"}),
    "internet": "140.82.112.3", "inside": "10.0.12.7", "node-credentials": "169.254.169.254",
    "pod-identity": "169.254.170.23", "node-dns": "169.254.20.10",  # no pods: only addresses
}  # fmt: skip
RAY_PORTS = "6379 8265 10001 10002 19999"
HEADS = "ray-cluster raycluster ray-service autoscale"

# Who, whom, on which ports it may, and on which not.
TALKS = [
    *((each, each, RAY_PORTS, "") for each in ("ray-cluster", "raycluster", "grpo", "ray-service")),
    (
        "vllm model stale-address autoscale stranger",
        "ray-cluster raycluster grpo ray-service",
        "",
        RAY_PORTS,
    ),
    ("ray-cluster raycluster grpo ray-service", "internet", "", f"443 {RAY_PORTS}"),
    ("ray-cluster raycluster grpo ray-service vllm model", "dns", "53", ""),
    # The operator reaches heads of its own clusters.
    ("operator", "raycluster ray-service autoscale", "8265 8000", "10001"),
    ("operator", "ray-cluster", "", "8265"),
    # Prestage reaches the internet and its own credentials, not its node's.
    ("prestage", "internet", "443", "80"),
    ("prestage", "pod-identity", "80", ""),
    ("prestage", "inside node-credentials", "", "80 443"),
    ("model vllm", "pod-identity", "", "80"),
    ("prestage", "model vllm", "", "8265"),
    # Model servers answer the workshop's pods on one port.
    ("ray-cluster", "vllm ray-service autoscale", "8000", "9000"),
    ("stranger", "vllm ray-service autoscale", "", "8000"),
    ("vllm ray-service", "internet", "", "443"),
    # Prometheus reads pages, or its monitors' targets would never answer, and reaches nothing else.
    ("prometheus", f"{HEADS} grpo", "8080", "6379 8265 10001"),
    ("prometheus", "vllm", "8000", ""),
    ("impostor", f"{HEADS} grpo", "", "8080"),
    (HEADS, "prometheus", "9090", ""),
    (HEADS, "grafana", "3000", "22"),
    ("model", "grafana", "", "3000"),
    # Only the model comes from outside.
    ("model", "internet", "443", "80"),
    ("model", "inside node-credentials", "", "80 443"),
    ("vllm stale-address", "internet", "", "443"),
    # A DNS cache on the node is no pod (kubernetes.io, NodeLocal DNSCache).
    ("ray-cluster vllm model raycluster", "node-dns", "53", "80"),
    ("ray-cluster vllm model raycluster", "node-credentials", "", "53"),
]


@functools.cache
def actor(profile, name):
    """Where a component's pod runs, and its labels: those of its template and KubeRay's own.

    `autoscale/1` is a worker of the component's first group.
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    component, _, group = name.partition("/")
    kind, template = next(
        (item.kind, found[int(group or 0)])
        for item in manifests.render(profile, component)
        if (found := pod_templates(item.body))
    )
    labels = dict(template["metadata"]["labels"])
    if "Ray" in kind:
        labels["ray.io/node-type"] = "worker" if group else "head"
    return "workshop", labels


@pytest.mark.parametrize("profile", PROFILES)
def test_who_talks_to_whom(profile):
    wrong, rows = [], list(TALKS)
    if profile == "eks":
        rows += [
            ("operator", "raycluster/1", "", "8265"),
            ("prometheus", "raycluster/1", "8080", ""),
            ("autoscale", "inside", "443", ""),
            ("autoscale", "node-credentials", "", "443"),
            ("autoscale/1", "inside", "", "443"),
        ]
    else:  # its workers are not added and removed by the head
        rows += [("autoscale", "inside", "", "443")]
    for sources, targets, may, may_not in rows:
        for source, target in itertools.product(sources.split(), targets.split()):
            for port in (*map(int, may.split()), *map(int, may_not.split())):
                seen = reaches(profile, actor(profile, source), actor(profile, target), port)
                if seen is not (str(port) in may.split()):
                    wrong.append((source, target, port, seen))
    assert wrong == []


def test_a_dns_cache_is_named_by_its_address():
    rules = namespace("eks", "NetworkPolicy", dns_cache="172.20.0.10")["dns"]["spec"]["egress"]
    assert rules[0]["to"][1] == {"ipBlock": {"cidr": "172.20.0.10/32"}}
    assert {(each["protocol"], each["port"]) for each in rules[0]["ports"]} == {
        ("UDP", 53), ("TCP", 53),
    }  # fmt: skip
    for wrong in ("0.0.0.0/0", "10.0.0.256", "10.0.0", "", "10.0.0.1/8"):
        with pytest.raises(ManifestError, match="parameter dns_cache"):
            namespace("eks", "NetworkPolicy", dns_cache=wrong)


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_pods_carry_the_workshops_labels(emulator, cluster, profile):
    """KubeRay's too: logs by label find them, and policies."""
    cluster.profile = profile
    for component in components(profile):
        cluster.apply(component)
        for kind in ("Job", "Deployment", "RayCluster", "RayService"):
            for name in emulator.names(kind):
                templates = pod_templates(emulator.get(kind, name))
                assert templates
                for template in templates:
                    labels = template["metadata"]["labels"]
                    assert labels["app.kubernetes.io/part-of"] == "ray-vllm-workshop"
                    assert labels["app.kubernetes.io/component"] == component
                    assert labels["app"] == name
        cluster.delete(component)
