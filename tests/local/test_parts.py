"""The pure parts of the local cluster: the node, addresses, environment and command."""

import socket
from pathlib import Path

import pytest

from workshop_lib.cluster.local import machine
from workshop_lib.cluster.local.network import Addresses
from workshop_lib.cluster.local.podspec import (
    PodContext,
    container_command,
    container_environment,
    rewrite,
)
from workshop_lib.errors import ClusterError


def test_what_fits_and_what_does_not(monkeypatch):
    monkeypatch.setattr(machine, "capacity", lambda: {"cpu": 2.0, "memory": 8.0})
    assert machine.unschedulable({"cpu": 2.0, "memory": 8.0, "nvidia.com/gpu": 0.0}, []) is None
    assert machine.unschedulable({"cpu": 1.0}, [{"cpu": 1.0}]) is None
    full = machine.unschedulable({"cpu": 1.5, "memory": 1.0}, [{"cpu": 1.0}])
    assert full == (
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: "
        "0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )
    never = machine.unschedulable({"cpu": 3.0, "nvidia.com/gpu": 1.0}, [])
    assert never.startswith(
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu."
    )
    assert never.endswith("1 Preemption is not helpful for scheduling.")


def test_limits_of_a_container_count(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    whole = machine.capacity()
    (tmp_path / "memory.max").write_text("1048576\n")
    limited = machine.capacity()
    assert (limited["cpu"], limited["memory"]) == (0.5, 1048576.0) and whole["memory"] > 2**20


def test_each_owner_has_its_own_address():
    book = Addresses("127.77.1", 5)
    one, two = (book.assign(f"Job/a/{index}", {"http": 8000}) for index in (0, 1))
    assert (one.ip, two.ip) == ("127.77.1.2", "127.77.1.3") and one.ports == {"http": 8000}
    kept = book.assign("Job/ab/0", {})
    book.release("Job/a")
    assert book.find("Job/a/0") is None and book.find("Job/ab/0") is kept
    for number in range(252):  # addresses are used again
        book.assign(f"Job/c/{number}", {})
    with pytest.raises(ClusterError, match="no address is left for Job/d/0: 253 pods"):
        book.assign("Job/d/0", {})


def test_ports_that_are_taken_are_moved():
    book, other = Addresses("127.77.1", 5), Addresses("127.77.2", 4000)
    with socket.socket() as stranger:
        stranger.bind(("0.0.0.0", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        assert 20000 <= book.assign("Job/a/0", {"http": taken}).ports["http"] < 32000
    # What listens on every address is given once, before anybody listens.
    ports = {"gcs-server": 6399, "metrics": 6398}
    one, two, there = (
        each.assign(name, ports) for each, name in ((book, "x"), (book, "y"), (other, "z"))
    )
    assert not set(one.ports.values()) & set(two.ports.values())
    assert book.assign("plain", {"http": 6399}).ports["http"] not in one.ports.values()
    assert not set(two.ports.values()) & set(there.ports.values()), "states look elsewhere"


HOSTS = {"ranks-0.ranks": ("127.9.9.2", {"7000": 20001})}
MOUNTS = {"/data": Path("/real/1"), "/data/inner": Path("/real/2")}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", "/real/1"), ("/data/a b", "/real/1/a b"), ("/data/inner/x", "/real/2/x"),
        ("--dir=/data/x", "--dir=/real/1/x"), ("--h=ranks-0.ranks:7000", "--h=127.9.9.2:20001"),
        ("ranks-0.ranks", "127.9.9.2"), ("ranks-0.ranks:7001", "127.9.9.2:7001"),
        # Whatever is more, or else, than a path or an address stays as it is.
        *((same, same) for same in (
            "/database", "x/data", "-d/data", "echo /data", "", "ranks", "see ranks-0.ranks:7000",
            "ranks-0.ranks/v1", "ranks-00.ranks:7000", "ranks-0.ranks\n",
        )),
    ],
)  # fmt: skip
def test_whole_values_are_rewritten(value, expected):
    assert rewrite(value, MOUNTS, HOSTS) == expected


def test_environment_and_command():
    """Each value refers to what came before; a limit that is not set is the node's capacity."""
    context = PodContext(
        metadata={"name": "p-1", "labels": {"l": "L"}, "annotations": {"a/b": "A"}},
        ip="127.9.9.9", mounts=MOUNTS, hosts=HOSTS,
        find={"ConfigMap/c": {"data": {"path": "/data/x"}}}.get,
        base={"PATH": "/bin", "TMPDIR": "/scratch"},
    )  # fmt: skip
    values = {
        "A": "1", "B": "$(A)$(A)", "C": "$$(A) $(LATER) $A ${A} $(not valid)", "LATER": "x",
        "NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "L": {"fieldRef": {"fieldPath": "metadata.labels['l']"}},
        "NONE": {"fieldRef": {"fieldPath": "metadata.annotations['none']"}},
        "CPU": {"resourceFieldRef": {"resource": "limits.cpu"}},
        "MEMORY": {"resourceFieldRef": {"resource": "limits.memory"}},
        "PATHS": {"configMapKeyRef": {"name": "c", "key": "path"}},
    }  # fmt: skip
    env = [
        {"name": name, ("value" if isinstance(value, str) else "valueFrom"): value}
        for name, value in values.items()
    ]
    container = {
        "env": env, "resources": {"limits": {"cpu": "1500m"}},
        "command": ["serve", "/data/model"], "args": ["ranks-0.ranks:7000", "$(B)"],
    }  # fmt: skip
    found = container_environment(container, context)
    assert found == {
        "PATH": "/bin", "TMPDIR": "/scratch", "HOSTNAME": "p-1", "A": "1", "B": "11",
        "C": "$(A) $(LATER) $A ${A} $(not valid)", "LATER": "x", "NAME": "p-1", "L": "L",
        "NONE": "", "CPU": "2", "MEMORY": str(int(machine.capacity()["memory"])),
        "PATHS": "/real/1/x",
    }  # fmt: skip
    command = container_command(container, context, found)
    assert command == ["serve", "/real/1/model", "127.9.9.2:20001", "11"]
