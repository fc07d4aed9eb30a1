"""Real Ray: the Indexed Job, the RayCluster, and a stranger's Ray beside them.

A stranger's Ray has its own folder, token and ports, those that Ray has by default
when they are free. It runs before, during and after everything here.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from local_helpers import agent_pid, assert_nothing_left, listening, shims, until

from workshop_lib.cluster.base import dashboard, head_ports
from workshop_lib.cluster.checks import check_ray_cluster, expected_gpus
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.local.launch import PATIENCE
from workshop_lib.cluster.local.network import is_free

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
READY_S = 300


def get(url, token=None):
    """The status of a GET, and what it answered."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with OPENER.open(urllib.request.Request(url, headers=headers), timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def alive(url, token):
    """Addresses of a Ray cluster's nodes, without the dead ones."""
    status, answer = get(f"{url}/api/v0/nodes", token)
    found = answer["data"]["result"]["result"] if status == 200 else []
    return sorted(node["node_ip"] for node in found if node["state"] == "ALIVE")


class ForeignRay:
    """A Ray that has nothing to do with the workshop."""

    def __init__(self, folder):
        self.token = secrets.token_hex(32)
        self.port, self.dashboard, client = (
            port if is_free("0.0.0.0", port) else port + 20000 for port in (6379, 8265, 10001)
        )
        self.url = f"http://127.0.0.1:{self.dashboard}"
        environment = {
            **os.environ, **PATIENCE, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        command = [
            "ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={self.port}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=0.0.0.0", "--num-cpus=1",
            f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}",
            f"--temp-dir={folder}", "--object-store-memory=80000000", "--memory=500000000",
        ]  # fmt: skip
        # The shim is only a way to be sure that this test takes all of it down again.
        self.process = subprocess.Popen(
            [sys.executable, str(processes.SHIM), "foreign", str(os.getpid()), "5",
             str(folder / "log"), "--", *command],
            env=environment, start_new_session=True,
        )  # fmt: skip

    def is_up(self):
        assert self.process.poll() is None
        try:
            return alive(self.url, self.token)
        except OSError:
            return False

    def core(self):
        """The processes, with their start times, that live as long as this Ray does."""
        core = (b"gcs_server", b"raylet/raylet", b"dashboard/dashboard.py")
        pids = [
            pid for pid in processes.descendants(self.process.pid)
            if any(part in word for word in processes.command_line(pid)[:3] for part in core)
        ]  # fmt: skip
        assert len(pids) == len(core)
        return [(pid, processes.start_ticks(pid)) for pid in pids]


@pytest.fixture(scope="module")
def foreign():
    # A socket's path is short, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp") as folder:
        ray = ForeignRay(Path(folder))
        try:
            until(ray.is_up, timeout_s=READY_S, every_s=0.5)
            yield ray
        finally:
            ray.process.send_signal(signal.SIGTERM)
            ray.process.wait(timeout=300)


@pytest.fixture
def cluster():
    cluster = LocalCluster(state=f"ray-{uuid.uuid4().hex[:8]}", restart_backoff_s=0.5)
    yield cluster
    cluster.clean()
    assert_nothing_left(cluster)


@pytest.mark.timeout(900)
def test_ray_cluster_beside_a_stranger(foreign, cluster):
    """Two nodes of an Indexed Job, a token at the door, and the head's exit code as the result."""
    before = foreign.core()
    job = cluster.apply("ray-cluster").wait_ready(timeout_s=READY_S)
    token = cluster.secret("ray-cluster-auth", "auth_token")
    with cluster.forward("ray-cluster-0", 8265) as url:
        until(lambda: len(alive(url, token)) == 2, timeout_s=300)
        addresses = [pod["status"]["podIP"] for pod in job.observe().pods]
        assert alive(url, token) == sorted(addresses)
        assert get(f"{url}/api/version")[0] == 401
        assert get(f"{url}/api/version", foreign.token)[0] in (401, 403)
    if foreign.port == 6379:
        assert head_ports(job)["gcs-server"] != 6379, "it was moved"
    assert get(f"{foreign.url}/api/version", token)[0] in (401, 403)
    with dashboard(job) as ray:
        checks = check_ray_cluster(ray, nodes=2, gpus=expected_gpus(job.observe().pods))
    assert checks.passed, str(checks)
    # The autoscaler's own view, which follows the nodes by some seconds.
    until(lambda: ray_status(cluster, "ray-cluster-0").count(" node_") == 2, timeout_s=300)

    ours = processes.descendants(agent_pid(cluster))
    cluster.exec("ray-cluster-0", ["bash", "-c", "echo 0 > $FINISH_FILE"])
    job.wait_complete(timeout_s=300)
    conditions = job.observe().body["status"]["conditions"]
    assert [c["type"] for c in conditions] == ["SuccessCriteriaMet", "Complete"]
    assert conditions[0]["message"] == "Matched rules at index 0"
    assert not shims(cluster, "Job/ray-cluster")
    assert any("finished with exit code 0" in line.text for line in job.logs())
    cluster.delete("ray-cluster")
    assert not any(map(processes.is_running, ours))
    assert listening(cluster.paths.network) == []
    assert all(processes.is_running(*each) for each in before), "the stranger was left alone"
    assert foreign.is_up()


@pytest.mark.timeout(900)
def test_raycluster_replaces_a_killed_worker(foreign, cluster):
    ray = cluster.apply("raycluster").wait_ready(timeout_s=READY_S)
    token = cluster.secret("raycluster", "auth_token")
    worker = ray.observe().pods[1]
    assert worker["metadata"]["labels"]["ray.io/node-type"] == "worker"
    with cluster.forward("raycluster-head-svc", 8265) as url:
        until(lambda: len(alive(url, token)) == 2, timeout_s=300)
        assert get(f"{url}/api/version")[0] == 401
        worker_ip = worker["status"]["podIP"]
        raylets = [
            pid for pid in processes.descendants(agent_pid(cluster))
            if any(b"raylet/raylet" in word for word in processes.command_line(pid)[:1])
            and f"--node_ip_address={worker_ip}".encode() in processes.command_line(pid)
        ]  # fmt: skip
        assert len(raylets) == 1
        os.kill(raylets[0], signal.SIGKILL)
        until(lambda: status_of(ray, 1)["restartCount"] == 1, timeout_s=300)
        ray.wait_ready(timeout_s=READY_S)
        until(lambda: len(alive(url, token)) == 2, timeout_s=300)
        assert status_of(ray, 0)["restartCount"] == 0, "the head went on"
        assert "Node status" in ray_status(cluster, "raycluster-head")
    cluster.delete("raycluster")
    assert foreign.is_up(), "the stranger was left alone"


def ray_status(cluster, pod):
    """What `ray status` prints in a pod: it finds its own cluster, not the stranger."""
    done = cluster.exec(pod, ["ray", "status"])
    assert done.exit_code == 0, done
    return done.stdout


def status_of(workload, pod):
    return workload.observe().pods[pod]["status"]["containerStatuses"][0]
