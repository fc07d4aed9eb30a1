"""Scalable inference and RLHF with Ray and vLLM: the workshop's library.

The notebooks import what they need from its modules; importing the package
itself loads nothing heavy (`ray`, `vllm` and `torch` are imported inside the
functions that use them).
"""

from __future__ import annotations

from workshop_lib.cluster.connect import connect
from workshop_lib.errors import WorkshopError

__all__ = ["WorkshopError", "__version__", "connect"]

__version__ = "0.1.0"
