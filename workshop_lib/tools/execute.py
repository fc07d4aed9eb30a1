"""Executes one notebook with papermill: a kernel of its own, progress, a clean end.

The kernel is this environment's Python, whatever the user has registered or configured, and
works in the notebook's own folder, as in JupyterLab. It leads a process group, which is killed
however the notebook ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.progress import Progress
from workshop_lib.results import read_records

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds `workshop_lib`, so that kernels import this copy of it."""

INJECTED_TAG, MARKER_TAG = "injected-parameters", "papermill-error-cell-tag"
"""papermill's tags for the cell with this run's parameters, and for its notes about a failure."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 120.0

kernels: list[int] = []
"""Process groups of kernels that run."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end; `exit_status` is what a shell reports then."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


@dataclass
class Outcome:
    """What became of a notebook: `not run`, `done`, `failed` or `interrupted`.

    A failure has the code cell's number as Jupyter shows it (0: none had begun), its first line
    and the error's last line.
    """

    executed: str
    status: str = "not run"
    seconds: float = 0.0
    cells: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] | None = None


def find_notebooks(
    folder: Path, names: Sequence[str] = (), *, solutions: bool = False
) -> list[Path]:
    """Find notebooks named like `01_ray_cluster.ipynb`, sorted; `names` like `01` choose some."""
    folders = [folder, folder / "solutions"] if solutions else [folder]
    found = [path for each in folders for path in sorted(each.glob("[0-9][0-9]_*.ipynb"))]
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        fits = [path for path in found if stem in (path.stem, path.stem[:2])]
        if not fits:
            known = ", ".join(path.stem for path in found)
            raise WorkshopError(f"there is no notebook {name!r}; there are: {known}")
        chosen.update(fits)
    return sorted(chosen) or found


