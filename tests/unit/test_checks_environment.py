"""The environments of tools that need their own: when they are current, when they fail."""

import pytest

from workshop_lib.tools import checks


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
    said = "the environment .venv-checks could not be made: -m pip install ended with 1"
    assert last.startswith(said) and last.endswith("Without it its tests are skipped")
    assert not checks.is_current(root)


def test_each_has_its_own_lock(root):
    (root / "requirements-guidellm.txt").write_text("guidellm==0.1\n")
    checks.environment(root, "guidellm").mkdir()
    (checks.environment(root, "guidellm") / "stamp").write_text(checks._wanted(root, "guidellm"))
    assert checks.is_current(root, "guidellm") and not checks.is_current(root)


def test_another_name_is_one_line():
    for arguments in (["chekcs"], ["checks", "guidellm"]):
        with pytest.raises(SystemExit, match="there are: checks, guidellm"):
            checks._name(arguments)
    assert checks._name([]) == "checks" and checks._name(["guidellm"]) == "guidellm"


def test_every_lock_names_what_its_source_pins():
    for name in checks.CONTENTS:
        source, lock = (
            (checks.ROOT / f"requirements-{name}.{ending}").read_text() for ending in ("in", "txt")
        )
        pins = [line.split()[0] for line in source.splitlines() if "==" in line.split("#")[0]]
        assert pins and all(f"\n{pin} \\" in lock for pin in pins if not pin.startswith("torch"))
        assert "\ntorch==" not in lock
