"""The environment: versions that must agree, and the real script with packages of a few bytes."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from workshop_lib.data import machine_needs

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.txt").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)", LOCK, re.MULTILINE))
UV = shutil.which("uv", path=f"{os.environ['PATH']}:{ROOT / '.venv-uv/bin'}")
needs_uv = pytest.mark.skipif(UV is None, reason="no uv: run `sh environment.sh`, which brings it")


# -- versions that are written down in several places ------------------------------------------


def test_versions_and_numbers_agree():
    needs = machine_needs()
    python = needs["PYTHON_VERSION"]
    pyproject = (ROOT / "pyproject.toml").read_text()
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    readme = (ROOT / "README.md").read_text()
    assert f'requires-python = ">={python},<3.12"' in pyproject
    assert f'python_version = "{python}"' in pyproject
    assert f"python={python}" in conda["dependencies"]
    for name, unit in (("CORES", "cores"), ("MEMORY_GIB", "GiB"), ("DISK_GIB", "GiB")):
        assert f"{needs[name]} {unit}" in readme, name
    assert f"glibc {needs['GLIBC']}" in readme


def test_the_lock_holds_every_requirement_at_its_pin_and_names_no_machine():
    source = (ROOT / "requirements.in").read_text() + (ROOT / "requirements-dev.in").read_text()
    wanted = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?(?:==(\S+))?", source, re.MULTILINE))
    assert wanted.pop("torch") and len(wanted) > 30
    for name, pin in wanted.items():
        found = LOCKED.get(re.sub(r"[-_.]+", "-", name).lower(), "nothing")
        assert found == (pin or found) != "nothing", f"{name}: run make lock"
    left_out = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "rfc3987-syntax"}
    assert not left_out & set(LOCKED)
    assert not [name for name in LOCKED if name.startswith("nvidia-")]
    assert LOCK.count("--hash=sha256:") >= len(LOCKED)
    assert not re.search(r"file:|https?://|--index|--find-links|\s/\w+/", LOCK)


def test_boto3_reads_times_with_the_dateutil_that_kubernetes_asks_for():
    """The lock holds a dateutil that boto3 says is too new (pyproject's override-dependencies)."""
    from botocore.utils import parse_timestamp

    for written in ("Sat, 21 Nov 2026 20:40:00 GMT", "2026-11-21T20:40:00Z", 1795293600):
        assert parse_timestamp(written).astimezone(UTC) == datetime(
            2026, 11, 21, 20, 40, tzinfo=UTC
        )


@pytest.mark.skipif(
    not (Path(sys.prefix) / "workshop-environment").exists(),
    reason="these tests run in an environment that environment.sh did not make",
)
def test_this_environment_holds_the_lock():
    """Whoever runs the tests should test what users get."""
    from importlib.metadata import version

    assert {name: version(name) for name in LOCKED} == LOCKED


def test_help_has_a_line_for_each_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"help"}
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    learners, _, maintainers = done.stdout.partition("maintainers")
    assert re.findall(r"^make (\S+) ", learners, re.MULTILINE) == ["run", "lab", "test", "clean"]
    assert targets == set(re.findall(r"^make (\S+) ", learners + maintainers, re.MULTILINE))


# -- real installations ------------------------------------------------------------------------

BACKEND = '''"""A build backend that makes an editable wheel of the checkout."""
import os, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "workshop-0-py3-none-any.whl"
    files = {
        "workshop.pth": os.getcwd(),
        "workshop-0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: workshop\\nVersion: 0\\n",
        "workshop-0.dist-info/WHEEL": "Wheel-Version: 1.0\\nTag: py3-none-any\\n",
    }
    files["workshop-0.dist-info/RECORD"] = "".join(f"{path},,\\n" for path in files)
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
'''