def read_notebook(path: Path) -> Any:
    """Read a notebook's content; one that is damaged is a `WorkshopError`."""
    import nbformat

    try:
        return nbformat.read(str(path), as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise WorkshopError(
            f"{path} cannot be read ({error}); `git restore {path.name}` brings it back"
        ) from error


def kernel_environment(build: Path, state: str) -> dict[str, str]:
    """The environment variables of kernels that use a state of the local cluster."""
    foreign = ("JUPYTER_", "IPYTHON", "PYTHONSTARTUP", "PYTHONPATH", "PYTHONHOME", "JPY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    private = build.resolve() / "jupyter"
    folders = {f"JUPYTER_{name}_DIR": name.lower() for name in ("CONFIG", "DATA", "RUNTIME")}
    return {
        **kept,
        **{name: str(private / folder) for name, folder in folders.items()},
        "IPYTHONDIR": str(private / "ipython"),
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONNOUSERSITE": "1",
        # Figures belong in the output also where the caller says MPLBACKEND=Agg, as CI does.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "WORKSHOP_STATE": state,
    }


def _start_kernel(environment: Mapping[str, str], folder: Path, log: Path) -> KernelManager:
    """Start this environment's own Python as a kernel, which leads a process group."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import KernelManager

    class OwnPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    runtime = Path(environment["JUPYTER_RUNTIME_DIR"])
    runtime.mkdir(parents=True, exist_ok=True)
    manager = KernelManager(
        kernel_spec_manager=OwnPython(),
        client_class="jupyter_client.asynchronous.AsyncKernelClient",  # as nbclient expects
        connection_file=str(runtime / f"kernel-{uuid.uuid4()}.json"),
        transport_encryption="auto",  # else ipykernel warns on every start
    )
    with log.open("wb") as file:
        manager.start_kernel(env=dict(environment), cwd=str(folder), stdout=file, stderr=file)
    kernels.append(manager.provisioner.pid)  # type: ignore[union-attr]
    return manager


def _kill_kernels() -> None:
    """Kill kernels, and what they started in their process groups."""
    for pid in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def execute(
    source: Path,
    output: Path,
    *,
    state: str,
    build: Path,
    parameters: Mapping[str, Any] | None = None,
    cell_timeout_s: float = 900.0,
    label: str = "",
) -> Outcome:
    """Execute a notebook into a copy, with progress on stdout; `source` is only read.

    The kernel uses the local cluster's state `state`, and keeps its own files below `build`.
    After a signal `Interrupted` is raised, whose `outcome` says what became of the notebook.
    """
    import papermill

    for name in ("papermill", "traitlets", "nbconvert", "asyncio"):  # the one clear line is ours
        logging.getLogger(name).disabled = True
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    log = output.with_suffix(".kernel.log")
    code = [cell for cell in read_notebook(source).cells if cell.cell_type == "code"]
    total = sum(bool(cell.source.strip()) for cell in code)
    outcome = Outcome(str(output), cells=total, parameters=dict(parameters or {}))
    at: dict[str, Any] = {"cell": 0, "source": ""}

    def begin(cell: Any, cell_index: int) -> None:
        if INJECTED_TAG not in cell.metadata.get("tags", []):
            line = next(filter(None, map(str.strip, cell.source.splitlines())), "")[:80]
            at.update(cell=at["cell"] + 1, source=line)
        text = "cell {cell}/{0}: {source}".format(total, **at)
        shown.update(done=max(0, at["cell"] - 1), text=text)

    shown = Progress(total, label + source.stem, unit="cells", tick_s=1.0, stream=sys.stdout)
    # What papermill and nbclient raise for a cell, a dead kernel, a timeout; `outcome` keeps it.
    failures = (papermill.PapermillException, RuntimeError, TimeoutError)
    with contextlib.suppress(*failures), shown:
        try:
            manager = _start_kernel(kernel_environment(build, state), source.parent, log)
            papermill.execute_notebook(
                str(source),
                str(output),
                parameters=outcome.parameters,
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=cell_timeout_s,
                km=manager,
                coalesce_streams=True,
                on_cell_execute=begin,
            )
            manager.shutdown_kernel()
            outcome.status = "done"
            log.unlink(missing_ok=True)
            shown.update(done=total, text="")
        except Interrupted as signalled:
            outcome.status, outcome.failure = "interrupted", {**at, "error": "interrupted"}
            signalled.outcome = outcome  # type: ignore[attr-defined]
            raise
        except failures as error:
            outcome.status, outcome.failure = "failed", {**at, "error": _last_line(error)}
            shown.update(text="")
            raise
        finally:
            _kill_kernels()
            kernels.clear()
            outcome.seconds = round(shown.elapsed_s, 1)
            outcome.records = read_records(output) if output.exists() else {}
    return outcome


def _last_line(error: Exception) -> str:
    """The last line of an error, as a traceback would end."""
    if "Kernel died" in str(error):
        return "the kernel died (killed from outside, out of memory, or it crashed)"
    if isinstance(error, TimeoutError):
        return "the cell took longer than --cell-timeout-s and was stopped"
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{name}: {value}".removesuffix(": "))
    return text.strip().splitlines()[-1].strip()[:400]


def say(text: str, *, error: bool = False) -> None:
    """Print a line, at once; a reader that has gone away is no error."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Turn the first signal in the block into `Interrupted`; nothing cuts the cleaning short."""

    def first(signum: int, frame: object) -> None:
        for each in SIGNALS:
            signal.signal(each, later)
        _kill_kernels()
        raise Interrupted(signum)

    def later(signum: int, frame: object) -> None:
        # os.write: print could be interrupted by itself here, which Python refuses.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStill stopping what runs; a moment.\n")

    before = {each: signal.signal(each, first) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def stop_everything(state: str) -> str:
    """Stop whatever runs in a state of the local cluster; what went wrong, or nothing."""
    command = [sys.executable, "-m", "workshop_lib.tools.cli", "clean", "--state", state]
    try:
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=STOP_TIMEOUT_S,
            start_new_session=True,  # neither a terminal's Ctrl-C nor our own end reaches it
        )
    except subprocess.TimeoutExpired:
        return f"stopping what ran takes more than {STOP_TIMEOUT_S:g} s; run `make clean`"
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return f"stopping what ran failed: {last.strip()}; run `make clean`"
    return ""
