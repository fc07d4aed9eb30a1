"""kro and Backstage give the manifests that kustomize gives, and the form offers what fits."""

import copy
import re

import jsonschema
import pytest
import yaml
from manifest_checks import crd_problems
from platform_tools import FIELD, GRAPH, TEMPLATE, cel, copied, filled, instantiated, nunjucks

from workshop_lib.cluster import manifests
from workshop_lib.data import data_path
from workshop_lib.production.platform import __main__ as written
from workshop_lib.production.platform.kro import FIELDS
from workshop_lib.production.platform.sizes import COMPONENT, Size, choices, sizes, utilization
from workshop_lib.serving.memory import ModelShape, advise

FOLDER = manifests.manifests_dir() / "platform"
OFFERED = sizes()
MODELS = list(choices()["models"])


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


GRAPH_FILE = load("kro/model-server.yaml")
TEMPLATE_FILE = load("backstage/template.yaml")
FORM = TEMPLATE_FILE["spec"]["parameters"][0]


def ours(**parameters):
    """The overlay's objects, with texts that hold YAML as data."""
    return [as_data(item.body) for item in manifests.render("eks", COMPONENT, parameters)]


def as_data(body):
    body = copy.deepcopy(body)
    body["spec"]["serveConfigV2"] = yaml.safe_load(body["spec"]["serveConfigV2"])
    return body


def test_the_files_are_what_is_written_from_the_overlay():
    for path, text in written.files().items():
        assert path.read_text() == text, (
            f"python -m workshop_lib.production.platform writes {path.name} anew"
        )


@pytest.mark.parametrize("size", [OFFERED[0], OFFERED[-1]], ids=lambda size: size.key)
def test_an_instance_becomes_what_kustomize_gives(size):
    parameters = {
        "model": size.model, "max_model_len": size.max_model_len, "workers": 3,
        "tensor_parallel_size": size.tensor_parallel_size, "instance_type": size.instance_type,
        "image": "registry.example/ray-vllm:1",
    }  # fmt: skip
    spec = {FIELDS[name]: value for name, value in parameters.items()}
    made = instantiated(GRAPH_FILE, {"metadata": {"name": "llm"}, "spec": spec})
    assert [as_data(body) for body in made] == ours(**parameters)


def test_every_parameter_of_the_overlay_is_a_field_of_the_graph():
    monitoring = {"prometheus_host", "grafana_host"}  # the cluster's, not a team's
    assert set(FIELDS) | monitoring == set(manifests.parameters_of("eks", COMPONENT))


def test_defaults_are_those_of_the_overlay():
    made = instantiated(GRAPH_FILE, {"metadata": {"name": "llm"}, "spec": {"model": MODELS[0]}})
    assert [as_data(body) for body in made] == ours(model=MODELS[0], instance_type="p4d.24xlarge")


def test_what_an_instance_becomes_fits_the_crd():
    instance = {"metadata": {"name": "llm"}, "spec": {"model": MODELS[0]}}
    for body in instantiated(GRAPH_FILE, instance):
        assert crd_problems(body) == []


def test_the_form_gives_the_same_manifests():
    size = next(size for size in OFFERED if size.tensor_parallel_size > 1)
    answers = {"name": "llm", "namespace": "ada", "model": size.model, "workers": 2,
               "size": size.key, "repoUrl": "github.com?repo=a&owner=b"}  # fmt: skip
    jsonschema.Draft7Validator(FORM).validate(answers)
    skeleton = (FOLDER / "backstage/skeleton/model-server.yaml").read_text()
    instance = copied(skeleton, TEMPLATE_FILE["spec"]["steps"][0], answers)
    assert instance["kind"] == GRAPH_FILE["spec"]["schema"]["kind"]
    assert instance["metadata"] == {"name": "llm", "namespace": "ada"}
    assert [as_data(body) for body in instantiated(GRAPH_FILE, instance)] == ours(
        model=size.model, max_model_len=size.max_model_len, workers=2,
        tensor_parallel_size=size.tensor_parallel_size, instance_type=size.instance_type,
    )  # fmt: skip


# -- what fits ------------------------------------------------------------------------------------


