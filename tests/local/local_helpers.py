"""Small workloads to play, and ways to look at what runs."""

import copy
import functools
import os
import time
from pathlib import Path

from workshop_lib.cluster.local import processes, status
from workshop_lib.cluster.local.network import listening
from workshop_lib.cluster.manifests import Object, render_folder

MANIFESTS = Path(__file__).parent / "manifests"
CHECKOUT = Path(__file__).resolve().parents[2]


def until(look, *, timeout_s=300.0, every_s=0.03):
    """Call `look` until it returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {look}"
        time.sleep(every_s)
    return found


@functools.cache
def _rendered(folder):
    return render_folder(MANIFESTS / folder)


def objects(folder):
    """The objects of a folder under `manifests/`, free to be changed."""
    return [Object(copy.deepcopy(item.body), item.origin) for item in _rendered(folder)]


def body(items, kind):
    """The first object of a kind."""
    return next(item.body for item in items if item.kind == kind)


def pod_spec(items):
    """The pod spec of the Job or Deployment among the objects."""
    found = next(item.body for item in items if item.kind in ("Job", "Deployment"))
    return found["spec"]["template"]["spec"]


def job(script, *, folder="job", name=None, restart="Never", env=(), **spec):
    """The objects of a Job that runs a shell script."""
    items = objects(folder)
    found = body(items, "Job")
    found["spec"] |= spec
    if name:
        found["metadata"]["name"] = name
    pods = pod_spec(items)
    pods["restartPolicy"] = restart
    pods["containers"][0]["command"] = ["bash", "-c", script]
    pods["containers"][0].setdefault("env", []).extend(env)
    return items


def server(**spec):
    """The objects of the small web server, with changes to the Deployment's spec."""
    items = objects("server")
    body(items, "Deployment")["spec"] |= spec
    return items


def sleeper(script, **spec):
    """A Deployment of one container that runs a shell script, without volumes and probes."""
    items = [item for item in objects("server") if item.kind == "Deployment"]
    items[0].body["spec"] |= spec
    container = pod_spec(items)["containers"][0]
    pod_spec(items)["containers"] = [
        {"name": "web", "image": container["image"], "command": ["bash", "-c", script]}
    ]
    del pod_spec(items)["volumes"]
    return items


def config_map(name, **data):
    return Object(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}, "test"
    )


def secret(name, **data):
    return Object(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data},
        "test",
    )


def claim(name, storage="local-path"):
    spec = {"storageClassName": storage, "accessModes": ["ReadWriteMany"]}
    metadata = {"name": name}
    return Object(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec},
        "test",
    )


def texts(workload, **options):
    """The lines of a workload's logs, without who wrote them."""
    return [line.text for line in workload.logs(**options)]


def container_status(workload, pod=0):
    """The status of a pod's first container, once there is such a pod."""
    pods = until(lambda: workload.observe().pods[pod:])
    return pods[0]["status"]["containerStatuses"][0]


def shims(cluster, key):
    """Process ids of a workload's shims."""
    mark = os.fsencode(f"{cluster.paths.runtime}:{key}")
    found = [pid for pid in processes.all_pids() if mark in processes.command_line(pid)]
    # A child of a shim looks like it until it has become the container's command.
    return [pid for pid in found if processes.parent_of(pid) not in found]


def agent_pid(cluster):
    return status.identity(cluster.paths)[0]


def assert_nothing_left(cluster):
    """No process, no port, no file of a state."""
    paths = cluster.paths
    left = [(pid, processes.command_line(pid)) for pid in processes.mentioning(paths.runtime)]
    assert not left, f"processes survive: {left}"
    assert not listening(paths.network)
    assert not paths.folder.exists()
    assert not paths.runtime.exists()
