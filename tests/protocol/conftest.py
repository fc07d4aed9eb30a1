"""The worlds of which every test here asks the same.

A world gives a cluster, objects that it can apply, and the means to make a pod do
something. `LocalCluster` plays the manifests with real processes; behind the Kubernetes
API stands the emulator, whose controllers and kubelet the world plays. A real cluster is
asked too when `WORKSHOP_TEST_KUBECONFIG` names its kubeconfig; see `real_cluster.py`.
"""

import copy
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import local_helpers
import pytest
from emulated import cluster as kubernetes_cluster  # noqa: F401
from emulated import config, emulator, quick  # noqa: F401
from local_helpers import assert_nothing_left, until
from objects import deployment, service
from real_cluster import IMAGE, KUBECONFIG, real_namespace

from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.manifests import Object

# Repeats each line of a file as it comes; the line `exit N` ends it.
OBEY = """
n=0
while :; do
  mapfile -t lines < "$0"
  while ((n < ${#lines[@]})); do
    line=${lines[n]}
    n=$((n + 1))
    case "$line" in "exit "*) exit "${line#exit }" ;; *) echo "$line" ;; esac
  done
  sleep 0.05
done
"""


class World:
    """What both worlds have."""

    image = "localhost/this-environment"
    storage_class = "local-path"

    def __init__(self, cluster, orders):
        self.cluster = cluster
        self.orders = orders

    def job(self, name="talk", *, gpus=None, **env):
        """A Job of one rank that says what `run` tells it to say."""
        container = {
            "name": "main", "image": self.image,
            "command": ["bash", "-c", OBEY, str(self.orders)],
            "env": [{"name": key, "value": value} for key, value in env.items()],
        }  # fmt: skip
        if gpus:
            amount = {"nvidia.com/gpu": str(gpus)}
            container["resources"] = {"requests": amount, "limits": amount}
        pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2,
               "containers": [container]}  # fmt: skip
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {
            "completionMode": "Indexed", "completions": 1, "parallelism": 1, "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod}}}  # fmt: skip

    def claim(self, name="shared"):
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
                "spec": {"storageClassName": self.storage_class, "accessModes": ["ReadWriteMany"],
                         "resources": {"requests": {"storage": "1Gi"}}}}  # fmt: skip


class LocalWorld(World):
    """This machine: pods are processes, and do what they are told."""

    def __init__(self, cluster, orders):
        super().__init__(cluster, orders)
        orders.touch()

    def run(self, *lines, code=None):
        """The Job's pod says the lines; with a code, it ends."""
        more = [*lines, *([] if code is None else [f"exit {code}"])]
        with self.orders.open("a") as file:
            file.writelines(f"{line}\n" for line in more)

    def started(self, name="talk"):
        """The Job's pod runs."""
        until(lambda: self._phase(name) == "Running")

    def _phase(self, name):
        pods = self.cluster.observe("Job", name).pods
        return pods[0]["status"]["phase"] if pods else None

    def unschedulable(self, name="talk"):
        """The Job's pod finds no node."""
        until(lambda: self._phase(name) == "Pending")

    def server(self):
        """A web server behind a Service: its objects."""
        return [item.body for item in local_helpers.server()]

    def serving(self):
        """It has started; what it answers is given back."""
        work = self.cluster.get("web").wait_ready(timeout_s=300)
        return work.pods[0]


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.said)

    def log_message(self, *_):
        pass


