"""NeMo RL's `policy.dtensor_cfg.lora_cfg` in peft's words.

Sources: NeMo RL v0.7.0 (`policy.dtensor_cfg.lora_cfg`), NeMo Automodel, which NeMo RL hands it to
(`components/_peft/lora.py`, `module_matcher.py`), peft 0.21 (`LoraConfig`). In both an adapted
layer computes `W x + alpha/dim · B A x`, B starting at 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workshop_lib.training.translate_table import Table

__all__ = ["modules_pattern", "translate_lora"]

_SECTION = "policy.dtensor_cfg.lora_cfg"
_OUTPUT_LAYER = "lm_head"


def modules_pattern(patterns: Sequence[str]) -> str:
    """One regular expression for NeMo Automodel's module patterns.

    A name without `*` is that of a layer anywhere; with `*` it is that of the whole path.

    Args:
        patterns: Names or patterns of modules.

    Example:
        >>> pattern = modules_pattern(["q_proj", "*.layers.0.*.v_proj"])
        >>> bool(re.fullmatch(pattern, "model.layers.7.self_attn.q_proj"))
        True
        >>> bool(re.fullmatch(pattern, "model.layers.7.self_attn.v_proj"))
        False
    """
    parts = [
        ".*".join(map(re.escape, pattern.split("*")))
        if "*" in pattern
        else rf"(?:.*\.)?{re.escape(pattern)}"
        for pattern in patterns
    ]
    return "|".join(f"(?:{part})" for part in parts)


def translate_lora(table: Table) -> dict[str, Any]:
    """Give every key of `lora_cfg` its row.

    Args:
        table: The translation's table.

    Returns:
        Arguments of `peft.LoraConfig`, and `init`, how A begins (`xavier` or `uniform`); empty
        where all parameters are trained.
    """
    lora = table.recipe.policy.dtensor_cfg.lora_cfg
    if not lora.enabled:
        table.exact(f"{_SECTION}.enabled", "all parameters are trained")
        return {}
    table.exact(f"{_SECTION}.enabled", "an adapter of peft; a checkpoint has it merged, and apart")
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": lora.dim, "lora_alpha": lora.alpha}
    _row(table, "dim", "exact", f"r={lora.dim}")
    _row(table, "alpha", "exact", f"lora_alpha={lora.alpha}")
    settings["lora_dropout"] = lora.dropout
    same = lora.dropout == 0 or lora.dropout_position == "pre"
    place = "" if same else "peft's dropout is before A, not behind B"
    shown = f"lora_dropout={lora.dropout:g}"
    _row(table, "dropout", "exact" if same else "approximated", shown, place)
    _row(table, "dropout_position", "exact" if same else "approximated", "", place)
    settings["init"] = lora.lora_A_init
    _row(table, "lora_A_init", "exact", "", "A is drawn here in NeMo Automodel's way")
    _row(table, "use_triton", "dropped", "", "a kernel for GPUs")
    settings |= _modules(table)
    return settings


def _row(table: Table, name: str, status: Any, trl: str = "", reason: str = "") -> None:
    table.add(f"{_SECTION}.{name}", status, reason)
    if trl:
        table.named(f"{_SECTION}.{name}", trl)


def _modules(table: Table) -> dict[str, Any]:
    """Which layers get an adapter."""
    lora = table.recipe.policy.dtensor_cfg.lora_cfg
    names = ("match_all_linear", "target_modules", "exclude_modules")
    given = [name for name in names if getattr(lora, name)]
    if len(given) > 1:
        for name in given:
            _row(table, name, "refused", "", f"NeMo Automodel refuses {' with '.join(given)}")
        return {}
    whole = "without the output layer, which TRL's log-probabilities go around"
    if lora.target_modules or not given:
        chosen = lora.target_modules or ["*_proj"]
        pattern = modules_pattern(chosen)
        refused = bool(re.fullmatch(pattern, _OUTPUT_LAYER))
        reason = (
            f"the output layer ({_OUTPUT_LAYER}) cannot be adapted under TRL" if refused else ""
        )
        for name in names:
            _row(table, name, "exact")
        status = "refused" if refused else "exact"
        _row(table, "target_modules", status, f"target_modules={pattern!r}", reason)
        return {"target_modules": pattern}
    settings = {"target_modules": "all-linear"}
    for name in names:
        _row(table, name, "exact")
    if lora.exclude_modules:
        pattern = modules_pattern(lora.exclude_modules)
        spared = bool(re.fullmatch(pattern, _OUTPUT_LAYER))
        settings["exclude_modules"] = pattern
        shown = f"target_modules='all-linear', exclude_modules={pattern!r}"
        status = "exact" if spared else "approximated"
        _row(table, "exclude_modules", status, shown, "" if spared else whole)
    else:
        _row(table, "match_all_linear", "approximated", "target_modules='all-linear'", whole)
    return settings
