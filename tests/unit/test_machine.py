"""This machine as a node: quantities, requests, the scheduler's words, free ports."""

import socket

import pytest

from workshop_lib.cluster import kube
from workshop_lib.cluster.local import machine
from workshop_lib.errors import ManifestError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("2", 2), (2, 2), (1.5, 1.5), ("500m", 0.5), ("1.5Gi", 1.5 * 2**30), ("1k", 1e3),
        ("2Ki", 2048), ("1M", 1e6), ("3Ti", 3 * 2**40), ("1e3", 1000), ("2E", 2e18), (".5", 0.5),
        ("100u", 1e-4), ("1Pi", 2**50),
    ],
)  # fmt: skip
def test_quantities(text, value):
    assert kube.parse_quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "2GB", "-1", "1,5", "Gi", "1gi", True, None])
def test_what_is_no_quantity(text):
    with pytest.raises(ManifestError, match="is not a Kubernetes quantity"):
        kube.parse_quantity(text)


def test_capacity_is_that_of_this_machine():
    offered = machine.capacity()
    assert offered["cpu"] >= 1
    assert 2**28 < offered["memory"] < 2**50
    assert offered["ephemeral-storage"] > 0


def test_requests_add_up_and_init_containers_do_not():
    def container(**resources):
        return {"resources": resources}

    spec = {
        "containers": [
            container(requests={"cpu": "500m"}, limits={"cpu": "2", "memory": "1Gi"}),
            container(limits={"nvidia.com/gpu": "1"}),
            {},
        ],
        "initContainers": [container(requests={"memory": "3Gi", "cpu": "100m"})],
    }
    assert kube.requests_of(spec) == {
        "cpu": 0.5, "memory": 3 * 2**30, "nvidia.com/gpu": 1.0
    }  # fmt: skip


def test_what_fits_and_what_does_not(monkeypatch):
    monkeypatch.setattr(machine, "capacity", lambda: {"cpu": 2.0, "memory": 8.0})
    assert machine.unschedulable({"cpu": 2.0, "memory": 8.0}, []) is None
    assert machine.unschedulable({"cpu": 1.0}, [{"cpu": 1.0}]) is None
    assert machine.unschedulable({"nvidia.com/gpu": 0.0}, []) is None
    assert machine.unschedulable({}, [{"cpu": 5.0}]) is None
    full = machine.unschedulable({"cpu": 1.5, "memory": 1.0}, [{"cpu": 1.0}])
    assert full == (
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: "
        "0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )
    never = machine.unschedulable({"cpu": 3.0, "nvidia.com/gpu": 1.0}, [])
    assert never == (
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu. no new claims "
        "to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for "
        "scheduling."
    )


def test_memory_limit_of_a_container_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    real = machine.Path

    def path(name):
        return real(limit if str(name).startswith("/sys/fs/cgroup") else name)

    monkeypatch.setattr(machine, "Path", path)
    whole = machine.capacity()["memory"]
    limit.write_text("max\n")
    assert machine.capacity()["memory"] == whole
    limit.write_text("1048576\n")
    assert machine.capacity()["memory"] == 1048576


def test_cores_of_a_container_count(tmp_path):
    limit = tmp_path / "cpu.max"
    whole = machine._cores(limit)
    limit.write_text("max 100000\n")
    assert machine._cores(limit) == whole
    limit.write_text("50000 100000\n")
    assert machine._cores(limit) == 0.5


def test_free_ports():
    with socket.socket() as server:
        server.bind(("127.9.9.2", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not machine.is_port_free("127.9.9.2", port)
        assert machine.is_port_free("127.9.9.3", port)
        assert not machine.is_port_free("0.0.0.0", port)
    assert machine.is_port_free("127.9.9.2", port)
