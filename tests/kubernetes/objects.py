"""Small objects for tests."""

from workshop_lib.cluster.manifests import Object


def config_map(name="settings", **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": data or {"a": "1"}}  # fmt: skip


def job(name="talk", image="x:1", **spec):
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": image}]}}, **spec},
    }  # fmt: skip


def deployment(name="server", replicas=1):
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "main", "image": "x:1"}]}}},
    }  # fmt: skip


def service(name="server", port=8000, target="http"):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "selector": {"app": name}, "ports": [{"port": port, "targetPort": target}]}}  # fmt: skip


def secret(name="auth"):
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": {
        "name": name, "annotations": {"workshop.techpulse/generate": "auth_token"}}}  # fmt: skip


def claim(name="shared", size="1Gi"):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteMany"],
                     "resources": {"requests": {"storage": size}}}}  # fmt: skip


def ray_cluster(name="raycluster"):
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": name},
            "spec": {"rayVersion": "2.60.0"}}  # fmt: skip


def objects(*bodies):
    return [Object(body, "manifests/base/test.yaml") for body in bodies]


def put_ours(emulator, cluster, component, *bodies):
    """Apply and return the handle."""
    return cluster.apply_objects(component, objects(*bodies))
