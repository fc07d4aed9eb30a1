"""The objects of the emulated cluster, and their versions."""

import copy
import threading
import uuid
from datetime import UTC, datetime

from . import merging, schema


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, code, message, reason=None, details=None):
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                     "message": message}  # fmt: skip
        if reason:
            self.body["reason"] = reason
        if details:
            self.body["details"] = details
        self.body["code"] = code


def full_name(resource):
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def about(resource, name):
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return {key: value for key, value in details.items() if value}


def not_found(resource, name):
    message = f'{full_name(resource)} "{name}" not found'
    return Problem(404, message, "NotFound", about(resource, name))


class Store:
    """Objects by (plural, namespace, name)."""

    def __init__(self):
        self.lock = threading.RLock()
        self.version = 100
        self.objects = {}

    def key(self, resource, namespace, name):
        return resource.plural, namespace if resource.namespaced else "", name

    def get(self, resource, namespace, name):
        with self.lock:
            return copy.deepcopy(self.objects.get(self.key(resource, namespace, name)))

    def list(self, resource, namespace):
        with self.lock:
            where = namespace if resource.namespaced else ""
            found = [
                body for (plural, ns, _), body in sorted(self.objects.items())
                if plural == resource.plural and (ns == where or not namespace)
            ]  # fmt: skip
            return copy.deepcopy(found)

    def put(self, resource, namespace, body):
        """Store an object under a new version."""
        with self.lock:
            key = self.key(resource, namespace, body["metadata"]["name"])
            self.version += 1
            body["metadata"]["resourceVersion"] = str(self.version)
            self.objects[key] = copy.deepcopy(body)
            return body

    def drop(self, resource, namespace, name):
        with self.lock:
            key = self.key(resource, namespace, name)
            body = self.objects.pop(key)
            self.version += 1
            body["metadata"]["resourceVersion"] = str(self.version)
            return body

    # -- what clients ask ---------------------------------------------------------------------

    def new(self, body, namespace, resource):
        metadata = body["metadata"]
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if resource.namespaced:
            metadata["namespace"] = namespace
        if "spec" in body:
            metadata["generation"] = 1
        if body["kind"] == "Secret" and "stringData" in body:
            body["data"] = {**body.get("data", {}), **body.pop("stringData")}

    def check_fields(self, body, namespace):
        model = schema.model_of(body)
        if model is not None and (field := schema.unknown_field(body, model)):
            name = body["metadata"]["name"]
            raise Problem(500, "failed to create typed patch object "
                          f"({namespace}/{name}; {body['apiVersion']}, Kind={body['kind']}): "
                          f"{field}: field not declared in schema")  # fmt: skip

    def check_rules(self, resource, old, body):
        if causes := schema.invalid(old, body):
            name, kind = body["metadata"]["name"], body["kind"]
            group = resource.group
            message = "; ".join(f"{field}: {said}" for _, said, field in causes)
            details = {"name": name, "group": group, "kind": kind, "causes": [
                {"reason": reason, "message": said, "field": field}
                for reason, said, field in causes
            ]}  # fmt: skip
            full = f"{kind}.{group}" if group else kind
            raise Problem(422, f'{full} "{name}" is invalid: {message}', "Invalid", details)

    def apply(self, resource, namespace, body, *, manager, force, dry_run):
        """Server-side apply: `(status, object)`."""
        with self.lock:
            name = body["metadata"]["name"]
            self.check_fields(body, namespace)
            live = self.get(resource, namespace, name)
            asked = body["metadata"].get("resourceVersion")
            if asked and (live is None or asked != live["metadata"]["resourceVersion"]):
                raise Problem(409, "the object has been modified", "Conflict")
            result, conflicts = merging.apply(live, body, manager, force, now())
            if conflicts:
                managers = [f'conflict with "{who}": {field}' for who, field in conflicts]
                plural = "conflict" if len(conflicts) == 1 else "conflicts"
                raise Problem(
                    409, f"Apply failed with {len(conflicts)} {plural}: {', '.join(managers)}",
                    "Conflict", {"causes": [
                        {"reason": "FieldManagerConflict", "message": f'conflict with "{who}"',
                         "field": field} for who, field in conflicts]},
                )  # fmt: skip
            if live is None:
                self.new(result, namespace, resource)
            schema.defaults(result)
            self.check_rules(resource, live, result)
            if live is not None and result.get("spec") != live.get("spec"):
                result["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
            if not dry_run and result != live:
                self.put(resource, namespace, result)
            return (201 if live is None else 200), result

    def create(self, resource, namespace, body, *, manager, dry_run):
        with self.lock:
            name = body["metadata"]["name"]
            self.check_fields(body, namespace)
            if self.get(resource, namespace, name) is not None:
                raise Problem(409, f'{full_name(resource)} "{name}" already exists',
                              "AlreadyExists", about(resource, name))  # fmt: skip
            claimed = merging.fields_v1(merging.owned(body))
            self.new(body, namespace, resource)
            schema.defaults(body)
            self.check_rules(resource, None, body)
            body["metadata"]["managedFields"] = [
                {"manager": manager, "operation": "Update", "apiVersion": body["apiVersion"],
                 "time": now(), "fieldsType": "FieldsV1", "fieldsV1": claimed}]  # fmt: skip
            if not dry_run:
                self.put(resource, namespace, body)
            return 201, body

    def delete(self, resource, namespace, name, options):
        """Foreground: marked, and removed by `collect` when its dependents are gone."""
        with self.lock:
            body = self.get(resource, namespace, name)
            if body is None:
                raise not_found(resource, name)
            metadata = body["metadata"]
            wanted = (options.get("preconditions") or {}).get("uid")
            if wanted and wanted != metadata["uid"]:
                raise Problem(409, f"Precondition failed: UID in precondition: {wanted}, UID in "
                              f"object meta: {metadata['uid']}", "Conflict")  # fmt: skip
            finalizers = list(metadata.get("finalizers") or [])
            if options.get("propagationPolicy") == "Foreground":
                finalizers.append("foregroundDeletion")
            if not finalizers:
                return self.drop(resource, namespace, name)
            if "deletionTimestamp" not in metadata:
                metadata |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
                if "generation" in metadata:
                    metadata["generation"] += 1
            metadata["finalizers"] = list(dict.fromkeys(finalizers))
            return self.put(resource, namespace, body)
