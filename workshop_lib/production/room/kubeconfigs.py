"""A kubeconfig for each learner: a token of some hours, in a file that only its owner reads.

The token is asked for with TokenRequest (it names its audience, ends by itself, and is never
stored in the cluster). It is written to the file and shown nowhere.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.kubernetes.answers import problem
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.errors import ClusterError, NotFoundError, WorkshopError
from workshop_lib.production.room.roster import Learner

__all__ = ["write_kubeconfigs"]

ACCOUNT = "learner"
LONGEST_H = 24


def write_kubeconfigs(
    cluster: KubernetesCluster, learners: Sequence[Learner], folder: Path, *, hours: float = 8
) -> dict[str, Path]:
    """Write a kubeconfig for each learner; the files by learner.

    Args:
        cluster: The cluster, with an instructor's credentials.
        learners: Whose namespaces and accounts are there.
        folder: Where the files go; it is made if it is not there, for its owner alone.
        hours: How long a token counts. The server may give less (EKS: 24 h at most).

    Raises:
        WorkshopError: `hours` makes no sense.
        NotFoundError: A learner has no account yet; no file was written.

    Example:
        >>> write_kubeconfigs(room.cluster, learners, Path("kubeconfigs"))   # doctest: +SKIP
    """
    if not 1 / 6 <= hours <= LONGEST_H:
        raise WorkshopError(f"hours must be from 1/6 (ten minutes) to {LONGEST_H}, not {hours:g}")
    server, seconds = _server(cluster), round(hours * 3600)
    tokens = {learner.name: _token(cluster, learner, seconds) for learner in learners}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {}
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
        files[name] = folder / f"{name}.kubeconfig"
        files[name].unlink(missing_ok=True)  # an old file's mode would stay
        descriptor = os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(config, file, sort_keys=False)
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


def _token(cluster: KubernetesCluster, learner: Learner, seconds: int) -> str:
    path = f"/api/v1/namespaces/{learner.name}/serviceaccounts/{ACCOUNT}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }
    answer = cluster._api.request("POST", path, body=body, content_type="application/json")
    if answer.status == 404:
        raise NotFoundError(f"{learner.name} has no account yet; make it with: workshop room apply")
    if not answer.ok:
        raise problem(answer, f"a token for {learner.name}")
    token: str = answer.json()["status"]["token"]
    return token
