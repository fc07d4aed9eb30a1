"""The component `prestage`: identity, downloads that break, what S3 gets; and its Job, played."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from local_helpers import pod_spec, texts, until
from object_store import COMMIT, ROLE, Hub, object_store, serving

from workshop_lib.cluster import manifests
from workshop_lib.errors import ClusterError

pytest.importorskip("moto", reason="moto is not installed; make installs it")

SCRIPT = manifests.manifests_dir() / "base/prestage/scripts/prestage.py"
WEIGHTS = os.urandom(25_000_000)  # huggingface_hub writes 10 MB at a time
PLACE = "models/org--tiny/"
WHOLE = [f"{PLACE}{name}" for name in ("config.json", "w.safetensors", "workshop-model.json")]


@pytest.fixture(scope="module")
def moto_server():
    with object_store() as store:
        yield store


@pytest.fixture
def store(moto_server, monkeypatch, tmp_path):
    moto_server.new_bucket()
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_"))]:
        monkeypatch.delenv(name)
    settings = {
        "MODEL": "org/tiny", "SOURCE": "hub:org/tiny", "BUCKET": moto_server.bucket,
        "PREFIX": "models", "EXPECTED_ROLE": ROLE, "WORK_DIR": str(tmp_path / "work"),
        "ATTEMPTS": "2", "AWS_ENDPOINT_URL": moto_server.address, "AWS_REGION": "us-east-1",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{moto_server.agent}/",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return moto_server


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    found.files = {"config.json": b"{}", "w.safetensors": WEIGHTS}
    with serving(found.handler()) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield found
        found.released.set()


def start(step, **settings):
    environment = {**os.environ, **settings}
    return subprocess.Popen(
        [sys.executable, SCRIPT, step], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(*steps, **settings):
    """Run steps as the pod does; the first exit status that is not 0, and what was said."""
    said = ""
    for step in steps or ("identity", "download", "upload"):
        process = start(step, **settings)
        said += process.communicate(timeout=600)[0]
        if process.returncode:
            break
    assert "Traceback" not in said, said
    return process.returncode, said


def marker(store):
    return json.loads(store.read(f"{PLACE}workshop-model.json"))


def test_a_model_from_the_hub_is_in_the_bucket_once(store, hub):
    hub.files["onnx.bin"] = b"another format"
    status, said = run()
    assert status == 0 and store.listed() == WHOLE, said
    assert f"role/{ROLE}" in said.replace("assumed-", "") and "is whole: 2 files" in said
    assert store.read(f"{PLACE}w.safetensors") == WEIGHTS
    noted = marker(store)
    assert noted["source"] == f"hub:org/tiny@{COMMIT}" and noted["model"] == "org/tiny"
    assert noted["files"]["w.safetensors"]["bytes"] == len(WEIGHTS)
    head = store.s3.head_object(Bucket=store.bucket, Key=f"{PLACE}w.safetensors")
    assert head["StorageClass"] == "INTELLIGENT_TIERING"
    hub.asked.clear()
    status, said = run()
    assert status == 0 and "there is nothing to download" in said and not hub.asked
    assert "it held hub:org/tiny@" in said


def test_another_version_replaces_what_is_there(store, hub):
    assert run()[0] == 0
    hub.files = {"w.safetensors": WEIGHTS, "tokenizer.json": b"{ }"}
    marked = {**marker(store), "source": "hub:org/tiny@older"}
    store.s3.put_object(Bucket=store.bucket, Key=WHOLE[-1], Body=json.dumps(marked))
    status, said = run()
    assert status == 0 and "w.safetensors: there already" in said
    names = ("tokenizer.json", "w.safetensors", "workshop-model.json")
    assert store.listed() == [f"{PLACE}{name}" for name in names]


def test_a_killed_download_is_gone_on_with_by_the_next_pod(store, hub):
    hub.hang_after = 21_000_000
    process = start("download")
    assert hub.hung.wait(300)
    process.kill()
    process.communicate()
    hub.released.set()
    assert run("download", "upload")[0] == 0
    assert [name for name, _ in hub.asked].count("config.json") == 1, "what is whole stays"
    assert store.read(f"{PLACE}w.safetensors") == WEIGHTS


def test_a_wrong_sum_is_never_uploaded(store, hub):
    hub.sums["w.safetensors"] = "0" * 64
    status, said = run("download", "upload")
    assert status == 1 and re.search(r"w.safetensors is not what was published: .* be 0{64}", said)
    hub.sums.clear()
    assert run("download", "upload")[0] == 0 and store.listed() == WHOLE


@pytest.mark.parametrize(
    ("settings", "status", "told"),
    [
        ({"SOURCE": "https://a/b"}, 2, "is none of hub:organisation/name[@revision], /a/folder"),
        ({"SOURCE": ""}, 2, "the setting SOURCE is empty"),
        ({"MODEL": "../x"}, 2, "MODEL=../x is no model's name"),
        ({"SOURCE": "hub:org/gone"}, 2, "the hub has no org/gone for us"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "the hub broke off"),
        ({"SOURCE": "/nowhere"}, 2, "/nowhere has no workshop-model.json: no whole model"),
    ],
)
def test_what_is_wrong_is_one_line(store, hub, settings, status, told):
    found, said = run("download", "upload", **settings)
    assert found == status and told in said and len(said.strip().splitlines()) <= 2, said
    assert store.listed() == []


def test_a_model_without_weights_and_a_gated_one_are_refused(store, hub):
    hub.files = {"config.json": b"{}"}
    assert "holds no weights" in run("download")[1]
    hub.status = 401
    status, said = run("download")
    assert status == 2 and "put a token into the Secret hub-token" in said


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/"},
         f"this pod has no AWS identity.*it should be the role {ROLE}: look for its service"),
        ({"EXPECTED_ROLE": "another"},
         rf"assumed-role/{ROLE}/eks-pod and should be the role another: its service account has"),
        ({"BUCKET": "another"}, "cannot write to s3://another/models/org--tiny/; look at.*NoSuchB"),
    ],
)  # fmt: skip
def test_a_wrong_identity_is_told_before_a_byte_is_downloaded(store, hub, settings, told):
    status, said = run(**settings)
    assert status == 2 and re.search(told, said) and len(said.strip().splitlines()) == 1, said
    assert not hub.asked and "Uploads" not in store.s3.list_multipart_uploads(Bucket=store.bucket)


def test_one_job_at_a_time(store, hub):
    theirs = json.dumps({"source": "hub:org/other@1", "files": {}})
    claim = {"Bucket": store.bucket, "Key": f"{PLACE}workshop-upload.json"}
    store.s3.put_object(**claim, Body=theirs)
    status, said = run()
    assert status == 2 and "another Job brings hub:org/other@1" in said and "aws s3 rm" in said
    assert store.listed() == [claim["Key"]]
    store.s3.delete_object(**claim)
    assert run()[0] == 0 and store.listed() == WHOLE


def test_a_full_disk_is_told(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("prestage_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    monkeypatch.setattr(script, "download", Mock(side_effect=OSError(28, "No space left")))
    assert script.main("download") == 2
    assert "make the claim prestage larger" in capsys.readouterr().err


def test_a_prepared_folder_is_uploaded_only_whole(store, tmp_path):
    from workshop_lib.serving.models.files import write_manifest

    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"weights")
    write_manifest(folder, {"model": "x", "source": "a test"})
    status, said = run(SOURCE=str(folder))
    assert status == 0 and "needs no download" in said and marker(store)["model"] == "org/tiny"
    (folder / "w.safetensors").write_bytes(b"weightz")
    store.new_bucket()
    status, said = run(SOURCE=str(folder), BUCKET=store.bucket)
    assert status == 2 and "w.safetensors is damaged" in said and store.listed() == []


@pytest.mark.slow
def test_killed_while_it_uploads_it_still_ends_with_a_whole_model(store, hub):
    assert run("download")[0] == 0
    for milliseconds in range(300, 1500, 150):
        process = start("upload")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=milliseconds / 1000)
        process.kill()
        process.communicate()
        if WHOLE[-1] in store.listed():
            assert store.read(f"{PLACE}w.safetensors") == WEIGHTS
    assert run("download", "upload")[0] == 0
    assert store.listed() == WHOLE and store.read(f"{PLACE}w.safetensors") == WEIGHTS


# -- the Job, played on this machine --------------------------------------------------------------


def items(store, hub=None, **changes):
    """The component's objects, whose steps ask our own hub."""
    settings = {"model": "org/tiny", "bucket": store.bucket, "endpoint": store.address,
                "credentials": f"{store.agent}/", "source": "hub:org/tiny", **changes}  # fmt: skip
    found = manifests.render("local", "prestage", settings)
    spec = pod_spec(found)
    for step in [*spec["initContainers"], *spec["containers"]]:
        step["env"] = [*step["env"], {"name": "HF_ENDPOINT", "value": os.environ["HF_ENDPOINT"]}]
    return found


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No model of this machine takes part."""
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path / "models"))


def test_a_killed_download_is_followed_by_another_pod(alone, store, hub, new_cluster):
    hub.hang_after = 2_000_000
    work = new_cluster().apply_objects("prestage", items(store, hub))
    assert hub.hung.wait(300)
    os.kill(until(downloading), signal.SIGKILL)
    hub.released.set()
    work.wait_complete(timeout_s=300)
    assert store.listed() == WHOLE and store.read(f"{PLACE}w.safetensors") == WEIGHTS
    lines = texts(work)
    assert any(f"role/{ROLE}" in line and "may write to" in line for line in lines)
    assert any("is whole: 2 files" in line for line in lines)


def downloading():
    """The process of the step `download`."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if words[-2:-1] == [b"download"] and words[1].endswith(b"prestage.py"):
                return int(entry.parent.name)
    return None


def test_a_wrong_identity_ends_the_job(alone, store, hub, new_cluster):
    wrong = items(store, hub, credentials=f"{store.agent}/node")
    work = new_cluster().apply_objects("prestage", wrong)
    with pytest.raises(ClusterError) as error:
        work.wait_complete(timeout_s=300)
    told = f"{error.value}\n" + "\n".join(texts(work))
    assert "identity gives up: this pod is arn:aws:sts::123456789012:assumed-role/node/" in told
    assert f"should be the role {ROLE}" in told and not hub.asked and store.listed() == []
