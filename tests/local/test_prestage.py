"""The component `prestage` with real processes: a real S3 protocol, real kills, a full disk."""

import io
import json
import os
import re
import signal
import tarfile
import zipfile

import pytest
from local_helpers import body, config_map, shims, texts, until
from object_store import BUCKET, ROLE, Files, agent, object_store, serving

from workshop_lib import manifests
from workshop_lib.errors import ClusterError

pytest.importorskip("moto", reason="moto is not installed; make installs it")

MODEL = "org/tiny"
PLACE = "models/org--tiny/"
WEIGHTS = os.urandom(3_000_000)


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
def files():
    found = Files()
    with serving(found.handler()) as found.address:
        yield found
        found.released.set()


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
    work.wait_complete(timeout_s=120)
    return work


def refused(cluster, *arguments, timeout_s=120, **more):
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
    assert noted["model"] == MODEL and noted["source"] == f"{files.address}/file.tar"
    assert noted["files"]["w.safetensors"]["bytes"] == len(WEIGHTS)
    lines = texts(work)
    assert any(f"role/{ROLE}" in line and "may write to" in line for line in lines)
    assert any("is whole: 2 files" in line for line in lines)
