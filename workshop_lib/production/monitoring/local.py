"""Prometheus on a laptop, reading what `LocalCluster` plays, as the manifests' monitors say."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local.network import AddressBook
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import remove_tree
from workshop_lib.cluster.local.processes import is_running
from workshop_lib.errors import ClusterError, EnvironmentError_, NotFoundError, WorkshopError
from workshop_lib.production.monitoring.client import PrometheusClient
from workshop_lib.production.monitoring.scraping import (
    Monitor,
    Target,
    find_targets,
    monitors,
    rule_groups,
)

if TYPE_CHECKING:
    from workshop_lib.cluster.base import Cluster
    from workshop_lib.cluster.local.cluster import LocalCluster

__all__ = ["LocalPrometheus", "local_targets", "prometheus_program", "start_prometheus"]

FOLDER = "prometheus-"
"""Beginning of the folder's name, in the state's; the kernel's process id follows."""


def prometheus_program() -> str:
    """Path of Prometheus.

    Raises:
        EnvironmentError_: It is not installed; the line says how it is.
    """
    found = shutil.which("prometheus")
    if found is None:
        raise EnvironmentError_(
            "Prometheus is not installed here: apt-get install prometheus (Debian, Ubuntu), or "
            "brew install prometheus; watch_serving() reads the same pages without it"
        )
    return found


def local_targets(cluster: LocalCluster, found: Sequence[Monitor]) -> list[tuple[Target, str]]:
    """What the manifests' monitors find on this machine, and each page's address.

    Args:
        cluster: The local cluster.
        found: The monitors.
    """
    objects = all_objects(cluster.paths)
    pods = []
    for body in objects:
        if body["kind"] in WORKLOAD_KINDS:
            try:
                pods += cluster.observe(body["kind"], body["metadata"]["name"]).pods
            except ClusterError:
                continue  # deleted meanwhile, or lost with its supervisor: it has no pages
    services = [body for body in objects if body["kind"] == "Service"]
    # Which address is a pod's: the book keeps it beside the ports that it really has.
    by_ip = AddressBook(cluster.paths).by_ip()
    ips = {pod["metadata"]["name"]: pod["status"].get("podIP", "") for pod in pods}
    targets = []
    for target in find_targets(found, services, pods):
        endpoint = by_ip.get(ips[target.pod])
        if endpoint is not None and target.port in endpoint.ports:
            targets.append((target, f"{endpoint.ip}:{endpoint.ports[target.port]}"))
    return targets


