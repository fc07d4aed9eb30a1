"""The environment: refusals, versions that must agree, and real installations of tiny packages.

The installations use the real scripts, a real venv and a real pip, in a copy of
the few files that they need, with hand-made wheels in place of 3 GB.
"""

from __future__ import annotations

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

from workshop_lib.tools import environment, installer, lock, machine

ROOT = Path(__file__).resolve().parents[2]
GOOD = machine.Machine(
    python=(3, 11),
    system="Linux",
    architecture="x86_64",
    glibc=(2, 36),
    cpu_flags=frozenset({"sse4_2", "avx2"}),
    has_venv=True,
    free_disk_gib=50.0,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "Darwin", "architecture": "arm64"}, ["Darwin on arm64", "Linux"]),
        ({"architecture": "aarch64"}, ["Linux on aarch64", "x86_64"]),
        ({"python": (3, 13)}, ["Python 3.13", "3.11", "PYTHON="]),
        ({"glibc": (2, 28)}, ["glibc 2.28", "2.31"]),
        ({"glibc": None}, ["no glibc"]),
        ({"cpu_flags": frozenset({"sse4_2"})}, ["AVX2"]),
        ({"has_venv": False}, ["python3.11-venv"]),
        ({"free_disk_gib": 2.0}, ["2.0 GiB", "6"]),
    ],
)
def test_refuses_in_one_line_that_says_what_to_do(change, words):
    reason = machine.refusal(GOOD._replace(**change))
    assert reason is not None
    assert "\n" not in reason
    assert all(word in reason for word in words)


def test_accepts_a_good_machine_and_conda_without_venv():
    assert machine.refusal(GOOD) is None
    assert machine.refusal(GOOD._replace(has_venv=False), is_conda=True) is None
    assert machine.refusal(GOOD._replace(cpu_flags=frozenset())) is None  # unknown is no reason


def test_sees_this_machine():
    seen = machine.describe_machine(ROOT)
    assert seen.python == sys.version_info[:2]
    assert seen.free_disk_gib > 0
    assert seen.glibc is None or seen.glibc > (2, 0)


def test_uses_conda_only_if_active_and_not_base(tmp_path):
    choose = environment.choose_environment
    assert choose(tmp_path, {}) == installer.Environment(tmp_path / ".venv", is_conda=False)
    base = {"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"}
    assert choose(tmp_path, base).prefix == tmp_path / ".venv"
    active = {"CONDA_PREFIX": "/opt/conda/envs/w", "CONDA_DEFAULT_ENV": "w"}
    assert choose(tmp_path, active) == installer.Environment(Path("/opt/conda/envs/w"), True)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Collecting a\nERROR: bad thing\nmore\n", "bad thing"),
        ("x\nERROR: OSError: [Errno 28] No space left on device\n", "no space left on device"),
        (
            "WARNING: Retrying after connection broken by 'X'\nERROR: No matching distribution\n",
            "the package index cannot be reached (network, proxy, or pip's index-url)",
        ),
        ("", "no output"),
        ("Killed\n", "Killed"),
    ],
)
def test_says_why_pip_failed(log, said):
    assert installer.error_of(log) == said


def test_says_how_far_pip_is():
    log = "Collecting a==1\nWARNING: Location ... is ignored\nCollecting b-c==2\n"
    assert installer.progress_of("", 0, 9) == "starting pip"
    assert installer.progress_of(log, 0, 9) == "fetching 2 of 9: b-c"
    log += "Installing collected packages: a, b-c\n"
    assert installer.progress_of(log, 4, 9) == "installing, 4 of 9 in place"


def test_lock_command_asks_the_index_that_pip_is_told_to_ask():
    listed = "global.index-url='https://a.example/simple'\n:env:.index-url='https://b.example/s'\n"
    assert lock.pip_index(listed) == "https://b.example/s"
    assert lock.pip_index("global.timeout='3'\n") is None


# Versions that are written down in several places


