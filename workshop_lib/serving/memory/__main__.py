"""`python -m workshop_lib.serving.memory --config config.json --gpu h200 --json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.adviser import suggest_changes
from workshop_lib.serving.memory.budget import Budget, cpu_budget, gpu_budget
from workshop_lib.serving.memory.devices import DEVICES
from workshop_lib.serving.memory.kv_cache import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE
from workshop_lib.serving.memory.shape import GIB, ModelShape
from workshop_lib.tools.piped import piped


def main(argv: Sequence[str] | None = None) -> int:
    """Print the budget of a model on a device: `python -m workshop_lib.serving.memory`.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code: 0, or 2 for bad input. A model that does not fit is an answer, not an error.

    Example:
        >>> main(["--config", "config.json", "--gpu", "h200", "--json"])  # doctest: +SKIP
    """
    options = _parser().parse_args(argv)
    try:
        budget = _budget_from(options)
        changes = _changes(options, budget)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(budget.to_dict() | {"changes": changes}, indent=2))
    else:
        print(_text(budget))
        print(*(f"  fits with {change}" for change in changes), sep="\n", end="\n" * bool(changes))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.serving.memory",
        description="Memory of a model served by vLLM, per GPU, and the tokens of its KV cache.",
    )
    add = parser.add_argument
    add("--config", required=True, help="the model's config.json, or its folder")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpu", help=f"GPU type: {', '.join(DEVICES)}")
    where.add_argument("--cpu-kv-gib", type=int, help="on a CPU: VLLM_CPU_KVCACHE_SPACE, whole GiB")
    add("--tp", type=int, default=1, help="tensor-parallel size (default 1)")
    add("--pp", type=int, default=1, help="pipeline-parallel size (default 1)")
    add("--gpu-memory-utilization", type=float, default=0.92, help="default 0.92, as in vLLM")
    add("--max-model-len", type=int, default=None, help="longest request in tokens")
    add(
        "--dtype",
        default="auto",
        help="weights' format: auto (as in vLLM), float32, bfloat16",
    )
    add("--kv-cache-dtype", default="auto", help="KV cache's format: auto (the weights'), fp8")
    add("--block-size", type=int, default=None, help="tokens in a block (16; on a CPU 128)")
    add("--memory-gib", type=float, default=None, help="on a CPU: the machine's memory, GiB")
    add("--max-num-batched-tokens", type=int, default=None, help="tokens of one step")
    add("--max-num-seqs", type=int, default=None, help="requests of one step")
    add("--enforce-eager", action="store_true", help="without CUDA graphs")
    add("--compiled-before", action="store_true", help="a start that finds vLLM's compiled files")
    add("--json", action="store_true", help="print JSON")
    return parser


def _budget_from(options: argparse.Namespace) -> Budget:
    shape = ModelShape.from_config(options.config).with_dtype(options.dtype)
    # vLLM's default is the longest context that the model knows.
    length = options.max_model_len
    max_model_len = shape.max_positions if length is None else length
    if options.gpu is not None:
        return gpu_budget(
            shape,
            options.gpu,
            gpu_memory_utilization=options.gpu_memory_utilization,
            max_model_len=max_model_len,
            tp=options.tp,
            block_size=GPU_BLOCK_SIZE if options.block_size is None else options.block_size,
            kv_dtype=options.kv_cache_dtype,
            enforce_eager=options.enforce_eager,
            pp=options.pp,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            first_start=not options.compiled_before,
        )
    return cpu_budget(
        shape,
        kv_gib=options.cpu_kv_gib,
        memory_gib=_machine_memory_gib() if options.memory_gib is None else options.memory_gib,
        max_model_len=max_model_len,
        tp=options.tp,
        block_size=CPU_BLOCK_SIZE if options.block_size is None else options.block_size,
        kv_dtype=options.kv_cache_dtype,
    )


def _changes(options: argparse.Namespace, budget: Budget) -> list[str]:
    """Single changes that make a model fit a GPU."""
    if options.gpu is None or budget.fits or budget.pp > 1:
        return []
    return suggest_changes(
        ModelShape.from_config(options.config).with_dtype(options.dtype),
        options.gpu,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_model_len=budget.kv.max_model_len,
        tp=options.tp,
        kv_dtype=options.kv_cache_dtype,
    )


def _machine_memory_gib() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / GIB


def _text(budget: Budget) -> str:
    share = budget.gpu_memory_utilization
    title = f"{budget.model} on {budget.device}, TP={budget.tp}, PP={budget.pp}"
    lines = [title + (f", gpu_memory_utilization={share}" if share else "")]
    for name, gib in budget.parts().items():
        mark = "  (estimate)" if name in budget.estimated else ""
        lines.append(f"  {name:<12} {gib:9.2f} GiB{mark}")
    lines.append(budget.kv.line("CPU" if budget.device == "CPU" else "GPU"))
    lines.append(budget.reason or "It fits.")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(piped(main))
