"""What the labs do to a component, what its users see, and how it shows that it is broken."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from workshop_lib.cluster.base import Cluster, Workload, dashboard
from workshop_lib.cluster.kube import container_statuses, failure, is_true, pod_state
from workshop_lib.cluster.records import Observation
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.progress import Progress

# A pid or a name alone could be somebody else's process: it must be the one that is meant.
_KILL_ENGINE = 'grep -aq "server.py" "/proc/$1/cmdline" && kill -9 "$1"'
_END_RANK = """
for each in /proc/[0-9]*; do
  tr '\\0' '\\n' < "$each/cmdline" 2>/dev/null | grep -q '/ray-node.sh$' || continue
  tr '\\0' '\\n' < "$each/environ" 2>/dev/null | grep -qx "POD_IP=$POD_IP" || continue
  tr '\\0' '\\n' < "$each/environ" | grep -qx "HEAD_ADDRESS=$HEAD_ADDRESS" || continue
  # A moment later: the container may end, and this command with it, before it can say so.
  (sleep 1; kill -TERM "${each##*/}") >/dev/null 2>&1 &
  found=yes
done
[ -n "${found:-}" ]
"""


class Answer(NamedTuple):
    """What was asked, whether it was answered as it should be, and what a user sees."""

    asked: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{self.asked}: {self.text}"


def ask(cluster: Cluster, component: str) -> Answer:
    """Ask a component of a lab what its users ask it."""
    if component == "ray-cluster":
        return _ask_ray(cluster)
    if component == "stale-address":
        return _ask_ranks(cluster)
    return _ask_http(cluster, component)


def _ask_http(cluster: Cluster, service: str) -> Answer:
    import httpx

    path = "/v1/models" if service == "vllm" else "/articles?reader=7"
    asked = f"GET http://{service}:8000{path}"
    try:
        with cluster.forward(service, 8000) as url:
            answer = httpx.get(f"{url}{path}", timeout=20, trust_env=False)
    except (httpx.HTTPError, WorkshopError) as error:
        # The library's own error would explain too much: a user sees a connection that fails.
        said = str(error) if isinstance(error, httpx.HTTPError) else "nothing is behind it"
        return Answer(asked, False, f"no answer ({said or type(error).__name__})")
    return Answer(asked, answer.status_code == 200, f"HTTP {answer.status_code} {answer.text[:80]}")


def _ask_ray(cluster: Cluster) -> Answer:
    asked = "Ray's dashboard, for its nodes"
    try:
        with dashboard(cluster.get("ray-cluster")) as ray:
            nodes = ray.nodes()
    except WorkshopError:
        return Answer(asked, False, "no answer")
    alive = int((nodes["state"] == "ALIVE").sum())
    return Answer(asked, alive == len(nodes), f"{alive} of {len(nodes)} alive")


def _ask_ranks(cluster: Cluster) -> Answer:
    """The last word of each rank of `stale-address`: who it is, or whom it dials."""
    lines = cluster.get("stale-address").logs()
    found = {line.rank: line.text.split()[-1] for line in lines if line.rank is not None}
    asked = "do the ranks meet?"
    if not {0, 1} <= set(found):
        return Answer(asked, False, f"ranks {sorted(found) or 'none'} have said something so far")
    return Answer(asked, found[0] == found[1], f"rank 0 is {found[0]}, rank 1 dials {found[1]}")


def _facts(seen: Observation) -> Iterator[str]:
    """What Kubernetes says of a workload, a line each; `shows` in labs.yaml matches one."""
    if is_true(seen.body, "Complete"):
        yield "Complete"
    if failed := failure(seen.body):
        yield f"Failed {failed}"
    for pod in seen.pods:
        yield " ".join(pod_state(pod))
        yield "Ready" if is_true(pod, "Ready") else "not Ready"
        for status in container_statuses(pod).values():
            yield f"restarts {status.get('restartCount', 0)}"
    for event in seen.events:
        yield f"{event.get('reason')} {event.get('message')}"


def until_it_shows(workload: Workload, number: int, shows: str, *, timeout_s: float) -> None:
    """Wait until Kubernetes says what a lab waits for, and users do not get what they ask for.

    Raises:
        WaitTimeoutError: It did not break in time.
    """
    cluster, began = workload.cluster, time.monotonic()
    with (
        Progress(label=f"lab {number}") as progress,
        contextlib.closing(cluster.watch(workload.kind, workload.name)) as seen,
    ):
        for observation in seen:
            there = any(re.match(shows, fact) for fact in _facts(observation))
            if there and not ask(cluster, workload.component).ok:
                progress.update(text="the symptoms show")
                return
            progress.update(text="waiting for the symptoms")
            if time.monotonic() - began > timeout_s:
                raise WaitTimeoutError(
                    f"lab {number} has not broken {workload.kind}/{workload.name} after "
                    f"{timeout_s:g} s; next: lab.end(), and start it again"
                )


def kill_engine(cluster: Cluster) -> int:
    """Kill `lab-server`'s engine as the kernel does when memory runs out; its process number.

    Raises:
        ClusterError: The server does not answer, or its engine is gone already.
    """
    import httpx

    pods = cluster.get("lab-server").pods
    if not pods:
        raise NotFoundError("lab-server has no pod; read its events()")
    try:
        with cluster.forward(pods[-1], 8000) as url:
            pid = int(httpx.get(f"{url}/health", timeout=20, trust_env=False).json()["pid"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ClusterError(
            f"{pods[-1]} does not say which process its engine is ({error})"
        ) from None
    _run(cluster, pods[-1], _KILL_ENGINE, str(pid))
    return pid


def end_rank(cluster: Cluster, pod: str) -> None:
    """Tell a rank of `ray-cluster` to end, as when its machine is taken away."""
    _run(cluster, pod, _END_RANK)


def _run(cluster: Cluster, pod: str, script: str, *arguments: str) -> None:
    done = cluster.exec(pod, ["bash", "-c", script, "lab", *arguments])
    if done.exit_code != 0:
        raise ClusterError(f"what the lab ends in pod {pod} does not run (any more): {done}")
