"""The component `namespace`: who may do what in it, and which of its pods may talk to which."""

import contextlib
import functools
import ipaddress

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


def pod_of(profile, component, group=0):
    """Where a component's pod runs, and its labels: those of its template and KubeRay's own."""
    for item in manifests.render(profile, component):
        for template in pod_templates(item.body)[group : group + 1]:
            labels = dict(template["metadata"]["labels"])
            if "Ray" in item.kind:
                labels["ray.io/node-type"] = "worker" if group else "head"
            return "workshop", labels
    raise AssertionError(f"{component} has no pods")


OPERATOR = ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
DNS = ("kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})
GRAFANA = ("monitoring", {"app.kubernetes.io/name": "grafana"})
STRANGER = ("default", {"app": "ray-cluster"})
INTERNET, INSIDE, CREDENTIALS = "140.82.112.3", "10.0.12.7", "169.254.169.254"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("component", ["ray-cluster", "raycluster", "grpo", "ray-service"])
def test_a_ray_cluster_is_open_to_itself_only(profile, component):
    own = pod_of(profile, component)
    others = [pod_of(profile, each) for each in ("vllm", "model", "stale-address", "autoscale")]
    for port in (6379, 8265, 10001, 10002, 19999):
        assert reaches(profile, own, own, port)
        for other in (*others, STRANGER):
            assert not reaches(profile, other, own, port), (other, port)
        assert not reaches(profile, own, INTERNET, port)
    assert reaches(profile, own, DNS, 53)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_operator_reaches_heads_of_its_own_clusters(profile):
    for component in ("raycluster", "ray-service", "autoscale"):
        head = pod_of(profile, component)
        assert reaches(profile, OPERATOR, head, 8265) and reaches(profile, OPERATOR, head, 8000)
        assert not reaches(profile, OPERATOR, head, 10001)
    assert not reaches(profile, OPERATOR, pod_of(profile, "ray-cluster"), 8265)
    assert not reaches("eks", OPERATOR, pod_of("eks", "raycluster", group=1), 8265)


@pytest.mark.parametrize("profile", PROFILES)
def test_prestage_reaches_the_internet_and_its_credentials(profile):
    own, agent = pod_of(profile, "prestage"), "169.254.170.23"
    assert reaches(profile, own, INTERNET, 443) and reaches(profile, own, agent, 80)
    assert not reaches(profile, own, INTERNET, 80) and not reaches(profile, own, INSIDE, 443)
    assert not reaches(profile, own, CREDENTIALS, 80), "a node's own credentials are not its"
    for other in (pod_of(profile, "model"), pod_of(profile, "vllm")):
        assert not reaches(profile, other, agent, 80) and not reaches(profile, own, other, 8265)


@pytest.mark.parametrize("profile", PROFILES)
def test_model_servers_answer_the_workshops_pods_on_one_port(profile):
    for component in ("vllm", "ray-service", "autoscale"):
        server = pod_of(profile, component)
        assert reaches(profile, pod_of(profile, "ray-cluster"), server, 8000)
        assert not reaches(profile, pod_of(profile, "ray-cluster"), server, 9000)
        assert not reaches(profile, STRANGER, server, 8000)
        assert not reaches(profile, server, INTERNET, 443) or component == "autoscale"


@pytest.mark.parametrize("profile", PROFILES)
def test_prometheus_reads_pages_and_reaches_nothing_else(profile):
    """Otherwise the ServiceMonitors would find targets that never answer."""
    impostor = ("default", PROMETHEUS[1])
    for component in ("ray-cluster", "raycluster", "ray-service", "autoscale", "grpo"):
        for group in (0, 1) if "Ray" in manifests.render(profile, component)[-1].kind else (0,):
            try:
                pod = pod_of(profile, component, group)
            except AssertionError:
                continue  # a head alone
            assert reaches(profile, PROMETHEUS, pod, 8080)
            assert not reaches(profile, impostor, pod, 8080)
            for port in (6379, 8265, 10001):
                assert not reaches(profile, PROMETHEUS, pod, port)
    assert reaches(profile, PROMETHEUS, pod_of(profile, "vllm"), 8000)
    for component in ("ray-cluster", "raycluster", "ray-service", "autoscale"):
        head = pod_of(profile, component)
        assert reaches(profile, head, PROMETHEUS, 9090) and reaches(profile, head, GRAFANA, 3000)
        assert not reaches(profile, head, GRAFANA, 22)
    assert not reaches(profile, pod_of(profile, "model"), GRAFANA, 3000)


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_model_comes_from_outside(profile):
    model = pod_of(profile, "model")
    assert reaches(profile, model, INTERNET, 443) and reaches(profile, model, DNS, 53)
    for target, port in ((INTERNET, 80), (INSIDE, 443), (CREDENTIALS, 443), (CREDENTIALS, 80)):
        assert not reaches(profile, model, target, port)
    for component in ("ray-cluster", "grpo", "vllm", "raycluster", "stale-address"):
        assert not reaches(profile, pod_of(profile, component), INTERNET, 443)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_dns_cache_on_the_node_answers(profile):
    """It is no pod: only its address can be named (kubernetes.io, NodeLocal DNSCache)."""
    for component in ("ray-cluster", "vllm", "model", "raycluster"):
        pod = pod_of(profile, component)
        assert reaches(profile, pod, "169.254.20.10", 53)
        assert not reaches(profile, pod, "169.254.20.10", 80)
        assert not reaches(profile, pod, CREDENTIALS, 53)
    rules = namespace(profile, "NetworkPolicy", dns_cache="172.20.0.10")["dns"]["spec"]["egress"]
    assert rules[0]["to"][1] == {"ipBlock": {"cidr": "172.20.0.10/32"}}
    assert {(each["protocol"], each["port"]) for each in rules[0]["ports"]} == {
        ("UDP", 53), ("TCP", 53),
    }  # fmt: skip
    for wrong in ("0.0.0.0/0", "10.0.0.256", "10.0.0", "", "10.0.0.1/8"):
        with pytest.raises(ManifestError, match="parameter dns_cache"):
            namespace(profile, "NetworkPolicy", dns_cache=wrong)


def test_only_the_autoscaler_reaches_the_api_server():
    assert reaches("eks", pod_of("eks", "autoscale"), INSIDE, 443)
    assert not reaches("eks", pod_of("eks", "autoscale"), CREDENTIALS, 443)
    assert not reaches("eks", pod_of("eks", "autoscale", group=1), INSIDE, 443)
    assert not reaches("kind", pod_of("kind", "autoscale"), INSIDE, 443)


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
