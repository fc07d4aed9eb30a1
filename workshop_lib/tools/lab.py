"""`workshop lab`: JupyterLab, opened on the start page.

As `lab_settings/` says, it listens on this machine only, needs no network and asks no questions:
one Ctrl-C ends it. The workshop's notebooks count as trusted, so that their tables look as
committed. What JupyterLab would keep of that in the home folder lies in `build/lab`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.tools.execute import CHECKOUT, find_notebooks, read_notebook, say

SETTINGS = Path(__file__).with_name("lab_settings")
START_PAGE = "START.ipynb"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run JupyterLab until it is interrupted; a damaged notebook is a `WorkshopError`."""
    from jupyterlab.labapp import LabApp  # type: ignore[import-untyped]
    from nbformat.sign import NotebookNotary

    parser = argparse.ArgumentParser(
        description="Open JupyterLab on the start page; further options are JupyterLab's own."
    )
    parser.add_argument("--notebooks", type=Path, default=CHECKOUT / "notebooks", help="a folder")
    wishes, others = parser.parse_known_args(arguments)
    notebooks = wishes.notebooks.resolve()
    private = notebooks.parent / "build" / "lab"
    # The start page is what opens, not the layout of last time.
    shutil.rmtree(private / "workspaces", ignore_errors=True)
    private.mkdir(parents=True, exist_ok=True)
    notary = NotebookNotary(data_dir=str(private))
    for path in find_notebooks(notebooks, solutions=True):
        notary.sign(read_notebook(path))
    options = [
        f"--config={SETTINGS / 'jupyter_lab_config.json'}",
        f"--ServerApp.root_dir={notebooks}",
        # A learner who is root is in a container or a virtual machine of their own.
        *(["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []),
        f"--LabApp.app_settings_dir={SETTINGS}",
        f"--LabApp.workspaces_dir={private / 'workspaces'}",
        f"--NotebookNotary.data_dir={private}",
    ]
    os.environ.pop("MPLBACKEND", None)  # a shell that says Agg, as CI does, would hide figures
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, whatever the user has

    def end(signum: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which ends JupyterLab's kernels, too

    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, end)
    try:
        LabApp.launch_instance([*options, *others])
    finally:
        left = LocalCluster(state=os.environ.get("WORKSHOP_STATE", "default")).components()
        if left:
            say(f"The notebooks left {', '.join(left)} running: `make clean` ends it.")
    return 0
