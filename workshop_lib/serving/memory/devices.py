"""The devices that memory budgets are made for.

Two sizes per GPU, because they differ: what `nvidia-smi` prints as total, and
what CUDA can hand out (the driver keeps the rest). vLLM multiplies
`gpu_memory_utilization` with the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from workshop_lib.errors import WorkshopError

__all__ = ["DEVICES", "Device", "find_device"]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU type and the limits that vLLM chooses for it.

    Attributes:
        name: As shown, for example `H200`.
        smi_mib: Total memory as `nvidia-smi` prints it, MiB.
        cuda_gib: Memory that CUDA can hand out, GiB.
        max_batched_tokens: vLLM's default `--max-num-batched-tokens` for the API server.
        max_sequences: vLLM's default `--max-num-seqs` for the API server.
        cuda_source: Where `cuda_gib` comes from.
    """

    name: str
    smi_mib: int
    cuda_gib: float
    max_batched_tokens: int
    max_sequences: int
    cuda_source: str

    @property
    def smi_gib(self) -> float:
        """Total memory as `nvidia-smi` has it, GiB."""
        return self.smi_mib / 1024


# The sizes that CUDA gives were read on an H200 (driver 580.159, 143,771 MiB of which 616 MiB
# are reserved). The others are the "total capacity" in PyTorch's out-of-memory messages in
# public issues; between driver versions they vary by up to 0.2 GiB.
# The limits are those of vLLM's EngineArgs.get_batch_defaults: more than 70 GiB and no A100
# gives 8192 tokens and 1024 sequences, anything smaller 2048 and 256.
_MEASURED = "torch.cuda.mem_get_info on an H200, driver 580.159"
_MESSAGES = "total capacity in PyTorch's out-of-memory messages"

DEVICES = {
    "a10g": Device("A10G", 23028, 22.06, 2048, 256, _MESSAGES),
    "l4": Device("L4", 23034, 22.03, 2048, 256, _MESSAGES),
    "a100-40": Device("A100-40GB", 40960, 39.49, 2048, 256, _MESSAGES),
    "a100-80": Device("A100-80GB", 81920, 79.25, 2048, 256, _MESSAGES),
    "h100": Device("H100-80GB", 81559, 79.19, 8192, 1024, _MESSAGES),
    "h200": Device("H200", 143771, 150_109_880_320 / 2**30, 8192, 1024, _MEASURED),
}


def find_device(name: str) -> Device:
    """The device of that name, upper or lower case.

    Args:
        name: A key of `DEVICES`, or what `nvidia-smi` calls it ("NVIDIA H200").

    Raises:
        WorkshopError: The device is not in the table.

    Example:
        >>> find_device("NVIDIA H200").cuda_gib > 139
        True
    """
    key = name.lower().removeprefix("nvidia ").strip()
    aliases = {device.name.lower(): key for key, device in DEVICES.items()} | {"h100-80": "h100"}
    key = aliases.get(key, key)
    if key not in DEVICES:
        known = ", ".join(DEVICES)
        raise WorkshopError(f"the device {name!r} is not in the table; use one of {known}")
    return DEVICES[key]
