"""Kernels of our own: this environment's Python, and nobody's configuration.

Whatever kernels the user has registered under the name `python3`, and whatever Jupyter's
or IPython's configuration says, the notebooks run in the environment that runs this.
Kernels work in the notebook's own folder, as in JupyterLab.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CHECKOUT", "kernel_environment", "kernel_manager"]

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds `workshop_lib`, so that kernels import this copy of it."""


def kernel_environment(build: Path, state: str) -> dict[str, str]:
    """Make the environment variables of kernels.

    Args:
        build: Where Jupyter's and IPython's own files go.
        state: The local cluster's state that notebooks use.

    Example:
        >>> kernel_environment(Path("build"), "run")["WORKSHOP_STATE"]
        'run'
    """
    foreign = ("JUPYTER_", "IPYTHON", "PYTHONSTARTUP", "PYTHONPATH", "PYTHONHOME", "JPY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    private = build.resolve() / "jupyter"
    return {
        **kept,
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "JUPYTER_DATA_DIR": str(private / "data"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONNOUSERSITE": "1",
        # Figures belong in the output also where the caller says MPLBACKEND=Agg, as CI does.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "WORKSHOP_STATE": state,
    }


def kernel_manager(
    environment: Mapping[str, str], folder: Path, log: Path, started: list[int]
) -> type:
    """Make the class that starts this environment's own Python as a kernel.

    Args:
        environment: The kernel's environment variables.
        folder: The kernel's working folder.
        log: Where what the kernel's process writes goes; cells' output does not.
        started: Gets the kernel's process id, which is its process group too.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    class PrivateKernelManager(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            runtime = Path(environment["JUPYTER_RUNTIME_DIR"])
            runtime.mkdir(parents=True, exist_ok=True)
            super().__init__(
                **options,
                kernel_spec_manager=OwnPython(),
                connection_file=str(runtime / f"kernel-{uuid.uuid4()}.json"),
                transport_encryption="auto",  # else ipykernel warns on every start
            )

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            with log.open("wb") as file:
                options.update(env=dict(environment), cwd=str(folder), stdout=file, stderr=file)
                await super().start_kernel(**options)
            started.append(self.provisioner.pid)  # type: ignore[union-attr]

    return PrivateKernelManager