def test_every_size_that_is_offered_fits_and_one_gpu_less_does_not():
    from workshop_lib.serving.memory import gpu_budget

    machines = yaml.safe_load(data_path("instances.yaml").read_text())
    assert utilization() == 0.85 and len(OFFERED) > 40
    for size in OFFERED:
        shape = ModelShape.named(choices()["models"][size.model]["shape"])
        gpu = machines[size.instance_type]["gpu"]
        options = {"gpu_memory_utilization": 0.85, "max_model_len": size.max_model_len}
        budget = gpu_budget(shape, gpu, tp=size.tensor_parallel_size, **options)
        assert budget.fits and int(budget.kv.concurrency) == size.requests >= 8, size
        for tp in shape.tp_sizes(size.tensor_parallel_size - 1):
            if 8 % tp == 0:
                less = gpu_budget(shape, gpu, tp=tp, **options)
                assert not less.fits or less.kv.concurrency < 8, (size, tp)
        # The adviser's server has more of the GPU (0.90), so what fits here is among its plans.
        plans = advise(shape, gpu, max_model_len=size.max_model_len)
        assert size.tensor_parallel_size in {plan["tp"] for plan in plans}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "p4d.24xlarge:1:4096"),
        ("meta-llama/Llama-3.1-70B-Instruct", "p5.48xlarge:1:4096"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "g5.xlarge:1:4096"),
        ("somebody/else", "p4d.24xlarge:1:4096"),
        ("mistralai/Mistral-7B-Instruct-v0.3", None),
    ],
)
def test_the_form_refuses_what_does_not_fit(model, size):
    answers = {"name": "llm", "namespace": "ada", "model": model, "workers": 1}
    if size:
        answers["size"] = size
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(FORM).validate(answers)


def test_the_form_offers_all_that_fits_and_says_what_is_gated():
    offered = {
        (branch["properties"]["model"]["const"], key)
        for branch in FORM["dependencies"]["model"]["oneOf"]
        for key in branch["properties"]["size"]["enum"]
    }
    assert offered == {(size.model, size.key) for size in OFFERED}
    assert {model for model, _ in offered} == set(MODELS)
    labels = FORM["properties"]["model"]["enumNames"]
    assert [label for label in labels if "gated" in label] == [
        "meta-llama/Llama-3.1-70B-Instruct (gated)"
    ]


def test_no_token_is_asked_for():
    for text in written.files().values():
        assert not re.search(r"hf_[A-Za-z0-9]{6,}|(?i:hf_token|password|secretKeyRef)", text)


# -- the schemas ----------------------------------------------------------------------------------


def test_the_graph_has_kros_structure():
    jsonschema.validate(GRAPH_FILE, GRAPH)
    for name, text in GRAPH_FILE["spec"]["schema"]["spec"].items():
        assert FIELD.fullmatch(text), f"{name}: {text}"
    wrong = copy.deepcopy(GRAPH_FILE)
    wrong["spec"]["resources"][0]["ready"] = []
    with pytest.raises(jsonschema.ValidationError, match="ready"):
        jsonschema.validate(wrong, GRAPH)
    assert not FIELD.fullmatch('string | requried=true default="a"')


def test_the_template_has_backstages_structure():
    jsonschema.validate(TEMPLATE_FILE, TEMPLATE)
    for page in TEMPLATE_FILE["spec"]["parameters"]:
        jsonschema.Draft7Validator.check_schema(page)
        assert set(page["required"]) <= set(page["properties"])
    wrong = copy.deepcopy(TEMPLATE_FILE)
    del wrong["spec"]["steps"][0]["action"]
    with pytest.raises(jsonschema.ValidationError, match="action"):
        jsonschema.validate(wrong, TEMPLATE)


# -- the tools of these tests ---------------------------------------------------------------------


def test_the_part_of_cel():
    instance = {"metadata": {"name": "llm"}, "spec": {"model": "a/b", "n": 3, "kind": "x"}}
    assert filled({"n": "${schema.spec.n}", "t": "${string(schema.spec.n)}!"}, instance) == {
        "n": 3, "t": "3!",
    }  # fmt: skip
    assert filled('/m/${schema.spec.model.replace("/", "--")}', instance) == "/m/a--b"
    assert filled('${{"x": "1}", "y": "2"}[schema.spec.kind]}', instance) == "1}"
    with pytest.raises(AssertionError, match="stands within a text"):
        filled("no ${schema.spec.n}", instance)
    with pytest.raises(AssertionError, match="not in the known part"):
        cel("schema.spec.n + 1", instance)
    with pytest.raises(KeyError):
        cel("schema.spec.missing", instance)


def test_the_part_of_nunjucks():
    values = {"parameters": {"size": "a:2:c"}}
    assert nunjucks("x-${{ parameters.size.split(':')[1] }}", values) == "x-2"
    with pytest.raises(AssertionError, match="not in the known part"):
        nunjucks("${{ parameters.size | upper }}", values)


def test_a_size_names_itself():
    assert Size("a/b", "p5.48xlarge", 1, 4096, 9).title.startswith("p5.48xlarge, 1 GPU a replica")
