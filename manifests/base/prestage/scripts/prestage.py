"""Puts a model into an S3 bucket, once: checks the identity, downloads, uploads.

    python prestage.py identity|download|upload

Each step is a container of the Job `prestage`, so that the step that failed is seen at once. Needs
boto3 and huggingface_hub, whose download goes on within a file after a broken connection, and with
the next file after a kill. Settings come from the environment:

    SOURCE         hub:organisation/name[@revision], or the /folder of a model that the component
                   `model` has prepared
    MODEL          the model's name, organisation/name; its folder has "--" for "/"
    BUCKET, PREFIX where it goes: s3://BUCKET/PREFIX/organisation--name/
    EXPECTED_ROLE  the IAM role that this pod must have, by EKS Pod Identity
    WORK_DIR       a volume that outlives a pod
    TOKEN_FILE     the hub's token, for gated models only: a Secret that may be missing

A model in the bucket is whole if it has workshop-model.json: written last, removed before any of
its files changes, with the size and sha256 of each. A Job that would bring another model to the
same place is refused meanwhile, by workshop-upload.json. Exit status: 0, 1 for what repeating may
mend, 2 for what it cannot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP goes on where it was stopped

MARKER, CLAIM, READY = "workshop-model.json", "workshop-upload.json", "workshop-ready.json"
STALE = timedelta(days=1)
WEIGHTS = (".safetensors", ".gguf")
# The hub's layout at the top of a repository; other formats lie in folders below it.
WANTED = (*WEIGHTS, ".json", ".model", ".txt", ".jinja", ".md", "LICENSE")


class Fatal(Exception):
    """What repeating cannot mend: the Job gives up."""


class Again(Exception):
    """What repeating may mend: the network, mostly."""


def setting(name: str, default: str | None = None) -> str:
    """A setting, which must not be empty unless it has a default."""
    value = os.environ.get(name) or default
    if value is None:
        raise Fatal(f"the setting {name} is empty")
    return value


def say(text: str) -> None:
    """A line for the log, at once."""
    print(text, flush=True)


def folder_name() -> str:
    """The folder of the model, as every server of the workshop looks for it."""
    name = setting("MODEL")
    if name.count("/") > 1 or ".." in name or "--" in name or name.startswith((".", "/", "-")):
        raise Fatal(f"MODEL={name} is no model's name; write organisation/name")
    return name.replace("/", "--")


def work_folder() -> Path:
    """Where the download lies."""
    return Path(setting("WORK_DIR")) / folder_name()


def key(name: str) -> str:
    """Where a file of the model lies in the bucket."""
    # The slash matters: without it a listing of a/b finds a/b-2 as well.
    return f"{os.environ.get('PREFIX', '').strip('/')}/{folder_name()}/{name}".lstrip("/")


def place() -> str:
    """The model's folder, as the AWS command line names it."""
    return f"s3://{setting('BUCKET')}/{key('')}"


def client(service: str) -> Any:
    """A client of AWS that gives up after a minute, not after ten."""
    import boto3
    from botocore.config import Config

    retries = {"total_max_attempts": int(setting("ATTEMPTS", "5")), "mode": "standard"}
    config = Config(retries=retries, connect_timeout=10, read_timeout=60)
    region = os.environ.get("AWS_REGION", "us-east-1")
    return boto3.client(service, region_name=region, config=config)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """AWS' errors as what they mean for the Job."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        kind = Again if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 else Fatal
        raise kind(f"{what}: {error}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise Again(f"{what}: {error}") from error


def sha256_of(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity() -> None:
    """Whether this pod is whom it should be, and may write where the model goes."""
    wanted, target = setting("EXPECTED_ROLE"), {"Bucket": setting("BUCKET"), "Key": key(MARKER)}
    look = (
        "look for its service account in `aws eks list-pod-identity-associations`, and at "
        "`kubectl get pods -n kube-system -l app.kubernetes.io/name=eks-pod-identity-agent`"
    )
    try:
        with told("no AWS identity"):
            arn = client("sts").get_caller_identity()["Arn"]
    except (Fatal, Again) as error:
        raise Fatal(f"this pod has {error}; it should be the role {wanted}: {look}") from error
    role = arn.split("/")[1] if ":assumed-role/" in arn else arn
    if role != wanted:
        raise Fatal(
            f"this pod is {arn} and should be the role {wanted}: its service account has no Pod "
            "Identity association, or the pod is older than it (a node's role is what is left then)"
        )
    with told(f"{arn} cannot write to {place()}; look at the bucket's and the role's policy"):
        # An upload begun and dropped: it asks for the right to write and leaves nothing to see.
        begun = client("s3").create_multipart_upload(**target)["UploadId"]
        client("s3").abort_multipart_upload(**target, UploadId=begun)
    say(f"This pod is {arn} and may write to {place()}")


def staged() -> dict | None:
    """What the bucket's marker says, or None: there is no whole model."""
    where = {"Bucket": setting("BUCKET")}
    with told(f"{place()} cannot be read"):
        # Who may list only below a prefix is told 403, not 404, of an object that is not there.
        if not client("s3").list_objects_v2(**where, Prefix=key(MARKER)).get("Contents"):
            return None
        return json.loads(client("s3").get_object(**where, Key=key(MARKER))["Body"].read())


