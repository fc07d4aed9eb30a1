"""Terraform and Dockerfiles in the eyes of checkov and hadolint; see test_rendered."""

import json

import pytest
import yaml
from separate import needed, run

from workshop_lib.cluster import manifests

ROOT = manifests.manifests_dir()
DOCKERFILES = [ROOT.parent / "Dockerfile", *sorted((ROOT / "images").glob("*/Dockerfile"))]
EXCEPTIONS = yaml.safe_load((ROOT / "terraform/checks.yaml").read_text())

pytestmark = needed


def scanned(folder, framework):
    """checkov's failed checks of a folder: id to what failed."""
    done = run(
        "checkov", "-d", str(folder), "--framework", framework, "-o", "json", "--quiet",
        "--compact", "--skip-download",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0 and report["summary"]["passed"] > 100
    failed = {}
    for check in report["results"]["failed_checks"]:
        failed.setdefault(check["check_id"], set()).add(check["resource"])
    return failed


def test_checkov_finds_in_terraform_only_what_is_explained():
    found = scanned(ROOT / "terraform", "terraform")
    assert found == {check: set(entry["where"]) for check, entry in EXCEPTIONS.items()}
    assert all(len(entry["why"]) > 40 for entry in EXCEPTIONS.values())


def test_checkov_finds_nothing_in_the_dockerfiles():
    assert scanned(ROOT / "images", "dockerfile") == {}


def test_checkov_sees_an_open_bucket(tmp_path):
    text = (ROOT / "terraform/buckets.tf").read_text()
    (tmp_path / "buckets.tf").write_text(text.replace("= true", "= false"))
    done = run("checkov", "-d", str(tmp_path), "--framework", "terraform", "-o", "json", "--quiet",
               "--compact", "--skip-download")  # fmt: skip
    failed = {each["check_id"] for each in json.loads(done.stdout)["results"]["failed_checks"]}
    assert {"CKV_AWS_53", "CKV_AWS_54", "CKV_AWS_55", "CKV_AWS_56"} <= failed


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(file):
    done = run("hadolint", str(file))
    assert done.returncode == 0, done.stdout


def test_hadolint_sees_an_unpinned_base(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text("FROM debian\nRUN apt-get install curl\n")
    done = run("hadolint", str(file))
    assert done.returncode != 0 and "DL3006" in done.stdout
