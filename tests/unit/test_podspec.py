"""From a pod's spec to environment and command."""

import base64
from pathlib import Path

import pytest

from workshop_lib.cluster.local.network import Endpoint
from workshop_lib.cluster.local.podspec import (
    ConfigError,
    PodContext,
    container_command,
    container_environment,
    rewrite,
    working_folder,
)

MOUNTS = {"/data": Path("/real/1"), "/data/inner": Path("/real/2"), "/cache/": Path("/real/3")}
OBJECTS = {
    ("ConfigMap", "c"): {"data": {"path": "/data/x", "word": "vllm", "plain": "1"}},
    ("Secret", "s"): {
        "data": {"b": base64.b64encode(b"/data/x").decode()},
        "stringData": {"t": "v"},
    },
    ("Secret", "binary"): {"data": {"b": base64.b64encode(b"\xff\x00").decode()}},
    ("Secret", "nul"): {"stringData": {"b": "a\0b"}},
}


def context(**changes):
    options = {
        "metadata": {"name": "p-1", "uid": "u", "labels": {"l": "L"}, "annotations": {"a/b": "A"}},
        "ip": "127.9.9.9",
        "mounts": {"main": MOUNTS},
        "names": {"vllm": Endpoint("127.9.9.3", {8000: 20000})},
        "find": lambda kind, name: OBJECTS.get((kind, name)),
        "base": {"PATH": "/bin", "TMPDIR": "/scratch"},
    }
    return PodContext(**{**options, **changes})


def environment(*env, **more):
    container = {"name": "main", "env": list(env), **more}
    found = container_environment(container, context())
    assert found.pop("PATH") == "/bin" and found.pop("TMPDIR") == "/scratch"
    assert found.pop("HOSTNAME") == "p-1"
    return found


def var(name, value=None, **source):
    return {"name": name, "value": value} if value is not None else {"name": name, **source}


def ref(kind, **reference):
    return {"valueFrom": {kind: reference}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", "/real/1"), ("/data/", "/real/1/"), ("/data/a b", "/real/1/a b"),
        ("/data/inner/x", "/real/2/x"), ("/cache/x", "/real/3/x"), ("/cache", "/real/3"),
        ("--dir=/data/x", "--dir=/real/1/x"), ("--host=vllm", "--host=vllm"),
        ("--url=http://vllm:8000", "--url=http://127.9.9.3:20000"),
        ("/database", "/database"), ("x/data", "x/data"), ("-d/data", "-d/data"), ("", ""),
        ("echo /data", "echo /data"),
    ],
)  # fmt: skip
def test_whole_values_are_rewritten(value, expected):
    assert rewrite(value, MOUNTS, context().names) == expected


def test_values_refer_to_what_came_before():
    assert environment(
        var("A", "1"), var("B", "$(A)$(A)"), var("C", "$$(A) $(LATER) $A ${A} $(not valid)"),
        var("LATER", "x"), var("A", "2"),
    ) == {"A": "2", "B": "11", "C": "$(A) $(LATER) $A ${A} $(not valid)", "LATER": "x"}  # fmt: skip


def test_downward_api():
    def field(path):
        return ref("fieldRef", fieldPath=path)

    assert environment(
        var("NAME", **field("metadata.name")), var("SPACE", **field("metadata.namespace")),
        var("IP", **field("status.podIP")), var("NODE", **field("spec.nodeName")),
        var("L", **field("metadata.labels['l']")), var("A", **field("metadata.annotations['a/b']")),
        var("NONE", **field("metadata.labels['none']")),
    ) == {"NAME": "p-1", "SPACE": "default", "IP": "127.9.9.9", "NODE": "this-machine", "L": "L",
          "A": "A", "NONE": ""}  # fmt: skip


def test_resources_are_rounded_up(monkeypatch):
    monkeypatch.setattr(
        "workshop_lib.cluster.local.podspec.capacity", lambda: {"cpu": 4.0, "memory": 2.0**33}
    )

    def resource(name, **more):
        return ref("resourceFieldRef", resource=name, **more)

    found = environment(
        var("CPU", **resource("limits.cpu")), var("MILLI", **resource("limits.cpu", divisor="1m")),
        var("MEMORY", **resource("limits.memory", divisor="1Gi")),
        var("REQUEST", **resource("requests.cpu")),
        resources={"limits": {"cpu": "1500m"}},
    )  # fmt: skip
    assert found == {"CPU": "2", "MILLI": "1500", "MEMORY": "8", "REQUEST": "2"}


def test_config_maps_and_secrets():
    found = environment(
        var("PATHS", **ref("configMapKeyRef", name="c", key="path")),
        var("WORD", **ref("configMapKeyRef", name="c", key="word")),
        var("SECRET", **ref("secretKeyRef", name="s", key="b")),
        var("NO", **ref("secretKeyRef", name="s", key="none", optional=True)),
        var("NEITHER", **ref("secretKeyRef", name="none", key="x", optional=True)),
        envFrom=[{"configMapRef": {"name": "c"}, "prefix": "C_"}, {"secretRef": {"name": "s"}},
                 {"configMapRef": {"name": "none", "optional": True}}],
    )  # fmt: skip
    assert found == {
        "C_path": "/real/1/x", "C_word": "vllm", "C_plain": "1", "b": "/data/x", "t": "v",
        "PATHS": "/real/1/x", "WORD": "vllm", "SECRET": "/data/x",
    }, "a Secret's value is never rewritten"  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ref("configMapKeyRef", name="none", key="x"), 'configmap "none" not found'),
        (ref("secretKeyRef", name="s", key="x"), "couldn't find key x in Secret s"),
        (ref("secretKeyRef", name="binary", key="b"), "Secret binary key b is no text"),
        (ref("secretKeyRef", name="nul", key="b"), "Secret nul key b holds a NUL"),
    ],
)
def test_what_is_missing_is_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        environment(var("X", **entry))


def test_command_and_arguments():
    container = {
        "name": "main",
        "command": ["vllm", "serve", "/data/model"],
        "args": ["--host=vllm:8000", "vllm", "vllm:8000", "$(PORT)", "$$(PORT)"],
    }
    assert container_command(container, context(), {"PORT": "99"}) == [
        "vllm", "serve", "/real/1/model", "--host=127.9.9.3:20000", "vllm", "127.9.9.3:20000", "99",
        "$(PORT)",
    ]  # fmt: skip


def test_working_folder(tmp_path):
    here = context(mounts={"main": {"/data": tmp_path}})
    assert working_folder({"name": "main"}, here) == Path("/scratch")
    assert working_folder({"name": "main", "workingDir": "/data/a/b"}, here) == tmp_path / "a/b"
    assert (tmp_path / "a/b").is_dir()
