"""What `make bench` measures of reading logs: the mock API server, its readers, their checks."""

from __future__ import annotations

import http.client
import itertools
import json
import mmap
import os
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bench_servers import control_of

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kubernetes import KubernetesCluster
from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.frame import measure
from workshop_lib.tools.measures.log_clients import Read, write_kubeconfig
from workshop_lib.tools.measures.log_lines import LogLines, check_read
from workshop_lib.tools.measures.log_server import (
    LINE_BYTES,
    NAMESPACE,
    POD,
    LogRequest,
    LogServer,
    Served,
)
from workshop_lib.tools.measures.workers import peak_memory_bytes, reset_peak_memory

LOG = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}/log"
LINES = 30_000  # three of the blocks that the server sends at once


@pytest.fixture
def control() -> Iterator[Connection]:
    with control_of(LogServer) as connection:
        yield connection


@pytest.fixture
def url(control: Connection) -> str:
    control.send(LogRequest(LINES - 1))
    address: str = control.recv()
    return address


def served(control: Connection) -> list[Served]:
    control.send(None)
    logs: list[Served] = control.recv()
    return logs


def get(url: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    connection.request("GET", path)
    return connection.getresponse()


def test_the_mock_server_sends_a_log_as_a_container_writes_it(
    control: Connection, url: str
) -> None:
    lines = get(url, f"{LOG}?timestamps=true").read().decode().splitlines(keepends=True)
    stamps, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert len(lines) == LINES  # whole blocks
    assert {len(text) for text in texts} == {LINE_BYTES} and len(set(texts)) > 1000
    assert stamps[0] == "2026-11-21T00:00:00.000000000Z"
    assert stamps[-1] == "2026-11-21T00:00:29.999000000Z"
    assert all(first < second for first, second in itertools.pairwise(stamps))
    assert datetime.fromisoformat(stamps[12345]).timestamp() % 60 == pytest.approx(12.345)
    (log,) = served(control)
    assert log.lines == LINES and log.seconds > 0 and log.query["timestamps"] == ["true"]


def test_its_chunks_end_within_lines(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=300) as link:
        link.sendall(f"GET {LOG} HTTP/1.1\r\n\r\n".encode())
        data = b"".join(iter(lambda: link.recv(1 << 16), b""))
    body = data.partition(b"\r\n\r\n")[2]
    sizes, halves = [], 0
    while body:
        size, _, body = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        halves += not body[: sizes[-1]].endswith(b"\n")
        assert body[sizes[-1] :].startswith(b"\r\n")
        body = body[sizes[-1] + 2 :]
    assert sizes[-1] == 0 and max(sizes) <= 32 * 1024
    assert halves > len(sizes) * 0.9
    assert sum(sizes) == LINES * (LINE_BYTES + len("2026-11-21T00:00:00.000000000Z "))


def test_the_library_and_kubectl_read_the_same(
    control: Connection, url: str, tmp_path: Path
) -> None:
    kubeconfig = write_kubeconfig(url, tmp_path / "kubeconfig")
    cluster = KubernetesCluster("kind", kubeconfig=kubeconfig)
    ours = [line.text for line in cluster.logs("Pod", POD)]
    cluster.close()
    command = [manifests._kubectl(), f"--kubeconfig={kubeconfig}", f"--cache-dir={tmp_path}/cache"]
    done = subprocess.run(
        [*command, "logs", POD, "--timestamps"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
    assert len(ours) == LINES and ours == theirs
    queries = [{"timestamps", "container"} & set(log.query) for log in served(control)]
    assert queries == [{"timestamps", "container"}] * 2


def test_what_the_mock_server_does_not_have_and_a_reader_that_leaves(
    control: Connection, url: str
) -> None:
    response = get(url, "/api/v1/namespaces/workshop/pods/other")
    assert response.status == 404 and "other" in json.loads(response.read())["message"]
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=300) as link:
        link.sendall(f"GET {LOG} HTTP/1.1\r\n\r\n".encode())
        assert link.recv(10)
    assert get(url, LOG).read().count(b"\n") == LINES
    assert [log.lines for log in served(control)] == [LINES]


def test_a_log_that_was_not_read_whole_and_once_is_refused() -> None:
    log = Served(10, 1.0, 0.1, {})
    assert check_read(Read(10, 0.1), [log]) is check_read(Read(None, 0.1), [log]) is log
    with pytest.raises(WorkshopError, match="10 lines were sent and 9 read"):
        check_read(Read(9, 0.1), [log])
    for logs in ([], [log, log]):
        with pytest.raises(WorkshopError, match=f"was read {len(logs)} times instead of once"):
            check_read(Read(10, 0.1), logs)


def test_the_peak_of_memory_is_counted_from_now_on() -> None:
    # Held and given back before, then a smaller peak: only that one is seen.
    for mib in (192, 64):
        held = reset_peak_memory(os.getpid())
        with mmap.mmap(-1, mib << 20) as pages:  # not the heap: that may have some left over
            for _ in range(mib):
                pages.write(bytes(1 << 20))
        growth = (peak_memory_bytes(os.getpid()) - held) / 2**20
        assert mib - 16 < growth < mib + 64
    with pytest.raises(OSError, match="No such file"):
        peak_memory_bytes(2**22 + 1)


def test_a_tiny_real_run_against_kubectl(tmp_path: Path) -> None:
    (report,) = measure(LogLines(logs=tmp_path, text_bytes=LINES * LINE_BYTES), rounds=1)
    assert report.sides == ("workshop", "kubectl logs")
    for side in report.sides:
        sample = {key: value for key, (value,) in report.samples[side].items()}
        assert sample["lines_per_s"] == pytest.approx(LINES / sample["read_s"])
        assert sample["cpu_us"] > 0 and sample["server_margin"] > 0
    assert "growth_mib" in report.samples["workshop"]
    assert [row.unit for row in report.rows] == ["1/s", "s", "µs", "MiB", "1/s", "times"]
    assert [bool(row.bar) for row in report.rows] == [True, True, False, True, False, True]