def download() -> None:
    """Download what SOURCE names, each file checked, unless the bucket has it."""
    from huggingface_hub import HfApi, get_session, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source, work = setting("SOURCE"), work_folder()
    if source.startswith("/"):
        say(f"{source} needs no download")
        return
    kind, _, rest = source.partition(":")
    if kind != "hub" or not rest:
        raise Fatal(f"SOURCE={source} is none of hub:organisation/name[@revision], /a/folder")
    name, _, revision = rest.partition("@")
    # requests, httpx or httpx2, by its version.
    http = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    token_file = Path(os.environ.get("TOKEN_FILE", ""))
    token = token_file.read_text().strip() if token_file.is_file() else False
    try:
        info = HfApi(token=token).model_info(name, revision=revision or "main", files_metadata=True)
        files = [f for f in info.siblings or [] if "/" not in f.rfilename]
        files = [f for f in files if f.rfilename.endswith(WANTED)]
        if not any(f.rfilename.endswith(WEIGHTS) for f in files):
            raise Fatal(f"{source} holds no weights (*.safetensors, *.gguf)")
        exact = f"hub:{name}@{info.sha}"
        if (staged() or {}).get("source") == exact:
            shutil.rmtree(work, ignore_errors=True)
            say(f"{place()} holds it already; there is nothing to download")
            return
        work.mkdir(parents=True, exist_ok=True)
        for left in work.rglob("*.????????.incomplete"):  # a killed download's, of no further use
            left.unlink()
        here = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        missing, free = sum(f.size or 0 for f in files) - here, shutil.disk_usage(work).free
        if missing > free:
            raise Fatal(
                f"{exact} needs {missing / 2**30:.1f} GiB more and the volume of WORK_DIR has "
                f"{free / 2**30:.1f}; make the claim prestage larger (the parameter size)"
            )
        for file in files:
            say(f"{file.rfilename}: {file.size or 0:,} bytes")
            hf_hub_download(name, file.rfilename, revision=info.sha, local_dir=work, token=token)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise Fatal(
            f"the hub has no {rest} for us ({str(error).splitlines()[0]}): look at SOURCE; for a "
            "gated model accept its licence and put a token into the Secret hub-token"
        ) from error
    except (HfHubHTTPError, http.HTTPError) as error:
        raise Again(f"the hub broke off: {error}") from error
    noted = {file.rfilename: checked(work / file.rfilename, file) for file in files}
    (work / READY).write_text(json.dumps({"source": exact, "files": noted}))
    say(f"All of {exact} is in {work}, checked")


def checked(path: Path, file: Any) -> dict:
    """Size and sha256 of a file, if it is what the hub published."""
    content, wanted = sha256_of(path), file.lfs.sha256 if file.lfs else None
    found = content
    if wanted is None:  # git's own sum of a small file
        data = path.read_bytes()
        wanted, found = file.blob_id, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found != wanted:
        path.unlink()
        raise Again(f"{path.name} is not what was published: {found}, and should be {wanted}")
    return {"bytes": path.stat().st_size, "sha256": content}


