"""Ray's dashboard as an API: the nodes it knows, and jobs it runs.

Everything goes through the dashboard's HTTP port with Ray's token, so the notebook's
Python and Ray need not be those of the cluster: a job's script runs over there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ClusterError, WaitTimeoutError
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from ray.job_submission import JobStatus, JobSubmissionClient

__all__ = ["DASHBOARD_PORT", "JobResult", "RayDashboard"]

DASHBOARD_PORT = 8265
GIB = 2**30

SILENT_S = 30.0
"""A dashboard that does not say how a job is for so long is given up."""


@dataclass(frozen=True)
class JobResult:
    """What a Ray job left behind: how long it took, and everything that its driver printed."""

    job_id: str
    seconds: float
    log: str

    def json(self) -> Any:
        """The last line of the log that is JSON: how the workshop's scripts report."""
        for line in reversed(self.log.splitlines()):
            if line.startswith(("{", "[")):
                with contextlib.suppress(json.JSONDecodeError):
                    return json.loads(line)
        raise ClusterError(f"job {self.job_id} printed no line of JSON; read its .log")


class RayDashboard:
    """A client of one Ray cluster's dashboard.

    Args:
        url: Such as `http://127.0.0.1:8265`.
        token: Ray's token; without the right one every request is refused.

    Example:
        >>> with dashboard(cluster.get("ray-cluster")) as ray:   # doctest: +SKIP
        ...     ray.nodes()
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    def __repr__(self) -> str:
        return f"RayDashboard({self.url!r})"

    def get(self, path: str) -> Any:
        """GET a path of the API and return its JSON."""
        import httpx

        try:
            answer = httpx.get(self.url + path, headers=self._headers, timeout=20)
        except httpx.HTTPError as error:
            raise ClusterError(
                f"Ray's dashboard at {self.url} does not answer ({error}); is the head ready?"
            ) from error
        if answer.status_code != 200:
            raise ClusterError(
                f"Ray's dashboard: GET {path} answered {answer.status_code}: {answer.text[:200]}"
            )
        return answer.json()

    def version(self) -> str:
        """The version of the cluster's Ray."""
        return str(self.get("/api/version")["ray_version"])

    def status_without_token(self) -> int:
        """The HTTP status that a caller without the token gets: 401 when the door is shut."""
        import httpx

        return httpx.get(self.url + "/api/version", timeout=20).status_code

    def state(self) -> dict[str, Any]:
        """What a snapshot holds of Ray: nodes, placement groups, jobs, Serve's applications."""
        return {
            "ray": {
                "nodes": self.get("/api/v0/nodes?detail=true"),
                "placement_groups": self.get("/api/v0/placement_groups?detail=true"),
                "jobs": self.get("/api/jobs/"),
            },
            "serve": self.get("/api/serve/applications/"),
        }

    def nodes(self) -> pd.DataFrame:
        """Ray's nodes, the head first: role, state and logical resources."""
        import pandas as pd

        rows = [
            {
                "node": node["node_ip"],
                "role": "head" if node["is_head_node"] else "worker",
                "state": node["state"],
                "cpus": int(node["resources_total"].get("CPU", 0)),
                "gpus": int(node["resources_total"].get("GPU", 0)),
                "memory_gib": round(node["resources_total"].get("memory", 0) / GIB, 2),
                "object_store_gib": round(
                    node["resources_total"].get("object_store_memory", 0) / GIB, 2
                ),
            }
            for node in self.get("/api/v0/nodes?detail=true")["data"]["result"]["result"]
        ]
        return pd.DataFrame(rows).sort_values(["role", "node"], ignore_index=True)

    def wait_nodes(self, count: int, *, timeout_s: float = 120.0) -> pd.DataFrame:
        """Wait until so many nodes are alive, and return them.

        Raises:
            WaitTimeoutError: Fewer were alive at the end.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            nodes = self.nodes()
            alive = nodes[nodes["state"] == "ALIVE"].reset_index(drop=True)
            if len(alive) >= count:
                return alive
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"{len(alive)} of {count} Ray nodes are alive after {timeout_s:g} s; "
                    "next: read the missing rank's logs()"
                )
            time.sleep(0.5)

    def run(self, script: str | Path, *arguments: str, timeout_s: float = 300.0) -> JobResult:
        """Run a Python script on the cluster as a Ray job, with progress, and wait for its end.

        Its end is read from the job's status, never from the end of its log stream: a
        stream that breaks says nothing about the job (KubeRay issue 4921). A job that is not
        waited for to its end (interrupted, or too slow) is stopped.

        Args:
            script: A file on this machine; it is sent to the cluster.
            arguments: Its arguments.
            timeout_s: The longest it may take; then it is stopped.

        Raises:
            ClusterError: The job failed.
            WaitTimeoutError: It took too long.
        """
        from ray.job_submission import JobSubmissionClient

        script = Path(script)
        if not script.is_file():
            raise ClusterError(f"there is no script {script}; give the path of a Python file")
        jobs = JobSubmissionClient(self.url, headers=dict(self._headers))
        with tempfile.TemporaryDirectory() as folder, _quiet_upload():
            # Only this file travels: the folder it lies in may hold a whole checkout.
            shutil.copy(script, folder)
            job_id = jobs.submit_job(
                entrypoint=shlex.join(["python", script.name, *arguments]),
                runtime_env={"working_dir": folder},
            )
        began = time.monotonic()
        try:
            status = _wait_for(jobs, job_id, script.name, timeout_s)
        except BaseException:
            with contextlib.suppress(RuntimeError, OSError):
                jobs.stop_job(job_id)
            raise
        elapsed_s = time.monotonic() - began
        log = jobs.get_job_logs(job_id)
        if status.value != "SUCCEEDED":
            lines = [line for line in log.splitlines() if line.strip()]
            raise ClusterError(
                f"Ray job {script.name} ended {status.value} after {elapsed_s:.0f} s: "
                f"{lines[-1][:300] if lines else 'it printed nothing'}"
            )
        return JobResult(job_id, elapsed_s, log)


def _wait_for(jobs: JobSubmissionClient, job_id: str, name: str, timeout_s: float) -> JobStatus:
    """A job's last status; a question that gets no answer is asked again for a while."""
    began = heard_at = time.monotonic()
    with Progress(total=None, label=f"Ray job {name}") as progress:
        while True:
            now = time.monotonic()
            try:
                status = jobs.get_job_status(job_id)
                said, heard_at = str(status.value).lower(), now
                if status.is_terminal():
                    return status
            except (RuntimeError, OSError) as error:
                said = f"the dashboard does not answer ({' '.join(str(error).split())[:100]})"
                if now - heard_at > SILENT_S:
                    raise ClusterError(
                        f"Ray job {name}: {said} for {SILENT_S:g} s; is the head still there? "
                        "next: its workload's table() and events()"
                    ) from None
            progress.update(text=said)
            if now - began > timeout_s:
                raise WaitTimeoutError(
                    f"Ray job {name} was {said} after {timeout_s:g} s and was stopped; what it "
                    "asks for may not exist: read the dashboard's status"
                )
            time.sleep(0.3)


@contextlib.contextmanager
def _quiet_upload() -> Iterator[None]:
    """Keep Ray's lines about packing and sending the script out of the notebook."""
    names = "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
