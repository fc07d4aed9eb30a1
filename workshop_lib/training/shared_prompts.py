"""A group's answers begin with the same prompt: compute it once.

GRPO asks each prompt many times. TRL's trainer runs the prompt again with every answer, when it
samples and when it learns, and puts every position through the output layer. On a GPU that hardly
shows; on a CPU it is most of a step. Here:

- sampling fills the KV cache once a prompt, then copies it for the group's answers;
- learning packs a group into one row, `prompt | answer 1 | answer 2 | …`, in which an answer sees
  the prompt and itself, at the positions that it has alone;
- the output layer sees the positions that predict an answer's token, and no other.

The log-probabilities are those of TRL up to rounding: tests/training/test_shared_prompts.py
compares them, and their gradients.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "Packing",
    "can_share_prompts",
    "inner_model",
    "pack",
    "per_token_logps",
    "share_prompts_in_generate",
]

# Decoders whose positions are rotary, whose layers see the whole context, and whose logits are the
# output layer's as they are.
_ARCHITECTURES = ("llama", "qwen2", "qwen3")

# A packed row is one attention matrix, most of it masked: worth it while rows are short.
_LONGEST_ROW = 2048
# Packing fewer tokens than this share of the plain batch is worth the bookkeeping.
_WORTH_SHARE = 0.9
# Logits of so many positions are held at once; more are computed again for the gradient.
_POSITIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class Packing:
    """A batch of answers with one row a prompt."""

    # (groups, tokens): each prompt once, then its answers without their last tokens, which predict
    # nothing; the attention mask is (groups, 1, tokens, tokens), added to the attention scores.
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    rows: torch.Tensor  # (answers,): the row that holds each answer
    columns: torch.Tensor  # (answers, length): the position that predicts each token of an answer


def inner_model(model: Any) -> Any:
    """The model of transformers inside a trainer's model: itself, or what peft wraps.

    peft puts its layers into that model, so that it computes with the adapter on.
    """
    wrapped = getattr(model, "get_base_model", None)
    return model if wrapped is None else wrapped()


def can_share_prompts(model: Any) -> bool:
    """Whether a model (or the one inside peft) is of an architecture that gives TRL's results."""
    from transformers import PreTrainedModel

    model = inner_model(model)
    return (
        isinstance(model, PreTrainedModel)
        and model.config.model_type in _ARCHITECTURES
        and not getattr(model.config, "use_sliding_window", False)
    )


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, length: int, *, dtype: torch.dtype
) -> Packing | None:
    """Put answers to the same prompt into one row; None where that would not pay.

    `input_ids` and `attention_mask` are (answers, prompt + length), prompts padded on the left and
    answers on the right. It does not pay where no prompt is shared, or answers are long.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[7, 8, 9, 1, 2], [7, 8, 9, 3, 4]])
        >>> packed = pack(ids, torch.ones_like(ids), 2, dtype=torch.float32)
        >>> packed.input_ids.tolist(), packed.columns.tolist()
        ([[7, 8, 9, 1, 3]], [[2, 3], [2, 4]])
    """
    import torch

    answers, total = input_ids.shape
    width = total - length
    fed = length - 1  # an answer's last token predicts nothing
    prompts, rows = torch.unique(
        torch.cat([input_ids[:, :width], attention_mask[:, :width]], dim=1),
        dim=0,
        return_inverse=True,
    )
    groups = len(prompts)
    # An answer's place among those of its row.
    same = rows.unsqueeze(1) == rows.unsqueeze(0)
    places = same.tril(diagonal=-1).sum(dim=1)
    size = int(places.max()) + 1
    tokens = width + size * fed
    if tokens > _LONGEST_ROW or groups * tokens > _WORTH_SHARE * answers * total:
        return None

    ids = input_ids.new_zeros(groups, tokens)
    real = torch.zeros(groups, tokens, dtype=torch.bool, device=input_ids.device)
    ids[:, :width] = prompts[:, :width]
    real[:, :width] = prompts[:, width:].bool()
    steps = torch.arange(fed, device=input_ids.device)
    fed_columns = width + places.unsqueeze(1) * fed + steps
    ids[rows.unsqueeze(1), fed_columns] = input_ids[:, width : total - 1]
    real[rows.unsqueeze(1), fed_columns] = attention_mask[:, width : total - 1].bool()

    # 0 is the prompt, 1 the first answer of the row, and so on: a token sees the real ones
    # before it that are of the prompt or of its own part, and itself, so that padding sees one.
    column = torch.arange(tokens, device=input_ids.device)
    part = torch.where(column < width, 0, (column - width) // max(fed, 1) + 1)
    own = (part.unsqueeze(1) == part) | (part == 0)
    seen = (own & (column.unsqueeze(1) >= column)).unsqueeze(0) & real.unsqueeze(1)
    seen = seen | torch.eye(tokens, dtype=torch.bool, device=input_ids.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=input_ids.device)
    mask.masked_fill_(~seen, torch.finfo(dtype).min)

    prompt_lengths = real[:, :width].sum(dim=1, keepdim=True)
    within = torch.where(column < width, column - width, (column - width) % max(fed, 1))
    positions = (prompt_lengths + within).clamp(min=0)

    first = torch.full((answers, 1), width - 1, device=input_ids.device)
    return Packing(
        input_ids=ids,
        attention_mask=mask.unsqueeze(1),
        position_ids=positions,
        rows=rows,
        columns=torch.cat([first, fed_columns], dim=1),
    )


def per_token_logps(
    model: Any, packing: Packing, targets: torch.Tensor, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy (nats, no gradient) of each token of each answer.

    `targets` are the answers' tokens, (answers, length), as both results are.
    """
    import torch
    from torch.utils.checkpoint import checkpoint
    from trl.trainer.utils import selective_log_softmax_and_entropy

    model = inner_model(model)
    hidden = model.base_model(
        input_ids=packing.input_ids,
        attention_mask=packing.attention_mask,
        position_ids=packing.position_ids,
        use_cache=False,
    ).last_hidden_state
    wanted = hidden[packing.rows.unsqueeze(1), packing.columns].flatten(0, 1)
    head = model.get_output_embeddings()

    def scored(states: torch.Tensor, tokens: torch.Tensor) -> Any:
        return selective_log_softmax_and_entropy(
            head(states), tokens, entropy_requires_grad=False, temperature=temperature
        )

    parts = list(
        zip(
            wanted.split(_POSITIONS_AT_ONCE),
            targets.flatten().split(_POSITIONS_AT_ONCE),
            strict=True,
        )
    )
    if len(parts) == 1:
        results = [scored(*parts[0])]
    else:
        results = [checkpoint(scored, *part, use_reentrant=False) for part in parts]
    logps, entropies = (
        torch.cat(pieces).view(targets.shape) for pieces in zip(*results, strict=True)
    )
    return logps, entropies


def share_prompts_in_generate(model: Any) -> None:
    """Have `model.generate` compute equal prompts once.

    What is sampled, and how, stays the library's: it is handed a KV cache of the prompts without
    their last tokens, as for any prompt known beforehand.
    """
    import torch
    from transformers import DynamicCache

    model = inner_model(model)
    generate = model.generate

    def sharing(
        self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
    ) -> Any:
        width = input_ids.shape[1]
        prompts, rows = torch.unique(
            torch.cat([input_ids, attention_mask], dim=1), dim=0, return_inverse=True
        )
        if width > 1 and len(prompts) < len(input_ids):
            cache = DynamicCache(config=self.config)
            before = prompts[:, width:-1]
            with torch.no_grad():
                self.base_model(
                    input_ids=prompts[:, : width - 1],
                    attention_mask=before,
                    position_ids=(before.cumsum(dim=1) - 1).clamp(min=0),
                    past_key_values=cache,
                    use_cache=True,
                )
            cache.batch_select_indices(rows)
            settings["past_key_values"] = cache
        return generate(input_ids=input_ids, attention_mask=attention_mask, **settings)

    model.generate = types.MethodType(sharing, model)
