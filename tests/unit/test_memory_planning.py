"""Windows, experts and quantized weights; the adviser; the memory of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workshop_lib.errors import ModelError, WorkshopError
from workshop_lib.serving.memory import (
    GIB,
    ModelShape,
    advise,
    advise_table,
    blocks_per_request,
    claimed_budget,
    claimed_cures,
    claimed_kv,
    gpu_budget,
    kv_bytes_per_token,
    kv_cache_capacity,
    layer_groups,
    lora_parameters,
    suggest_changes,
    training_budget,
)
from workshop_lib.serving.memory.__main__ import main
from workshop_lib.serving.memory.quantization import read_quantization

ROOT = Path(__file__).resolve().parents[2]


def named(name: str) -> ModelShape:
    return ModelShape.named(name)


def test_layers_with_and_without_a_window_are_grouped_as_vllm_does() -> None:
    assert layer_groups([0] * 32) == (32, (0,))
    assert layer_groups([4096] * 32) == (32, (4096,))
    gemma2 = named("gemma-2-9b").windows
    assert gemma2[:2] == (4096, 0) and layer_groups(gemma2) == (21, (4096, 0))
    # 22 of 26 layers have a window; groups of four: six with, one without.
    gemma3 = named("gemma-3-1b").windows
    size, windows = layer_groups(gemma3)
    assert (size, sorted(windows)) == (4, [0] + [512] * 6)
    # 12 and 13 layers: one padded group each, not two.
    assert layer_groups([512] * 12 + [0] * 13) == (13, (512, 0))


def test_a_window_bounds_what_a_long_request_holds() -> None:
    full = blocks_per_request(32_768, [0], block_size=16, batched_tokens=2048)
    short = blocks_per_request(32_768, [512], block_size=16, batched_tokens=2048)
    assert (full, short) == (2048, 161)  # (512 - 1 + 2048) / 16, up, and one
    assert blocks_per_request(100, [512], block_size=16, batched_tokens=2048) == 8
    all_full = ModelShape.from_config({**config("gemma-3-1b"), "sliding_window": None})
    windowed = kv_cache_capacity(GIB, named("gemma-3-1b"), max_model_len=32_768)
    plain = kv_cache_capacity(GIB, all_full, max_model_len=32_768)
    assert windowed.concurrency > 2 * plain.concurrency


def config(name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((ROOT / f"data/models/{name}.json").read_text())
    return loaded


def test_windows_of_qwen_and_mistral() -> None:
    assert named("qwen2.5-7b").windows == ()  # named and switched off
    mistral = ModelShape.from_config({**config("mistral-7b"), "sliding_window": 4096})
    assert mistral.windows == (4096,) * 32
    kinds = ["sliding_attention", "full_attention"] * 16
    listed = {**config("mistral-7b"), "sliding_window": 128, "layer_types": kinds}
    assert ModelShape.from_config(listed).windows == (128, 0) * 16


def test_experts_count_whole_and_active() -> None:
    assert named("mixtral-8x7b").active_parameters == 12_879_925_248  # 12.9 billion: its paper
    assert round(named("qwen3-30b-a3b").active_parameters / 1e9, 1) == 3.4
    assert named("mistral-7b").active_parameters == named("mistral-7b").parameters
    with pytest.raises(ModelError, match="experts in some layers only"):
        ModelShape.from_config({**config("qwen3-30b-a3b"), "mlp_only_layers": [0]})


def test_latent_attention_keeps_one_vector_whatever_the_tp() -> None:
    shape = named("deepseek-v2-lite")
    assert kv_bytes_per_token(shape) == 27 * (512 + 64) * 2
    assert kv_bytes_per_token(shape, tp=2) == kv_bytes_per_token(shape)


def test_quantized_weights() -> None:
    base = named("llama-3.1-8b").weights_bytes()
    linear = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    fp8 = {**config("llama-3.1-8b"), "quantization_config": {"quant_method": "fp8"}}
    assert ModelShape.from_config(fp8).weights_bytes() == base - linear
    # The cache keeps the model's own format unless it is told otherwise.
    assert kv_bytes_per_token(ModelShape.from_config(fp8)) == 2 * 32 * 8 * 128 * 2
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    int4 = ModelShape.from_config({**config("llama-3.1-8b"), "quantization_config": settings})
    assert int4.weights_bytes() == int(base - linear * 2 + linear * (4 + 16 / 128) / 8)
    assert int4.parameters == 8_030_261_248
    with pytest.raises(ModelError, match="2 weight formats"):
        groups = {str(bits): {"weights": {"num_bits": bits}} for bits in (4, 8)}
        mixed = {"quant_method": "compressed-tensors", "config_groups": groups}
        read_quantization({"quantization_config": mixed}, "a-model")


def test_pipeline_stages_share_weights_and_cache() -> None:
    shape = named("llama-3.1-405b")
    assert not gpu_budget(shape, "h100", tp=8).fits
    two = gpu_budget(shape, "h100", tp=8, pp=2)
    assert two.fits and two.pp == 2
    assert sum(two.parts().values()) == pytest.approx(two.capacity_gib)
    whole = sum(shape.weights_bytes(8, 2, stage=stage) for stage in range(2))
    assert whole == pytest.approx(shape.weights_bytes(8), rel=0.001)
    with pytest.raises(ModelError, match="cannot be cut into 127"):
        gpu_budget(shape, "h100", tp=8, pp=127)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("mistral-7b", "a100-40", (1, 1)),
        ("llama-3.1-70b", "h100", (4, 1)),
        ("llama-3.1-70b", "h200", (2, 1)),
        ("llama-3.1-405b", "h100", (8, 2)),
        ("llama-3.1-405b", "h200", (8, 1)),
    ],
)
def test_the_adviser_takes_the_fewest_gpus(
    name: str, device: str, expected: tuple[int, int]
) -> None:
    plans = advise(named(name), device, requests=16)
    best = plans[0]
    assert (best.budget.tp, best.budget.pp) == expected
    assert all(plan.budget.fits and plan.requests >= 16 for plan in plans)
    assert [plan.gpus for plan in plans] == sorted(plan.gpus for plan in plans)


def test_more_requests_need_more_replicas_and_purposes_set_the_share() -> None:
    few, many = (advise(named("mistral-7b"), "h100", requests=n)[0] for n in (64, 640))
    assert few.gpus < many.gpus and many.requests >= 640
    colocated = advise(named("mistral-7b"), "h100", purpose="colocated")[0]
    assert colocated.budget.gpu_memory_utilization == 0.6
    frame = advise_table([named("mistral-7b"), named("llama-3.1-70b")], "h200")
    assert frame.tp.tolist() == [1, 2]


def test_what_no_node_can_hold_is_said() -> None:
    with pytest.raises(WorkshopError, match=r"does not fit 32 x L4: .*more than the device"):
        advise(named("llama-3.1-405b"), "l4")
    with pytest.raises(WorkshopError, match="knows 32,768 positions"):
        advise(named("mistral-7b"), "h100", max_model_len=40_000)
    with pytest.raises(WorkshopError, match="requests and gpus_per_node"):
        advise(named("mistral-7b"), "h100", requests=0)


@pytest.mark.parametrize(
    ("name", "device", "settings"),
    [
        ("llama-3.1-70b", "h100", {}),
        ("llama-3.1-70b", "h100", {"tp": 2, "gpu_memory_utilization": 0.8}),
        ("mistral-7b", "h100", {"gpu_memory_utilization": 1.0}),
        ("llama-3.1-8b", "l4", {"max_model_len": 131_072}),
    ],
)
def test_suggested_changes_make_it_fit(name: str, device: str, settings: dict[str, float]) -> None:
    assert not gpu_budget(named(name), device, **settings).fits  # type: ignore[arg-type]
    changes = suggest_changes(named(name), device, **settings)  # type: ignore[arg-type]
    assert changes
    keys = {"TP": "tp", "kv_cache_dtype": "kv_dtype"}
    for change in changes:
        key, value = change.split(":")[0].split("=")
        parsed = value if value == "fp8" else float(value) if "." in value else int(value)
        changed = {**settings, keys.get(key, key): parsed}
        assert gpu_budget(named(name), device, **changed).fits, change  # type: ignore[arg-type]


def test_the_command_line_names_changes_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(ROOT / "data/models/llama-3.1-70b.json"), "--gpu", "h100"]
    assert main([*options, "--max-model-len", "4096", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["fits"] and answer["changes"]
    assert main([*options, "--max-model-len", "4096", "--tp", "4"]) == 0
    assert "It fits." in capsys.readouterr().out


def test_the_trainers_state_is_sixteen_bytes_a_parameter() -> None:
    shape = named("mistral-7b")
    alone = training_budget(shape, "h100", reference="gpu")
    state = ("weights", "gradients", "optimizer")
    assert sum(alone.update[part] for part in state) == pytest.approx(16 * shape.parameters / GIB)
    assert alone.update["reference"] == pytest.approx(2 * shape.parameters / GIB)
    shared = training_budget(shape, "h100", reference="gpu", gpus=8)
    assert shared.update["optimizer"] == pytest.approx(alone.update["optimizer"] / 8)
    assert not alone.fits and "LoRA or more GPUs" in alone.reason
    assert shared.fits and shared.reason == ""


def test_lora_trains_little_and_needs_no_reference() -> None:
    shape = named("mistral-7b")
    assert lora_parameters(shape, 16) == 41_943_040
    budget = training_budget(shape, "a100-40", lora_rank=16, reference="gpu")
    assert budget.update["reference"] == 0 and budget.update["optimizer"] < 0.5
    assert budget.fits
    with pytest.raises(WorkshopError, match="LoRA on experts"):
        lora_parameters(named("mixtral-8x7b"), 16)


def test_dedicated_generation_leaves_the_trainer_alone() -> None:
    shape = named("mistral-7b")
    together = training_budget(shape, "h100", lora_rank=16, offload=False)
    apart = training_budget(shape, "h100", lora_rank=16, where="dedicated")
    assert "vLLM asleep" in together.update and "vLLM asleep" not in apart.update
    assert sum(apart.generate.values()) < sum(together.generate.values())
    crowded = training_budget(
        shape, "a100-40", lora_rank=16, offload=False, gpu_memory_utilization=0.85
    )
    assert not crowded.fits and "offload the trainer" in crowded.reason


def test_claims_are_corrected() -> None:
    tokens = claimed_kv([named("llama-2-7b"), named("mistral-7b")])
    assert tokens.factor.min() > 2 and tokens.factor.max() < 10
    table = claimed_budget(named("mistral-7b"))
    assert table.loc["sum", "claimed"] == 42.0
    # Named as missing: the trainer's copy of the weights beside vLLM's, and the gradients.
    assert table.loc["gradients"].isna()["claimed"] and table.loc["gradients", "full"] > 14
    assert table.loc["sum", "lora"] > 50 > table.loc["sum", "lora_generate"]
    cures = claimed_cures(named("mistral-7b")).set_index(["cure", "training"]).fits
    assert not cures["share 0.65", "LoRA"] and cures["H100-80GB", "LoRA"]
    assert not cures.xs("full", level="training").any()
