"""Serving from S3: the volume, who may mount it, and the container that looks before the server."""

import json
import subprocess
import sys

import pytest
from manifest_checks import crd_problems

from workshop_lib.cluster import manifests
from workshop_lib.errors import ManifestError


def rendered(component, **parameters):
    return {item.kind: item.body for item in manifests.render("eks", component, parameters)}


def groups(service):
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"]["spec"],
            *(group["template"]["spec"] for group in cluster["workerGroupSpecs"])]  # fmt: skip


def test_the_volume_is_read_only_and_bound_to_one_claim():
    found = rendered("models-s3", bucket="my-models", prefix="a/b", namespace="ada", volume="v-ada")
    volume, claim = found["PersistentVolume"], found["PersistentVolumeClaim"]
    assert volume["metadata"]["name"] == claim["spec"]["volumeName"] == "v-ada"
    assert volume["spec"]["csi"]["volumeHandle"] == "v-ada", "unique, or the driver mixes them up"
    assert volume["spec"]["claimRef"] == {"namespace": "ada", "name": claim["metadata"]["name"]}
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    csi = volume["spec"]["csi"]
    assert csi["driver"] == "s3.csi.aws.com" and csi["readOnly"] is True
    assert csi["volumeAttributes"] == {"bucketName": "my-models", "authenticationSource": "pod"}
    assert {"read-only", "prefix a/b/"} <= set(volume["spec"]["mountOptions"])


@pytest.mark.parametrize(
    "parameters",
    [{"bucket": "My_Models"}, {"bucket": "a"}, {"bucket": "a..b"}, {"bucket": "s3://models"},
     {"prefix": "/models"}, {"prefix": "a/"}, {"prefix": "a b"}, {"prefix": "x --allow-delete"},
     {"prefix": ""}, {"namespace": "Ada"}, {"volume": "a/b"}],
)  # fmt: skip
def test_what_is_no_name_is_refused(parameters):
    with pytest.raises(ManifestError, match="does not fit the pattern"):
        rendered("models-s3", **parameters)


def test_it_changes_what_it_says_and_nothing_else():
    plain, changed = rendered("ray-service")["RayService"], rendered("ray-service-s3")["RayService"]
    for spec, before in zip(groups(changed), groups(plain), strict=True):
        assert spec.pop("serviceAccountName") == "model-reader"
        (first,) = spec.pop("initContainers")
        assert first["image"] == spec["containers"][0]["image"]
        assert spec["volumes"][0] == {
            "name": "models", "persistentVolumeClaim": {"claimName": "models-s3", "readOnly": True}
        }  # fmt: skip
        spec["volumes"][0] = before["volumes"][0]
    assert changed == plain


def test_its_account_is_the_namespaces_and_terraforms():
    accounts = {i.name for i in manifests.render("eks", "namespace") if i.kind == "ServiceAccount"}
    assert {"model-reader", "model-prestage"} <= accounts
    text = (manifests.manifests_dir() / "terraform/identity.tf").read_text()
    for account in ("model-reader", "model-prestage"):
        assert f'service_account = "{account}"' in text


def test_model_and_machine_reach_every_place():
    service = rendered("ray-service-s3", model="a/b", instance_type="p5en.48xlarge")["RayService"]
    head, worker = groups(service)
    for spec in (head, worker):
        assert spec["initContainers"][0]["env"] == [
            {"name": "MODEL_FOLDER", "value": "/models/a--b"}
        ]
    assert worker["containers"][0]["resources"]["limits"]["memory"] == "1750Gi"
    assert "accelerator_type: H200" in service["spec"]["serveConfigV2"]
    assert "model_source: /models/a--b" in service["spec"]["serveConfigV2"]


def test_it_fits_the_crd():
    assert crd_problems(rendered("ray-service-s3")["RayService"]) == []


def look(folder):
    """What the container that looks first says of a folder, run as it stands in the manifest."""
    container = groups(rendered("ray-service-s3")["RayService"])[0]["initContainers"][0]
    assert container["command"] == ["python", "-c"]
    return subprocess.run(
        [sys.executable, "-c", *container["args"]], capture_output=True, text=True,
        env={"MODEL_FOLDER": str(folder)},
    )  # fmt: skip


def test_only_a_whole_model_is_served(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"0123456789")
    done = look(tmp_path)
    assert done.returncode == 1
    assert "holds no whole model: it has no workshop-model.json; apply the component" in done.stderr
    assert "Traceback" not in done.stderr
    marker = {"files": {"w.safetensors": {"bytes": 10, "sha256": "x"}}}
    (tmp_path / "workshop-model.json").write_text(json.dumps(marker))
    assert look(tmp_path).stdout == f"{tmp_path} is whole: 1 files\n"
    weights.write_bytes(b"01234")
    assert "w.safetensors missing or cut off" in look(tmp_path).stderr
    weights.unlink()
    assert "w.safetensors missing or cut off" in look(tmp_path).stderr
