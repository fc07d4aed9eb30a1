"""Tools that do not fit into the workshop's environment; `make checks-environment` has them."""

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".venv-checks"
STAMP = FOLDER / "workshop-environment"

needed = pytest.mark.skipif(
    not (STAMP.exists() and STAMP.read_text()), reason="no .venv-checks; make checks makes it"
)


def run(program, *arguments):
    command = [FOLDER / "bin" / program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
