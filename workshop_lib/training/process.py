"""The process that trains: its threads, its memory, and what it says."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["keep_memory", "peak_memory_gib", "prepare_environment", "quiet", "use_all_cores"]

# Everything is on disk by now, and a hub that is out of reach costs minutes. For a process of
# our own only: a notebook's kernel that trains may want the hub afterwards.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what must be set before torch is imported; what is set already stays.

    Args:
        environment: The process's.
    """
    for name, value in _ENVIRONMENT.items():
        environment.setdefault(name, value)


def use_all_cores() -> None:
    """Have torch use every core that this process may use.

    Ray starts its jobs with OMP_NUM_THREADS=1.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def peak_memory_gib() -> float:
    """The most memory that this process has held at once, GiB (getrusage(2), on Linux)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def quiet() -> None:
    """No progress bars of others, no warnings that a learner can do nothing about."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="trl|transformers|torch")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back.

    A step allocates and frees gigabytes in large blocks. By default each block is
    fetched from the kernel page by page every time: 1.3 million page faults and a
    fifth of the step's CPU time were seen.
    """
    import ctypes

    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: slower, nothing else
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
