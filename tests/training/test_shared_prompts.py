"""A prompt computed once for its group gives what TRL gives: answers, logps, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.training.shared_prompts import (
    can_share_prompts,
    pack,
    per_token_logps,
    share_prompts_in_generate,
)

VOCABULARY, PADDING = 97, 0
# Prompts of several lengths, several answers each, shuffled as TRL shuffles them.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 20], [30], [5, 6, 7, 20]]
ASKED = [0, 1, 2, 0, 3, 1, 0, 2, 0, 1]
TEMPERATURE = 0.7


@pytest.fixture
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=PADDING,
        eos_token_id=1,
        bos_token_id=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def batch() -> Any:
    """Ids, mask and the answers' length, padded as TRL does: prompts left, answers right."""
    import torch

    generator = torch.Generator().manual_seed(1)
    length = 5
    rows, masks = [], []
    for number, prompt in enumerate(ASKED):
        words = PROMPTS[prompt]
        said = torch.randint(3, VOCABULARY, (1 + number % length,), generator=generator).tolist()
        before, after = 8 - len(words), length - len(said)
        rows.append([PADDING] * before + words + said + [PADDING] * after)
        masks.append([0] * before + [1] * (len(words) + len(said)) + [0] * after)
    return torch.tensor(rows), torch.tensor(masks), length


def of_trl(model: Any, ids: Any, mask: Any, length: int) -> tuple[Any, Any]:
    """The log-probabilities and entropies of TRL's own method."""
    from contextlib import nullcontext

    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    method = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__
    logps, entropy, _ = method(trainer, model, ids, mask, length, compute_entropy=True)
    return logps, entropy


@pytest.mark.parametrize("at_once", [1000, 7], ids=["one piece", "recomputed in pieces"])
def test_log_probabilities_and_gradients_are_those_of_trl(
    model: Any, batch: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from workshop_lib.training import shared_prompts

    monkeypatch.setattr(shared_prompts, "_POSITIONS_AT_ONCE", at_once)
    ids, mask, length = batch
    packing = pack(ids, mask, length, dtype=torch.float32)
    assert packing is not None and packing.input_ids.shape == (3, 8 + 4 * 4)
    ours, our_entropy = per_token_logps(model, packing, ids[:, -length:], temperature=TEMPERATURE)
    shown = mask[:, -length:]
    weights = torch.linspace(-1, 1, shown.numel()).view(shown.shape) * shown
    (ours * weights).sum().backward()
    our_gradients = {name: value.grad.clone() for name, value in model.named_parameters()}

    model.zero_grad()
    theirs, their_entropy = of_trl(model, ids, mask, length)
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours * shown, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_entropy * shown, their_entropy, atol=1e-5, rtol=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(our_gradients[name], value.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_answers_do_not_see_each_other(model: Any, batch: Any) -> None:
    import torch

    ids, mask, length = batch
    before = per_token_logps(
        model, pack(ids, mask, length, dtype=torch.float32), ids[:, -length:], temperature=1.0
    )[0]
    ids = ids.clone()
    ids[3, -length:] = 50  # another answer to the prompt of rows 0, 6 and 8
    after = per_token_logps(
        model, pack(ids, mask, length, dtype=torch.float32), ids[:, -length:], temperature=1.0
    )[0]
    others = [row for row in range(len(ids)) if row != 3]
    assert torch.equal(before[others], after[others]) and not torch.equal(before[3], after[3])


def test_what_would_not_pay_is_not_packed(batch: Any) -> None:
    import torch

    ids, mask, length = batch
    different = ids.clone()
    different[:, 0] = torch.arange(len(ids)) + 40
    assert pack(different, torch.ones_like(mask), length, dtype=torch.float32) is None
    long = torch.cat([ids, torch.full((len(ids), 1000), 9)], dim=1)
    assert pack(long, torch.ones_like(long), length + 1000, dtype=torch.float32) is None


def test_an_answer_of_one_token(model: Any, batch: Any) -> None:
    import torch

    ids, mask, length = batch
    ids, mask = ids[:, : 1 - length], mask[:, : 1 - length]
    packing = pack(ids, mask, 1, dtype=torch.float32)
    assert packing is not None and packing.input_ids.shape == (3, 8)
    ours = per_token_logps(model, packing, ids[:, -1:], temperature=TEMPERATURE)[0]
    torch.testing.assert_close(ours, of_trl(model, ids, mask, 1)[0], atol=1e-5, rtol=1e-5)


def test_the_same_answers_are_sampled(model: Any, batch: Any) -> None:
    """From one seed, with and without sharing: the same cache, the same draws."""
    import torch
    from transformers import GenerationConfig

    ids, mask, length = batch
    prompts = {"input_ids": ids[:, :-length], "attention_mask": mask[:, :-length]}
    config = GenerationConfig(
        max_new_tokens=6, do_sample=True, temperature=1.3, pad_token_id=PADDING, eos_token_id=1
    )
    torch.manual_seed(3)
    plain = model.generate(**prompts, generation_config=config)
    seen: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda module, given, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    share_prompts_in_generate(model)
    torch.manual_seed(3)
    shared = model.generate(**prompts, generation_config=config)
    assert torch.equal(plain, shared)
    # Three prompts without their last tokens, then one token of each answer at a time.
    assert seen == [(3, 7), *[(10, 1)] * (len(seen) - 1)] and len(seen) > 2


def test_which_models_are_known(model: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    assert can_share_prompts(model)
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    assert not can_share_prompts(other)
