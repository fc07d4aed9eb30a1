"""guidellm as a client of the mock server: it runs in an environment of its own.

`make guidellm` makes `.venv-guidellm`. What runs in there is `guidellm_driver`, a script that
knows nothing of this library; this module gives it the jobs and reads what it measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.measures.clients import PROMPT, Job, Measured
from workshop_lib.tools.measures.mock_server import MODEL
from workshop_lib.tools.measures.workers import answer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["guidellm_client", "guidellm_is_there"]

ENVIRONMENT = CHECKOUT / ".venv-guidellm"
DRIVER = Path(__file__).with_name("guidellm_driver.py")


def guidellm_is_there() -> bool:
    """Whether `make guidellm` has installed it."""
    stamp = ENVIRONMENT / "workshop-environment"
    return stamp.exists() and bool(stamp.read_text())


def guidellm_client(connection: Connection) -> None:
    """Be `guidellm`: its own benchmark, given everything in memory, writing no files.

    One worker process: on a single core more of them only get in each other's way. It reports
    of each answer the mean inter-token time, not each one.
    """
    python = ENVIRONMENT / "bin" / "python"
    variables = {
        **os.environ,
        "GUIDELLM__MAX_WORKER_PROCESSES": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }
    variables.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [str(python), "-P", str(DRIVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
        text=True,
        start_new_session=True,  # it starts processes of its own, which end with it
    )

    def receive() -> dict[str, object]:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise WorkshopError(f"guidellm ended with status {process.wait()}")
        found: dict[str, object] = json.loads(line)
        return found

    def run(job: Job) -> list[Measured]:
        assert process.stdin is not None
        prompts = [f"[{number}] {PROMPT}" for number in range(job.requests)]
        asked = {"url": job.url, "model": MODEL, "streams": job.streams, "tokens": job.tokens}
        process.stdin.write(json.dumps({**asked, "prompts": prompts}) + "\n")
        process.stdin.flush()
        answers = receive()["answers"]
        assert isinstance(answers, list)
        if len(answers) != job.requests:
            raise WorkshopError(f"{len(answers)} of {job.requests} requests were answered")
        return [Measured(number, ttft, [itl], only_mean=True) for number, ttft, itl in answers]

    try:
        receive()  # it has been imported
        answer(connection, run)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
