"""The kro graph and the Backstage form give what kustomize renders, and offer what fits."""

import json
import re

import pytest
import yaml
from manifest_checks import crd_problems

from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.serving.memory import ModelShape, gpu_budget

FOLDER = manifests.manifests_dir() / "platform"
COMPONENT = "ray-service-s3"
GRAPH = yaml.safe_load((FOLDER / "kro/model-server.yaml").read_text())
TEMPLATE = yaml.safe_load((FOLDER / "backstage/template.yaml").read_text())
FORM = TEMPLATE["spec"]["parameters"][0]
BRANCHES = {b["properties"]["model"]["const"]: b for b in FORM["dependencies"]["model"]["oneOf"]}
SHAPES = {
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
    "meta-llama/Llama-3.1-70B-Instruct": "llama-3.1-70b",
}
FIELDS = {
    "model": "model",
    "max_model_len": "maxModelLen",
    "tensor_parallel_size": "tensorParallelSize",
    "workers": "workers",
    "instance_type": "instanceType",
    "image": "image",
}
"""The overlay's parameters that a team sets; where monitoring is, is the cluster's."""


def value(expression, spec):
    """An expression of the four kinds that the graph has; kro's own CEL knows them all."""
    field = re.search(r"schema\.(?:spec|metadata)\.(\w+)", expression)[1]
    found = {"name": "llm", **spec}[field]
    if expression.startswith("string("):
        return str(found)
    if table := re.fullmatch(r"(\{.*\})\[[\w.]+\]", expression):
        return json.loads(table[1])[found]
    if expression.endswith('.replace("/", "--")'):
        return found.replace("/", "--")
    assert re.fullmatch(r"schema\.[\w.]+", expression), f"of no kind that is known: {expression}"
    return found


def filled(node, spec):
    if isinstance(node, dict):
        return {key: filled(each, spec) for key, each in node.items()}
    if isinstance(node, list):
        return [filled(each, spec) for each in node]
    if not isinstance(node, str):
        return node
    pattern = r"\$\{(\{[^}]*\}\[[\w.]+\]|[^{}]+)\}"
    if whole := re.fullmatch(pattern, node):
        return value(whole[1], spec)
    return re.sub(pattern, lambda match: value(match[1], spec), node)


def service(body):
    """A RayService with its embedded text as data."""
    text = yaml.safe_load(body["spec"]["serveConfigV2"])
    return {**body, "spec": {**body["spec"], "serveConfigV2": text}}


def from_kro(spec):
    defaults = {}
    for name, text in GRAPH["spec"]["schema"]["spec"].items():
        if default := re.search(r'default=("[^"]*"|[\d.]+)', text):
            defaults[name] = json.loads(default[1])
    (resource,) = GRAPH["spec"]["resources"]
    return service(filled(resource["template"], {**defaults, **spec}))


def from_kustomize(**parameters):
    objects = manifests.render("eks", COMPONENT, parameters)
    return next(service(item.body) for item in objects if item.kind == "RayService")


@pytest.mark.parametrize("instance_type", ["p4d.24xlarge", "p5en.48xlarge"])
def test_a_model_server_becomes_what_kustomize_gives(instance_type):
    parameters = {
        "model": "Qwen/Qwen3-8B",
        "max_model_len": 16384,
        "tensor_parallel_size": 4,
        "workers": 3,
        "instance_type": instance_type,
        "image": "registry.example/ray-vllm:1",
    }
    made = from_kro({FIELDS[name]: each for name, each in parameters.items()})
    assert made == from_kustomize(**parameters)
    plain = from_kro({"model": "a/b"})
    assert plain == from_kustomize(model="a/b", instance_type="p4d.24xlarge")
    assert crd_problems(from_kro_text("a/b")) == []
    known = set(manifests.parameters_of("eks", COMPONENT))
    assert set(FIELDS) == known - {"prometheus_host", "grafana_host"}


def from_kro_text(model):
    made = from_kro({"model": model})
    text = yaml.safe_dump(made["spec"]["serveConfigV2"])
    return {**made, "spec": {**made["spec"], "serveConfigV2": text}}


@pytest.mark.parametrize("model", BRANCHES)
def test_every_size_that_the_form_offers_fits(model):
    shape = ModelShape.named(SHAPES[model])
    size = BRANCHES[model]["properties"]["size"]
    assert len(size["enum"]) == len(size["enumNames"])
    share = from_kustomize(model=model)["spec"]["serveConfigV2"]["applications"][0]["args"]
    utilization = share["llm_configs"][0]["engine_kwargs"]["gpu_memory_utilization"]
    for key in size["enum"]:
        machine, tp, length = key.split(":")
        options = {"gpu_memory_utilization": utilization, "max_model_len": int(length)}
        budget = gpu_budget(shape, catalogue()[machine].gpu, tp=int(tp), **options)
        assert budget.fits and budget.kv.concurrency >= 8, key


def test_the_form_writes_a_model_server():
    """The skeleton's fields are the graph's, and the template's step gives each a value."""
    skeleton = (FOLDER / "backstage/skeleton/model-server.yaml").read_text()
    body = yaml.safe_load(re.sub(r"\$\{\{ values\.(\w+) \}\}", r"\1", skeleton))
    assert body["kind"] == GRAPH["spec"]["schema"]["kind"]
    assert set(body["spec"]) <= set(GRAPH["spec"]["schema"]["spec"])
    step = TEMPLATE["spec"]["steps"][0]
    used = set(re.findall(r"\$\{\{ values\.(\w+) \}\}", skeleton))
    assert used == set(step["input"]["values"]) and step["action"] == "fetch:template"
