"""`workshop lab`: JupyterLab, opened on the start page.

```
workshop lab --no-browser --port=9000    JupyterLab's own options
workshop lab --notebooks copy/notebooks  a copy of the notebooks
```

JupyterLab listens on this machine only, needs no network and asks no questions (`lab_settings/`
holds what it is told). The workshop's notebooks count as trusted, so that the tables which are
committed with them look as they did. What JupyterLab would keep of that in the home folder lies in
`build/lab` beside the notebooks; a learner's own settings are read and not changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.tools.execute import CHECKOUT, find_notebooks, read_notebook, say

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = Path(__file__).with_name("lab_settings")
START_PAGE = "START.ipynb"


def lab_options(notebooks: Path, private: Path) -> list[str]:
    """What JupyterLab is started with; layout and signatures are kept in the folder `private`."""
    return [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={notebooks}",
        "--ServerApp.answer_yes=True",  # one Ctrl-C ends it
        "--Application.log_level=WARN",  # what is left says where to point a browser
        # A learner who is root is in a container or a virtual machine of their own.
        *(["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []),
        f"--LabApp.default_url=/lab/tree/{START_PAGE}",
        f"--LabApp.app_settings_dir={SETTINGS}",
        f"--LabApp.workspaces_dir={private / 'workspaces'}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
        f"--NotebookNotary.data_dir={private}",
        # No pings: they keep connections through proxies alive, and there is none on one machine.
        "--ServerApp.tornado_settings={'ws_ping_interval': 0}",
        "--KernelManager.transport_encryption=auto",  # kernels warn of being overheard otherwise
    ]


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
    os.environ.pop("MPLBACKEND", None)  # a shell that says Agg, as CI does, would hide figures
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, whatever the user has

    def end(signum: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which ends JupyterLab's kernels, too

    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, end)
    try:
        given = {option.partition("=")[0] for option in others}  # instead of ours
        ours = lab_options(notebooks, private)
        LabApp.launch_instance([o for o in ours if o.partition("=")[0] not in given] + others)
    finally:
        left = LocalCluster(state=os.environ.get("WORKSHOP_STATE", "default")).components()
        if left:
            say(f"The notebooks left {', '.join(left)} running: `make clean` ends it.")
    return 0
