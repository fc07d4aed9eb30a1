"""The command line: `workshop memory --config config.json --gpu h200`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import psutil

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.advise import suggest_changes
from workshop_lib.serving.memory.model import GIB, ModelShape
from workshop_lib.serving.memory.vllm import DEVICES, Budget, cpu_budget, gpu_budget

# Settings of the budgets, under their own names; the first ones are a CPU's too.
_SETTINGS: dict[str, tuple[Any, str]] = {
    "tp": (int, "tensor-parallel size (default 1)"),
    "max_model_len": (int, "longest request in tokens (default: the model's longest)"),
    "block_size": (int, "tokens in a block (16; on a CPU 128)"),
    "kv_dtype": (str, "KV cache's format: auto (the weights'), fp8"),
    "pp": (int, "pipeline-parallel size (default 1)"),
    "gpu_memory_utilization": (float, "share of the GPU (default 0.92, as in vLLM)"),
    "max_num_batched_tokens": (int, "tokens of one step"),
    "max_num_seqs": (int, "requests of one step"),
    "vllm": (str, "vLLM's version (default 0.25.1; 0.29 and later count CUDA graphs)"),
    "enforce_eager": (bool, "without CUDA graphs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the budget of a model; 2 for bad input. One that does not fit is an answer, too."""
    options = _parser().parse_args(argv)
    given = {name: value for name, value in vars(options).items() if name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    changes: list[str] = []
    try:
        shape = ModelShape.from_config(options.config).with_dtype(options.dtype)
        # vLLM's default is the longest request that the model knows.
        given.setdefault("max_model_len", shape.max_positions)
        if options.gpu is not None:
            budget = gpu_budget(shape, options.gpu, **given)
            changes = suggest_changes(shape, options.gpu, **given)
        else:
            if unused := given.keys() - set(list(_SETTINGS)[:4]):
                names = " and no ".join(sorted(unused))
                raise WorkshopError(f"on a CPU there is no {names}; leave it out")
            memory_gib = options.memory_gib
            if memory_gib is None:
                memory_gib = psutil.virtual_memory().total / GIB
            budget = cpu_budget(shape, kv_gib=options.cpu_kv_gib, memory_gib=memory_gib, **given)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(budget.to_dict() | {"changes": changes}, indent=2))
    else:
        print(_text(budget), *(f"  fits with {change}" for change in changes), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workshop memory",
        description="Memory of a model served by vLLM, per GPU, and the tokens of its KV cache.",
    )
    add = parser.add_argument
    add("--config", required=True, help="the model's config.json, or its folder")
    where = parser.add_mutually_exclusive_group(required=True)
    known = ", ".join(DEVICES)
    where.add_argument("--gpu", help=f"GPU: {known}, or name:GiB with the memory that CUDA sees")
    where.add_argument("--cpu-kv-gib", type=int, help="on a CPU: VLLM_CPU_KVCACHE_SPACE, whole GiB")
    for name, (kind, text) in _SETTINGS.items():
        flag = "--kv-cache-dtype" if name == "kv_dtype" else f"--{name.replace('_', '-')}"
        if kind is bool:
            add(flag, action="store_true", default=None, help=text)
        else:
            add(flag, type=kind, dest=name, help=text)
    add("--dtype", default="auto", help="weights' format: auto (as in vLLM), float32, bfloat16")
    add("--memory-gib", type=float, help="on a CPU: the machine's memory, GiB")
    add("--json", action="store_true", help="print JSON")
    return parser


def _text(budget: Budget) -> str:
    share = budget.gpu_memory_utilization
    title = f"{budget.model} on {budget.device}, TP={budget.tp}, PP={budget.pp}"
    lines = [title + (f", gpu_memory_utilization={share}" if share else "")]
    for name, gib in budget.parts().items():
        mark = "  (estimate)" if name in budget.estimated else ""
        lines.append(f"  {name:<12} {gib:9.2f} GiB{mark}")
    lines.append(budget.kv.line("CPU" if budget.device == "CPU" else "GPU"))
    lines.append(f"Estimates measured with {budget.measured}.")
    lines.append(
        budget.reason or "It fits" + (f", but {budget.warning}" if budget.warning else ".")
    )
    return "\n".join(lines)
