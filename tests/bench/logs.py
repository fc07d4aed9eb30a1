"""Reading a pod's log of a gigabyte with the library, against `kubectl logs`.

It must not take much longer than with the cluster's own tool, nor fill a notebook's memory. Both
read the same log from the same mock API server, each on a core of its own. The server takes the
time, from the request for the log until the reader has it all and hangs up: neither starting nor
connecting is counted.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import itertools
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frame import Bench, Sample, Worker, answer, peak_memory_bytes, run, two_cores

from workshop_lib.errors import WorkshopError

NAMESPACE, POD, CONTAINER = "workshop", "talkative", "main"
LINE_BYTES, LINES_PER_S, BLOCK_S = 100, 1_000, 10  # as the container wrote them, without the time
BLOCK_LINES = BLOCK_S * LINES_PER_S
LINES = -(-(1 << 30) // LINE_BYTES)
CHUNK_BYTES = 32 << 10  # Go's io.Copy, with which the API server hands on what the kubelet sends
LEAST_LINES_PER_S = 10_000  # a reader that is slower is not waited for
_BEGAN = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
_TENS = len("2026-11-21T00:00:0")  # what of a stamp differs between two blocks

# What `kubectl` asks for before it reads: what there is, then the pod.
_POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": POD,
        "namespace": NAMESPACE,
        "uid": "6f1c1a52-0000-4000-8000-000000000001",
        "creationTimestamp": "2026-11-21T00:00:00Z",
    },
    "spec": {
        "restartPolicy": "Never",
        "containers": [{"name": CONTAINER, "image": "talkative"}],
    },
    "status": {
        "phase": "Succeeded",
        "containerStatuses": [
            {
                "name": CONTAINER,
                "image": "talkative",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
                "lastState": {},
            }
        ],
    },
}
_PODS = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod"}
_PODS |= {"verbs": ["get", "list"], "shortNames": ["po"]}
_POD_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
_OBJECTS: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [_PODS]},
    _POD_PATH: _POD,
}
_NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}


def _block() -> bytes:
    """The chunks of ten seconds of log: each line behind the time at which it was written."""
    lines = []
    for number in range(BLOCK_LINES):
        at = _BEGAN + datetime.timedelta(seconds=number // LINES_PER_S)
        nanoseconds = number % LINES_PER_S * (1_000_000_000 // LINES_PER_S)
        text = f"INFO worker.py:{number % 997} request {number:09} done "
        lines.append(f"{at:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z {text:.<{LINE_BYTES - 1}}\n")
    body, stamped = "".join(lines).encode(), len(lines[0])
    # Whole lines and 60 bytes: a chunk ends in a line's text, never in the stamp, which changes.
    step = (CHUNK_BYTES - 60) // stamped * stamped
    edges = [0, *range(step + 60, len(body), step), len(body)]
    pieces = (body[start:end] for start, end in itertools.pairwise(edges))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class MockApi(http.server.BaseHTTPRequestHandler):
    """An API server with one pod whose log is long: blocks made beforehand, a copy a line."""

    protocol_version = "HTTP/1.1"
    block = b""
    blocks = 0  # of the log
    served: list[tuple[int, float]] = []  # noqa: RUF012 - lines, seconds until the reader hung up

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == f"{_POD_PATH}/log":
            self._send_log()
            return
        data = json.dumps(_OBJECTS.get(path, _NOT_FOUND)).encode()
        self.send_response(200 if path in _OBJECTS else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_log(self) -> None:
        began_s = time.monotonic()
        self.close_connection = True
        self.connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n"
        )
        first = f"{_BEGAN:%Y-%m-%dT%H:%M:%S}"[:_TENS].encode()
        for number in range(self.blocks):
            at = _BEGAN + datetime.timedelta(seconds=number * BLOCK_S)
            stamp = f"{at:%Y-%m-%dT%H:%M:%S}"[:_TENS].encode()
            self.connection.sendall(self.block.replace(first, stamp))
        self.connection.sendall(b"0\r\n\r\n")
        self.connection.shutdown(socket.SHUT_WR)
        while self.connection.recv(1 << 16):  # until it hangs up: it has read all
            pass
        self.served.append((self.blocks * BLOCK_LINES, time.monotonic() - began_s))


def serve(link: Connection) -> None:
    """Be the mock API server: a number of lines is answered with the address, None with `served`.

    The reader's end of a log is seen by its thread a moment after the reader has answered.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MockApi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    MockApi.block = _block()

    def obey(lines: int | None) -> Any:
        if lines is None:
            deadline_s = time.monotonic() + 30
            while not MockApi.served and time.monotonic() < deadline_s:
                time.sleep(0.001)
            return MockApi.served
        MockApi.blocks, MockApi.served = -(-lines // BLOCK_LINES), []
        return f"http://127.0.0.1:{server.server_port}"

    answer(link, obey)


@contextlib.contextmanager
def _kubeconfig(url: str) -> Iterator[Path]:
    context = {"cluster": "mock", "user": "mock", "namespace": NAMESPACE}
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "mock",
        "clusters": [{"name": "mock", "cluster": {"server": url}}],
        "users": [{"name": "mock", "user": {}}],
        "contexts": [{"name": "mock", "context": context}],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.write_text(json.dumps(body), encoding="utf-8")  # JSON is YAML
        yield path


def workshop_reader(link: Connection) -> None:
    """Be a learner who goes through the lines of `cluster.logs`."""
    from workshop_lib.cluster.kubernetes import KubernetesCluster

    def read(url: str) -> int:
        with _kubeconfig(url) as kubeconfig:
            cluster = KubernetesCluster("kind", kubeconfig=kubeconfig)
            count = sum(1 for _ in cluster.logs("Pod", POD))
            cluster.close()
        return count

    answer(link, read)


def kubectl_reader(link: Connection) -> None:
    """Be `kubectl logs`, asked for the times as our library asks, its output thrown away."""

    def read(url: str) -> None:
        with _kubeconfig(url) as kubeconfig:
            command = ["kubectl", f"--kubeconfig={kubeconfig}", f"--cache-dir={kubeconfig.parent}"]
            subprocess.run(
                [*command, "logs", POD, "--timestamps"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=True,
            )

    answer(link, read)


def receiver(link: Connection) -> None:
    """Be a client that only empties its socket: the server's own rate shows."""

    def read(url: str) -> None:
        address, buffer = urlsplit(url), bytearray(1 << 20)
        with socket.create_connection((address.hostname or "", address.port or 80)) as server:
            server.sendall(f"GET {_POD_PATH}/log HTTP/1.1\r\n\r\n".encode())
            while server.recv_into(buffer):
                pass

    answer(link, read)


def main() -> int:
    bench = Bench("logs", rounds=3)
    server_core, reader_core = two_cores()
    with ExitStack() as stack:
        start = stack.enter_context
        server = start(Worker("mock API server", serve, server_core))
        ours = start(Worker("workshop reader", workshop_reader, reader_core))
        theirs = start(Worker("kubectl reader", kubectl_reader, reader_core))
        empties = start(Worker("receiver", receiver, reader_core))

        def read_s(reader: Worker, lines: int) -> float:
            url = server.ask(lines)
            count = reader.ask(url, timeout_s=60 + lines / LEAST_LINES_PER_S)
            served = server.ask(None)
            if len(served) != 1 or count not in (None, served[0][0]):
                raise WorkshopError(f"{reader.name} read {count} lines of {served}")
            return float(served[0][1])

        def side(reader: Worker) -> Callable[[], Sample]:
            def sample() -> Sample:
                held = peak_memory_bytes(reader.pid, reset=True)
                seconds = read_s(reader, LINES)
                growth = peak_memory_bytes(reader.pid) - held
                return {
                    "read_s": seconds,
                    "lines_per_s": LINES / seconds,
                    "growth_mib": growth / 2**20,
                    "margin": seconds / read_s(empties, LINES),
                }

            return sample

        for reader in (ours, theirs, empties):
            read_s(reader, 10 * BLOCK_LINES)  # once uncounted
        bench.compare(
            f"{LINES * LINE_BYTES / 2**20:,.0f} MiB of log in lines of {LINE_BYTES} bytes",
            {"workshop": side(ours), "kubectl logs": side(theirs)},
            (
                ("read_s", "time to read it all, s", "ratio <= 1.5"),
                ("lines_per_s", "lines a second", ""),
                ("growth_mib", "memory, growth while reading, MiB", "median <= 50"),
                ("margin", "the server could send, times as much", "median >= 2 proves"),
            ),
        )
    return bench.finish()


if __name__ == "__main__":
    run(main)
