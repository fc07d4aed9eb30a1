"""The environment with kubernetes-validate and checkov: when it is current, when it fails."""

import pytest

from workshop_lib.commands import checks


@pytest.fixture
def root(tmp_path):
    """A checkout whose lock names a package that no index has."""
    (tmp_path / "requirements-checks.txt").write_text(
        "there-is-no-such-package==1.0 --hash=sha256:" + 64 * "0" + "\n"
    )
    return tmp_path


def test_one_that_was_interrupted_or_is_of_another_lock_is_not_current(root):
    assert not checks.is_current(root)
    checks.environment(root).mkdir()
    assert not checks.is_current(root)
    (checks.environment(root) / "stamp").write_text(checks._wanted(root))
    assert checks.is_current(root)
    assert checks.main(root) == 0
    (root / "requirements-checks.txt").write_text("checkov==0.1\n")
    assert not checks.is_current(root)


def test_without_its_packages_it_says_so_in_one_line(root, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert checks.main(root) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("the second environment could not be made: -m pip install ended with 1")
    assert not checks.is_current(root)
