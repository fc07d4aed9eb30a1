"""A kubeconfig for each learner: a token of some hours, in a file that only its owner reads.

The token is asked for with TokenRequest: it names its audience, ends by itself, and is never
stored in the cluster or shown.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.kubernetes.answers import problem
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.errors import ClusterError, NotFoundError
from workshop_lib.production.room.roster import Learner


def write_kubeconfigs(
    cluster: KubernetesCluster, learners: Sequence[Learner], folder: Path, *, hours: float = 8
) -> list[Path]:
    """Write a kubeconfig for each learner; the server may give it less hours (EKS: 24 at most)."""
    server, seconds = _server(cluster), round(hours * 3600)
    tokens = {learner.name: _token(cluster, learner.name, seconds) for learner in learners}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = []
    for name, token in tokens.items():
        context = {"cluster": "workshop", "user": name, "namespace": name}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": "workshop", "cluster": server}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": context}],
        }
        file = folder / f"{name}.kubeconfig"
        file.unlink(missing_ok=True)  # an old file's mode would stay
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        files.append(file)
    return files


def _server(cluster: KubernetesCluster) -> dict[str, Any]:
    """The server and its authority, as the instructor's kubeconfig has them."""
    access = cluster._api.access
    configuration = access.client.configuration
    server: dict[str, Any] = {"server": access.server}
    if configuration.ssl_ca_cert:
        authority = Path(configuration.ssl_ca_cert).read_bytes()
        server["certificate-authority-data"] = base64.b64encode(authority).decode()
    elif access.server.startswith("https:") and not configuration.verify_ssl:
        raise ClusterError(
            f"{access.context} does not check the server's certificate; no learner gets such a "
            "kubeconfig: put certificate-authority-data into yours"
        )
    return server


def _token(cluster: KubernetesCluster, learner: str, seconds: int) -> str:
    path = f"/api/v1/namespaces/{learner}/serviceaccounts/learner/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }
    answer = cluster._api.request("POST", path, body=body, content_type="application/json")
    if answer.status == 404:
        raise NotFoundError(f"{learner} has no account yet; make it with: workshop room apply")
    if not answer.ok:
        raise problem(answer, f"a token for {learner}")
    return str(answer.json()["status"]["token"])
