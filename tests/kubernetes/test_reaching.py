"""exec and forward, over real WebSockets; the frames are those of a real server."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import websocket
from local_helpers import until
from objects import deployment, job, objects, service

from workshop_lib.cluster.kubernetes import reaching
from workshop_lib.errors import ClusterError, ConnectError, ForbiddenError, NotFoundError

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data" / "kubernetes" / "http" / "exec.json").read_text()
)


@pytest.fixture
def pod(emulator, cluster):
    cluster.apply_objects("demo", objects(job()))
    emulator.add_pod(emulator.get("Job", "talk"), "talk-0-abcde", containers=("main", "side"))
    return "talk-0-abcde"


@pytest.mark.parametrize(
    ("name", "command"),
    [("exec-ok", ["bash", "-c", "echo out;sleep 0.05;echo err 1>&2"]),
     ("exec-exit-3", ["bash", "-c", "exit 3"]), ("exec-no-such-command", ["nvidia-smi"])],
)  # fmt: skip
def test_the_emulators_frames_are_the_recorded_ones(emulator, pod, name, command):
    from urllib.parse import urlencode

    query = urlencode({"command": command, "container": "main", "stdout": "true"}, doseq=True)
    opened = websocket.create_connection(
        f"ws{emulator.url[4:]}/api/v1/namespaces/workshop/pods/{pod}/exec?{query}",
        header=["Authorization: Bearer good-token"], subprotocols=["v5.channel.k8s.io"],
    )  # fmt: skip
    frames = []
    while True:
        opcode, data = opened.recv_data(control_frame=True)
        if opcode == 8:
            break
        frames.append((data[0], data[1:].decode()))
    opened.close()
    recorded = [(f["channel"], f["data"]) for f in RECORDED[name]["frames"] if f["opcode"] == 2]
    assert frames == recorded


def test_much_output(cluster, pod):
    done = cluster.exec(pod, ["head", "-c", "3000000", "/dev/zero"])
    assert len(done.stdout) == 3_000_000


def test_a_connection_that_breaks_does_not_run_it_twice(emulator, cluster, pod, tmp_path):
    emulator.exec_breaks = True
    with pytest.raises(ConnectError, match="is not known: look before you run it again"):
        cluster.exec(pod, ["bash", "-c", f"echo once >> {tmp_path}/said"])
    assert (tmp_path / "said").read_text() == "once\n"


def test_which_pod_and_container(emulator, cluster, pod):
    owner = emulator.get("Job", "talk")
    for wrong, said in (
        ("none", r"'none' is no running pod's name: talk-0-abcde"),
        ("talk", None),
    ):
        if said:
            with pytest.raises(NotFoundError, match=said):
                cluster.exec(wrong, ["true"])
    emulator.add_pod(owner, "talk-1-fghij", state={"waiting": {"reason": "ContainerCreating"}},
                     phase="Pending")  # fmt: skip
    with pytest.raises(NotFoundError, match="'talk' fits several pods: talk-0-abcde, talk-1-fghij"):
        cluster.exec("talk", ["true"])
    with pytest.raises(NotFoundError, match="container 'main' of talk-1-fghij does not run"):
        cluster.exec("talk-1", ["true"])
    with pytest.raises(NotFoundError, match="has no container 'gpu'; it has main, side"):
        cluster.exec(pod, ["true"], container="gpu")
    with pytest.raises(ClusterError, match="there is no command"):
        cluster.exec(pod, [])


def test_exec_that_is_forbidden_or_unauthorised_in_between(emulator, cluster, pod):
    emulator.forbidden = {("get", "pods/exec")}
    with pytest.raises(ForbiddenError, match=r"may not get pods/exec .* resources: \[\"pods/exec"):
        cluster.exec(pod, ["true"])
    emulator.forbidden = set()
    emulator.fail("GET", "/exec", status=401)
    assert cluster.exec(pod, ["true"]).exit_code == 0, "once more, with fresh credentials"


# -- forward --------------------------------------------------------------------------------------


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        data = self.server.said * int(self.path.partition("?")[2] or 1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Start HTTP servers that play what listens in pods."""
    servers = []

    def start(said):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
        server.said = said
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server.server_address

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url):
    return httpx.get(url, timeout=120)


@pytest.fixture
def served(emulator, cluster, serve):
    """A Deployment behind a Service whose port 80 goes to the pod's port named http, 8000."""
    cluster.apply_objects("demo", objects(service(port=80), deployment()))

    def pod(name):
        # First of all what answers: a client may be waiting for the pod.
        emulator.kubelet.ports[(name, 8000)] = serve(name.encode())
        emulator.add_pod(None, name, labels={"app": "server"}, containers=())
        body = emulator.get("Pod", name)
        body["spec"]["containers"] = [
            {"name": "main", "ports": [{"name": "http", "containerPort": 8000}]}
        ]
        emulator.put(body)

    pod("server-a")
    return pod


