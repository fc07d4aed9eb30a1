"""The component `prestage` with real processes: a real S3 protocol, a wrong identity, a kill."""

import json
import os
import signal
from pathlib import Path

import pytest
from local_helpers import body, texts, until
from object_store import ROLE, Hub, object_store, serving

from workshop_lib.cluster import manifests
from workshop_lib.errors import ClusterError

pytest.importorskip("moto", reason="moto is not installed; make installs it")

MODEL, PLACE = "org/tiny", "models/org--tiny/"
WEIGHTS = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """No model of this machine and no AWS identity of its user takes part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path_factory.mktemp("models")))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        with object_store() as store:
            yield store


@pytest.fixture
def store(elsewhere):
    elsewhere.new_bucket()
    return elsewhere


@pytest.fixture
def cluster(busy_cluster, elsewhere):
    return busy_cluster


@pytest.fixture
def hub():
    found = Hub()
    found.files = {"config.json": b"{}", "w.safetensors": WEIGHTS}
    with serving(found.handler()) as found.address:
        yield found
        found.released.set()


def items(store, hub=None, **changes):
    """The component's objects, whose steps ask our own hub."""
    settings = {"model": MODEL, "bucket": store.bucket, "endpoint": store.address,
                "credentials": f"{store.agent}/", "source": f"hub:{MODEL}", **changes}  # fmt: skip
    found = manifests.render("local", "prestage", settings)
    spec = body(found, "Job")["spec"]["template"]["spec"]
    for step in [*spec["initContainers"], *spec["containers"]]:
        if hub is not None:
            step["env"] = [*step["env"], {"name": "HF_ENDPOINT", "value": hub.address}]
    return found


def test_a_model_from_the_hub_is_in_the_bucket_marker_last(cluster, store, hub):
    work = cluster.apply_objects("prestage", items(store, hub)).wait_complete(timeout_s=300)
    names = ["config.json", "w.safetensors", "workshop-model.json"]
    assert store.listed() == [f"{PLACE}{name}" for name in names]
    lines = texts(work)
    assert any(f"role/{ROLE}" in line and "may write to" in line for line in lines)
    assert any("is whole: 2 files" in line for line in lines)


def test_a_killed_download_is_followed_by_another_pod(cluster, store, hub):
    hub.hang_after = 2_000_000
    work = cluster.apply_objects("prestage", items(store, hub))
    assert hub.hung.wait(300)
    os.kill(until(downloading), signal.SIGKILL)
    hub.released.set()
    work.wait_complete(timeout_s=300)
    assert store.read(f"{PLACE}w.safetensors") == WEIGHTS


def downloading():
    """The process of the step `download`."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] == [b"download"] and words[1].endswith(b"prestage.py"):
            return int(entry.parent.name)
    return None


def test_a_wrong_identity_is_told_before_a_byte_is_downloaded(cluster, store, hub):
    wrong = items(store, hub, credentials=f"{store.agent}/node")
    work = cluster.apply_objects("prestage", wrong)
    with pytest.raises(ClusterError) as error:
        work.wait_complete(timeout_s=300)
    told = f"{error.value}\n" + "\n".join(texts(work))
    assert "identity gives up: this pod is arn:aws:sts::123456789012:assumed-role/node/" in told
    assert f"should be the role {ROLE}" in told and not hub.asked and store.listed() == []


def test_a_model_that_the_component_model_made_needs_no_download(cluster, store, tmp_path):
    folder = tmp_path / "org--tiny"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(WEIGHTS)
    from workshop_lib.serving.models.files import write_manifest

    write_manifest(folder, {"model": "x", "source": "a test"})
    work = cluster.apply_objects("prestage", items(store, source=str(folder)))
    work.wait_complete(timeout_s=300)
    assert json.loads(store.read(f"{PLACE}workshop-model.json"))["model"] == MODEL
