"""Rank 0 of a training Job: wait for all nodes, run the trainer as a Ray job, follow it.

`python submit.py COMMAND [ARGUMENT...]` ends with the command's exit code. Ray's token
comes from the environment, which Ray's own client reads. The end of the job is read from
its status and never from the end of a log stream: a stream that breaks says nothing.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

JOIN_TIMEOUT_S = float(os.environ.get("JOIN_TIMEOUT_S", "900"))
SILENCE_TIMEOUT_S = 300.0
"""A dashboard on a busy machine may be slow; one that is silent for this long is gone."""


class NoAnswerError(Exception):
    """Ray did not do in time what it was asked for."""


def say(text: str) -> None:
    """Print a line with the time and who says it."""
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} rank 0: {text}", flush=True)


def until(look: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Call `look` until it returns something; a dashboard that does not answer is asked again."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            if (found := look()) is not None:
                return found
        # Ray's client raises ConnectionError, RuntimeError and its own errors for "not now".
        except Exception as error:  # noqa: BLE001
            last = f" ({' '.join(str(error).split())[:200]})"
        if time.monotonic() > deadline:
            raise NoAnswerError(f"{what}: not within {timeout_s:g} s{last}")
        time.sleep(0.5)


def main(command: list[str]) -> int:
    """Run the command as a Ray job and return its exit code."""
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    address, nodes = f"http://{os.environ['DASHBOARD_ADDRESS']}", int(os.environ["NODES"])

    def joined() -> bool | None:
        alive = list_nodes(address=address, filters=[("state", "=", "ALIVE")], timeout=10)
        return True if len(alive) >= nodes else None

    until(joined, JOIN_TIMEOUT_S, f"waiting for {nodes} Ray nodes")
    say(f"{nodes} of {nodes} nodes have joined; starting the trainer")
    # The recipe's paths are relative to this folder, and a Ray job starts in one of Ray's own.
    entrypoint = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}"
    client = until(lambda: JobSubmissionClient(address), SILENCE_TIMEOUT_S, "Ray's job API")
    job = until(
        lambda: client.submit_job(entrypoint=entrypoint), SILENCE_TIMEOUT_S, "submitting the job"
    )
    return follow(client, job)


def keep(reason: str) -> None:
    """Leave why it failed for the end of the log."""
    if path := os.environ.get("LAST_LINE_FILE"):
        Path(path).write_text(reason[:400])


def follow(client: Any, job: str) -> int:
    """Copy what the job's driver prints, which runs on this node, until the job has ended."""
    # Ray keeps a driver's output here, on the head.
    log = Path(os.environ["RAY_TEMP_DIR"], "session_latest", "logs", f"job-driver-{job}.log")
    offset, last_line = 0, ""
    while True:
        info = until(lambda: client.get_job_info(job), SILENCE_TIMEOUT_S, "Ray's dashboard")
        over = info.status.is_terminal()  # asked first: what was printed before is in the file
        if log.exists():
            with log.open("rb") as file:
                file.seek(offset)
                new = file.read()
            whole = new if over else new[: new.rfind(b"\n") + 1]
            offset += len(whole)
            text = whole.decode(errors="replace")
            sys.stdout.write(text)
            sys.stdout.flush()
            said = [line for line in text.split("\n") if line.strip()]
            last_line = said[-1] if said else last_line
        if over:
            break
        time.sleep(0.5)
    if info.status.value == "SUCCEEDED":
        return 0
    reason = last_line.strip() or " ".join((info.message or "it printed nothing").split())
    keep(reason)
    code = info.driver_exit_code or 1
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NoAnswerError as error:
        keep(str(error))
        sys.exit(1)
