"""Every profile's manifests: they render, fit the schemas, set only places that exist.

That a real API server and its Pod Security admit them: tests/kubernetes/test_real_cluster.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from emulator import schema
from manifest_checks import crd_problems, head_with_autoscaler, pod_specs

from workshop_lib.cluster import manifests
from workshop_lib.cluster.local.schema import checked
from workshop_lib.cluster.manifests import problem_there
from workshop_lib.cluster.settings import explain_settings
from workshop_lib.errors import ManifestError

ROOT = manifests.manifests_dir()
COMPONENTS = sorted(path.parts[-3:-1] for path in ROOT.glob("overlays/*/*/kustomization.yaml"))
ON_CLUSTERS = [each for each in COMPONENTS if each[0] != "local"]
SCRIPTS = sorted(ROOT.rglob("*.sh"))
MONITORING = ("RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST")
A_VALUE = {"int": 3, "float": 0.5, "str": "org/name", "bool": True}
TEXTS = ("org/name", "a-name", "0" * 64, "3Gi", "10.0.0.10")  # one of these fits each pattern


def test_every_local_component_has_its_overlays():
    local = {name for profile, name in COMPONENTS if profile == "local"}
    for profile in ("eks", "kind"):
        assert local | {"storage"} <= {name for p, name in COMPONENTS if p == profile}


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_every_object_is_known_and_says_whose_it_is(profile, component):
    objects = manifests.render(profile, component)
    assert profile != "local" or checked(component, objects)
    for item in objects:
        model = schema.model_of(item.body)
        assert model is None or schema.unknown_field(item.body, model) is None
        labels = item.body["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ray-vllm-workshop"
        assert item.origin.startswith(("manifests/", "data/", "workshop_lib/"))
        if "Ray" in item.kind:
            assert crd_problems(item.body) == []
            item.body["spec"]["rayVersoin"] = "2.60.0"
            assert len(crd_problems(item.body)) == 1, "the check must see a misspelt field"
        if item.kind == "Job" and item.body["spec"].get("successPolicy") and profile != "local":
            # With no back-off it ends with its first lost pod: consolidating nodes must wait.
            notes = item.body["spec"]["template"]["metadata"]["annotations"]
            assert item.body["spec"]["backoffLimit"] == 0
            assert notes["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize(("profile", "component"), ON_CLUSTERS)
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
    if not isinstance(node, dict | list):
        return {path: node}
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    return {k: v for key, each in entries for k, v in leaves(each, f"{path}/{key}").items()}


@pytest.mark.parametrize(("profile", "component"), COMPONENTS)
def test_every_parameter_reaches_its_places_as_data(profile, component):
    """What is set is a text at the parameter's places, whatever it looks like."""
    plain = [leaves(item.body) for item in manifests.render(profile, component)]
    for name, parameter in manifests.parameters_of(profile, component).items():
        assert name not in ("component", "force"), "apply has these itself"
        assert parameter.help.endswith(".")
        is_text = parameter.type == "str" and not parameter.allowed
        value = parameter.allowed[-1] if parameter.allowed else A_VALUE[parameter.type]
        if is_text:
            value = next(text for text in (value, *TEXTS) if not refused(parameter, text))
        elif parameter.maximum is not None:
            value = min(value, parameter.maximum)
        changed = [leaves(i.body) for i in manifests.render(profile, component, {name: value})]
        assert changed != plain, f"{name} changes nothing"
        value = 'x"\n  securityContext: {privileged: true}\n---\nkind: Pod\n# '
        if is_text and (why := refused(parameter, value)):
            with pytest.raises(ManifestError, match=re.escape(why)):
                manifests.render(profile, component, {name: value})
        elif is_text:
            changed = [leaves(i.body) for i in manifests.render(profile, component, {name: value})]
            for before, after in zip(plain, changed, strict=True):
                assert before.keys() == after.keys()
                for path in before:
                    given = (before[path], value, f"/models/{value.replace('/', '--')}")
                    assert after[path] in given


@pytest.mark.parametrize(
    "component",
    [n for p, n in COMPONENTS if p == "eks" and not n.endswith(("-efa", "service-s3"))],
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_passes_shellcheck(script):
    own = Path(sys.executable).with_name("shellcheck")
    command = [own if own.exists() else shutil.which("shellcheck"), script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["local", "kind", "eks"])
@pytest.mark.parametrize("component", ["ray-cluster", "raycluster", "grpo"])
def test_what_is_written_of_settings_is_true(component, profile):
    assert len(explain_settings(component, profile)) >= 6
    with pytest.raises(ManifestError, match=r"has no spec\.comletions; correct the path"):
        explain_settings(component, profile, {"spec.comletions": "how many"})