def test_versions_agree():
    pyproject = (ROOT / "pyproject.toml").read_text()
    wanted = machine.dotted(machine.PYTHON_VERSION)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    setup = next(
        s for s in workflow["jobs"]["test"]["steps"] if "setup-python" in s.get("uses", "")
    )
    assert f"python={wanted}" in conda["dependencies"]
    assert f'requires-python = ">={wanted},<3.12"' in pyproject
    assert f'python_version = "{wanted}"' in pyproject
    assert setup["with"]["python-version"] == wanted
    requirements = (ROOT / "requirements.in").read_text()
    assert lock.torch_requirement(requirements) == installer.TORCH_REQUIREMENT
    assert f"python{wanted}" in (ROOT / "Makefile").read_text()


def test_every_requirement_is_in_the_lock_at_its_pin():
    text = (ROOT / "requirements.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))
    wanted = re.findall(
        r"^([\w.-]+)(?:\[[^]]*\])?(?:==(\S+))?",
        (ROOT / "requirements.in").read_text(),
        re.MULTILINE,
    )
    assert len(wanted) > 30
    for name, pin in wanted:
        if name != "torch":
            assert installer.normalized(name) in locked, f"{name}: run make lock"
            assert pin in ("", locked[installer.normalized(name)]), f"{name}: run make lock"


def test_lock_leaves_out_what_it_must_and_names_no_machine():
    text = (ROOT / "requirements.txt").read_text()
    names = installer.locked_names(text)
    assert not {"torch", "nvidia-nccl-cu12", *lock.NOT_INSTALLED} & set(names)
    assert text.count("--hash=sha256:") >= len(names)
    assert "make lock" in text.splitlines()[1]
    assert not re.search(r"file:|https?://|--index|--find-links|\s/\w+/", text)


def test_boto3_reads_times_with_the_dateutil_that_kubernetes_asks_for():
    """The lock holds a dateutil that boto3 says is too new (`lock.OVERRIDDEN`)."""
    from botocore.utils import parse_timestamp

    assert lock.OVERRIDDEN == ("python-dateutil>=3",)
    for written in ("Sat, 21 Nov 2026 20:40:00 GMT", "2026-11-21T20:40:00Z", 1795293600):
        assert parse_timestamp(written).astimezone(UTC) == datetime(
            2026, 11, 21, 20, 40, tzinfo=UTC
        )


def test_this_environment_holds_the_lock():
    """Whoever runs the tests should test what users get."""
    from importlib.metadata import PackageNotFoundError, version

    text = (ROOT / "requirements.txt").read_text()
    for name, locked in re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE):
        try:
            assert version(name) == locked, f"{name}: run make"
        except PackageNotFoundError:
            pytest.fail(f"{name} is not installed: run make")


# The Makefile


def make(root, *arguments, **variables):
    return subprocess.run(
        ["make", *arguments],
        cwd=root,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_help_has_a_line_for_each_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"help"}
    shown = make(ROOT).stdout
    assert targets == set(re.findall(r"^make (\S+) ", shown, re.MULTILINE))
    assert shown.count("\n") == len(targets)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("run", "-m workshop_lib.tools.run"),
        ("notebooks", "-m workshop_lib.tools.notebooks"),
        ("test", '-m pytest -n 2 --no-loadscope-reorder -m "not slow"'),
        ("test-all", "-m pytest"),
        ("bench", "-m workshop_lib.tools.bench"),
        ("lab", "-m workshop_lib.tools.lab"),
        ("clean", "-m workshop_lib.cluster.local clean --all"),
    ],
)
def test_targets_run_their_commands_in_the_environment(target, command):
    shown = make(ROOT, "-n", target, "PYTHON=python3.11").stdout
    assert shown.startswith("python3.11 workshop_lib/tools/environment.py")
    assert "--say" in shown
    assert f"-- {command}" in re.sub(r"\s*\\\n\s*", " ", shown)


