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


BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
    "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def pod_security_problems(spec, level):
    """What a level of the Pod Security Standards (baseline, restricted) refuses in a pod spec.

    From https://kubernetes.io/docs/concepts/security/pod-security-standards/, the controls that
    a field of these manifests could break.
    """
    problems = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    problems += ["hostPath" for volume in spec.get("volumes", []) if "hostPath" in volume]
    pod = spec.get("securityContext", {})
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = {**pod, **container.get("securityContext", {})}
        added = set(context.get("capabilities", {}).get("add", []))
        problems += ["privileged"] if context.get("privileged") else []
        problems += sorted(added - BASELINE_CAPABILITIES)
        if level != "restricted":
            continue
        problems += sorted(added - {"NET_BIND_SERVICE"})
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            problems.append("capabilities")
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            problems.append("root")
        if context.get("allowPrivilegeEscalation") is not False:
            problems.append("escalation")
        if (context.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            problems.append("seccomp")
    if level == "restricted":
        kinds = {key for volume in spec.get("volumes", []) for key in volume if key != "name"}
        problems += sorted(kinds - RESTRICTED_VOLUMES)
    return problems
