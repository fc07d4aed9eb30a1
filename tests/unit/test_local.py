"""The pure parts of the local cluster: quantities, placement, addresses, environment, schema."""

import socket
from pathlib import Path

import pytest

from workshop_lib.cluster import manifests
from workshop_lib.cluster.local import machine
from workshop_lib.cluster.local.network import Addresses, Endpoint, real_port, replace_address
from workshop_lib.cluster.local.podspec import (
    ConfigError,
    PodContext,
    container_command,
    container_environment,
    rewrite,
    working_folder,
)
from workshop_lib.cluster.local.schema import checked
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, ManifestError

# -- this machine as a node -----------------------------------------------------------------------


def test_what_fits_and_what_does_not(monkeypatch):
    monkeypatch.setattr(machine, "capacity", lambda: {"cpu": 2.0, "memory": 8.0})
    assert machine.unschedulable({"cpu": 2.0, "memory": 8.0}, []) is None
    assert machine.unschedulable({"cpu": 1.0}, [{"cpu": 1.0}]) is None
    assert machine.unschedulable({"nvidia.com/gpu": 0.0}, []) is None
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


def test_limits_of_a_container_count(monkeypatch, tmp_path):
    whole = machine.capacity()
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.capacity()["memory"] >= whole["memory"]
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    limited = machine.capacity()
    assert (limited["cpu"], limited["memory"]) == (0.5, 1048576.0)


# -- addresses ------------------------------------------------------------------------------------

HOSTS = {"ranks-0.ranks": (Endpoint("127.9.9.2", {"talk": 20001}), {7000: "talk"})}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ranks-0.ranks", "127.9.9.2"),
        ("ranks-0.ranks:7000", "127.9.9.2:20001"),
        ("ranks-0.ranks:7001", "127.9.9.2:7001"),
        ("http://ranks-0.ranks:7000/v1", "http://127.9.9.2:20001/v1"),
        ("ranks-0.ranks.default.svc.cluster.local:7000", "127.9.9.2:20001"),
        # Whatever is more, or else, than an address stays as it is.
        ("ranks", "ranks"),
        ("see ranks-0.ranks", "see ranks-0.ranks"),
        ("ranks-0.ranks/v1", "ranks-0.ranks/v1"),
        ("ranks-0.ranks:http", "ranks-0.ranks:http"),
        ("ranks-00.ranks:7000", "ranks-00.ranks:7000"),
        ("ranks-0.ranks\n", "ranks-0.ranks\n"),
        ("", ""),
    ],
)
def test_names_become_addresses(value, expected):
    assert replace_address(value, HOSTS) == expected


def test_each_owner_has_its_own_address():
    book = Addresses("127.77.1", 5)
    one, two = (book.assign(f"Job/a/{index}", {"http": 8000}) for index in (0, 1))
    assert (one.ip, two.ip) == ("127.77.1.2", "127.77.1.3") and one.ports == {"http": 8000}
    assert book.assign("Job/a/0", {"http": 8000}) is one is book.find("Job/a/0")
    kept = book.assign("Job/ab/0", {})
    book.release("Job/a")
    assert book.find("Job/a/0") is None and book.find("Job/ab/0") is kept
    assert book.assign("Job/b/0", {}).ip == one.ip, "addresses are used again"
    for number in range(251):
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


def test_real_port():
    ports = [{"name": "http", "containerPort": 8000}, {"containerPort": 9000}]
    annotations = {"workshop.techpulse/port.http": "20007"}
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"ports": ports}]}}
    found = [real_port(pod, wanted) for wanted in ("http", 8000, 9000, 1, "grpc")]
    assert found == [20007, 20007, 9000, None, None]


# -- environment and command ----------------------------------------------------------------------

MOUNTS = {"/data": Path("/real/1"), "/data/inner": Path("/real/2"), "/cache/": Path("/real/3")}
OBJECTS = {("ConfigMap", "c"): {"data": {"path": "/data/x", "plain": "1"}}}


def context(**changes):
    options = {
        "metadata": {"name": "p-1", "labels": {"l": "L"}, "annotations": {"a/b": "A"}},
        "ip": "127.9.9.9", "mounts": {"main": MOUNTS}, "hosts": HOSTS,
        "find": lambda kind, name: OBJECTS.get((kind, name)),
        "base": {"PATH": "/bin", "TMPDIR": "/scratch"},
    }  # fmt: skip
    return PodContext(**{**options, **changes})


def environment(*env, **more):
    found = container_environment({"name": "main", "env": list(env), **more}, context())
    assert found.pop("PATH") == "/bin" and found.pop("TMPDIR") == "/scratch"
    assert found.pop("HOSTNAME") == "p-1"
    return found