class LocalPrometheus(PrometheusClient):
    """A Prometheus of this kernel: on loopback, its data in the state's folder.

    It ends with `stop`, at the end of a `with` block, and with the kernel at the latest.

    Args:
        cluster: The local cluster whose pages it reads.
        scrape_every_s: Seconds between two readings; None takes the monitors' own.
    """

    def __init__(self, cluster: LocalCluster, *, scrape_every_s: float | None = None) -> None:
        self._cluster = cluster
        self._every_s = scrape_every_s
        self._monitors = monitors()
        program = prometheus_program()
        self.folder = _new_folder(cluster.paths.folder)
        self._write_config()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self.refresh()
        self._process = self._start(program, port)
        atexit.register(self.stop)

    def _write_config(self) -> None:
        every_s = self._every_s or 15
        config = {
            "global": {
                "scrape_interval": _duration(every_s),
                "scrape_timeout": _duration(min(10, every_s)),
                "evaluation_interval": _duration(every_s),
            },
            "rule_files": [str(self.folder / "rules.yaml")],
            "scrape_configs": [
                {
                    "job_name": monitor.name,
                    "metrics_path": monitor.path,
                    "scrape_interval": _duration(self._every_s or monitor.interval_s),
                    "file_sd_configs": [{"files": [str(self._targets_file(monitor))]}],
                    "metric_relabel_configs": [dict(rule) for rule in monitor.series_rules],
                }
                for monitor in self._monitors
            ],
        }
        rules = rule_groups()
        for group in rules["groups"]:
            if self._every_s is not None and "interval" in group:
                group["interval"] = _duration(every_s)
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))

    def _start(self, program: str, port: int) -> subprocess.Popen[bytes]:
        command = [
            program,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            "--storage.tsdb.retention.time=1d",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        if setpriv := shutil.which("setpriv"):  # the kernel's end is its end, however it comes
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 120
        while not self._ready():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                last = (self.folder / "log").read_text(errors="replace").strip().splitlines()
                raise WorkshopError(
                    f"Prometheus did not start: {' '.join(last[-1:])[:300]}; "
                    f"its log is {self.folder / 'log'}"
                )
            time.sleep(0.1)
        return process

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def refresh(self) -> None:
        """Look again which pods there are; every question does it first.

        Prometheus watches the file that is written. On a cluster the operator and
        Prometheus' own discovery do this.
        """
        groups: dict[str, list[dict[str, Any]]] = {each.name: [] for each in self._monitors}
        for target, address in local_targets(self._cluster, self._monitors):
            entry = {"targets": [address], "labels": dict(target.labels)}
            groups[target.monitor.name].append(entry)
        for name, entries in groups.items():
            text = json.dumps(entries)
            file = self.folder / f"targets-{name}.json"
            if not file.exists() or file.read_text() != text:
                new = file.with_suffix(".new")
                new.write_text(text)
                new.replace(file)

    def _targets_file(self, monitor: Monitor) -> Path:
        return self.folder / f"targets-{monitor.name}.json"

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer, after a look at which pods there are."""
        if self.folder.exists():
            self.refresh()
        return super().get(path, **parameters)

    def wait_scraped(self, jobs: Sequence[str], *, timeout_s: float = 120.0) -> LocalPrometheus:
        """Wait until the pages of these jobs have been read.

        Args:
            jobs: Such as `vllm`, `llm-head-svc`.
            timeout_s: The longest to wait.

        Raises:
            NotFoundError: One has not been read in that time; the line says why.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            table = self.targets()
            up = set(table.loc[table["health"] == "up", "job"])
            if missing := sorted(set(jobs) - up):
                if time.monotonic() > deadline:
                    errors = table.loc[table["job"].isin(missing), "error"].tolist()
                    raise NotFoundError(
                        f"Prometheus has not read {', '.join(missing)} in {timeout_s:g} s "
                        f"({'; '.join(errors) or 'no such pod runs'}); it reads "
                        f"{', '.join(sorted(up)) or 'nothing'}"
                    )
                time.sleep(0.5)
                continue
            return self

    def stop(self) -> None:
        """End it and remove its data; a second time does nothing."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self.folder.exists():
            remove_tree(self.folder)

    def __enter__(self) -> LocalPrometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _new_folder(state: Path) -> Path:
    """A folder for this kernel's Prometheus; those of kernels that were killed are removed."""
    for old in state.glob(f"{FOLDER}*"):
        pid = old.name.removeprefix(FOLDER).partition("-")[0]
        if pid.isdigit() and not is_running(int(pid)):
            remove_tree(old)
    state.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=state))


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def start_prometheus(cluster: Cluster, *, scrape_every_s: float | None = None) -> LocalPrometheus:
    """Start Prometheus on this machine, on loopback, for what the local cluster plays.

    Args:
        cluster: A local cluster. On Kubernetes Prometheus runs in the cluster.
        scrape_every_s: Seconds between two readings; None takes the manifests' 15 s, which is
            right for a day and slow for a lesson.

    Raises:
        EnvironmentError_: Prometheus is not installed.
        WorkshopError: It did not start, or the cluster is not this machine.

    Example:
        >>> with start_prometheus(cluster, scrape_every_s=1) as prometheus:  # doctest: +SKIP
        ...     prometheus.wait_scraped(["vllm"]).targets()
    """
    from workshop_lib.cluster.local.cluster import LocalCluster

    if not isinstance(cluster, LocalCluster):
        raise WorkshopError(
            f"on profile {cluster.profile!r} Prometheus runs in the cluster: forward its Service "
            "(monitoring-kube-prometheus-prometheus, port 9090) and give PrometheusClient the URL"
        )
    return LocalPrometheus(cluster, scrape_every_s=scrape_every_s)
