"""What a kubelet does: logs that grow, commands that run, ports that are carried."""

import contextlib
import json
import random
import socket
import subprocess
import threading
from datetime import UTC, datetime

from . import frames
from .store import Problem


class Log:
    """One run of a container: its lines, and whether it has ended.

    Attributes:
        first: The number of the first line that the newest file has. A kubelet opens that file
            only (pkg/kubelet/kuberuntime/logs, ReadLogs); who reads already goes on into it.
    """

    def __init__(self):
        self.lines = []
        self.first = 0
        self.ended = False
        self.changed = threading.Condition()

    def write(self, *texts, stamp=None):
        with self.changed:
            for text in texts:
                moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                self.lines.append((stamp or moment, text))
            self.changed.notify_all()

    def rotate(self):
        with self.changed:
            self.first = len(self.lines)

    def end(self):
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class Kubelet:
    """The runs of every container, and the faults of its streams.

    Attributes:
        drop_after: A log stream breaks off after at most so many lines, in the middle of one.
        drops: How often that happened; it stops at `most_drops`.
        deleted: Of these containers, as (pod, container), the previous run's log is gone.
    """

    def __init__(self, seed=0):
        self.runs = {}
        self.drop_after = 0
        self.drops = 0
        self.most_drops = 10**9
        self.ports = {}
        self.deleted = set()
        self.random = random.Random(seed)

    def log(self, pod, container="main"):
        return self.runs.setdefault((pod, container), [Log()])[-1]

    def restart(self, pod, container="main"):
        self.log(pod, container).end()
        self.runs[(pod, container)].append(Log())
        return self.log(pod, container)

    def stream_log(self, handler, pod, query):
        """GET …/log."""
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        name = pod["metadata"]["name"]
        runs = self.runs.get((name, container), [])
        if query.get("previous") == "true":
            if len(runs) < 2:
                raise Problem(400, f'previous terminated container "{container}" in pod "{name}" '
                              "not found", "BadRequest")  # fmt: skip
            if (name, container) in self.deleted:  # as recorded: 200, no timestamp, no newline
                handler.start_chunks("text/plain")
                handler.send_chunk(b"unable to retrieve container logs for containerd://573a9ba5")
                handler.end_chunks()
                return
            runs = runs[:-1]
        if not runs:
            raise Problem(400, f'container "{container}" in pod "{name}" is waiting to start: '
                          "ContainerCreating", "BadRequest")  # fmt: skip
        run = runs[-1]
        with run.changed:
            start = run.first
            if "tailLines" in query:
                start = max(start, len(run.lines) - int(query["tailLines"]))
        since = query.get("sinceTime", "")[:19]  # truncated to whole seconds
        handler.start_chunks("text/plain")
        with contextlib.suppress(OSError):
            self._send(handler, run, start, since, query)

    def _send(self, handler, run, position, since, query):
        budget = self.random.randrange(self.drop_after) if self.drop_after else None
        with run.changed:
            lines = run.lines[position:]
        for stamp, text in lines:
            if stamp[:19] < since:
                continue
            line = f"{stamp} {text}\n" if "timestamps" in query else f"{text}\n"
            data = line.encode()
            if budget == 0 and self.drops < self.most_drops:
                self.drops += 1
                handler.send_chunk(data[: self.random.randrange(len(data))])
                handler.reset()
                return
            handler.send_chunk(data)
            budget = budget and budget - 1
        handler.end_chunks()

    # -- WebSockets -----------------------------------------------------------------------------

    def exec(self, handler, pod, query):
        """GET …/exec: the command runs on this machine."""
        command = query["command"] if isinstance(query["command"], list) else [query["command"]]
        handler.upgrade("v5.channel.k8s.io")
        out = handler.wfile
        frames.write(out, b"\x01")
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            message = (
                "Internal error occurred: Internal error occurred: error executing command in "
                "container: failed to exec in container: failed to start exec "
                '"d8516c8b14d51f8fe495d9e9dd3e7979361a757bc1568c11ede5d58bfe7875c1": OCI runtime '
                "exec failed: exec failed: unable to start container process: exec: "
                f'"{command[0]}": executable file not found in $PATH: unknown'
            )
            cause = message.replace("Internal error occurred: ", "", 1)
            status = {"metadata": {}, "status": "Failure", "message": message,
                      "reason": "InternalError", "details": {"causes": [{"message": cause}]},
                      "code": 500}  # fmt: skip
        else:
            stdout, stderr = self._finished(process, handler.server)
            for channel, data in ((1, stdout), (2, stderr)):
                if data:
                    frames.write(out, bytes([channel]) + data)
            status = {"metadata": {}, "status": "Success"}
            if code := process.returncode:
                status = {
                    "metadata": {}, "status": "Failure",
                    "message": "command terminated with non-zero exit code: command terminated "
                    f"with exit code {code}", "reason": "NonZeroExitCode",
                    "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
                }  # fmt: skip
        if handler.server.emulator.exec_breaks:
            handler.reset()
            return
        frames.write(out, b"\x03" + json.dumps(status, separators=(",", ":")).encode())
        frames.write(out, b"\x03\xe8", frames.CLOSE)

    @staticmethod
    def _finished(process, server):
        """A command's output when it has ended, or when the cluster has."""
        while True:
            try:
                return process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired:
                if server.stopping:
                    process.kill()

    def forward(self, handler, pod, query):
        """GET …/portforward: to a port of this machine that the test has named."""
        port = int(query["ports"])
        handler.upgrade("v4.channel.k8s.io")
        both = port.to_bytes(2, "little")
        out = handler.wfile
        frames.write(out, b"\x00" + both)
        frames.write(out, b"\x01" + both)
        try:
            target = socket.create_connection(self.ports[(pod["metadata"]["name"], port)])
        except (KeyError, OSError):
            frames.write(out, b"\x01" + b"an error occurred forwarding: connection refused")
            return

        def back():
            with contextlib.suppress(OSError, ValueError):
                while data := target.recv(1 << 15):
                    frames.write(out, b"\x00" + data)
                # The client closes when it has read so far; a reset would overtake the data.
                frames.write(out, b"", frames.CLOSE)

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        with contextlib.suppress(OSError):
            while frame := frames.read(handler.rfile):
                opcode, data = frame
                if opcode == frames.CLOSE:
                    break
                if opcode == frames.PING:
                    frames.write(out, data, frames.PONG)
                elif data[:1] == b"\x00":
                    target.sendall(data[1:])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        thread.join()
        target.close()
