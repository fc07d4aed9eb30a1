"""The alerts of the manifests, and a Prometheus on this machine that evaluates them."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Cluster
from workshop_lib.errors import EnvironmentError_, NotFoundError, ServerError, WorkshopError

if TYPE_CHECKING:
    import pandas as pd

STARTS_S = 120
# vLLM's names have a colon, which a Prometheus before 3.0 is not given (see the monitors).
_COLON = {
    "source_labels": ["__name__"],
    "regex": "vllm_(.+)",
    "target_label": "__name__",
    "replacement": "vllm:$1",
}


def rule_groups() -> dict[str, Any]:
    """The alerts and records of the component `monitoring`, as in a file of Prometheus."""
    rules = [o.body for o in manifests.render("eks", "monitoring") if o.kind == "PrometheusRule"]
    return {"groups": [group for body in rules for group in body["spec"]["groups"]]}


def alerts_table() -> pd.DataFrame:
    """The alerts of the manifests: columns `alert`, `severity`, `for` and `what it says`.

    Example:
        >>> alerts_table().iloc[0]["alert"]
        'TimeToFirstTokenSlow'
    """
    import pandas as pd

    label = re.compile(r"{{ \$(?:labels\.)?(\w+)[^}]*}}")
    return pd.DataFrame(
        {
            "alert": rule["alert"],
            "severity": rule["labels"]["severity"],
            "for": rule.get("for", "at once"),
            "what it says": label.sub(r"<\1>", rule["annotations"]["summary"]),
        }
        for group in rule_groups()["groups"]
        for rule in group["rules"]
        if "alert" in rule
    )


class LocalPrometheus:
    """A Prometheus of this kernel, as `start_prometheus` gives it; `url` is its address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> pd.DataFrame:
        """The value of a PromQL expression now: a row for each series, its labels and `value`."""
        import httpx
        import pandas as pd

        try:
            asked = {"query": expression}
            answer = httpx.get(f"{self.url}/api/v1/query", params=asked, trust_env=False)
        except httpx.HTTPError as error:
            raise ServerError(f"Prometheus at {self.url} does not answer ({error})") from None
        said = answer.json()
        if answer.status_code != 200:
            raise ServerError(f"Prometheus at {self.url}: {said.get('error', answer.text)}")
        found = said["data"]["result"]
        rows = [{**each["metric"], "value": float(each["value"][1])} for each in found]
        return pd.DataFrame(rows, columns=None if rows else ["value"])


@contextmanager
def start_prometheus(
    cluster: Cluster, *, scrape_every_s: float = 15.0
) -> Iterator[LocalPrometheus]:
    """Prometheus with the manifests' alerts, on loopback, for the pods that run now."""
    program = shutil.which("prometheus")
    if program is None:
        raise EnvironmentError_(
            "Prometheus is not installed here: apt-get install prometheus (Debian, Ubuntu), or "
            "brew install prometheus; watch_serving() reads the same pages without it"
        )
    with ExitStack() as stack:
        targets = list(_targets(cluster, stack))
        if not targets:
            raise NotFoundError(
                "no pod has a page of metrics; apply vllm, ray-service or autoscale"
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workshop-prom-")))
        every = f"{round(scrape_every_s * 1000)}ms"
        pods = {"job_name": "pods", "static_configs": targets, "metric_relabel_configs": [_COLON]}
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every},
            "rule_files": [str(folder / "rules.yaml")],
            "scrape_configs": [pods],
        }
        rules = {"groups": [{**group, "interval": every} for group in rule_groups()["groups"]]}
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        if setpriv := shutil.which("setpriv"):  # the kernel's end is its end, however it comes
            command = [setpriv, "--pdeathsig", "TERM", *command]
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        _wait_ready(f"http://{address}/-/ready", process, folder / "log")
        yield LocalPrometheus(f"http://{address}")


def _targets(cluster: Cluster, stack: ExitStack) -> Iterator[dict[str, Any]]:
    """The pages of the pods that run, with the labels that the rules read."""
    for component in cluster.components():
        for pod in cluster.get(component).observe().pods:
            metadata = pod["metadata"]
            labels = metadata.get("labels") or {}
            app = labels.get("app", component)
            wanted = "http" if app == "vllm" else "metrics"  # the named port with the page
            ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or []]
            port = next((p["containerPort"] for p in ports if p.get("name") == wanted), None)
            if port is None or pod["status"].get("phase") != "Running":
                continue
            url = stack.enter_context(cluster.forward(metadata["name"], port))
            told = {
                "job": "vllm" if app == "vllm" else "laptop/ray-jobs",
                "pod": metadata["name"],
                "namespace": metadata.get("namespace", "default"),
                "ray_io_cluster": labels.get("ray.io/cluster", app),
            }
            yield {"targets": [url.partition("//")[2]], "labels": told}


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    deadline = time.monotonic() + STARTS_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    last = " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
    raise WorkshopError(f"Prometheus did not start: {last[:300] or 'it said nothing'}")
