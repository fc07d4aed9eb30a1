"""`make lab`: JupyterLab, opened on the start page.

```
python -m workshop_lib.tools.lab                             the workshop's notebooks
python -m workshop_lib.tools.lab --no-browser --port=9000    JupyterLab's own options
python -m workshop_lib.tools.lab --notebooks copy/notebooks  a copy of the notebooks
```

JupyterLab listens on this machine only, needs no network and asks no questions: no news,
no update checks, no list of extensions (`lab_settings/` holds what it is told). The
workshop's notebooks count as trusted, so that the tables which are committed with them
look as they did. What JupyterLab would keep of that in the home folder (layout,
signatures) lies in `build/lab` beside the notebooks; a learner's own settings are read and
not changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.execute import find_notebooks
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.stopping import say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

__all__ = ["START_PAGE", "main"]

SETTINGS = Path(__file__).with_name("lab_settings")
START_PAGE = "START.ipynb"

UNSET = ("MPLBACKEND",)
"""Kernels choose their own: a shell that says Agg, as CI does, would hide figures."""


def lab_options(notebooks: Path, private: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Say what JupyterLab is started with; later options win, so a caller's come last.

    Args:
        notebooks: The folder that it shows.
        private: Where layout and signatures are kept.
        arguments: The caller's own options for JupyterLab.

    Example:
        >>> lab_options(Path("notebooks"), Path("build/lab"), ["--port=9000"])[-1]
        '--port=9000'
    """
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
        *arguments,
    ]


def trust(folder: Path, private: Path) -> int:
    """Sign the workshop's notebooks, so that JupyterLab shows their tables as they are.

    Args:
        folder: Where the notebooks lie; only those of the workshop are signed.
        private: Where signatures are kept, apart from the user's own.

    Returns:
        How many were signed.

    Raises:
        WorkshopError: There is no notebook, or one is damaged.
    """
    import nbformat
    from nbformat.sign import NotebookNotary

    private.mkdir(parents=True, exist_ok=True)
    notary = NotebookNotary(data_dir=str(private))
    notebooks = find_notebooks(folder, solutions=True)
    for path in notebooks:
        try:
            notary.sign(nbformat.read(str(path), as_version=4))
        except (OSError, ValueError) as error:
            raise WorkshopError(
                f"{path} cannot be read ({error}); `git restore {path.name}` brings it back"
            ) from error
    return len(notebooks)


def still_running() -> str:
    """Say what the notebooks left running and how to end it; empty when that is nothing."""
    from workshop_lib.cluster.local.cluster import LocalCluster

    state = os.environ.get("WORKSHOP_STATE", "default")
    try:
        components = LocalCluster(state=state).components()
    except WorkshopError as error:
        return f"{type(error).__name__}: {error}"
    if not components:
        return ""
    return f"The notebooks left {', '.join(components)} running: `make clean` ends it."


def _terminate(signum: int, frame: FrameType | None) -> None:
    """End as after SIGTERM, where JupyterLab ends its kernels first, terminal or not."""
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run JupyterLab until it is interrupted.

    Args:
        arguments: The command line; default: this process's.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.tools.lab",
        description="Open JupyterLab on the start page; further options are JupyterLab's own.",
    )
    parser.add_argument(
        "--notebooks", type=Path, default=CHECKOUT / "notebooks", help="the folder that it shows"
    )
    wishes, others = parser.parse_known_args(arguments)
    notebooks = wishes.notebooks.resolve()
    private = notebooks.parent / "build" / "lab"
    try:
        trust(notebooks, private)
    except WorkshopError as error:
        say(f"{type(error).__name__}: {error}", error=True)
        return 1
    # The start page is what opens, not the layout of last time.
    shutil.rmtree(private / "workspaces", ignore_errors=True)
    for name in UNSET:
        os.environ.pop(name, None)
    # This environment's kernel, also where the user has one of the same name.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

    from jupyterlab.labapp import LabApp  # type: ignore[import-untyped]

    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, _terminate)
    try:
        LabApp.launch_instance(lab_options(notebooks, private, others))
    finally:
        left = still_running()
        if left:
            say(left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
