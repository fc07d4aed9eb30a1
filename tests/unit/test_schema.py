"""What is played, what is noted, what is refused; more of it with processes in tests/local."""

import pytest

from workshop_lib.cluster import manifests
from workshop_lib.cluster.local import rules, schema
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError


def config_map(name="c", **data):
    return Object(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}, "file"
    )


@pytest.mark.parametrize("name", ["a", "a-b", "a.b", "a1.b-2", "x" * 200])
def test_names(name):
    assert schema.check(config_map(name)) == {}


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a..b", ".a", "a.", "a/b", "x" * 201, "a\n"])
def test_no_names(name):
    with pytest.raises(ManifestError, match=r"file: ConfigMap/.*metadata.name: "):
        schema.check(config_map(name))


@pytest.mark.parametrize("key", ["a", "a.b", "_A-b.sh", "..."])
def test_keys(key):
    assert schema.check(config_map(**{key: "x"})) == {}


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a b", "ä"])
def test_no_keys(key):
    with pytest.raises(ManifestError, match="file: ConfigMap/c: data: "):
        schema.check(config_map(**{key: "x"}))


def test_notes_name_the_field_and_the_reason():
    quota = Object(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "n"},
         "spec": {"hard": {"pods": "1"}}}, "file",
    )  # fmt: skip
    assert schema.check(quota) == {
        "metadata.namespace": "a state of this machine has one namespace",
        "spec": "a cluster's API server or operator does this",
    }


def test_secret_is_not_shown():
    secret = Object(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
         "stringData": {"token": 12345}}, "file",
    )  # fmt: skip
    with pytest.raises(ManifestError) as error:
        schema.check(secret)
    assert str(error.value) == "file: Secret/s: stringData.token: the value is not text"


def test_nulls_are_left_out():
    body = {"a": None, "b": [{"c": None}, None], "d": {"e": 0, "f": ""}}
    assert schema.without_nulls(body) == {"b": [{}, None], "d": {"e": 0, "f": ""}}


def test_ray_brings_its_services_and_its_secret():
    bodies, notes = rules.checked("raycluster", manifests.render("local", "raycluster"))
    keys = [f"{body['kind']}/{body['metadata']['name']}" for body in bodies]
    assert keys == ["Secret/raycluster", "Service/raycluster-head-svc", "RayCluster/raycluster"]
    assert notes
    bodies, _ = rules.checked("ray-service", manifests.render("local", "ray-service"))
    kinds = [body["kind"] for body in bodies]
    assert kinds.count("Service") == 2 and kinds[-1] == "RayService"
