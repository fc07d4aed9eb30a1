"""Server-side apply: whose fields are which, conflicts, merging."""

import copy
import json

MERGE_KEYS = {
    "containers": ("name",), "initContainers": ("name",), "env": ("name",), "volumes": ("name",),
    "volumeMounts": ("mountPath",), "ports": ("containerPort", "port", "protocol"),
    "ownerReferences": ("uid",),
}  # fmt: skip
"""Lists whose items have an identity; every other list is one value."""


def item_key(field, item):
    keys = MERGE_KEYS.get(field, ())
    if not isinstance(item, dict):
        return None
    found = {key: item[key] for key in keys if key in item}
    return json.dumps(found, separators=(",", ":"), sort_keys=True) if found else None


def is_keyed(field, value):
    return isinstance(value, list) and bool(value) and all(item_key(field, i) for i in value)


def leaves(value, field="", path=()):
    """The places of an object that have an owner, each with its value."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, key, (*path, f"f:{key}"))
    elif is_keyed(field, value):
        for item in value:
            here = (*path, f"k:{item_key(field, item)}")
            yield (*here, "."), None
            yield from leaves(item, "", here)
    else:
        yield path, value


def owned(body):
    """The leaves that an applied object claims."""
    body = {k: v for k, v in body.items() if k not in ("apiVersion", "kind")}
    metadata = body.get("metadata", {})
    left_out = ("name", "namespace", "resourceVersion", "uid")
    body["metadata"] = {k: v for k, v in metadata.items() if k not in left_out}
    if not body["metadata"]:
        del body["metadata"]
    return dict(leaves(body))


def fields_v1(paths):
    tree = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    return tree


def paths_of(tree, path=()):
    if not tree:
        yield path
    for key, each in tree.items():
        if key == ".":
            yield (*path, ".")
        else:
            yield from paths_of(each, (*path, key))


def at(body, path):
    """The value at a path, or a marker that there is none."""
    node, field = body, ""
    for part in path:
        kind, _, name = part.partition(":")
        if part == ".":
            return None
        if kind == "f":
            if not isinstance(node, dict) or name not in node:
                return MISSING
            node, field = node[name], name
        else:
            found = [item for item in node or [] if item_key(field, item) == name]
            if not found:
                return MISSING
            node, field = found[0], ""
    return node


MISSING = object()


def merge(live, applied, field=""):
    if isinstance(applied, dict) and isinstance(live, dict):
        for key, value in applied.items():
            live[key] = merge(live[key], value, key) if key in live else copy.deepcopy(value)
        return live
    if is_keyed(field, applied) and isinstance(live, list):
        for item in applied:
            same = [
                i for i, old in enumerate(live) if item_key(field, old) == item_key(field, item)
            ]
            if same:
                merge(live[same[0]], item)
            else:
                live.append(copy.deepcopy(item))
        return live
    return copy.deepcopy(applied)


def remove(body, path):
    """Remove what a manager owned and applies no more."""
    *way, last = path
    node = at(body, tuple(way))
    kind, _, name = last.partition(":")
    if last == "." or node is MISSING:
        return
    if kind == "f" and isinstance(node, dict):
        node.pop(name, None)


def show(path):
    """A path as conflicts name it, such as `.spec.containers[name="c"].image`."""
    text = ""
    for part in path:
        kind, _, name = part.partition(":")
        if kind == "f":
            text += f".{name}"
        elif part != ".":
            inner = ",".join(f"{k}={json.dumps(v)}" for k, v in json.loads(name).items())
            text += f"[{inner}]"
    return text


def apply(live, body, manager, force, now):
    """The object after an apply, or the conflicts: `(object, [(manager, field), …])`."""
    claimed = owned(body)
    entries = copy.deepcopy((live or {}).get("metadata", {}).get("managedFields", []))
    result = copy.deepcopy(live) if live else {}
    conflicts = []
    for entry in entries:
        if entry["manager"] == manager and entry["operation"] == "Apply":
            continue
        theirs = set(paths_of(entry["fieldsV1"]))
        for path, value in claimed.items():
            if path in theirs and path[-1] != "." and at(result, path) != value:
                conflicts.append((entry["manager"], show(path)))
                theirs.discard(path)
        entry["fieldsV1"] = fields_v1(theirs)
    if conflicts and not force:
        return None, conflicts
    own = [e for e in entries if e["manager"] == manager and e["operation"] == "Apply"]
    others = [e for e in entries if e not in own and e["fieldsV1"]]
    before = set(paths_of(own[0]["fieldsV1"])) if own else set()
    kept = set().union(*(paths_of(e["fieldsV1"]) for e in others)) if others else set()
    for path in before - set(claimed) - kept:
        remove(result, path)
    version = result.get("metadata", {}).get("resourceVersion")
    result = merge(result, body)
    if version:
        result["metadata"]["resourceVersion"] = version
    entry = {
        "manager": manager, "operation": "Apply", "apiVersion": body["apiVersion"], "time": now,
        "fieldsType": "FieldsV1", "fieldsV1": fields_v1(claimed),
    }  # fmt: skip
    if own and own[0]["fieldsV1"] == entry["fieldsV1"] and live == {
        **result, "metadata": {**result["metadata"], "managedFields": entries}
    }:  # fmt: skip
        entry["time"] = own[0]["time"]
    managed = sorted([*others, entry], key=lambda e: (e["operation"], e["manager"]))
    result["metadata"]["managedFields"] = managed
    return result, []