def test_no_python_at_all_is_one_line(tmp_path):
    for tool in ("sh", "id"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [shutil.which("make"), "check"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Python 3.11 is needed" in done.stderr


# Real installations


def write_wheel(folder, name, version, module=None):
    """Make a wheel that holds one empty module."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = {
        f"{module or name.replace('-', '_')}.py": f"version = {version!r}\n",
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
    """A checkout with the real scripts, and packages of a few bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root.parent / "wheels"
        self.wheels.mkdir(parents=True)
        tools = root / "workshop_lib" / "tools"
        tools.mkdir(parents=True)
        (root / "workshop_lib" / "__init__.py").touch()
        for name in ("environment.py", "installer.py", "machine.py"):
            shutil.copy(ROOT / "workshop_lib" / "tools" / name, tools)
        shutil.copy(ROOT / "Makefile", root)
        self.environment = installer.Environment(root / ".venv", is_conda=False)
        self.variables = {
            k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "CONDA"))
        }
        self.variables.update(
            PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.wheels)
        )
        write_wheel(self.wheels, "torch", "2.13.0+cpu")
        self.lock("alpha==1.0", "beta-two==2.0")

    def lock(self, *pins: str) -> None:
        """Write a lock, and a wheel for each pin."""
        lines = []
        for pin in pins:
            name, version = pin.split("==")
            digest = hashlib.sha256(
                write_wheel(self.wheels, name, version).read_bytes()
            ).hexdigest()
            lines.append(f"{pin} \\\n    --hash=sha256:{digest}\n")
        (self.root / "requirements.txt").write_text("".join(lines))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "workshop_lib/tools/environment.py", *arguments]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_current(self) -> bool:
        return environment.is_current(self.environment, self.root)

    def wait_for_installing(self) -> None:
        deadline = time.monotonic() + 300
        while (environment.read_stamp(self.environment) or {}).get("state") != "installing":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A checkout whose environment was installed once."""
    checkout = Checkout(tmp_path_factory.mktemp("installed") / "checkout")
    done = checkout.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Installing the environment: 3 packages" in done.stdout
    assert "The environment is ready after" in done.stdout
    assert done.stderr == ""
    return checkout


@pytest.fixture
def checkout(tmp_path):
    """A checkout without an environment."""
    return Checkout(tmp_path / "checkout")


def test_installs_torch_and_the_lock_and_makes_the_project_importable(installed):
    assert installed.is_current()
    code = "import alpha, beta_two, torch, workshop_lib, sys; print(torch.version, sys.prefix)"
    done = subprocess.run(
        [installed.environment.python, "-c", code], cwd="/", capture_output=True, text=True
    )
    assert done.stdout.split() == ["2.13.0+cpu", str(installed.environment.prefix)], done.stderr


def test_nothing_changed_is_nothing_done(installed):
    """No process is started, nothing written, and nothing looked up of the machine."""
    before = installed.environment.stamp.stat().st_mtime_ns
    code = """if True:
        import runpy, sys
        did = []
        sys.addaudithook(lambda event, arguments: did.append((event, *map(str, arguments[:2]))))
        sys.path.insert(0, "workshop_lib/tools")
        sys.argv = ["workshop_lib/tools/environment.py"]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            print("status", end.code)
        print("started", [each for each in did if each[0] in ("subprocess.Popen", "os.fork",
            "os.exec", "os.posix_spawn", "os.system", "socket.connect")])
        print("locked", [each for each in did if each[0] == "fcntl.flock"])
        print("written", [each for each in did if each[0] == "open" and each[2] != "r"
            and each[2] != "rb"])
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=installed.root, env=installed.variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["status 0", "started []", "locked []", "written []"]
    done = installed.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert installed.environment.stamp.stat().st_mtime_ns == before


def test_runs_a_command_with_the_environments_programs_first(installed):
    code = "import os, sys; print(sys.prefix, os.environ['PATH'].split(':')[0]); sys.exit(7)"
    done = installed.run("--say", "Doing it: 1 s.", "--", "-c", code, PYTHONPATH="/elsewhere")
    prefix = str(installed.environment.prefix)
    assert done.stdout.splitlines() == ["Doing it: 1 s.", f"{prefix} {prefix}/bin"]
    assert done.returncode == 7


