"""A kubeconfig for each learner: a token of some hours, in a file that only its owner reads.

The token is asked for with TokenRequest (it names its audience, ends by itself, and is
never stored in the cluster). It is written to the file and shown nowhere.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.errors import ClusterError, NotFoundError, WorkshopError
from workshop_lib.production.room.roster import Learner

__all__ = ["write_kubeconfigs"]

ACCOUNT = "learner"
LONGEST_H = 24


def write_kubeconfigs(
    cluster: KubernetesCluster, learners: Sequence[Learner], folder: Path, *, hours: float = 8
) -> dict[str, Path]:
    """Write a kubeconfig for each learner.

    Args:
        cluster: The cluster, with an instructor's credentials.
        learners: Whose namespaces and accounts are there.
        folder: Where the files go; it is made if it is not there, for its owner alone.
        hours: How long a token counts. The server may give less (EKS: 24 h at most).

    Returns:
        Learner to file.

    Raises:
        WorkshopError: `hours` makes no sense.
        NotFoundError: A learner has no account yet; no file was written.

    Example:
        >>> write_kubeconfigs(room.cluster, learners, Path("kubeconfigs"))   # doctest: +SKIP
    """
    if not 1 / 6 <= hours <= LONGEST_H:
        raise WorkshopError(f"hours must be from 1/6 (ten minutes) to {LONGEST_H}, not {hours:g}")
    configs = {learner.name: _config(cluster, learner, round(hours * 3600)) for learner in learners}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {}
    for name, config in configs.items():
        files[name] = folder / f"{name}.kubeconfig"
        files[name].unlink(missing_ok=True)  # an old file's mode would stay
        descriptor = os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(config, file, sort_keys=False)
    return files


def _config(cluster: KubernetesCluster, learner: Learner, seconds: int) -> dict[str, Any]:
    api: Api = cluster._api
    access = api.access
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
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": learner.name,
        "clusters": [{"name": "workshop", "cluster": server}],
        "users": [{"name": learner.name, "user": {"token": _token(api, learner, seconds)}}],
        "contexts": [
            {
                "name": learner.name,
                "context": {
                    "cluster": "workshop",
                    "user": learner.name,
                    "namespace": learner.namespace,
                },
            }
        ],
    }


def _token(api: Api, learner: Learner, seconds: int) -> str:
    from workshop_lib.cluster.kubernetes.answers import problem

    path = f"/api/v1/namespaces/{learner.namespace}/serviceaccounts/{ACCOUNT}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }
    answer = api.request("POST", path, body=body, content_type="application/json")
    if answer.status == 404:
        raise NotFoundError(
            f"{learner.name} has no account yet: python -m workshop_lib.production.room apply"
        )
    if not answer.ok:
        raise problem(answer, f"a token for {learner.name}")
    token: str = answer.json()["status"]["token"]
    return token
