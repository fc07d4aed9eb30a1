"""Over TLS, as every real API server is reached: nothing of it may show in what is read."""

import base64
import contextlib
import datetime
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3
import yaml
from emulated import kubeconfig
from emulator import Emulator
from objects import config_map, job, objects

from workshop_lib.cluster.kubernetes import KubernetesCluster
from workshop_lib.errors import ConnectError


def authority():
    """A certificate for this machine that is its own authority, and its key: PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    return certificate.public_bytes(pem), key.private_bytes(pem, form, serialization.NoEncryption())


@pytest.fixture
def certificate(tmp_path):
    """A server's side of TLS, and the authority that a client must know."""
    public, private = authority()
    path = tmp_path / "server.pem"
    path.write_bytes(public + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, public


@pytest.fixture
def server(certificate):
    found = Emulator(certificate=certificate[0])
    yield found
    found.close()


def connected(server, tmp_path, known):
    config = kubeconfig(server.url)
    encoded = base64.b64encode(known).decode()
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encoded
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return KubernetesCluster("kind", kubeconfig=path)


def test_a_lesson_over_tls(server, certificate, tmp_path):
    cluster = connected(server, tmp_path, certificate[1])
    work = cluster.apply_objects("demo", objects(config_map(), job()))
    assert set(work.actions.values()) == {"created"}
    pod = server.add_pod(server.get("Job", "talk"), "talk-x")["metadata"]["name"]
    server.kubelet.log(pod).write("one")
    server.set_status("Job", "talk", ready=1)
    work.wait_ready(timeout_s=60)
    with contextlib.closing(work.logs(follow=True)) as lines:
        assert next(lines).text == "one"
        server.kubelet.log(pod).write("two")
        assert next(lines).text == "two"
    cluster.close()


def test_an_authority_that_is_not_known(server, tmp_path):
    with pytest.raises(ConnectError) as error:
        connected(server, tmp_path, authority()[0])
    line = str(error.value)
    assert "no trusted connection" in line and "certificate-authority" in line
    assert "\n" not in line


def test_a_server_that_is_none(emulator, config):
    """As a real one answers to HTTP without TLS: it is no manifest's fault."""
    said = "Client sent an HTTP request to an HTTPS server."
    emulator.fail("GET", "/version", status=400, body={"message": said})
    with pytest.raises(ConnectError) as error:
        KubernetesCluster("kind", kubeconfig=config)
    assert str(error.value) == (
        f"{emulator.url} does not answer as a Kubernetes API server does (400: {said}); "
        "correct `server` in the kubeconfig"
    )


LENGTH = 1 << 22


class Endless(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(LENGTH))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(LENGTH >> 10):
                self.wfile.write(b"x" * 1024)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("insecure", [False, True], ids=["trusted", "insecure-skip-tls-verify"])
def test_commands_and_ports_over_tls(server, certificate, tmp_path, insecure):
    """WebSockets are opened by another library than requests, and take the same settings."""
    config = kubeconfig(server.url)
    encoded = base64.b64encode(certificate[1]).decode()
    trust = (
        {"insecure-skip-tls-verify": True} if insecure else {"certificate-authority-data": encoded}
    )
    config["clusters"][0]["cluster"] |= trust
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    cluster = KubernetesCluster("kind", kubeconfig=path)
    cluster.apply_objects("demo", objects(job()))
    server.add_pod(server.get("Job", "talk"), "talk-x")
    assert cluster.exec("talk-x", ["echo", "hello"]).stdout == "hello\n"
    http = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    server.kubelet.ports[("talk-x", 8000)] = http.server_address
    with cluster.forward("talk-x", 8000) as url:
        assert len(urllib3.request("GET", url).data) == LENGTH
    http.shutdown()
    http.server_close()
    cluster.close()
