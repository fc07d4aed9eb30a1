"""Supervisord: the process that owns every other, and outlives the kernel.

One supervisord for each state. It is started in a session of its own, after the
kernel was told to give it every orphan (see `processes`), so that stopping means
walking its descendants and nothing can hide. Its programs are the runners, one
for each workload, and the service proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local import orphans, processes
from workshop_lib.cluster.local.paths import StatePaths, read_json, remove_tree
from workshop_lib.errors import ClusterError

__all__ = ["Supervisor"]

# Paths of the checkout appear here only behind the link `state`: this format expands `%` and
# takes `#`, `;` and spaces for its own.
CONFIG = """\
[supervisord]
nodaemon=true
logfile={runtime}/state/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile={runtime}/supervisord.pid
childlogdir={runtime}
directory={runtime}

[unix_http_server]
file={runtime}/s.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[include]
files={runtime}/programs/*/program.conf
"""

# A runner that ends by itself with 0 has nothing left to do; any other end is a crash.
PROGRAM = """\
[program:{name}]
command=/bin/sh {runtime}/programs/{name}/run.sh
autostart=false
autorestart=unexpected
exitcodes=0
startsecs=0
stopsignal=TERM
stopwaitsecs={stop_s}
redirect_stderr=true
stdout_logfile={runtime}/state/logs/{name}.runner.log
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=1
"""

LAUNCH = Path(__file__).with_name("launch.py")

STOP_S = 25.0
"""How long a runner may take to stop its pods: their 15 s of grace and a margin."""

RESTART_PAUSE_S = 1

START_S = 120.0
"""How long supervisord may take until it answers: half a second on an idle machine; one on which
engines start is slow. If it has ended, that is told at once."""

BAD_NAME, ALREADY_STARTED, NOT_RUNNING, STILL_RUNNING = 10, 60, 70, 91
"""Supervisord's fault codes (`supervisor.xmlrpc.Faults`)."""

STOPPING = 40
RUNNING_STATES = (10, 20, 30, STOPPING)
"""STARTING, RUNNING, BACKOFF and STOPPING (`supervisor.states.ProcessStates`)."""

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
    """The environment that supervisord, and through it every pod, starts from.

    Args:
        runtime: The state's private folder, by which strays are recognised.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or re.fullmatch(r"PIP_[A-Z0-9_]+", name)
    }
    # The environment's programs (ray, python, vllm's) first; the system's for the rest.
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
    environment["PYTHONUNBUFFERED"] = "1"
    environment |= PATIENCE
    environment["WORKSHOP_RUNTIME"] = str(runtime)
    for name in ("no_proxy", "NO_PROXY"):  # a proxy to the outside is not asked for this machine
        if any(key.lower().endswith("_proxy") for key in environment):
            known = [environment[name]] if environment.get(name) else []
            environment[name] = ",".join([*known, "localhost", "127.0.0.0/8"])
    return environment


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, with a time limit."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path = path
        self._timeout_s = timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path, self._timeout_s)


RPC_ERRORS = (OSError, http.client.HTTPException, xmlrpc.client.Error)


class Supervisor:
    """The supervisord of one state.

    Args:
        paths: The state's files.

    Example:
        >>> supervisor = Supervisor(paths)                        # doctest: +SKIP
        >>> supervisor.start_program("Job.demo", ["sleep", "60"])  # doctest: +SKIP
    """

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.rpc_timeout_s = 10.0
        self._term_sent = 0.0

    def identity(self) -> tuple[int, int] | None:
        """Supervisord's process id and start time while it runs, else None."""
        known = read_json(self.paths.supervisor_pid)
        if known and processes.is_running(known["pid"], known["ticks"]):
            return known["pid"], known["ticks"]
        return None

    def start(self) -> None:
        """Start supervisord unless it runs, and end what one before it left behind.

        Raises:
            ClusterError: It did not start, or did not answer.
        """
        if self.identity() is not None:
            return
        if left := self._stop_strays():
            raise ClusterError(f"processes of an earlier supervisord survive SIGKILL: {left}")
        runtime = self.paths.runtime
        remove_tree(self.paths.programs)  # what ran before is not started again by itself
        self.paths.programs.mkdir()
        self.paths.supervisor_socket.unlink(missing_ok=True)
        self.paths.supervisor_config.write_text(CONFIG.format(runtime=runtime))
        output = runtime / "supervisord.out"
        # The starter ends at once, so supervisord is not this process's child: it lives on.
        try:
            started = subprocess.run(
                [sys.executable, "-S", "-E", str(LAUNCH), str(self.paths.supervisor_config),
                 str(output), str(self.paths.supervisor_pid)],
                capture_output=True, text=True, env=node_environment(runtime), cwd=runtime,
                timeout=START_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ClusterError(f"supervisord did not start in {START_S:g} s") from None
        if started.returncode != 0:
            last = [line for line in started.stderr.splitlines() if line.strip()][-1:]
            raise ClusterError(f"supervisord did not start: {''.join(last)[-300:]}")
        deadline = time.monotonic() + START_S
        while self.identity() is not None:
            with contextlib.suppress(*RPC_ERRORS):
                self._rpc(timeout_s=2.0).getState()
                return
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"supervisord does not answer after {START_S:g} s; "
                    f"see {self.paths.folder}/supervisord.log"
                )
            time.sleep(0.02)
        lines = output.read_text(errors="replace").split("\n") if output.exists() else []
        last = [line for line in lines if line.strip()][-1:]
        raise ClusterError(
            f"supervisord ended at once: {''.join(last)[-300:] or 'it said nothing'}"
        )

    def _rpc(self, *, timeout_s: float | None = None) -> Any:
        transport = _Transport(self.paths.supervisor_socket, timeout_s or self.rpc_timeout_s)
        return xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor

    def start_program(self, name: str, command: list[str]) -> None:
        """Add a program and start it unless it runs.

        Args:
            name: The program's name; its log is `logs/<name>.runner.log`.
            command: The program and its arguments.

        Raises:
            ClusterError: It did not start.
        """
        self.start()
        folder = self.paths.programs / name
        folder.mkdir(parents=True, exist_ok=True)
        restarted = folder / "restarted"
        restarted.unlink(missing_ok=True)
        # The environment is that of this kernel, not of the one that started supervisord.
        environment = node_environment(self.paths.runtime)
        lines = [
            # Supervisord starts what crashed again at once: one that always does must not spin.
            f"if [ -e {restarted} ]; then sleep {RESTART_PAUSE_S}; fi; : > {restarted}",
            *(f"unset {name}" for name in PASSED_ON if name not in environment),
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            f"exec {shlex.join(command)}",
        ]
        (folder / "run.sh").write_text("\n".join(lines) + "\n")
        (folder / "program.conf").write_text(
            PROGRAM.format(name=name, runtime=self.paths.runtime, stop_s=round(STOP_S))
        )
        try:
            rpc = self._rpc()
            for group in rpc.reloadConfig()[0][0]:
                rpc.addProcessGroup(group)
            # A delete that was interrupted: supervisord starts nothing that still stops.
            self._wait_while(rpc, name, (STOPPING,))
            rpc.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != ALREADY_STARTED:
                raise ClusterError(f"program {name} did not start: {fault.faultString}") from fault
        except RPC_ERRORS as error:
            raise ClusterError(f"program {name} did not start: supervisord: {error}") from error

    def has_program(self, name: str) -> bool:
        """Whether the supervisord that runs now was told of a program."""
        there = (self.paths.programs / name / "program.conf").exists()
        return there and self.identity() is not None

    def stop_program(self, name: str) -> None:
        """Stop a program, wait for its end and forget it; one that is not there is no error.

        Raises:
            ClusterError: It did not stop.
        """
        try:
            if self.identity() is not None:
                self._stop_and_forget(name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != BAD_NAME:
                raise ClusterError(f"program {name} did not stop: {fault.faultString}") from fault
        except RPC_ERRORS as error:
            raise ClusterError(f"program {name} did not stop: supervisord: {error}") from error
        remove_tree(self.paths.programs / name)

    def _stop_and_forget(self, name: str) -> None:
        rpc = self._rpc()
        while True:
            with _allowing(NOT_RUNNING):
                rpc.stopProcess(name, False)
            self._wait_while(rpc, name, RUNNING_STATES)
            # One that crashed at this moment may just have been started again.
            with _allowing(STILL_RUNNING):
                rpc.removeProcessGroup(name)
                return

    def _wait_while(self, rpc: Any, name: str, states: Sequence[int]) -> None:
        """Wait for the end of a program that was told to stop.

        Raises:
            ClusterError: It did not end.
        """
        deadline = time.monotonic() + STOP_S + 10.0
        while (info := rpc.getProcessInfo(name))["state"] in states:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"program {name} (pid {info['pid']}) did not stop in {STOP_S + 10:g} s; "
                    "stop everything with: make clean"
                )
            self._repeat_term([info["pid"]] if info["pid"] else [])
            time.sleep(0.02)

    def _repeat_term(self, pids: Iterable[int]) -> None:
        """Send TERM again, now and then: supervisord's own may have come to nothing.

        A child that it has forked takes the signal with supervisord's handler until it
        becomes a program of ours, which then knows nothing of it (seen).
        """
        if time.monotonic() - self._term_sent > 0.3:
            self._term_sent = time.monotonic()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def stop(self) -> list[int]:
        """Stop every process of this state, supervisord last.

        Returns:
            The processes that could not be stopped; empty when all is well.
        """
        try:
            identity = self.identity()
        except ClusterError:
            identity = None  # its file is damaged: found by the folder's name below
        if identity is not None:
            pid, ticks = identity
            grace_s = STOP_S
            # Says that no program is to be restarted, and sends each runner its TERM. If it is
            # gone or deaf, the walk does all the work.
            with contextlib.suppress(*RPC_ERRORS):
                self._rpc().stopAllProcesses(False)
                # What killed runners left has nobody to stop it: no use waiting for that.
                orphans.term_adopted_shims(pid)
                orphans.kill_orphans(pid)
                self._wait_for_descendants(pid)
                grace_s = 2.0
            survivors = processes.stop_tree(pid, grace_s=grace_s)
            self._end(pid, ticks)
            if survivors:
                return survivors
        return self._stop_strays()

    def _wait_for_descendants(self, pid: int) -> None:
        deadline = time.monotonic() + STOP_S
        while (left := processes.descendants(pid)) and time.monotonic() < deadline:
            self._repeat_term(each for each in left if processes.parent_of(each) == pid)
            time.sleep(0.02)

    def _end(self, pid: int, ticks: int) -> None:
        """End supervisord itself; without children it has nothing to be careful about."""
        deadline = time.monotonic() + processes.KILLED_S
        while processes.is_running(pid, ticks) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _stop_strays(self) -> list[int]:
        """Stop what a killed supervisord left behind, known by our private folder's name."""
        # Twice: what is started while the first ones end carries the name too.
        processes.stop_all(processes.mentioning(self.paths.runtime), grace_s=STOP_S)
        return processes.stop_all(processes.mentioning(self.paths.runtime), grace_s=2.0)


@contextlib.contextmanager
def _allowing(code: int) -> Any:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != code:
            raise
