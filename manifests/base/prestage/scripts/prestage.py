"""Puts a model into an S3 bucket, once: checks the identity, downloads, uploads.

    python prestage.py identity|download|upload

Each step is a container of the Job `prestage`, so that the step that failed is seen at once. Needs
boto3 and huggingface_hub 1 or newer, whose download goes on where it was stopped and whose
verification compares every file with the hub's checksums. Settings come from the environment:

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

import contextlib
import errno
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP goes on where it was stopped
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

MARKER, CLAIM, READY = "workshop-model.json", "workshop-upload.json", "workshop-ready.json"
STALE = timedelta(days=1)
WEIGHTS = (".safetensors", ".gguf")
# The hub's layout at the top of a repository; other formats lie in folders below it.
WANTED = (*WEIGHTS, ".json", ".model", ".txt", ".jinja", ".md", "LICENSE")


class Fatal(Exception):
    """What repeating cannot mend: the Job gives up."""


class Again(Exception):
    """What repeating may mend: the network, mostly."""


def setting(name):
    """A setting, which must not be empty."""
    if not os.environ.get(name):
        raise Fatal(f"the setting {name} is empty")
    return os.environ[name]


def say(text):
    """A line for the log, at once."""
    print(text, flush=True)


def work_folder():
    """Where the download lies: the folder's name is the one that servers look for."""
    name = setting("MODEL")
    if name.count("/") > 1 or ".." in name or "--" in name or name.startswith((".", "/", "-")):
        raise Fatal(f"MODEL={name} is no model's name; write organisation/name")
    return Path(setting("WORK_DIR")) / name.replace("/", "--")


def key(name):
    """Where a file of the model lies in the bucket."""
    # The slash matters: without it a listing of a/b finds a/b-2 as well.
    return f"{os.environ.get('PREFIX', '').strip('/')}/{work_folder().name}/{name}".lstrip("/")


def place():
    """The model's folder, as the AWS command line names it."""
    return f"s3://{setting('BUCKET')}/{key('')}"


def client(service):
    """A client of AWS that gives up after a minute, not after ten."""
    import boto3
    from botocore.config import Config

    retries = {"total_max_attempts": int(os.environ.get("ATTEMPTS", "5")), "mode": "standard"}
    config = Config(retries=retries, connect_timeout=10, read_timeout=60)
    region = os.environ.get("AWS_REGION", "us-east-1")
    return boto3.client(service, region_name=region, config=config)


@contextlib.contextmanager
def told(what):
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


def identity():
    """Whether this pod is whom it should be, and may write where the model goes."""
    wanted, target = setting("EXPECTED_ROLE"), {"Bucket": setting("BUCKET"), "Key": key(MARKER)}
    try:
        with told("no AWS identity"):
            arn = client("sts").get_caller_identity()["Arn"]
    except (Fatal, Again) as error:
        raise Fatal(
            f"this pod has {error}; it should be the role {wanted}: look for its service account "
            "in `aws eks list-pod-identity-associations`, and at `kubectl get pods -n kube-system "
            "-l app.kubernetes.io/name=eks-pod-identity-agent`"
        ) from error
    if f":assumed-role/{wanted}/" not in arn:
        raise Fatal(
            f"this pod is {arn} and should be the role {wanted}: its service account has no Pod "
            "Identity association, or the pod is older than it (a node's role is what is left then)"
        )
    with told(f"{arn} cannot write to {place()}; look at the bucket's and the role's policy"):
        # An upload begun and dropped: it asks for the right to write and leaves nothing to see.
        begun = client("s3").create_multipart_upload(**target)["UploadId"]
        client("s3").abort_multipart_upload(**target, UploadId=begun)
    say(f"This pod is {arn} and may write to {place()}")


def staged():
    """What the bucket's marker says, or None: there is no whole model."""
    where = {"Bucket": setting("BUCKET")}
    with told(f"{place()} cannot be read"):
        # Who may list only below a prefix is told 403, not 404, of an object that is not there.
        if not client("s3").list_objects_v2(**where, Prefix=key(MARKER)).get("Contents"):
            return None
        return json.loads(client("s3").get_object(**where, Key=key(MARKER))["Body"].read())


