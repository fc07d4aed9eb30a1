"""What the workshop needs of the machine that runs the notebooks."""

import pytest

from workshop_lib.errors import ManifestError
from workshop_lib.production.checks import laptop

MACHINE = laptop.describe_machine


def outcome_of(name):
    (found,) = [each for each in laptop.check_laptop() if each.name.startswith(name)]
    return found


def test_this_machine_runs_the_workshop():
    """These tests need what the notebooks need."""
    for name in ("Python 3.11", "kubectl", "Linux on x86-64", "2 cores"):
        assert outcome_of(name).outcome == "pass"


@pytest.mark.parametrize(
    ("name", "change", "evidence"),
    [
        ("Python 3.11", {"python": (3, 13)}, "3.13 at"),
        ("Linux on x86-64", {"cpu_flags": frozenset()}, "without AVX2"),
        ("Linux on x86-64", {"system": "Darwin"}, "Darwin"),
        ("4 GiB of free disk", {"free_disk_gib": 0.5}, "0.5 GiB free"),
    ],
)
def test_what_is_missing_fails_with_a_fix(monkeypatch, name, change, evidence):
    monkeypatch.setattr(laptop, "describe_machine", lambda root: MACHINE(root)._replace(**change))
    check = outcome_of(name)
    assert check.outcome == "fail" and evidence in check.evidence and check.fix


@pytest.mark.parametrize(
    ("name", "room"),
    [("2 cores", {"cpu": 1.0, "memory": 2**36}), ("12 GiB", {"cpu": 4.0, "memory": 8 * 2**30})],
)
def test_a_small_machine(monkeypatch, name, room):
    monkeypatch.setattr(laptop, "capacity", lambda: room)
    assert outcome_of(name).outcome == "fail"


def test_without_kubectl_the_line_says_how_to_get_it(monkeypatch):
    def absent():
        raise ManifestError("kubectl is not installed; run make to install the environment")

    monkeypatch.setattr(laptop.manifests, "_kubectl", absent)
    check = outcome_of("kubectl")
    assert check.outcome == "fail" and "kubectl is not installed" in check.evidence


def test_what_is_optional_does_not_fail(monkeypatch):
    monkeypatch.setattr(laptop.shutil, "which", lambda name: None)
    for name in ("Chromium", "aws", "terraform"):
        check = outcome_of(name)
        assert check.outcome == "not applicable" and "not installed; only" in check.evidence


def test_a_model_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path))
    check = outcome_of("the model")
    assert check.outcome == "cannot tell" and "not yet" in check.evidence
    assert "workshop_lib.serving.models prepare" in check.fix
