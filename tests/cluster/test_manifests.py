"""Rendering folders, setting parameters as data, and errors that name the place."""

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.cluster.manifests import problem_there, render_folder
from workshop_lib.errors import ManifestError

JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  parallelism: 1
  template:
    spec:
      containers:
      - name: main
        image: x
        env:
        - {name: COUNT, value: "1"}
        - {name: FLAG, value: "false"}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  text: |
    deep:
    - list: [1, 2]
"""
PARAMETERS = {
    "count": {
        "type": "int", "minimum": 1, "maximum": 3, "help": "How many.",
        "paths": ["Job/work:/spec/parallelism",
                  "Job/work:/spec/template/spec/containers/0/env/[name=COUNT]/value"],
    },
    "flag": {"type": "bool", "paths": [
        "Job/work:/spec/template/spec/containers/0/env/[name=FLAG]/value"]},
    "deep": {"type": "float", "paths": ["Service/web:/spec/text#/deep/0/list/1"]},
    "kind": {"type": "str", "allowed": ["a", "b"], "paths": ["Job/work:/metadata/name"]},
    "label": {"type": "str", "pattern": "[a-z]+", "paths": ["Job/work:/metadata/name"]},
    "gone": {"type": "int", "paths": ["Job/work:/spec/nothing"]},
    "nobody": {"type": "int", "paths": ["Job/other:/spec/nothing"]},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "service.yaml").write_text(SERVICE)
    write(tmp_path, PARAMETERS)
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [job.yaml, service.yaml]\nbuildMetadata: [originAnnotations]\n"
    )
    return tmp_path


def write(folder, parameters):
    (folder / "parameters.yaml").write_text(yaml.safe_dump(parameters))


def rendered(folder, **parameters):
    return {item.kind: item.body for item in render_folder(folder, parameters)}


def test_order_and_origin(folder):
    items = render_folder(folder)
    assert [item.key for item in items] == ["Service/web", "Job/work"], "workloads come last"
    assert [item.origin for item in items] == [
        str(folder / "service.yaml"), str(folder / "job.yaml")
    ]  # fmt: skip
    assert "annotations" not in items[0].body["metadata"]
    assert str(items[0].error("no")) == f"{folder}/service.yaml: Service/web: no"


def test_values_are_set_with_their_types(folder):
    bodies = rendered(folder, count=3, flag=True, deep=2.5, kind=None)
    job = bodies["Job"]
    assert job["spec"]["parallelism"] == 3
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [each["value"] for each in env] == ["3", "true"], "environment variables stay texts"
    assert yaml.safe_load(bodies["Service"]["spec"]["text"]) == {"deep": [{"list": [1, 2.5]}]}
    assert job["metadata"]["name"] == "work", "None leaves what the manifest has"


def test_nothing_is_pasted_into_text(folder):
    (folder / "job.yaml").write_text(JOB.replace("name: FLAG", "name: OTHER"))
    text = '"}\nkind: Secret # $(X)'
    write(folder, {"any": {"type": "str", "paths": [
        "Job/work:/spec/template/spec/containers/0/env/[name=COUNT]/value"]}})  # fmt: skip
    job = rendered(folder, any=text)["Job"]
    assert job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] == text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nonsense": 1}, "no parameter 'nonsense'; it has count, deep, flag"),
        ({"count": "3"}, "parameter count: '3' is not of type int"),
        ({"count": True}, "parameter count: True is not of type int"),
        ({"count": 0}, "parameter count: 0 is less than 1"),
        ({"flag": 1}, "parameter flag: 1 is not of type bool"),
        ({"kind": "c"}, "parameter kind: 'c' is not one of a, b"),
        ({"label": "a/b"}, "parameter label: 'a/b' does not fit the pattern"),
        ({"label": "a\n"}, "does not fit the pattern"),
        ({"count": 4}, "parameter count: 4 is more than 3"),
        ({"deep": float("nan")}, "parameter deep: nan is not a number"),
        ({"deep": float("inf")}, "parameter deep: inf is not a number"),
        ({"deep": 10**12}, "is more than 2147483647"),
        ({"gone": 1}, r"parameters.yaml: Job/work:/spec/nothing: no such place \('nothing'\)"),
        ({"nobody": 1}, "parameters.yaml: Job/other:/spec/nothing: there is no Job/other"),
    ],
)
def test_wrong_parameters_are_one_line(folder, parameters, message):
    with pytest.raises(ManifestError, match=message) as error:
        render_folder(folder, parameters)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [{"paths": []}, {"type": "int"}, {"type": "whole", "paths": []}, {"type": "int", "paths": "x"},
     {"type": "str", "paths": [], "allowed": "ab"}, {"type": "str", "paths": [], "pattern": "("},
     "text"],
)  # fmt: skip
def test_wrong_parameters_file_is_one_line(folder, entry):
    write(folder, {"bad": entry})
    with pytest.raises(ManifestError, match=r"parameters.yaml: .* is missing or wrong") as error:
        render_folder(folder, {})
    assert "\n" not in str(error.value)


def test_parameters_file_that_is_no_yaml(folder):
    (folder / "parameters.yaml").write_text("a: [")
    with pytest.raises(ManifestError, match=r"parameters.yaml: no YAML: "):
        render_folder(folder, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [("kustomization.yaml", "resources: [missing.yaml]"), ("kustomization.yaml", "nonsense: 1"),
     ("job.yaml", "a: ["), ("job.yaml", "kind: Job")],
)  # fmt: skip
def test_what_kustomize_refuses_is_one_line(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ManifestError, match="kustomize: ") as error:
        render_folder(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_components_of_this_project():
    assert [item.key for item in manifests.render("local", "vllm", {"max_model_len": 512})][-1] == (
        "Deployment/vllm"
    )
    assert manifests.parameters_of("local", "vllm")["max_model_len"].type == "int"
    for name in ("nonsense", ".", "..", "../eks", "vllm/../vllm", ""):
        with pytest.raises(ManifestError, match="there is no component"):
            manifests.render("local", name)
    with pytest.raises(ManifestError, match=r"'storage' in profile 'local' \(only in eks, kind\)"):
        manifests.render("local", "storage")
    with pytest.raises(ManifestError, match=r"in profile 'moon'; it has none"):
        manifests.render("moon", "vllm")


@pytest.mark.parametrize(
    ("component", "parameter", "values"),
    [
        ("vllm", "image", ["a b", "-x", "", "Name:1", "a:1\t", "a//b", "a:b:c", "$(X)", "a\n"]),
        ("vllm", "instance_type", ["p5 48xlarge", "", "-p5", "a" * 64, "p5/48"]),
        ("ray-cluster", "storage_class", ["Fast", "a b", "", "a..b", "/a"]),
        ("learner", "namespace", ["Ada", "a.b", "", "a" * 64, "a/b"]),
        ("namespace", "monitoring_namespace", ["Mon", "a b"]),
        ("vllm", "model", ["--help", "a b", "../../etc", "", "a;b", "$(reboot)"]),
        ("grpo", "model", ["..", "-x"]),
        ("raycluster", "workers", [-1, 5, 10**10]),
        ("vllm", "replicas", [-1, 10**10]),
        ("vllm", "tensor_parallel_size", [-1, 0]),
        ("vllm", "gpu_memory_utilization", [0, 1.5, float("nan"), float("inf")]),
    ],
)
def test_values_that_no_cluster_takes(component, parameter, values):
    for value in values:
        with pytest.raises(ManifestError, match=f"parameter {parameter}: ") as error:
            manifests.render("eks", component, {parameter: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("component", "parameter", "values"),
    [
        ("vllm", "image", ["vllm/vllm-openai:v0.29.0", "ubuntu", "localhost:5000/a_b/c--d:1.0-rc_2",
                           "123456789012.dkr.ecr.us-east-1.amazonaws.com/ray-vllm:2.60.0-0.29.0",
                           "a@sha256:" + "0" * 64]),
        ("vllm", "instance_type", ["p5.48xlarge", "p6-b200.48xlarge"]),
        ("ray-cluster", "storage_class", ["fsx-sc", "a.b-c"]),
        ("vllm", "model", ["Qwen/Qwen2.5-7B-Instruct", "gpt2", "meta-llama/Llama-3.1-70B"]),
        ("vllm", "gpu_memory_utilization", [0.9, 1]),
    ],
)  # fmt: skip
def test_values_that_a_cluster_takes(component, parameter, values):
    for value in values:
        assert manifests.render("eks", component, {parameter: value})


@pytest.mark.parametrize("folder", ["/home/José M/models/mine", "~/models/mine", "org/name-7B.v1"])
def test_a_model_may_be_a_folder_wherever_it_lies(folder: str) -> None:
    assert problem_there("Job/model:/spec/env/[name=MODEL]/value", folder) == ""