class KubernetesWorld(World):
    """A Kubernetes API; what controllers and kubelet would do is done here."""

    image = "x:1"
    storage_class = "standard"

    def __init__(self, cluster, orders, api):
        super().__init__(cluster, orders)
        self.emulator = api
        self.servers = []

    def _pod(self, name, **how):
        pod = f"{name}-0-abcde"
        if pod not in self.emulator.names("Pod"):
            self.emulator.add_pod(self.emulator.get("Job", name), pod, index=0, **how)
        return pod

    def started(self, name="talk"):
        pod = self._pod(name)
        self.emulator.kubelet.log(pod)
        self.emulator.set_status("Job", name, ready=1, active=1)

    def run(self, *lines, name="talk", code=None):
        self.started(name)
        pod = self._pod(name)
        self.emulator.kubelet.log(pod).write(*lines)
        if code is not None:
            self.emulator.end_pod(pod, code=code)
            met = {"type": "Complete" if code == 0 else "Failed", "status": "True",
                   "reason": "CompletionsReached" if code == 0 else "BackoffLimitExceeded",
                   "message": "all done" if code == 0 else "too many failures"}  # fmt: skip
            self.emulator.set_status("Job", name, ready=0, conditions=[met])

    def unschedulable(self, name="talk"):
        pod = self._pod(name, phase="Pending", ready=False, containers=())
        body = copy.deepcopy(self.emulator.get("Pod", pod))
        body["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
             "lastTransitionTime": "2026-11-21T10:00:00Z",
             "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}]  # fmt: skip
        self.emulator.put(body)

    def server(self):
        return [service(port=80), deployment()]

    def serving(self):
        name = "server-abcde"
        http = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
        http.said = name.encode()
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        self.servers.append(http)
        self.emulator.add_pod(None, name, labels={"app": "server"})
        body = self.emulator.get("Pod", name)
        body["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 8000}]
        self.emulator.put(body)
        self.emulator.kubelet.ports[(name, 8000)] = http.server_address
        self.emulator.set_status("Deployment", "server", replicas=1, updatedReplicas=1,
                                 availableReplicas=1, readyReplicas=1)  # fmt: skip
        self.cluster.get("web").wait_ready(timeout_s=300)
        return name

    def close(self):
        for http in self.servers:
            http.shutdown()
            http.server_close()


SERVE = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["HOSTNAME"].encode())
HTTPServer(("", 8000), Hello).serve_forever()
"""


class RealWorld(World):
    """A real cluster: pods are told what to do by commands in them."""

    image = IMAGE
    storage_class = "standard"

    def job(self, *args, **kwargs):
        body = super().job(*args, **kwargs)
        command = body["spec"]["template"]["spec"]["containers"][0]["command"]
        command[2] = f'touch "$0"\n{OBEY}'
        return body

    def _pod(self, name):
        pods = self.cluster.observe("Job", name).pods
        return pods[0] if pods else None

    def started(self, name="talk"):
        until(lambda: (pod := self._pod(name)) and pod["status"]["phase"] == "Running")

    def run(self, *lines, name="talk", code=None):
        self.started(name)
        more = [*lines, *([] if code is None else [f"exit {code}"])]
        write = ["bash", "-c", 'printf "%s\\n" "$@" >> "$0"', str(self.orders), *more]
        self.cluster.exec(f"{name}-0", write)

    def unschedulable(self, name="talk"):
        until(lambda: (pod := self._pod(name)) and pod["status"].get("conditions"))

    def server(self):
        body = deployment()
        container = body["spec"]["template"]["spec"]["containers"][0]
        container |= {"image": self.image, "command": ["python3", "-c", SERVE],
                      "ports": [{"name": "http", "containerPort": 8000}],
                      "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}}  # fmt: skip
        body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
        return [service(port=80), body]

    def serving(self):
        return self.cluster.get("web").wait_ready(timeout_s=300).pods[0]


@pytest.fixture(params=["local", "kubernetes", *(["real"] if KUBECONFIG else [])])
def world(request, tmp_path):
    """Each of the worlds; nothing of it is left behind."""
    orders = tmp_path / "orders"
    if request.param == "real":
        with real_namespace() as found:
            yield RealWorld(found, "/tmp/orders")
        return
    if request.param == "kubernetes":
        made = KubernetesWorld(
            request.getfixturevalue("kubernetes_cluster"), orders,
            request.getfixturevalue("emulator"),
        )  # fmt: skip
        yield made
        made.close()
        return
    cluster = LocalCluster(state=f"t-{uuid.uuid4().hex[:12]}", restart_backoff_s=0.2)
    yield LocalWorld(cluster, orders)
    cluster.clean()
    assert_nothing_left(cluster)


@pytest.fixture
def apply(world):
    """Apply some objects as a component."""

    def applied(*bodies, component="demo"):
        objects = [Object(copy.deepcopy(body), "manifests/base/test.yaml") for body in bodies]
        return world.cluster.apply_objects(component, objects)

    return applied
