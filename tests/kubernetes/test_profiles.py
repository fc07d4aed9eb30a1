"""The overlays of the cluster profiles: rendered, checked against schemas, and not privileged."""

import functools
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from emulator import schema

from workshop_lib import manifests
from workshop_lib.errors import ManifestError

ROOT = manifests.manifests_dir()
COMPONENTS = sorted(
    (path.parent.parent.name, path.parent.name)
    for profile in ("eks", "kind")
    for path in (ROOT / "overlays" / profile).glob("*/kustomization.yaml")
)
CRDS = os.environ.get("WORKSHOP_CRDS")
A_VALUE = {"int": 3, "float": 0.5, "str": "org/name", "bool": True}


def pod_specs(node):
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


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
        assert item.origin.startswith(("manifests/", "data/"))


@pytest.mark.skipif(not CRDS, reason="WORKSHOP_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("profile", ["eks", "kind"])
@pytest.mark.parametrize("component", ["raycluster", "ray-service", "autoscale"])
def test_ray_objects_fit_the_crds(profile, component):
    found = [o for o in manifests.render(profile, component) if "Ray" in o.kind]
    assert found
    for item in found:
        assert crd_problems(item.body) == []
        item.body["spec"]["rayVersoin"] = "2.60.0"
        assert len(crd_problems(item.body)) == 1, "the check must see a misspelt field"


@functools.cache
def validator_of(kind):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((Path(CRDS) / f"{kind.lower()}s.yaml").read_text(), Loader=loader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def crd_problems(body):
    validator = validator_of(body["kind"])
    body = {key: value for key, value in body.items() if key != "metadata"}
    return [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(body)]


def strict(node):
    """A CRD's schema in which an unknown field is an error, as under strict validation."""
    if isinstance(node, list):
        return [strict(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and not open_ended:
        node["additionalProperties"] = False
    if node.pop("x-kubernetes-int-or-string", False):
        node = {"type": ["integer", "string"]}
    return node


def autoscaled_head(item):
    """The head's pod spec in a RayService that adds and removes its own workers."""
    cluster = item.body["spec"].get("rayClusterConfig", {}) if item.kind == "RayService" else {}
    return (
        cluster["headGroupSpec"]["template"]["spec"]
        if cluster.get("enableInTreeAutoscaling")
        else None
    )


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_no_container_has_privileges(profile, component):
    for item in manifests.render(profile, component):
        for spec in pod_specs(item.body):
            # Ray's autoscaler, which KubeRay puts beside the head, asks the API server for pods.
            asks = (profile, component) == ("eks", "autoscale") and spec is autoscaled_head(item)
            assert spec["automountServiceAccountToken"] is asks
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not spec.get("hostNetwork")
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                assert ":" in container["image"] and not container["image"].endswith(":latest")
                assert set(container["resources"]) == {"requests", "limits"}
                context = dict(container["securityContext"])
                if (profile, component, container["name"]) == ("eks", "grpo", "ray"):
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
    for parameter in manifests.parameters_of(profile, component).values():
        assert parameter.help.endswith(".")
        value = parameter.allowed[0] if parameter.allowed else A_VALUE[parameter.type]
        changed = [i.body for i in manifests.render(profile, component, {parameter.name: value})]
        assert changed != plain, f"{parameter.name} changes nothing"


def test_a_value_cannot_inject_yaml():
    value = "x\n  securityContext:\n    privileged: true\n# "
    found = manifests.render("eks", "ray-service", {"model": value})
    text = found[0].body["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)["applications"][0]["args"]["llm_configs"][0]
    assert config["model_loading_config"]["model_id"] == value
    with pytest.raises(ManifestError, match="'B200' is not one of A10G, A100"):
        manifests.render("eks", "ray-service", {"accelerator": "B200"})


@pytest.mark.parametrize("component", [name for profile, name in COMPONENTS if profile == "eks"])
def test_eks_is_the_base_but_for_what_a_patch_explains(component):
    """What differs: the container that gives a volume to its user, and the storage class."""
    base = {o.key: o.body for o in manifests.render_folder(ROOT / "base" / component)}
    for item in manifests.render("eks", component):
        if item.kind == "StorageClass":
            continue
        for spec in pod_specs(item.body):
            spec.pop("initContainers", None)
        body = base[item.key]
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
