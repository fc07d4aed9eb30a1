"""The project's own manifests: they render, fit the CRDs, and set only places that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manifest_checks import crd_problems, head_with_autoscaler, pod_specs

from workshop_lib.cluster import manifests
from workshop_lib.cluster.local.schema import checked
from workshop_lib.cluster.settings import explain_settings

ROOT = manifests.manifests_dir()
BASES = sorted(path.parent for path in (ROOT / "base").glob("*/kustomization.yaml"))
LOCAL = sorted(path.parent.name for path in (ROOT / "overlays/local").glob("*/kustomization.yaml"))
SCRIPTS = sorted(ROOT.rglob("*.sh"))

NEEDS_ROOT = {"grpo": "NeMo RL's image has its Python under /root (docker/Dockerfile, v0.7.0)"}

A_VALUE = {"int": 3, "float": 0.5, "str": "org/name", "bool": True}
TEXTS = ("org/name", "a-name", "0" * 64, "3Gi")  # one of these fits each pattern


@pytest.mark.parametrize("component", LOCAL)
def test_local_overlay_is_played(component):
    objects = manifests.render("local", component)
    assert checked(component, objects)
    for item in objects:
        place = item.origin.partition("/")[0]
        assert place in ("manifests", "data", "workshop_lib"), (
            "an error must be able to name the file"
        )
        assert "overlays" not in item.origin
        labels = item.body["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ray-vllm-workshop"


@pytest.mark.parametrize("component", LOCAL)
def test_every_parameter_reaches_its_places(component):
    plain = [item.body for item in manifests.render("local", component)]
    for name, parameter in manifests.parameters_of("local", component).items():
        assert parameter.help.endswith(".")
        value = parameter.allowed[-1] if parameter.allowed else A_VALUE[parameter.type]
        if parameter.pattern:
            value = next(text for text in TEXTS if re.fullmatch(parameter.pattern, text))
        changed = [i.body for i in manifests.render("local", component, {name: value})]
        assert changed != plain, f"{name} changes nothing"


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.name)
def test_base_asks_for_no_privilege(base):
    """Every container on a cluster: limits, no privilege, a named image version."""
    for item in manifests.render_folder(base):
        for spec in pod_specs(item.body):
            # Ray's autoscaler, which KubeRay puts beside the head, asks the API server for pods.
            assert spec["automountServiceAccountToken"] is (spec is head_with_autoscaler(item.body))
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert not spec.get("hostNetwork")
            for container in spec["containers"]:
                where = f"{item.key} {container['name']}"
                assert ":" in container["image"] and not container["image"].endswith(":latest")
                assert set(container["resources"]) == {"requests", "limits"}, where
                context = dict(container["securityContext"])
                if base.name in NEEDS_ROOT:
                    assert context.pop("runAsUser") == 0 and context.pop("runAsNonRoot") is False
                assert context == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }, where


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_passes_shellcheck(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck if shellcheck.exists() else shutil.which("shellcheck"), script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("component", ["raycluster", "ray-service", "autoscale"])
def test_ray_objects_fit_the_crds(component):
    found = [o for o in manifests.render_folder(ROOT / "base" / component) if "Ray" in o.kind]
    assert found
    for item in found:
        assert crd_problems(item.body) == []
        item.body["spec"]["rayVersoin"] = "2.60.0"
        assert len(crd_problems(item.body)) == 1, "the check must see a misspelt field"


def test_settings_are_compared_with_the_base():
    table = explain_settings(
        "ray-cluster",
        "local",
        {"spec.completionMode": "ranks", "spec.template.spec.subdomain": "names"},
    )
    assert table["GPU cluster"].tolist() == ["Indexed", "ray-cluster"]


@pytest.mark.parametrize("profile", ["local", "kind", "eks"])
@pytest.mark.parametrize("component", ["ray-cluster", "raycluster", "grpo"])
def test_what_is_written_of_settings_is_true(component, profile):
    assert len(explain_settings(component, profile)) >= 6


def test_settings_refuse_a_path_that_is_nowhere():
    with pytest.raises(manifests.ManifestError, match=r"Job has no spec\.comletions"):
        explain_settings("ray-cluster", "local", {"spec.comletions": "how many"})


def test_model_job_fills_the_claim_that_servers_mount():
    job = next(item for item in manifests.render("local", "model") if item.kind == "Job")
    container = next(pod_specs(job.body))["containers"][0]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert told["WORKSHOP_MODELS_DIR"] == mounts["models"]
    assert "HOME" not in told, "it would move the cache"
