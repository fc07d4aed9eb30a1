"""What the API server knows of its objects: kinds, fields, defaults, a few rules."""

import json
import typing

KINDS = {
    "v1": ["ConfigMap", "Secret", "Service", "Pod", "Event", "Namespace", "PersistentVolumeClaim",
           "PersistentVolume", "ResourceQuota", "LimitRange", "ServiceAccount", "Node"],
    "batch/v1": ["Job"],
    "apps/v1": ["Deployment", "ReplicaSet"],
    "discovery.k8s.io/v1": ["EndpointSlice"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
    "storage.k8s.io/v1": ["StorageClass"],
    "ray.io/v1": ["RayCluster", "RayService", "RayJob"],
    "karpenter.sh/v1": ["NodePool"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PodMonitor", "PrometheusRule"],
}  # fmt: skip
SPECIAL = {"NetworkPolicy": "networkpolicies", "StorageClass": "storageclasses"}


def plural_of(kind):
    return SPECIAL.get(kind, kind.lower() + "s")


def model_of(body):
    """The official client's model of a kind: it knows every field."""
    from kubernetes import client

    if "ray.io" in body["apiVersion"]:
        return None
    version = body["apiVersion"].rpartition("/")[2]
    return getattr(client, f"{version[0].upper()}{version[1:]}{body['kind']}", None)


def _inner(model):
    """What is inside Optional and Annotated."""
    while typing.get_origin(model) in (typing.Union, typing.Annotated):
        inside = [each for each in typing.get_args(model) if each is not type(None)]
        model = inside[0]
    return model


def unknown_field(value, model, path=""):
    """The first field that the schema does not have, or None."""
    model = _inner(model)
    if isinstance(value, list):
        if typing.get_origin(model) not in (list, typing.List):  # noqa: UP006
            return None
        (inner,) = typing.get_args(model)
        for item in value:
            name = item.get("name") if isinstance(item, dict) else None
            where = f'{path}[name="{name}"]' if name else f"{path}[]"
            if found := unknown_field(item, inner, where):
                return found
        return None
    if not isinstance(value, dict) or not hasattr(model, "model_fields"):
        return None
    fields = {f.serialization_alias or n: f.annotation for n, f in model.model_fields.items()}
    for key, each in value.items():
        if key not in fields:
            return f"{path}.{key}"
        if found := unknown_field(each, fields[key], f"{path}.{key}"):
            return found
    return None


CONTAINER = {
    "resources": {}, "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent",
}  # fmt: skip
POD = {
    "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "securityContext": {},
    "schedulerName": "default-scheduler", "restartPolicy": "Always",
}  # fmt: skip


def defaults(body):
    """Fill what the server fills; of Jobs as recorded, of others what tests look at."""
    template = (body.get("spec") or {}).get("template") or {}
    if body["kind"] in ("Job", "Deployment") and "spec" in template:
        pod = template["spec"]
        for key, value in POD.items():
            pod.setdefault(key, value)
        for container in pod["containers"]:
            for key, value in CONTAINER.items():
                container.setdefault(key, value)
    if body["kind"] == "Job":
        uid, spec = body["metadata"]["uid"], body["spec"]
        labels = {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": body["metadata"]["name"],
            "controller-uid": uid, "job-name": body["metadata"]["name"],
        }  # fmt: skip
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {**metadata.get("labels", {}), **labels}
        if not body["metadata"].get("labels"):
            body["metadata"]["labels"] = dict(labels)
        for key, value in {
            "parallelism": 1, "completions": 1, "backoffLimit": 6,
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}},
            "manualSelector": False, "completionMode": "NonIndexed", "suspend": False,
            "podReplacementPolicy": "TerminatingOrFailed",
        }.items():  # fmt: skip
            spec.setdefault(key, value)
        body.setdefault("status", {})


def invalid(old, new):
    """Why an object is refused: causes, or none."""
    kind, spec = new["kind"], new.get("spec") or {}
    if kind == "Job":
        if spec["template"]["spec"].get("restartPolicy") == "Always":
            return [("FieldValueRequired", 'Required value: valid values: "OnFailure", "Never"',
                     "spec.template.spec.restartPolicy")]  # fmt: skip
        if old and old["spec"]["template"] != spec["template"]:
            # The whole template, in Go's words: thousands of characters before the reason.
            said = f"Invalid value: {json.dumps(spec['template'])}: field is immutable"
            return [("FieldValueInvalid", said, "spec.template")]
    if kind == "PersistentVolumeClaim" and old and old["spec"] != spec:
        said = (
            "Forbidden: spec is immutable after creation except resources.requests and "
            "volumeAttributesClassName for bound claims\n"
            '@@ -1,6 +1,6 @@\n {\n-  "old"\n+  "new"\n }'
        )
        return [("FieldValueForbidden", said, "spec")]
    return []