def var(name, value=None, **source):
    return {"name": name, "value": value} if value is not None else {
        "name": name, "valueFrom": source
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", "/real/1"), ("/data/", "/real/1/"), ("/data/a b", "/real/1/a b"),
        ("/data/inner/x", "/real/2/x"), ("/cache/x", "/real/3/x"), ("/cache", "/real/3"),
        ("--dir=/data/x", "--dir=/real/1/x"),
        ("--head=ranks-0.ranks:7000", "--head=127.9.9.2:20001"),
        ("/database", "/database"), ("x/data", "x/data"), ("-d/data", "-d/data"), ("", ""),
        ("echo /data", "echo /data"), ("ranks", "ranks"),
    ],
)  # fmt: skip
def test_whole_values_are_rewritten(value, expected):
    assert rewrite(value, MOUNTS, HOSTS) == expected


def test_values_refer_to_what_came_before():
    assert environment(
        var("A", "1"), var("B", "$(A)$(A)"), var("C", "$$(A) $(LATER) $A ${A} $(not valid)"),
        var("LATER", "x"), var("A", "2"),
    ) == {"A": "2", "B": "11", "C": "$(A) $(LATER) $A ${A} $(not valid)", "LATER": "x"}  # fmt: skip


def test_downward_api_and_resources(monkeypatch):
    monkeypatch.setattr(
        "workshop_lib.cluster.local.podspec.capacity", lambda: {"cpu": 4.0, "memory": 2.0**33}
    )
    paths = {"NAME": "metadata.name", "IP": "status.podIP", "L": "metadata.labels['l']",
             "A": "metadata.annotations['a/b']", "NONE": "metadata.labels['none']"}  # fmt: skip
    found = environment(
        *(var(name, fieldRef={"fieldPath": path}) for name, path in paths.items()),
        var("CPU", resourceFieldRef={"resource": "limits.cpu"}),
        var("MEMORY", resourceFieldRef={"resource": "limits.memory"}),
        var("PATHS", configMapKeyRef={"name": "c", "key": "path"}),
        resources={"limits": {"cpu": "1500m"}},
    )
    assert found == {
        "NAME": "p-1", "IP": "127.9.9.9", "L": "L", "A": "A", "NONE": "", "CPU": "2",
        "MEMORY": str(2**33), "PATHS": "/real/1/x",
    }  # fmt: skip
    for name, key, said in (("none", "x", 'configmap "none" not found'),
                            ("c", "x", "couldn't find key x in ConfigMap default/c")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            environment(var("X", configMapKeyRef={"name": name, "key": key}))


def test_command_and_working_folder(tmp_path):
    container = {"name": "main", "command": ["serve", "/data/model"],
                 "args": ["ranks", "ranks-0.ranks:7000", "$(PORT)", "$$(PORT)"]}  # fmt: skip
    assert container_command(container, context(), {"PORT": "99"}) == [
        "serve", "/real/1/model", "ranks", "127.9.9.2:20001", "99", "$(PORT)",
    ]  # fmt: skip
    here = context(mounts={"main": {"/data": tmp_path}})
    assert working_folder({"name": "main"}, here) == Path("/scratch")
    assert working_folder({"name": "main", "workingDir": "/data/a/b"}, here) == tmp_path / "a/b"
    assert (tmp_path / "a/b").is_dir()


# -- schema; more of it in tests/local/test_refusals.py -------------------------------------------


def config_map(name="c", **data):
    return Object(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}, "file"
    )


def test_names_and_keys():
    for name in ("a", "a-b", "a.b", "a1.b-2", "x" * 200):
        assert checked("c", [config_map(name)])[1] == {}
    for name in ("", "-a", "a-", "A", "a..b", ".a", "a.", "a/b", "x" * 201, "a\n"):
        with pytest.raises(ManifestError, match=r"file: ConfigMap/.*metadata.name: "):
            checked("c", [config_map(name)])
    for key in ("a", "a.b", "_A-b.sh", ".profile"):
        assert checked("c", [config_map(**{key: "x"})])[1] == {}
    for key in ("", ".", "..", "a/b", "a b", "ä"):
        with pytest.raises(ManifestError, match="file: ConfigMap/c: data"):
            checked("c", [config_map(**{key: "x"})])


def test_notes_name_the_field_and_the_reason():
    quota = Object(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "n"},
         "spec": {"hard": {"pods": "1"}}}, "file",
    )  # fmt: skip
    assert checked("c", [quota])[1] == {
        "ResourceQuota/q.metadata.namespace": "a state of this machine has one namespace",
        "ResourceQuota/q.spec": "a cluster's API server or operator does this",
    }


def test_secret_is_not_shown():
    secret = Object(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
         "stringData": {"token": 12345}}, "file",
    )  # fmt: skip
    with pytest.raises(ManifestError) as error:
        checked("c", [secret])
    assert str(error.value).startswith("file: Secret/s: stringData.token: the value: input should")


def test_ray_brings_its_services_and_its_secret():
    bodies, _ = checked("raycluster", manifests.render("local", "raycluster"))
    keys = [f"{body['kind']}/{body['metadata']['name']}" for body in bodies]
    assert keys == ["Secret/raycluster", "Service/raycluster-head-svc", "RayCluster/raycluster"]
    bodies, _ = checked("ray-service", manifests.render("local", "ray-service"))
    kinds = [body["kind"] for body in bodies]
    assert kinds.count("Service") == 2 and kinds[-1] == "RayService"
