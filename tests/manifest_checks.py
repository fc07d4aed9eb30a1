"""What the tests of manifests look for in rendered objects, whichever profile they are for."""

import functools
from pathlib import Path

import jsonschema
import yaml

CRDS = Path(__file__).parent / "data/kuberay"


def pod_specs(node):
    """Every pod spec in an object, wherever its kind keeps it."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


def head_with_autoscaler(body):
    """The head's pod spec in a Ray cluster that adds and removes its own workers."""
    cluster = body.get("spec", {}).get("rayClusterConfig") or body.get("spec", {})
    if not cluster.get("enableInTreeAutoscaling"):
        return None
    return cluster["headGroupSpec"]["template"]["spec"]


def crd_problems(body):
    """What KubeRay's CRD says against an object, an unknown field included."""
    validator = _validator_of(body["kind"])
    body = {key: value for key, value in body.items() if key != "metadata"}
    return [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(body)]


@functools.cache
def _validator_of(kind):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((CRDS / f"{kind.lower()}s.yaml").read_text(), Loader=loader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(node):
    """A CRD's schema in which an unknown field is an error, as under strict validation."""
    if isinstance(node, list):
        return [_strict(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and not open_ended:
        node["additionalProperties"] = False
    if node.pop("x-kubernetes-int-or-string", False):
        node = {"type": ["integer", "string"]}
    return node


def pod_templates(node):
    """Every pod template in an object, the head's first."""
    if isinstance(node, list):
        return [found for value in node for found in pod_templates(value)]
    if not isinstance(node, dict):
        return []
    own = [node] if "containers" in (node.get("spec") or {}) else []
    return own + [found for value in node.values() for found in pod_templates(value)]