def local_model() -> tuple[Path, dict]:
    """The folder to upload and what its marker will say."""
    source = setting("SOURCE")
    folder = Path(source) if source.startswith("/") else work_folder()
    ready = folder / (MARKER if source.startswith("/") else READY)
    if not ready.is_file():
        raise Fatal(f"{folder} has no {ready.name}: no whole model; run the step before it again")
    facts = {**json.loads(ready.read_text()), "model": setting("MODEL")}
    for name, noted in facts["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != noted["sha256"]:
            raise Fatal(f"{folder / name} is damaged; remove it and run the step before it again")
    return folder, facts


def upload() -> None:
    """Bring the bucket to what is here: what it lacks, nothing else, and the marker last."""
    there = staged()
    if there and not setting("SOURCE").startswith("/") and not (work_folder() / READY).is_file():
        say(f"{place()} is whole: it held {there['source']} already")
        return  # the step before saw so, and left nothing to upload
    folder, facts = local_model()
    with told(f"the upload to {place()} broke off"):
        if there != facts:
            to_bucket(client("s3"), setting("BUCKET"), folder, facts)
    if not setting("SOURCE").startswith("/"):
        shutil.rmtree(work_folder())  # the bucket has it now
    say(f"{place()} is whole: {len(facts['files'])} files")


def to_bucket(s3: Any, bucket: str, folder: Path, facts: dict) -> None:
    """Upload what the bucket lacks, remove what it should not have, and write the marker."""
    lock(s3, bucket, facts)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key(""))
    there = {each["Key"] for page in pages for each in page.get("Contents", [])}
    # From here on it is no whole model, until it is the new one.
    s3.delete_object(Bucket=bucket, Key=key(MARKER))

    def same(name: str, noted: dict) -> bool:
        head = s3.head_object(Bucket=bucket, Key=key(name))
        found = {"bytes": head["ContentLength"], "sha256": head["Metadata"].get("sha256")}
        return found == noted

    for name, noted in facts["files"].items():
        if key(name) in there and same(name, noted):
            say(f"{name}: there already")
            continue
        say(f"{name}: {noted['bytes']:,} bytes")
        more = {"StorageClass": "INTELLIGENT_TIERING", "Metadata": {"sha256": noted["sha256"]}}
        s3.upload_file(str(folder / name), bucket, key(name), ExtraArgs=more)
        if not same(name, noted):
            raise Again(f"{key(name)} is not what was uploaded")
    for left in there - {key(name) for name in [*facts["files"], MARKER, CLAIM]}:
        say(f"{left}: not part of this model, removed")
        s3.delete_object(Bucket=bucket, Key=left)
    s3.put_object(Bucket=bucket, Key=key(MARKER), Body=json.dumps(facts, indent=1).encode())
    s3.delete_object(Bucket=bucket, Key=key(CLAIM))


def lock(s3: Any, bucket: str, facts: dict) -> None:
    """Keep Jobs with another model away; a claim of this model's is gone on with."""
    from botocore.exceptions import ClientError

    try:
        s3.put_object(Bucket=bucket, Key=key(CLAIM), Body=json.dumps(facts), IfNoneMatch="*")
        return
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
    answer = s3.get_object(Bucket=bucket, Key=key(CLAIM))
    other, began = json.loads(answer["Body"].read()), answer["LastModified"]
    if other != facts and datetime.now(UTC) - began < STALE:
        raise Fatal(
            f"since {began:%Y-%m-%d %H:%M} UTC another Job brings "
            f"{other['source']} to {place()}; wait for its end. If there is no such Job any more: "
            f"aws s3 rm {place()}{CLAIM}"
        )
    s3.put_object(Bucket=bucket, Key=key(CLAIM), Body=json.dumps(facts))


STEPS = {"identity": identity, "download": download, "upload": upload}


def main(arguments: list[str]) -> int:
    """Run one step; the exit status says whether repeating may help."""
    if len(arguments) != 1 or arguments[0] not in STEPS:
        print(f"usage: prestage.py {'|'.join(STEPS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        STEPS[arguments[0]]()
    except (Fatal, Again, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        fatal = isinstance(error, Fatal) or full
        what = "gives up" if fatal else "failed; the Job tries again"
        hint = "; make the claim prestage larger (the parameter size)" if full else ""
        said = " ".join(str(error).split())
        print(f"{arguments[0]} {what}: {said}{hint}", file=sys.stderr, flush=True)
        return 2 if fatal else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