def test_a_service_on_loopback(emulator, cluster, served):
    with cluster.forward("server", 80) as url:
        assert url.startswith("http://127.0.0.1:")
        assert get(url).text == "server-a"
        with httpx.Client(base_url=url, timeout=120) as client:
            assert [client.get("/").text for _ in range(3)] == ["server-a"] * 3
        many = get(f"{url}/?100000")
        assert len(many.content) == 800_000
        sent = bytes(range(256)) * 4000
        assert httpx.post(url, content=sent, timeout=120).content == sent
    with pytest.raises(httpx.ConnectError):
        get(url)


def test_several_connections_at_once(cluster, served):
    with cluster.forward("server", 80) as url:
        seen = []
        threads = [
            threading.Thread(target=lambda: seen.append(get(f"{url}/?1000").text))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == ["server-a" * 1000] * 12


def test_it_survives_a_pods_restart(emulator, cluster, served):
    with cluster.forward("server", 80) as url:
        assert get(url).text == "server-a"
        emulator.store.drop(emulator.kind("Pod"), "workshop", "server-a")
        timer = threading.Timer(1.0, served, args=("server-b",))
        timer.start()
        assert get(url).text == "server-b"
        timer.join()


def test_leaving_with_a_connection_open(cluster, served):
    with cluster.forward("server", 80) as url:
        idle = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    with contextlib.suppress(ConnectionResetError):
        assert idle.recv(10) == b""
    idle.close()


def test_a_service_without_a_ready_pod(emulator, cluster, served):
    emulator.store.drop(emulator.kind("Pod"), "workshop", "server-a")
    with pytest.raises(NotFoundError, match="Service/server has no ready pod behind it"):
        cluster.forward("server", 80).__enter__()


def test_forward_that_is_forbidden(emulator, cluster, served):
    """Said at once: in a thread nobody would hear it."""
    emulator.forbidden = {("get", "pods/portforward")}
    with pytest.raises(ForbiddenError) as error:
        cluster.forward("server", 80).__enter__()
    line = str(error.value)
    assert line.startswith("forward to server: user 'system:serviceaccount:workshop:learner' ")
    assert line.endswith('resources: ["pods/portforward"], verbs: ["get"]}')


@contextlib.contextmanager
def listening(emulator, serve_one):
    """Behind the pod's port 8000: each connection is served by a function."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=serve, args=(client,), daemon=True).start()

        def serve(client):
            with client, contextlib.suppress(OSError):
                serve_one(client)

        threading.Thread(target=accept, daemon=True).start()
        emulator.kubelet.ports[("server-a", 8000)] = listener.getsockname()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def dialled(url):
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def test_who_has_sent_all_still_gets_the_answer(emulator, cluster, served):
    """As kubectl does: a client may close its half and read on."""

    def answer(client):
        asked = client.recv(100)
        time.sleep(0.3)
        client.sendall(b"you said " + asked)

    with (
        listening(emulator, answer),
        cluster.forward("server", 80) as url,
        dialled(url) as client,
    ):
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        got = bytearray()
        while data := client.recv(100):
            got += data
    assert got == b"you said hello"


def test_a_client_that_is_gone_is_not_waited_for(emulator, cluster, served, monkeypatch):
    monkeypatch.setattr(reaching, "HALF_CLOSED_S", 0.3)
    closed = threading.Event()

    def wait(client):
        while client.recv(100):
            pass
        closed.set()

    with listening(emulator, wait), cluster.forward("server", 80) as url:
        closed.clear()
        with dialled(url) as client:
            client.sendall(b"hello")
        assert closed.wait(10)


def test_a_connection_that_outlives_the_block_ends_quietly(emulator, cluster, served, caplog):
    """Nothing of it is printed into a learner's cell."""
    with (
        listening(emulator, lambda client: client.recv(100) and client.recv(100)),
        contextlib.ExitStack() as kept,
    ):
        with cluster.forward("server", 80) as url:
            client = kept.enter_context(dialled(url))
            client.sendall(b"hello")
            time.sleep(0.5)  # until it has reached the pod
        assert client.recv(100) == b""
    assert not caplog.records


def test_a_server_that_says_all_before_it_reads(emulator, cluster, served):
    """Neither way may wait for the other: it would wait for us, and we for it."""
    size, read = 24 << 20, []

    def talk(client):
        client.sendall(bytes(size))
        while data := client.recv(1 << 20):
            read.append(len(data))

    with (
        listening(emulator, talk),
        cluster.forward("server", 80) as url,
        dialled(url) as client,
    ):
        sender = threading.Thread(target=client.sendall, args=(bytes(size),))
        sender.start()
        got = 0
        while got < size:
            got += len(client.recv(1 << 20))
        sender.join()
        until(lambda: sum(read) == size)


def test_a_server_that_does_not_open_the_socket(emulator, cluster, pod, monkeypatch):
    monkeypatch.setattr(reaching, "OPEN_S", 0.3)
    emulator.fail("GET", "/exec", wait_s=3.0)
    with pytest.raises(ConnectError, match=r"does not answer: timed out"):
        cluster.exec(pod, ["true"])


def test_a_port_where_nobody_listens_closes_the_connection(cluster, served):
    with cluster.forward("server-a", 9) as url, pytest.raises(httpx.HTTPError):
        get(url)
