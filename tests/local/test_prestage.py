"""The component `prestage` with real processes: a real S3 protocol, real kills, a full disk."""

import io
import json
import os
import re
import signal
import tarfile
from pathlib import Path

import pytest
from local_helpers import body, texts, until
from object_store import BUCKET, ROLE, agent, object_store, served_files, serving

from workshop_lib.cluster import manifests
from workshop_lib.errors import ClusterError

pytest.importorskip("moto", reason="moto is not installed; make installs it")

MODEL = "org/tiny"
PLACE = "models/org--tiny/"
WEIGHTS = os.urandom(3_000_000)


files = pytest.fixture(served_files)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """No model of this machine and no AWS identity of its user takes part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path_factory.mktemp("models")))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        yield


@pytest.fixture(scope="module")
def shared_store(elsewhere):
    with object_store() as store, serving(agent(store)) as store.agent:
        yield store


@pytest.fixture
def store(shared_store):
    yield shared_store
    for each in listed(shared_store):
        shared_store.s3.delete_object(Bucket=BUCKET, Key=each)


@pytest.fixture
def cluster(busy_cluster, elsewhere):
    return busy_cluster


def listed(store):
    answer = store.s3.list_objects_v2(Bucket=BUCKET)
    return sorted(each["Key"] for each in answer.get("Contents", []))


def marker(store):
    answer = store.s3.get_object(Bucket=BUCKET, Key=f"{PLACE}workshop-model.json")
    return json.loads(answer["Body"].read())


def archive(weights=WEIGHTS):
    """A model as a tar: what an address gives."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (("config.json", b'{"model_type": "llama"}'), ("w.safetensors", weights)):
            entry = tarfile.TarInfo(f"model/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def settings(store, files=None, **changes):
    source = {"source": f"{files.address}/file.tar"} if files else {}
    return {"model": MODEL, "bucket": BUCKET, "endpoint": store.address,
            "credentials": f"{store.agent}/", **source, **changes}  # fmt: skip


def staged(cluster, *arguments, **more):
    work = cluster.apply("prestage", **settings(*arguments, **more))
    work.wait_complete(timeout_s=300)
    return work


def refused(cluster, *arguments, timeout_s=300, **more):
    """What the learner is told when the Job fails."""
    work = cluster.apply("prestage", **settings(*arguments, **more))
    with pytest.raises(ClusterError) as error:
        work.wait_complete(timeout_s=timeout_s)
    return f"{error.value}\n" + "\n".join(texts(work))


def test_a_model_from_an_address_is_in_the_bucket_marker_last(cluster, store, files):
    sha256 = files.put("/file.tar", archive())
    work = staged(cluster, store, files, sha256=sha256)
    names = ["config.json", "w.safetensors", "workshop-model.json"]
    assert listed(store) == [f"{PLACE}{name}" for name in names]
    head = store.s3.head_object(Bucket=BUCKET, Key=f"{PLACE}w.safetensors")
    assert head["StorageClass"] == "INTELLIGENT_TIERING" and head["ContentLength"] == len(WEIGHTS)
    noted = marker(store)
    assert (
        noted["model"] == MODEL and noted["source"] == f"{files.address}/file.tar#sha256={sha256}"
    )
    assert noted["files"]["w.safetensors"]["bytes"] == len(WEIGHTS)
    lines = texts(work)
    assert any(f"role/{ROLE}" in line and "may write to" in line for line in lines)
    assert any("is whole: 2 files" in line for line in lines)


@pytest.mark.slow
def test_it_is_done_once(cluster, store, files):
    sha256 = files.put("/file.tar", archive())
    staged(cluster, store, files, sha256=sha256)
    cluster.delete("prestage")
    before = store.s3.head_object(Bucket=BUCKET, Key=f"{PLACE}w.safetensors")["LastModified"]
    asked = len(files.asked)
    work = staged(cluster, store, files, sha256=sha256)
    assert any("there is nothing to download" in line for line in texts(work))
    assert len(files.asked) == asked
    after = store.s3.head_object(Bucket=BUCKET, Key=f"{PLACE}w.safetensors")["LastModified"]
    assert after == before


def test_a_killed_download_is_gone_on_with_by_the_next_pod(cluster, store, files):
    data = archive()
    sha256 = files.put("/file.tar", data)
    files.moods = ["hang:2000000"]
    work = cluster.apply("prestage", **settings(store, files, sha256=sha256))
    assert files.sent.wait(300)
    process = until(downloading)
    os.kill(process, signal.SIGKILL)
    files.released.set()
    work.wait_complete(timeout_s=300)
    first, second = [start for path, start, _ in files.asked]
    assert first == 0 and 1_000_000 <= second <= 2_000_000, "from where it was stopped"
    assert any(re.search(r"file.tar: from byte [12],\d{3},\d{3} of", line) for line in texts(work))
    assert marker(store)["files"]["w.safetensors"]["bytes"] == len(WEIGHTS)
    got = store.s3.get_object(Bucket=BUCKET, Key=f"{PLACE}w.safetensors")["Body"].read()
    assert got == WEIGHTS


def downloading(least=1_000_000):
    """The process that has written that many bytes of a download."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-1:] == ["download"]:
            files = [Path(file.path) for file in process.open_files()]
            if any(file.suffix == ".part" and file.stat().st_size >= least for file in files):
                return process.pid
    return None


def test_a_wrong_sum_leaves_nothing_behind(cluster, store, files):
    files.put("/file.tar", archive())
    told = refused(cluster, store, files, sha256="0" * 64)
    assert re.search(r"download gives up: file.tar is not what was published: its sum is "
                     r"[0-9a-f]{64} and should be 0{64}; nothing of it is kept", told)  # fmt: skip
    assert listed(store) == []


def test_a_wrong_identity_is_told_before_a_byte_is_downloaded(cluster, store, files):
    sha256 = files.put("/file.tar", archive())
    told = refused(cluster, store, files, sha256=sha256, credentials=f"{store.agent}/node")
    assert (
        "identity gives up: this pod is arn:aws:sts::123456789012:assumed-role/node/eks-pod and "
        f"should be the role {ROLE}: its service account has no Pod Identity association" in told
    )
    assert files.asked == [] and listed(store) == []


def test_a_full_disk_is_told_and_gone_on_with(cluster, store, files):
    sha256 = files.put("/file.tar", archive())
    wanted = settings(store, files, sha256=sha256)
    items = manifests.render("local", "prestage", wanted)
    step = body(items, "Job")["spec"]["template"]["spec"]["initContainers"][1]
    # The most that a file may have, in KiB: what a disk's quota does to a process.
    step["command"] = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "bash", *step["command"]]
    work = cluster.apply_objects("prestage", items)
    with pytest.raises(ClusterError):
        work.wait_complete(timeout_s=300)
    told = "\n".join(texts(work))
    assert "download gives up: the volume of WORK_DIR is full while writing file.tar.part" in told
    assert "make the claim prestage larger (the parameter size)" in told
    assert listed(store) == []
    cluster.delete("prestage")
    staged(cluster, store, files, sha256=sha256)
    assert [start for _, start, _ in files.asked][-1] == 1 << 20, "what was there is not lost"
    assert marker(store)["model"] == MODEL


def test_a_model_that_the_component_model_made_needs_no_download(cluster, store, tmp_path):
    folder = tmp_path / "org--tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "w.safetensors").write_bytes(WEIGHTS)
    from workshop_lib.serving.models.files import write_manifest

    write_manifest(folder, {"model": "x", "source": "a test"})
    staged(cluster, store, source=str(folder))
    noted = marker(store)
    assert noted["model"] == MODEL and set(noted["files"]) == {"config.json", "w.safetensors"}