def test_a_changed_lock_installs_the_new_and_removes_the_old(installed):
    installed.lock("alpha==1.1", "gamma==3.0")
    assert not installed.is_current()
    done = installed.run()
    assert "its lock has changed" in done.stdout
    names = installed.environment.site_packages.glob("*.dist-info")
    present = {path.name.split("-")[0]: path.name.split("-")[1] for path in names}
    present.pop("pip"), present.pop("setuptools", None)
    assert present == {
        "alpha": "1.1.dist",
        "gamma": "3.0.dist",
        "torch": "2.13.0+cpu.dist",
    }
    assert installed.is_current()


def test_a_wrong_hash_is_one_line_and_never_complete(installed):
    installed.lock("alpha==1.2")
    text = (installed.root / "requirements.txt").read_text()
    (installed.root / "requirements.txt").write_text(re.sub(r"sha256:....", "sha256:0000", text))
    done = installed.run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "build/install.log" in done.stderr
    assert "HASHES" in done.stderr
    assert not installed.is_current()
    installed.lock("alpha==1.2")
    assert "Installing the environment" in installed.run().stdout  # anew: it was half-finished
    assert installed.is_current()


def test_no_cpu_torch_is_one_line_and_never_another_build(checkout):
    for wheel in checkout.wheels.glob("torch-*"):
        wheel.unlink()
    write_wheel(checkout.wheels, "torch", "2.13.0")
    done = checkout.run("--", "-c", "print('not reached')")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No CPU build of torch" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert "not reached" not in done.stdout
    assert not list(checkout.environment.site_packages.glob("torch*"))
    assert not checkout.is_current()


def test_a_killed_installation_is_made_anew_and_two_at_once_do_not_clash(checkout):
    killed = checkout.start()
    checkout.wait_for_installing()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not checkout.is_current()
    first = checkout.start()
    checkout.wait_for_installing()
    first.send_signal(signal.SIGSTOP)  # until the other one has met it
    other = checkout.start()
    met = other.stdout.readline()
    first.send_signal(signal.SIGCONT)
    output = [process.communicate(timeout=600)[0] for process in (first, other)]
    assert [first.returncode, other.returncode] == [0, 0], output
    assert checkout.is_current()
    assert "waiting for it" in met
    assert sum("is ready after" in text for text in output) == 1


def test_ctrl_c_stops_pip_and_says_so(checkout):
    process = checkout.start()
    checkout.wait_for_installing()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 130
    assert "Interrupted; repeat the command" in output
    assert "Traceback" not in output
    assert not environment.processes_of(checkout.root)


def test_a_venv_of_somebody_else_is_left_alone(checkout):
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "precious").touch()
    done = checkout.run()
    assert done.returncode == 1
    assert "was not made by this project" in done.stderr
    assert (checkout.root / ".venv" / "precious").exists()


def test_installs_into_an_active_conda_environment(checkout, tmp_path):
    prefix = tmp_path / "conda"
    subprocess.run([sys.executable, "-m", "venv", prefix], check=True, env=checkout.variables)
    active = {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": "workshop"}
    done = checkout.run("--", "-c", "import alpha, sys; print(sys.prefix)", **active)
    assert done.stdout.splitlines()[-1] == str(prefix)
    assert not (checkout.root / ".venv").exists()
    active["CONDA_PREFIX"] = str(tmp_path)
    assert "has no Python 3.11" in checkout.run(**active).stderr


def test_clean_works_with_no_environment(checkout):
    (checkout.root / "build").mkdir()
    done = make(checkout.root, "clean", f"PYTHON={sys.executable}", **checkout.variables)
    assert done.returncode == 0
    assert "nothing to stop" in done.stdout
    assert not (checkout.root / "build").exists()
    assert not (checkout.root / ".venv").exists()
