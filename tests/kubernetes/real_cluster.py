"""A real cluster to test against, when there is one: a namespace of its own for each test.

`WORKSHOP_TEST_KUBECONFIG` names a kubeconfig whose current context may make namespaces, as
`kind create cluster` writes it; `WORKSHOP_TEST_IMAGE` an image with bash and python3 that the
cluster has or can pull. Nothing outside the namespaces is touched, and they are deleted.
"""

import contextlib
import os
import threading
import time
import uuid

from workshop_lib.cluster.kubernetes import KubernetesCluster
from workshop_lib.cluster.kubernetes.resources import resource_of_kind

KUBECONFIG = os.environ.get("WORKSHOP_TEST_KUBECONFIG", "")
IMAGE = os.environ.get("WORKSHOP_TEST_IMAGE", "python:3.12-slim")
REASON = "set WORKSHOP_TEST_KUBECONFIG to the kubeconfig of a real cluster"


@contextlib.contextmanager
def real_namespace(profile="kind"):
    """A cluster connected to a namespace that is made for the block; no thread is left behind."""
    namespaces, name = resource_of_kind("Namespace"), f"workshop-test-{uuid.uuid4().hex[:8]}"
    before = set(threading.enumerate())
    cluster = KubernetesCluster(profile, kubeconfig=KUBECONFIG, namespace=name)
    api = cluster._api
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    made = api.checked(api.create(namespaces, "", body), f"Namespace/{name}", namespaces)
    try:
        # Pods are refused until their account is there.
        while api.get(resource_of_kind("ServiceAccount"), name, "default") is None:
            time.sleep(0.1)
        yield cluster
    finally:
        api.delete(namespaces, "", made)
        cluster.close()
    ours = ("forward ",)
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(ours)]
    assert left == []
