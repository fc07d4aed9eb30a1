"""The page that `make lab` opens: its one cell looks at this machine, in seconds."""

import nbformat

from workshop_lib.tools.execute import execute
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.lab import START_PAGE


def test_the_start_page_says_whether_everything_is_there(tmp_path):
    page = CHECKOUT / "notebooks" / START_PAGE
    outcome = execute(page, tmp_path / START_PAGE, state="t-start", build=tmp_path)
    assert outcome.status == "done" and outcome.cells == 1
    (cell,) = (
        c for c in nbformat.read(outcome.executed, as_version=4).cells if c.cell_type == "code"
    )
    (shown,) = (out["data"]["text/html"] for out in cell.outputs if "data" in out)
    for each in ("Python 3.11", "kubectl with kustomize", "nodes are ready"):
        assert f"<td title='pass'>✓</td><td style='text-align:left'>{each}</td>" in shown
    assert shown.count("title='not applicable'>-") >= 9


def test_the_start_page_is_committed_as_nobody_ran_it():
    """What it shows is about the machine that runs it."""
    page = nbformat.read(CHECKOUT / "notebooks" / START_PAGE, as_version=4)
    nbformat.validate(page)
    assert [cell.outputs for cell in page.cells if cell.cell_type == "code"] == [[]]