def download():
    """Download what SOURCE names, each file checked, unless the bucket has it."""
    from huggingface_hub import HfApi, get_session, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    source, work = setting("SOURCE"), work_folder()
    if source.startswith("/"):
        return say(f"{source} needs no download")
    kind, _, rest = source.partition(":")
    if kind != "hub" or not rest:
        raise Fatal(f"SOURCE={source} is none of hub:organisation/name[@revision], /a/folder")
    name, _, revision = rest.partition("@")
    # requests, httpx or httpx2, by its version.
    http = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    token_file = Path(os.environ.get("TOKEN_FILE", ""))
    api = HfApi(token=token_file.read_text().strip() if token_file.is_file() else False)
    try:
        info = api.model_info(name, revision=revision or "main")
        exact, names = f"hub:{name}@{info.sha}", [each.rfilename for each in info.siblings]
        names = [each for each in names if "/" not in each and each.endswith(WANTED)]
        if not any(each.endswith(WEIGHTS) for each in names):
            raise Fatal(f"{source} holds no weights (*.safetensors, *.gguf)")
        if (staged() or {}).get("source") == exact:
            shutil.rmtree(work, ignore_errors=True)
            return say(f"{place()} holds it already; there is nothing to download")
        say(f"Downloading {exact}: {', '.join(names)}")
        where = {"revision": info.sha, "local_dir": work, "token": api.token}
        snapshot_download(name, allow_patterns=names, **where)
        wrong = {each["path"]: each for each in api.verify_repo_checksums(name, **where).mismatches}
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise Fatal(
            f"the hub has no {rest} for us ({str(error).splitlines()[0]}): look at SOURCE; for a "
            "gated model accept its licence and put a token into the Secret hub-token"
        ) from error
    except http.HTTPError as error:
        raise Again(f"the hub broke off: {error}") from error
    for each in set(names) & set(wrong):
        (work / each).unlink()
        said = "{path} is not what was published: {actual}, and should be {expected}"
        raise Again(said.format(**wrong[each]))
    if missing := [each for each in names if not (work / each).is_file()]:
        raise Again(f"the hub broke off: {', '.join(missing)} did not come")
    files = {each: facts_of(work / each) for each in names}
    (work / READY).write_text(json.dumps({"source": exact, "files": files}))
    say(f"All of {exact} is in {work}, checked")


def facts_of(path):
    """A file's size and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def upload():
    """Bring the bucket to what is here: what it lacks, nothing else, and the marker last."""
    source, there = setting("SOURCE"), staged()
    folder, note = (Path(source), MARKER) if source.startswith("/") else (work_folder(), READY)
    if there and note == READY and not (folder / READY).is_file():
        return say(f"{place()} is whole: it held {there['source']} already")  # `download` saw so
    if not (folder / note).is_file():
        raise Fatal(f"{folder} has no {note}: no whole model; run the step before it again")
    facts = {**json.loads((folder / note).read_text()), "model": setting("MODEL")}
    for name, noted in facts["files"].items():
        if not (folder / name).is_file() or facts_of(folder / name) != noted:
            raise Fatal(f"{folder / name} is damaged; remove it and run the step before it again")
    with told(f"the upload to {place()} broke off"):
        if there != facts:
            to_bucket(client("s3"), setting("BUCKET"), folder, facts)
    if note == READY:
        shutil.rmtree(folder)  # the bucket has it now
    say(f"{place()} is whole: {len(facts['files'])} files")


def to_bucket(s3, bucket, folder, facts):
    """Upload what the bucket lacks, remove what it should not have, and write the marker."""
    lock(s3, bucket, facts)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key(""))
    there = {each["Key"] for page in pages for each in page.get("Contents", [])}
    # From here on it is no whole model, until it is the new one.
    s3.delete_object(Bucket=bucket, Key=key(MARKER))
    for name, noted in facts["files"].items():
        if key(name) in there:
            head = s3.head_object(Bucket=bucket, Key=key(name))
            known = {"bytes": head["ContentLength"], "sha256": head["Metadata"].get("sha256")}
            if known == noted:
                say(f"{name}: there already")
                continue
        say(f"{name}: {noted['bytes']:,} bytes")
        more = {"StorageClass": "INTELLIGENT_TIERING", "Metadata": {"sha256": noted["sha256"]}}
        s3.upload_file(str(folder / name), bucket, key(name), ExtraArgs=more)
    for left in there - {key(name) for name in [*facts["files"], MARKER, CLAIM]}:
        say(f"{left}: not part of this model, removed")
        s3.delete_object(Bucket=bucket, Key=left)
    s3.put_object(Bucket=bucket, Key=key(MARKER), Body=json.dumps(facts, indent=1).encode())
    s3.delete_object(Bucket=bucket, Key=key(CLAIM))


def lock(s3, bucket, facts):
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


def main(step):
    """Run one step; the exit status says whether repeating may help."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # process 1 has no default for it
    try:
        {"identity": identity, "download": download, "upload": upload}[step]()
    except (Fatal, Again, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        fatal = isinstance(error, Fatal) or full
        what = "gives up" if fatal else "failed; the Job tries again"
        hint = "; make the claim prestage larger (the parameter size)" if full else ""
        said = " ".join(str(error).split())
        print(f"{step} {what}: {said}{hint}", file=sys.stderr, flush=True)
        return 2 if fatal else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
