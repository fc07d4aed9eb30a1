"""The overlays of the cluster profiles: rendered, checked against schemas, and not privileged."""

import re

import pytest
import yaml
from emulator import schema
from manifest_checks import crd_problems, head_with_autoscaler, pod_specs

from workshop_lib.cluster import manifests
from workshop_lib.cluster.manifests import problem_there
from workshop_lib.errors import ManifestError

ROOT = manifests.manifests_dir()
COMPONENTS = sorted(
    (path.parent.parent.name, path.parent.name)
    for profile in ("eks", "kind")
    for path in (ROOT / "overlays" / profile).glob("*/kustomization.yaml")
)
MONITORING = ("RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST")
A_VALUE = {"int": 3, "float": 0.5, "str": "org/name", "bool": True}
TEXTS = ("org/name", "a-name", "0" * 64, "3Gi", "10.0.0.10")  # one of these fits each pattern


def test_every_local_component_has_its_overlays():
    local = {path.parent.name for path in (ROOT / "overlays/local").glob("*/kustomization.yaml")}
    for profile in ("eks", "kind"):
        assert local | {"storage"} <= {name for p, name in COMPONENTS if p == profile}


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_every_field_is_known(profile, component):
    for item in manifests.render(profile, component):
        model = schema.model_of(item.body)
        if model is not None:
            assert schema.unknown_field(item.body, model) is None
        labels = item.body["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ray-vllm-workshop"
        assert item.origin.startswith(("manifests/", "data/", "workshop_lib/"))


@pytest.mark.parametrize("profile", ["eks", "kind"])
@pytest.mark.parametrize("component", ["raycluster", "ray-service", "autoscale"])
def test_ray_objects_fit_the_crds(profile, component):
    found = [o for o in manifests.render(profile, component) if "Ray" in o.kind]
    assert found
    for item in found:
        assert crd_problems(item.body) == []
        item.body["spec"]["rayVersoin"] = "2.60.0"
        assert len(crd_problems(item.body)) == 1, "the check must see a misspelt field"


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_no_container_has_privileges(profile, component):
    for item in manifests.render(profile, component):
        for spec in pod_specs(item.body):
            # Ray's autoscaler, which KubeRay puts beside the head, asks the API server for pods.
            head = head_with_autoscaler(item.body)
            asks = (profile, component) == ("eks", "autoscale") and spec is head
            assert spec["automountServiceAccountToken"] is asks
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert bool(spec.get("hostNetwork")) is component.endswith("-efa")
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                assert ":" in container["image"] and not container["image"].endswith(":latest")
                assert set(container["resources"]) == {"requests", "limits"}
                context = dict(container["securityContext"])
                if component.endswith("-efa") and container["name"] == "ray":
                    assert context["capabilities"].pop("add") == ["IPC_LOCK"]
                if (profile, container["name"]) == ("eks", "ray") and component.startswith("grpo"):
                    # NeMo RL's image has its Python under /root; without a capability, though.
                    assert context.pop("runAsUser") == 0 and context.pop("runAsNonRoot") is False
                if container["name"] == "permissions":  # the one exception, explained there
                    assert context.pop("runAsUser") == 0 and context.pop("runAsNonRoot") is False
                    assert context["capabilities"].pop("add") == ["CHOWN"]
                assert context == {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                }  # fmt: skip


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_every_parameter_reaches_its_places(profile, component):
    plain = [item.body for item in manifests.render(profile, component)]
    for name, parameter in manifests.parameters_of(profile, component).items():
        assert parameter.help.endswith(".")
        value = parameter.allowed[-1] if parameter.allowed else A_VALUE[parameter.type]
        if parameter.type == "str" and not parameter.allowed:
            value = next(text for text in (value, *TEXTS) if not refused(parameter, text))
        elif parameter.maximum is not None:
            value = min(value, parameter.maximum)
        changed = [i.body for i in manifests.render(profile, component, {name: value})]
        assert changed != plain, f"{name} changes nothing"


def test_what_cannot_be_evicted_asks_not_to_be():
    """A Job with no back-off ends with its first lost pod: consolidating nodes must not cost it."""
    found = 0
    for profile, component in COMPONENTS:
        for item in manifests.render(profile, component):
            if item.kind == "Job" and item.body["spec"].get("successPolicy"):
                found += 1
                notes = item.body["spec"]["template"]["metadata"]["annotations"]
                assert item.body["spec"]["backoffLimit"] == 0
                assert notes["karpenter.sh/do-not-disrupt"] == "true"
    assert found >= 5


def refused(parameter, text):
    """Why a text is not taken: by the parameter's pattern, or by the places that it would get."""
    if parameter.pattern and not re.fullmatch(parameter.pattern, text):
        return "does not fit the pattern"
    places = () if parameter.format else (*parameter.paths, *parameter.model_folders)
    return next(filter(None, (problem_there(place, text) for place in places)), "")


def leaves(node, path=""):
    """Every value of an object by its path; a text that holds YAML is looked into."""
    if path.endswith("/serveConfigV2"):
        node = yaml.safe_load(node)
    if isinstance(node, dict):
        return {
            k: v for key, each in node.items() for k, v in leaves(each, f"{path}/{key}").items()
        }
    if isinstance(node, list):
        return {k: v for n, each in enumerate(node) for k, v in leaves(each, f"{path}/{n}").items()}
    return {path: node}


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_no_value_can_inject_yaml(profile, component):
    """What is set is a text at the parameter's places, whatever it looks like."""
    plain = [leaves(item.body) for item in manifests.render(profile, component)]
    for name, parameter in manifests.parameters_of(profile, component).items():
        assert name not in ("component", "force"), "apply has these itself"
        if parameter.type != "str" or parameter.allowed:
            continue
        value = 'x"\n  securityContext: {privileged: true}\n---\nkind: Pod\n# '
        if why := refused(parameter, value):
            with pytest.raises(ManifestError, match=re.escape(why)):
                manifests.render(profile, component, {name: value})
            continue
        changed = [i.body for i in manifests.render(profile, component, {name: value})]
        assert len(changed) == len(plain)
        for before, body in zip(plain, changed, strict=True):
            after = leaves(body)
            assert before.keys() == after.keys()
            for path in before:
                if after[path] != before[path]:
                    assert after[path] in (value, f"/models/{value.replace('/', '--')}")


def test_a_value_inside_of_a_text_is_data_too():
    value = "x\n  securityContext:\n    privileged: true\n# "
    found = manifests.render("eks", "ray-service", {"model": value})
    text = found[0].body["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)["applications"][0]["args"]["llm_configs"][0]
    assert config["model_loading_config"]["model_id"] == value
    with pytest.raises(ManifestError, match="'B200' is not one of A10G, A100"):
        manifests.render("eks", "ray-service", {"accelerator": "B200"})


@pytest.mark.parametrize(
    "component",
    [
        name
        for profile, name in COMPONENTS
        if profile == "eks" and not name.endswith(("-efa", "service-s3"))
    ],
)
def test_eks_is_the_base_but_for_what_a_patch_explains(component):
    """What differs: the container that gives a volume to its user, where monitoring is, storage."""
    base = {o.key: o.body for o in manifests.render_folder(ROOT / "base" / component)}
    for item in manifests.render("eks", component):
        if item.kind == "StorageClass":
            continue
        for spec in pod_specs(item.body):
            for container in spec["containers"]:
                env = container.pop("env", [])
                if env := [each for each in env if each["name"] not in MONITORING]:
                    container["env"] = env
        body = base[item.key]
        for spec, plain in zip(pod_specs(item.body), pod_specs(body), strict=True):
            if "initContainers" not in plain:
                spec.pop("initContainers", None)
        if component == "storage":
            body["metadata"]["labels"] = item.body["metadata"]["labels"]
        assert item.body == body


@pytest.mark.parametrize("component", [name for profile, name in COMPONENTS if profile == "kind"])
def test_kind_is_small_and_has_no_gpu(component):
    for item in manifests.render("kind", component):
        for spec in pod_specs(item.body):
            assert "nodeSelector" not in spec and "tolerations" not in spec
            for container in spec["containers"]:
                for amounts in container["resources"].values():
                    assert amounts.get("nvidia.com/gpu", "0") == "0"
                    assert int(amounts["memory"].removesuffix("Gi").removesuffix("Mi")) <= 512
        if item.kind == "PersistentVolumeClaim":
            assert item.body["spec"]["storageClassName"] == "standard"
