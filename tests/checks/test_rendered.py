"""Every overlay as it is sent to a cluster, in the eyes of Kubernetes' own schemas and of checkov.

The tools are in an environment of their own (`make checks`), and so are called as programs.
"""

import json
import re

import pytest
import yaml
from manifest_checks import pod_templates
from separate import needed, run

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kubernetes.applying import prepared

VERSION = "1.36"
ROOT = manifests.manifests_dir()
OVERLAYS = sorted(
    (path.parent.parent.name, path.parent.name)
    for profile in ("eks", "kind")
    for path in (ROOT / "overlays" / profile).glob("*/kustomization.yaml")
)

pytestmark = needed


def as_pods(body):
    """The pods that KubeRay makes of an object's templates: neither tool knows its kinds."""
    for number, template in enumerate(pod_templates(body)):
        name = f"{body['metadata']['name']}-{'worker' if number else 'head'}"
        metadata = {**template["metadata"], "name": name, "namespace": "workshop"}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def documents(folder):
    return [body for file in folder.iterdir() for body in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with a file for each overlay."""
    folder = tmp_path_factory.mktemp("rendered")
    for profile, component in OVERLAYS:
        bodies = []
        for body in prepared(component, manifests.render(profile, component), "workshop"):
            if "monitoring.coreos.com" in body["apiVersion"]:
                continue  # neither tool knows these; tests/unit/test_monitoring.py looks at them
            bodies += as_pods(body) if "ray.io" in body["apiVersion"] else [body]
        file = folder / f"{profile}.{component}.yaml"
        file.write_text(yaml.safe_dump_all(bodies, sort_keys=False))
    return folder


def test_every_object_fits_the_schema(rendered):
    files = sorted(map(str, rendered.iterdir()))
    done = run("kubernetes-validate", "-k", VERSION, "--strict", "--no-warn", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(
        rf"passed for resource \S+ against version {re.escape(VERSION)}", done.stdout
    )
    assert len(passed) == len(documents(rendered)) >= 3 * len(OVERLAYS)


def test_the_schema_sees_a_misspelt_field(rendered, tmp_path):
    bodies = list(yaml.safe_load_all((rendered / "eks.raycluster.yaml").read_text()))
    bodies[0]["spec"]["containers"][0]["resorces"] = {}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump_all(bodies))
    done = run("kubernetes-validate", "-k", VERSION, "--strict", str(file))
    assert done.returncode != 0 and "resorces" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def found(rendered):
    """checkov's failed checks: id to the objects, as profile/component Kind/name."""
    done = run(
        "checkov", "-d", str(rendered), "--framework", "kubernetes", "-o", "json", "--quiet",
        "--compact", "--skip-download",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["resource_count"] >= len(documents(rendered))
    failed = {}
    for check in report["results"]["failed_checks"]:
        profile, component = check["file_path"].strip("/").split(".")[:2]
        kind, _, name = check["resource"].split(".", 2)
        failed.setdefault(check["check_id"], set()).add(f"{profile}/{component} {kind}/{name}")
    return failed


EXCEPTIONS = yaml.safe_load((ROOT / "checks.yaml").read_text())


def test_checkov_finds_only_what_is_explained(found):
    for check, where in found.items():
        assert check in EXCEPTIONS, f"{check} fails for {sorted(where)}; see manifests/checks.yaml"
        allowed = EXCEPTIONS[check].get("where")
        assert allowed is None or where <= set(allowed), f"{check}: {sorted(where - set(allowed))}"


def test_every_exception_is_needed_and_says_why(found):
    for check, entry in EXCEPTIONS.items():
        assert check in found, f"{check} fails nowhere; remove it from manifests/checks.yaml"
        assert len(entry["why"]) > 40 and set(entry) <= {"why", "where"}
        assert set(entry.get("where", [])) <= found[check], check