def write_wheel(folder, name, version):
    """Make a wheel that holds one empty module."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = {
        f"{name.replace('-', '_')}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


class Checkout:
    """A checkout with the real script, and packages of a few bytes."""

    def __init__(self, folder):
        self.root = folder / "a checkout"
        self.wheels = folder / "wheels"
        self.programs = folder / "bin"  # before the system's: what a test replaces
        for each in (self.wheels, self.programs, self.root / "data", self.root / "workshop_lib"):
            each.mkdir(parents=True)
        (self.root / "workshop_lib/__init__.py").touch()
        for name in ("environment.sh", "data/machine.env"):
            shutil.copy(ROOT / name, self.root / name)
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "pyproject.toml").write_text(
            '[project]\nname = "workshop"\nversion = "0"\n[build-system]\nrequires = []\n'
            'build-backend = "backend"\nbackend-path = ["."]\n'
        )
        (self.root / "requirements.in").write_text("torch==2.13.0+cpu  # apart\n")
        (self.programs / "uv").symlink_to(UV)
        foreign = ("PIP_", "UV_", "CONDA", "PYTHONPATH")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        self.variables = {
            **kept,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PYTHON": sys.executable,
            "UV_CACHE_DIR": str(folder / "cache"),
        }
        write_wheel(self.wheels, "torch", "2.13.0+cpu")
        self.lock("alpha==1.0", "beta-two==2.0")

    def lock(self, *pins):
        """Write a lock, and a wheel for each pin."""
        lines = []
        for pin in pins:
            wheel = write_wheel(self.wheels, *pin.split("=="))
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            lines.append(f"{pin} \\\n    --hash=sha256:{digest}\n")
        (self.root / "requirements.txt").write_text("".join(lines))

    def replace(self, program, script):
        """Have another program of that name."""
        path = self.programs / program
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, **variables):
        return subprocess.Popen(
            ["sh", self.root / "environment.sh"],
            env={**self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **variables):
        process = self.start(**variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def stamp(self):
        file = self.root / ".venv/workshop-environment"
        return file.read_text() if file.exists() else None

    def installed(self):
        info = self.root.glob(".venv/lib/python3*/site-packages/*.dist-info")
        return {path.name.removesuffix(".dist-info") for path in info}

    def wait_until_it_installs(self):
        deadline = time.monotonic() + 120
        while self.stamp() != "":
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def assert_refused(done, *words):
    """One line on stderr that has these words."""
    status, _, err = done
    assert status == 1
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


@needs_uv
def test_installs_torch_the_lock_and_the_project_and_then_only_what_changes(checkout):
    status, out, err = checkout.run()
    assert (status, err) == (0, ""), err
    assert "Installing 2 packages" in out and "is ready after" in out
    code = "import alpha, beta_two, torch, workshop_lib; print(torch.version)"
    python = checkout.root / ".venv/bin/python"
    done = subprocess.run(
        [python, "-c", code], cwd="/", env=checkout.variables, capture_output=True, text=True
    )
    assert done.stdout == "2.13.0+cpu\n", done.stderr
    stamp = checkout.root / ".venv/workshop-environment"
    before = stamp.stat().st_mtime_ns
    checkout.replace("uv", "exit 9")  # it is not even asked
    assert checkout.run() == (0, "", "")
    assert stamp.stat().st_mtime_ns == before
    checkout.replace("uv", f'exec {UV} "$@"')
    checkout.lock("alpha==1.1", "gamma==3.0")
    assert checkout.run()[0] == 0
    assert checkout.installed() == {"alpha-1.1", "gamma-3.0", "torch-2.13.0+cpu", "workshop-0"}


@needs_uv
def test_a_wrong_package_is_one_line_and_never_complete(checkout):
    lock = checkout.root / "requirements.txt"
    lock.write_text(re.sub(r"sha256:....", "sha256:0000", lock.read_text()))
    assert_refused(checkout.run(), "requirements.txt failed", "build/install.log", "ash")
    assert checkout.stamp() == ""
    next(checkout.wheels.glob("torch-*")).unlink()
    write_wheel(checkout.wheels, "torch", "2.13.0")
    assert_refused(checkout.run(), "No CPU build of torch", "PIP_FIND_LINKS")
    assert not [name for name in checkout.installed() if name.startswith("torch")]


@needs_uv
def test_what_the_machine_lacks_is_one_line(checkout):
    (checkout.wheels / "alpha-1.0-py3-none-any.whl").unlink()
    closed = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    assert_refused(checkout.run(**closed), "the package index cannot be reached")
    checkout.replace("uv", 'echo "error: failed: No space left on device" >&2; exit 2')
    assert_refused(checkout.run(), "no space left on the disk")
    checkout.replace("df", "echo x; echo /dev/x 9 9 2000000 9% /")
    assert_refused(checkout.run(), "1 GiB of disk are free", "6")
    checkout.replace("uname", '[ "$1" = -m ] && echo arm64 || echo Darwin')
    assert_refused(checkout.run(), "Darwin on arm64", "Dockerfile")

    (checkout.programs / "uname").unlink()
    (checkout.programs / "df").unlink()
    (checkout.programs / "uv").unlink()
    for tool in ("sh", "cat", "cksum", "uname", "getconf", "cut", "sort", "head", "grep", "df",
                 "awk", "mkdir", "date", "dirname", "printf", "flock"):  # fmt: skip
        (checkout.programs / tool).symlink_to(shutil.which(tool))
    assert_refused(checkout.run(PATH=str(checkout.programs)), "Neither uv nor python3")


@needs_uv
def test_pips_settings_reach_uv(checkout, tmp_path):
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = http://a.example/simple\nextra-index-url = http://b.example/simple\n"
        f"    http://c.example/simple\nfind-links = {checkout.wheels}\n"
    )
    checkout.replace("uv", f"env | grep ^UV_ >>'{tmp_path}/seen'; exec {UV} \"$@\"")
    done = checkout.run(PIP_CONFIG_FILE=str(settings), PIP_FIND_LINKS="")
    assert done[0] == 0, done
    seen = (tmp_path / "seen").read_text()
    assert "UV_DEFAULT_INDEX=http://a.example/simple\n" in seen
    assert "UV_INDEX=http://b.example/simple http://c.example/simple\n" in seen
    assert f"UV_FIND_LINKS={checkout.wheels}\n" in seen


@needs_uv
def test_a_killed_installation_is_made_anew_and_two_at_once_do_not_clash(checkout):
    killed = checkout.start()
    checkout.wait_until_it_installs()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert checkout.stamp() == ""
    both = [checkout.start(), checkout.start()]
    output = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert sum("is ready after" in text for text in output) == 1
    assert {"alpha-1.0", "workshop-0"} <= checkout.installed()


@needs_uv
def test_ctrl_c_is_one_line_and_the_next_command_goes_on(checkout):
    checkout.replace("uv", f'[ "$1" = venv ] && exec sleep 60; exec {UV} "$@"')
    process = checkout.start()
    checkout.wait_until_it_installs()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "Interrupted; repeat the command.\n"
    checkout.replace("uv", f'exec {UV} "$@"')
    assert checkout.run()[0] == 0


@needs_uv
def test_a_venv_of_somebody_else_is_left_alone(checkout):
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "precious").touch()
    assert_refused(checkout.run(), "was not made by this project")
    assert (checkout.root / ".venv" / "precious").exists()
