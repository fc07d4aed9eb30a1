"""Labs through a Kubernetes API: broken, seen, repaired and removed by requests that count.

The emulator has no controllers: `Node` plays the Deployment controller and a kubelet for one
Deployment, with the labs' real server as its container.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from emulator.store import now

from workshop_lib.cluster.cleaning import check_clean
from workshop_lib.cluster.manifests import manifests_dir
from workshop_lib.production import labs

SERVER = manifests_dir() / "base/lab-server/app/server.py"
UNSCHEDULABLE = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


# Connections of this machine come from 127.0.0.1: on another address nobody takes a port between
# its choice and its use.
HOST = f"127.{os.getpid() >> 16 & 255 | 128}.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Node(threading.Thread):
    """Keeps one pod of the Deployment `lab-server`, which runs the real server."""

    def __init__(self, emulator):
        super().__init__(daemon=True)
        self.emulator = emulator
        self.over = threading.Event()
        self.process = None
        self.template = None
        self.made = 0

    def run(self):
        while not self.over.wait(0.05):
            found = self.emulator.get("Deployment", "lab-server")
            going = found is None or "deletionTimestamp" in found["metadata"]
            template = None if going else found["spec"]["template"]
            if template != self.template:
                self.stop_pod()
                self.template = template
                if template is not None:
                    self.start_pod(found)
            if self.template is not None and self.process is not None:
                self.probe()
        self.stop_pod()

    def stop_pod(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
        with self.emulator.store.lock:
            for kind in ("Pod", "ReplicaSet"):
                for name in self.emulator.names(kind):
                    self.emulator.store.drop(self.emulator.kind(kind), "workshop", name)

    def start_pod(self, deployment):
        self.made += 1
        self.name = f"lab-server-7d9f-{self.made}"
        replica_set = self.emulator.put({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "lab-server-7d9f", "labels": self.template["metadata"]["labels"],
                         "ownerReferences": [{
                             "apiVersion": "apps/v1", "kind": "Deployment", "name": "lab-server",
                             "uid": deployment["metadata"]["uid"]}]},
        })  # fmt: skip
        container = self.template["spec"]["containers"][0]
        gpus = int(container["resources"]["requests"]["nvidia.com/gpu"])
        pod = self.emulator.add_pod(
            replica_set, self.name, labels=self.template["metadata"]["labels"], ready=False,
            phase="Pending" if gpus else "Running", containers=("server",),
        )  # fmt: skip
        pod["spec"] = {**self.template["spec"], "nodeName": "node-a"}
        if gpus:
            pod["status"] = {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "lastTransitionTime": now(), "message": UNSCHEDULABLE}]}  # fmt: skip
            self.emulator.put(pod)
            return
        self.emulator.put(pod)
        port = free_port()
        environment = {**os.environ, "LISTEN_HOST": HOST, "LISTEN_PORT": str(port)}
        self.process = subprocess.Popen(
            [sys.executable, SERVER],
            env={**environment, "LOAD_S": "0.2"},
            stdout=subprocess.DEVNULL,
        )
        self.address = (HOST, port)
        self.emulator.kubelet.ports[(self.name, 8000)] = self.address

    def probe(self):
        """The readiness probe, and what follows."""
        path = self.template["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        try:
            urllib.request.urlopen(f"http://{HOST}:{self.address[1]}{path}", timeout=60).close()
            ready, why = True, ""
        except urllib.error.HTTPError as error:
            ready, why = (
                False,
                f"Readiness probe failed: HTTP probe failed with statuscode: {error.code}",
            )
        except OSError:
            return  # it does not listen yet
        pod = self.emulator.get("Pod", self.name)
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        known = pod is not None and condition in pod["status"]["conditions"]
        if pod is None or (known and (ready or self.said == why)):
            return
        self.said = why
        pod["status"]["conditions"] = [condition]
        self.emulator.put(pod)
        if why:
            self.emulator.put({
                "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "Unhealthy",
                "message": why, "metadata": {"name": f"e.{self.name}"}, "lastTimestamp": now(),
                "involvedObject": {"kind": "Pod", "name": self.name, "uid": pod["metadata"]["uid"]},
            })  # fmt: skip
        counts = {"readyReplicas": int(ready), "availableReplicas": int(ready)}
        seen = self.emulator.get("Deployment", "lab-server")
        if seen is not None:
            self.emulator.set_status(
                "Deployment", "lab-server", replicas=1, updatedReplicas=1, **counts,
                observedGeneration=seen["metadata"].get("generation"),
            )  # fmt: skip

    said = ""


@pytest.fixture
def node(emulator):
    playing = Node(emulator)
    playing.start()
    yield playing
    playing.over.set()
    playing.join()


REPAIRS = {
    "wrong-port": {"target_port": 8000},
    "no-endpoints": {"selector": "lab-server"},
    "failing-probe": {"readiness_path": "/health"},
    "no-gpus": {"gpus": 0},
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_lab(emulator, cluster, node, name):
    before = cluster.remains()
    lab = labs.start(cluster, name, timeout_s=300)
    assert "no answer" in lab.symptoms().user
    assert not lab.check().passed
    # What was sent is the manifest with one other value.
    applied = json.dumps([emulator.get("Deployment", "lab-server")["spec"],
                          emulator.get("Service", "lab-server")["spec"]])  # fmt: skip
    (value,) = labs.plan(name).broken("kind").values()
    assert json.dumps(str(value)) in applied or f": {value}" in applied

    cluster.apply(lab.component, **REPAIRS[name]).wait_ready(timeout_s=300)
    checks = lab.check()
    assert checks.passed, str(checks)
    left = check_clean(cluster, before, timeout_s=0)
    assert [each.outcome for each in left][:3] == ["fail", "fail", "not applicable"]
    assert "Deployment/lab-server" in str(left) and "Pod/lab-server-7d9f-" in str(left)
    lab.end()
    gone = check_clean(cluster, before)
    assert gone.passed, str(gone)
    assert emulator.get("Deployment", "lab-server") is None


def test_an_engine_is_killed_in_its_pod(cluster, node):
    """Killed through exec, seen by readers, and not noticed by the probe that asks the front."""
    lab = labs.start(cluster, "killed-engine", timeout_s=300)
    symptoms = lab.symptoms()
    assert "HTTP 503" in symptoms.user and symptoms.pods["ready"].tolist() == [True]
    assert "dead" not in symptoms.user, "a user is not told why"
    assert node.process.poll() is None, "only the engine was killed"
    assert [each.outcome for each in lab.check(timeout_s=2)] == ["pass", "fail", "cannot tell"]
    lab.end()
    assert cluster.components() == []
