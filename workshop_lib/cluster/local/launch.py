"""Starting and stopping a state's agent, from a kernel."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.paths import StatePaths, checkout, read_json, write_json
from workshop_lib.cluster.local.status import identity
from workshop_lib.errors import ClusterError

__all__ = ["node_environment", "start_agent", "stop_agent"]

STOP_S = 25.0
"""How long an agent may take to stop its pods: their 15 s of grace and a margin."""

START_S = 120.0
"""How long a start may take: half a second on an idle machine, minutes while engines start."""

# What the machine's owner configured about reaching the outside; nothing else of the kernel's
# environment reaches the pods, so a run does not depend on who started it.
PASSED_ON = (
    "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "XDG_CACHE_HOME", "WORKSHOP_MODELS_DIR",
    "HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip

# How long Ray waits for its own parts to start. Two loaded cores need minutes for what Ray
# expects in 30 to 60 s; it then gives up, is started again, and makes the load worse (seen).
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_NUM_REDIS_GET_RETRIES": "150",  # 2 s each: a worker waits for the head's own node
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "300",  # `ray start`, for its own raylet
    "RAY_worker_register_timeout_seconds": "300",
}


def node_environment(runtime: Path) -> dict[str, str]:
    """The environment that every pod starts from; strays are recognised by `runtime`."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or re.fullmatch(r"PIP_[A-Z0-9_]+", name)
    }
    # The environment's programs (ray, python, vllm's) first; the system's for the rest.
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment["PYTHONPATH"] = str(checkout())
    environment["PYTHONUNBUFFERED"] = "1"
    environment |= PATIENCE
    # Whoever deletes a Ray cluster here does not wait for its requests to end: by default a node
    # drains for 30 s, and asks a head that may have ended already.
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment["WORKSHOP_RUNTIME"] = str(runtime)
    for name in ("no_proxy", "NO_PROXY"):  # a proxy to the outside is not asked for this machine
        if any(key.lower().endswith("_proxy") for key in environment):
            known = [environment[name]] if environment.get(name) else []
            environment[name] = ",".join([*known, "localhost", "127.0.0.0/8"])
    return environment


def start_agent(paths: StatePaths) -> None:
    """Start the state's agent unless it runs, and end what one before it left behind."""
    if identity(paths) is not None and not (read_json(paths.agent) or {}).get("stopping"):
        return
    # One that was told to stop, by a kernel that was interrupted meanwhile, starts nothing more.
    stop_agent(paths)
    module = "workshop_lib.cluster.local.agent"
    try:
        # A session of its own: a terminal's Ctrl-C does not reach it.
        started = subprocess.run(
            [sys.executable, "-m", module, str(paths.home), paths.state],
            capture_output=True, text=True, env=node_environment(paths.runtime),
            cwd=paths.runtime, timeout=START_S, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ClusterError(f"the agent did not start in {START_S:g} s") from None
    if started.returncode != 0:
        last = [line for line in started.stderr.splitlines() if line.strip()][-1:]
        raise ClusterError(f"the agent did not start: {''.join(last)[-300:]}")


def stop_agent(paths: StatePaths) -> None:
    """Stop every process of a state."""
    try:
        running = identity(paths)
    except ClusterError:
        running = None  # its file is damaged: found by the folder's name below
    left: list[int] = []
    if running is not None:
        pid, ticks = running
        write_json(paths.agent, {"pid": pid, "ticks": ticks, "stopping": True})
        processes.send([pid], signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while processes.is_running(pid, ticks) and time.monotonic() < deadline:
            time.sleep(0.02)
        if processes.is_running(pid, ticks):  # held up by a pod: it is killed with its pods
            left = processes.stop(lambda: processes.tree(pid), grace_s=0.0)
    # What a killed agent left behind is known by our private folder's name.
    if left := left or processes.stop_mentioning(paths.runtime, grace_s=STOP_S):
        pids = ",".join(map(str, left))
        raise ClusterError(
            f"processes {pids} of state {paths.state!r} survived SIGKILL; "
            f"see what they wait for with: ps -o pid,stat,wchan,args -p {pids}"
        )
