"""A command in a container: with its environment, in its working folder."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.paths import StatePaths, read_json
from workshop_lib.cluster.records import ExecResult
from workshop_lib.errors import ClusterError, NotFoundError

__all__ = ["execute"]


def execute(
    paths: StatePaths,
    pod: Mapping[str, Any],
    command: Sequence[str],
    container: str | None,
    timeout_s: float,
) -> ExecResult:
    """Run a command with a container's environment and working folder."""
    name, main = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
    if container not in (None, main):
        raise NotFoundError(f"{name} has no container {container!r}; it has {main}")
    known = read_json(paths.environments / f"{name}.{main}.json")
    if known is None:
        raise NotFoundError(
            f"container {main!r} of {name} does not run; see its workload's table()"
        )
    if not command:
        raise ClusterError(f"exec in {name}: there is no command")
    # Files and no pipes: what the command leaves in the background would keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(command), env=known["environment"], cwd=known["folder"],
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            )  # fmt: skip
        except OSError as error:
            raise ClusterError(f"exec in {name}: {command[0]!r}: {error.strerror}") from None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"exec in {name}: {' '.join(command)[:80]!r} did not end within {timeout_s:g} s "
                "and was killed; give it more with timeout_s="
            ) from None
        finally:
            if process.poll() is None:
                processes.stop(lambda: processes.tree(process.pid), grace_s=0.0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5.0)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        # A signal's number as kubectl reports it.
        return ExecResult(128 - code if code < 0 else code, *texts)
