"""Addresses and ports: who gets which, and what names become."""

import socket

import pytest

from workshop_lib.cluster.local import network
from workshop_lib.cluster.local.network import AddressBook, Endpoint, endpoints, replace_address
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.errors import ClusterError


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("workshop_lib.cluster.local.paths.TEMPORARY", tmp_path)
    monkeypatch.setattr("workshop_lib.cluster.local.network.TEMPORARY", tmp_path)
    return tmp_path


@pytest.fixture
def book(temporary):
    return AddressBook(StatePaths(temporary, "one"))


NAMES = {
    "ranks-0.ranks": Endpoint("127.9.9.2", {7000: 20001}),
    "vllm": Endpoint("127.9.9.3", {8000: 8000}),
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ranks-0.ranks", "127.9.9.2"),
        ("ranks-0.ranks:7000", "127.9.9.2:20001"),
        ("ranks-0.ranks:7001", "127.9.9.2:7001"),
        ("http://vllm:8000/v1", "http://127.9.9.3:8000/v1"),
        ("http://vllm/v1", "http://127.9.9.3/v1"),
        ("vllm.default.svc.cluster.local:8000", "127.9.9.3:8000"),
        ("vllm.default", "127.9.9.3"),
        # A name alone may be anything: USER is vllm in an image of vLLM's.
        ("vllm", "vllm"),
        # Whatever is more, or else, than an address stays as it is.
        ("vllm/v1", "vllm/v1"),
        ("the vllm", "the vllm"),
        ("vllm:http", "vllm:http"),
        ("vllm2:8000", "vllm2:8000"),
        ("http://vllm:8000?x=1", "http://vllm:8000?x=1"),
        ("vllm\n", "vllm\n"),
        ("", ""),
    ],
)
def test_names_become_addresses(value, expected):
    assert replace_address(value, NAMES) == expected


def test_each_owner_keeps_its_own_address(book):
    one = book.assign("Job/a/0", [{"port": 8000}])
    two = book.assign("Job/a/1", [{"port": 8000}])
    assert one.ip != two.ip and one.ports == two.ports == {8000: 8000}
    assert one.ip.startswith("127.") and one.ip.endswith(".2")
    assert book.assign("Job/a/0", [{"port": 8000}]) == one == book.find("Job/a/0")
    assert book.by_ip() == {one.ip: one, two.ip: two}
    assert sorted(each.ip for each in book.below("Job/a")) == [one.ip, two.ip]
    book.release("Job/a")
    assert book.by_ip() == {} and book.find("Job/a/0") is None
    assert book.assign("Job/b/0", []).ip == one.ip, "addresses are used again"


def test_release_takes_no_namesakes(book):
    kept = book.assign("Job/ab/0", [])
    book.assign("Job/a/0", [])
    book.release("Job/a")
    assert book.by_ip() == {kept.ip: kept}


def test_new_ports_join_those_that_are_known(book):
    first = book.assign("Service/a", [{"port": 1234}])
    both = book.assign("Service/a", [{"port": 1234}, {"port": 1235}])
    assert both.ip == first.ip and both.ports[1234] == first.ports[1234]
    assert set(book.assign("Service/a", [{"port": 1235}]).ports) == {1235}


def test_taken_port_is_moved(book):
    with socket.socket() as stranger:
        stranger.bind(("0.0.0.0", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        got = book.assign("Job/a/0", [{"port": taken}]).ports[taken]
        assert got in network.MOVED_PORTS
    assert book.assign("Job/a/0", [{"port": taken}]).ports[taken] == got, "it is not moved back"
    assert book.assign("Job/a/0", [{"port": taken}], probe=True).ports[taken] == taken


def test_ports_on_all_addresses_are_given_once(book, temporary):
    head = [{"name": "gcs-server", "port": 6399}]
    one = book.assign("Job/a/0", head).ports[6399]
    two = book.assign("Job/a/1", head).ports[6399]
    assert one != two
    other = AddressBook(StatePaths(temporary, "two"))
    three = other.assign("Job/a/0", head).ports[6399]
    assert three not in (one, two), (
        "another state may not have bound it yet, and has it all the same"
    )
    plain = other.assign("Job/a/1", [{"port": 6399}]).ports[6399]
    assert one != 6399 or plain != 6399


def test_two_states_that_look_at_the_same_time_get_different_ports(book, temporary, monkeypatch):
    """Each found the port free before the other one wrote that it has it."""
    head = [{"name": "gcs-server", "port": 6399}]
    other = AddressBook(StatePaths(temporary, "two"))
    looks = []

    def late_look(entry=book._elsewhere):
        if not looks:
            looks.append(other.assign("Job/a/0", head))
            return []
        return entry()

    monkeypatch.setattr(book, "_elsewhere", late_look)
    assert book.assign("Job/a/0", head).ports[6399] != looks[0].ports[6399]


def test_asking_again_writes_nothing(book):
    first = book.assign("Job/a/0", [{"port": 80}])
    before = book.paths.addresses.stat()
    assert book.assign("Job/a/0", [{"port": 80}]) == first
    after = book.paths.addresses.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_no_address_is_left(book, monkeypatch):
    entries = {f"Job/a/{n}": {"ip": f"127.1.1.{n}", "ports": {}} for n in range(2, 255)}
    monkeypatch.setattr(book, "_read", lambda: entries)
    with pytest.raises(ClusterError, match="no address is left for Job/b/0: 253 pods"):
        book.assign("Job/b/0", [])


def test_names_of_services_and_ranks(book):
    def job(name, **spec):
        return {"kind": "Job", "metadata": {"name": name}, "spec": {"template": {"spec": spec},
                "completions": 2}}  # fmt: skip

    def service(name, **spec):
        return {"kind": "Service", "metadata": {"name": name}, "spec": spec}

    zero, one = (book.assign(f"Job/ranks/{n}", []) for n in (0, 1))
    book.assign("Job/loner/0", [])
    own = book.assign("Service/web", [])
    head = book.assign("RayCluster/ray/head", [])
    items = [
        job("ranks", subdomain="talk"), job("loner"), service("talk", clusterIP="None"),
        service("web"), {"kind": "RayCluster", "metadata": {"name": "ray"}, "spec": {}},
    ]  # fmt: skip
    assert endpoints(items, book) == {
        "ranks-0.talk": zero, "ranks-1.talk": one, "talk": zero, "web": own, "ray-head-svc": head,
    }  # fmt: skip
