"""Memory arithmetic against published totals, recorded starts of vLLM, and public reports."""

from __future__ import annotations

import doctest
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError, WorkshopError
from workshop_lib.serving.memory import (
    DEVICES,
    GIB,
    Budget,
    EngineKV,
    ModelShape,
    advise,
    advise_table,
    claimed_budget,
    claimed_cures,
    claimed_kv,
    cpu_budget,
    find_device,
    gpu_budget,
    kv_cache_capacity,
    parse_engine_line,
    suggest_changes,
    training_budget,
)
from workshop_lib.serving.memory.command import main
from workshop_lib.serving.memory.model import architectures, stage_layers
from workshop_lib.serving.memory.predict import known_shape
from workshop_lib.serving.memory.vllm import kv_bytes_per_token, layer_groups

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests/data/memory"
RECORDED = data_path("recorded/h200")
LOG = (RECORDED / "vllm-0.25.1-tp1-util0.90.log").read_text()
STARTS = [
    json.loads(line)
    for file in sorted(RECORDED.glob("vllm-*-memory*.jsonl"))
    for line in file.read_text().splitlines()
]
LAPTOP_LINE = (
    "(EngineCore pid=12) INFO 11-21 10:00:00 [kv_cache_utils.py:2327] CPU KV cache size: "
    "23,296 tokens, Maximum concurrency for 1,024 tokens per request: 22.75x"
)


def named(name: str) -> ModelShape:
    return ModelShape.named(name)


def config(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads(data_path(f"models/{name}.json").read_text()), **changes}


def case(name: str, **changes: Any) -> ModelShape:
    found = json.loads((CASES / f"{name}.config.json").read_text())
    return ModelShape.from_config({**found, **changes}, name=name)


# google/gemma-3-4b-it's configuration, as its repository states it.
GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


# -- parameters and weights --------------------------------------------------------------------

# What the models' repositories state.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_248_023_552,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "deepseek-v2-lite": 15_706_484_224,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameters_equal_the_published_totals(name: str, parameters: int) -> None:
    assert named(name).parameters == parameters


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (lambda: case("gpt-oss-20b"), 20_914_757_184),
        (lambda: case("deepseek-r1"), 671_026_419_200),
        (lambda: ModelShape.from_config(GEMMA_3_4B), 4_300_079_472),
    ],
    ids=["gpt-oss-20b", "deepseek-r1", "gemma-3-4b"],
)
def test_the_public_cases_have_the_published_parameters(shape: Any, parameters: int) -> None:
    assert shape().parameters == parameters


@pytest.mark.parametrize("architecture", architectures())
def test_keys_left_out_mean_what_transformers_takes_for_them(architecture: str) -> None:
    import transformers

    if architecture.startswith(("Deepseek", "GptOss")):
        pytest.skip("its config.json states all keys")
    classes = {"Gemma3ForCausalLM": "Gemma3TextConfig"}
    classes["Gemma3ForConditionalGeneration"] = "Gemma3TextConfig"
    name = classes.get(architecture, architecture.replace("ForCausalLM", "Config"))
    theirs = getattr(transformers, name)()
    stated = {"hidden_size": 4096, "intermediate_size": 1024, "num_hidden_layers": 32}
    stated |= {"num_attention_heads": 32, "vocab_size": 32_000}
    stated |= {"num_experts_per_tok": 2, "num_experts": 8}
    shape = ModelShape.from_config({"architectures": [architecture], **stated})
    assert shape.kv_heads == (getattr(theirs, "num_key_value_heads", None) or 32)
    assert shape.head_dim == (getattr(theirs, "head_dim", None) or 128)
    assert shape.max_positions == theirs.max_position_embeddings
    assert shape.tied_embeddings == theirs.tie_word_embeddings
    window = getattr(theirs, "sliding_window", None)
    window = window if getattr(theirs, "use_sliding_window", True) else None
    assert set(shape.windows) - {0} == ({window} if window else set())


def test_weights_under_tensor_and_pipeline_parallelism() -> None:
    shape = named("llama-3.1-70b")
    whole = shape.weights_bytes()
    for tp in (2, 4, 8):  # norms and the rotary table are on every GPU
        assert whole / tp < shape.weights_bytes(tp) < whole / tp * 1.01
    # Beyond 8 KV heads they are copied: 16 GPUs hold 16 heads' keys and values, not 8.
    assert shape.weights_bytes(16) > whole / 16 + 2 * 80 * 8192 * 128 * 8 * 2 / 16
    large = named("llama-3.1-405b")
    held = sum(large.weights_bytes(8, 2, stage=stage) for stage in range(2))
    assert held == pytest.approx(large.weights_bytes(8), rel=0.001)
    assert [len(stage_layers(large, 4, stage)) for stage in range(4)] == [31, 32, 32, 31]
    for pp in (1, 3, 8, 126):
        layers = [layer for stage in range(pp) for layer in stage_layers(large, pp, stage)]
        assert layers == list(range(126))


def test_quantized_weights_by_hand() -> None:
    base = named("llama-3.1-8b").weights_bytes()
    linear = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    fp8 = config("llama-3.1-8b", quantization_config={"quant_method": "fp8"})
    assert ModelShape.from_config(fp8).weights_bytes() == base - linear
    # The cache keeps the model's own format unless it is told otherwise.
    assert kv_bytes_per_token(ModelShape.from_config(fp8)) == 2 * 32 * 8 * 128 * 2
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    int4 = ModelShape.from_config(config("llama-3.1-8b", quantization_config=settings))
    assert int4.weights_bytes() == int(base - linear * 2 + linear * (4 + 16 / 128) / 8)
    assert int4.parameters == 8_030_261_248


# -- recorded starts ---------------------------------------------------------------------------


def shape_of(start: dict[str, Any]) -> ModelShape:
    shape = ModelShape.from_config(start["config"], name=start["model"])
    if start.get("more", {}).get("language_model_only"):
        shape = shape.model_copy(update={"vision": None})
    return shape.with_dtype(start.get("dtype", "auto"))


def budget_of(start: dict[str, Any]) -> Budget:
    names = ("gpu_memory_utilization", "max_model_len", "tp", "pp", "enforce_eager")
    names += ("max_num_batched_tokens", "max_num_seqs")
    settings = {name: start[name] for name in names} | {"vllm": start.get("vllm", "0.25.1")}
    return gpu_budget(shape_of(start), "h200", kv_dtype=start["kv_cache_dtype"], **settings)


@pytest.mark.parametrize("start", STARTS, ids=[start["id"] for start in STARTS])
def test_recorded_starts_are_predicted(start: dict[str, Any]) -> None:
    """Starts on H200: tokens within 1%, and within 0.5% of vLLM 0.25.1."""
    budget = budget_of(start)
    version = start.get("vllm", "0.25.1")
    share = 0.005 if version == "0.25.1" else 0.01
    assert budget.kv.tokens == pytest.approx(start["kv_cache_tokens"], rel=share)
    assert budget.kv.concurrency == pytest.approx(start["max_concurrency"], rel=share)
    assert budget.measured == f"vLLM {version} on H200" and budget.fits
    # Of pipeline stages one counts: that with the least room.
    off = [abs(budget.weights_gib - said / GIB) for said in start["weights_bytes"]]
    assert min(off) < 0.025 * budget.weights_gib + 1 / 16


def test_the_recorded_log() -> None:
    shape = named("mistral-7b-shape-h200")
    said = parse_engine_line(LOG)
    assert said == EngineKV("GPU", 908_512, 4096, 221.80)
    budget = gpu_budget(shape, "h200", gpu_memory_utilization=0.9, max_model_len=4096)
    assert budget.kv.tokens == pytest.approx(said.tokens, rel=0.005)
    assert round(budget.weights_gib, 2) == 13.76  # "Model loading took 13.76 GiB"
    # From the engine's own blocks the tokens come out exactly, also with a part of a block more.
    block_bytes = 16 * kv_bytes_per_token(shape)
    for spare in (0, block_bytes - 1):
        kv_bytes = said.tokens // 16 * block_bytes + spare
        assert kv_cache_capacity(kv_bytes, shape, max_model_len=4096).tokens == said.tokens


def test_the_laptops_lines_come_out_exactly() -> None:
    """Seen on laptops: VLLM_CPU_KVCACHE_SPACE=1 and 2, --max-model-len 1024 and 1000."""
    shape = named("smollm2-135m").with_dtype("float32")
    one = cpu_budget(shape, kv_gib=1, memory_gib=24)
    assert one.kv.line("CPU") in LAPTOP_LINE and one.kv.blocks == 182
    assert sum(one.parts().values()) == pytest.approx(24) and one.fits
    two = cpu_budget(shape, kv_gib=2, memory_gib=24, max_model_len=1000)
    assert (two.kv.tokens, two.kv.concurrency) == (45_500, 45.5)
    tight = cpu_budget(shape, kv_gib=4, memory_gib=4)
    assert not tight.fits and "lower VLLM_CPU_KVCACHE_SPACE" in tight.reason


def test_engine_lines() -> None:
    with pytest.raises(WorkshopError, match=r"no 'KV cache size.*its last line: 'still loading'"):
        parse_engine_line("starting\nstill loading\n")
    older = LAPTOP_LINE.replace("23,296", "11,648").replace("22.75", "11.38")
    assert parse_engine_line(f"{older}\n{LAPTOP_LINE}\n").tokens == 23_296  # a restarted server
    assert parse_engine_line("GPU KV cache size: 16 tokens") == EngineKV("GPU", 16)


# -- public reports ----------------------------------------------------------------------------


def test_gpt_oss_on_an_a100() -> None:
    """vLLM 0.19, share 0.65: 13.72 GiB of weights, 36.56 GiB for KV."""
    budget = gpu_budget(
        case("gpt-oss-20b"), "a100-80", gpu_memory_utilization=0.65, max_model_len=131_072
    )
    assert budget.weights_gib == pytest.approx(13.72, rel=0.005)
    assert budget.kv_gib == pytest.approx(36.56, rel=0.02)
    # 12 layers with a window of 128 tokens, 12 without, in groups of 12.
    assert budget.kv.groups == 2 and budget.kv.blocks == int(budget.kv_gib * GIB) // (
        16 * 12 * 2 * 8 * 64 * 2
    )
    assert budget.measured == "vLLM 0.25.1 on H200; not on A100-80GB"


def test_deepseek_r1_on_16_h800() -> None:
    """vllm-project/vllm#16692, vLLM 0.8.4, an older engine: 304,704 tokens."""
    sizes = {"max_model_len": 32_768, "max_num_batched_tokens": 32_768, "max_num_seqs": 256}
    budget = gpu_budget(case("deepseek-r1"), "h100", tp=16, gpu_memory_utilization=0.9, **sizes)
    assert budget.kv.tokens == pytest.approx(304_704, rel=0.06)
    assert "vLLM 0.25.1" in budget.measured and "not on H100-80GB" in budget.measured


def test_a_multimodal_model_has_its_image_encoder_too() -> None:
    shape = ModelShape.from_config(GEMMA_3_4B, name="gemma-3-4b-it")
    assert shape.max_positions == 131_072 and shape.windows[:6] == (1024,) * 5 + (0,)
    # SigLIP's 416,866,032 parameters and a projector of 1152 x 2560 with a norm, in 16 bits.
    text = shape.model_copy(update={"vision": None})
    more = shape.weights_bytes() - text.weights_bytes()
    assert more == 2 * (416_866_032 + 1152 * 2560 + 1152)
    assert gpu_budget(shape, "l4", max_model_len=8192).fits
    with pytest.raises(ModelError, match="Vision: hidden_size: Field required"):
        ModelShape.from_config({**GEMMA_3_4B, "vision_config": None}, name="gemma-3")


def test_every_gpu_of_the_price_list_is_predicted() -> None:
    instances = yaml.safe_load(data_path("instances.yaml").read_text())
    for gpu in {entry["gpu"] for entry in instances.values()} - {None}:
        budget = gpu_budget(named("llama-3.1-8b"), gpu, max_model_len=4096)
        assert budget.fits and budget.device == gpu
        assert ("not on" in budget.measured) == (gpu != "H200")
    for said, key in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA B300 SXM6 AC", "b300"),
    ):
        assert find_device(said) is DEVICES[key]


def test_an_unknown_gpu_needs_one_fact() -> None:
    for name in ("l20", "l20:much"):
        with pytest.raises(WorkshopError, match=f"memory of the GPU '{name}' is not known; give"):
            gpu_budget(named("llama-3.1-8b"), name)
    budget = gpu_budget(named("llama-3.1-8b"), "l20:44.4")
    assert budget.fits and budget.capacity_gib == 44.4


# -- the KV cache ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tp", "mib"),
    [
        ("llama-2-7b", 1, 0.5),
        ("mistral-7b", 2, 0.0625),
        ("llama-3.1-70b", 8, 0.3125 / 8),
        ("llama-3.1-70b", 16, 0.3125 / 8),  # one head at least: no smaller than with 8
        ("deepseek-v2-lite", 2, 27 * (512 + 64) * 2 / 2**20),  # one vector whatever the TP
    ],
)
def test_kv_bytes_a_token(name: str, tp: int, mib: float) -> None:
    assert kv_bytes_per_token(named(name), tp=tp) == mib * 2**20
    assert 2 * kv_bytes_per_token(named(name), tp=tp, kv_dtype="fp8_e4m3") == mib * 2**20


def test_windows_by_hand() -> None:
    assert layer_groups([0] * 32) == (32, (0,))
    assert layer_groups(named("gemma-2-9b").windows) == (21, (4096, 0))
    # 22 of 26 layers have a window; groups of four: six with, one without.
    size, windows = layer_groups(named("gemma-3-1b").windows)
    assert (size, sorted(windows)) == (4, [0] + [512] * 6)
    assert layer_groups([512] * 12 + [0] * 13) == (13, (512, 0))  # one padded group each
    gemma, tokens = named("gemma-3-1b"), 26 * 2 * 256 * 2  # bytes of a token's keys and values
    capacity = kv_cache_capacity(
        GIB, gemma, max_model_len=32_768, batched_tokens=2048, layers=range(6)
    )  # five layers with a window, one without: a group each
    assert (capacity.groups, capacity.blocks) == (6, GIB // (16 * tokens // 26))
    # Each window's request takes (512 - 1 + 2048) / 16 blocks, up, and one; the other all 2048.
    assert capacity.concurrency == capacity.blocks / (5 * 161 + 2048)
    assert named("qwen2.5-7b").windows == ()  # named and switched off
    unsaid = config("mistral-7b")
    del unsaid["sliding_window"]  # only a written null means none
    assert ModelShape.from_config(unsaid).windows == (4096,) * 32


def test_a_length_that_is_longer_than_the_advised_one_does_not_fit() -> None:
    shape = named("llama-3.1-8b")
    budget = gpu_budget(shape, "l4", max_model_len=131_072)
    longest = int(budget.reason.rsplit(" ", 1)[1].replace(",", ""))
    assert gpu_budget(shape, "l4", max_model_len=longest).fits
    assert not gpu_budget(shape, "l4", max_model_len=longest + 1).fits


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 32_768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),
        ({"rope_type": "linear", "factor": 2.0}, 65_536),
        ({"rope_type": "llama3", "factor": 8.0}, 32_768),
    ],
)
def test_positions_are_stretched_as_vllm_stretches_them(scaling: Any, positions: int) -> None:
    shape = ModelShape.from_config(config("mistral-7b", rope_scaling=scaling))
    assert shape.max_positions == positions
    with pytest.raises(ModelError, match="vLLM refuses more"):
        shape.check_length(positions + 1)


# -- what fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_a_budget_add_up_to_the_device(device: str) -> None:
    for share in (0.4, 0.9, 0.95, 1.0):
        budget = gpu_budget(named("mistral-7b"), device, gpu_memory_utilization=share)
        assert sum(budget.parts().values()) == pytest.approx(budget.capacity_gib)
        assert budget.fits == (budget.reason == "")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama-3.1-70b", {"tp": 1}, "leave no memory for the KV cache; raise the tensor-parallel"),
        ("llama-3.1-70b", {"tp": 2, "gpu_memory_utilization": 0.8}, "gpu_memory_utilization or"),
        ("llama-3.1-8b", {"max_model_len": 131_072, "gpu_memory_utilization": 0.3}, "at most"),
        ("mistral-7b", {"gpu_memory_utilization": 1.0}, "vLLM refuses; use at most 0.99"),
    ],
)
def test_what_does_not_fit_says_what_to_change(name: str, options: Any, words: str) -> None:
    budget = gpu_budget(named(name), "h100", **options)
    assert not budget.fits and words in budget.reason and "\n" not in budget.reason
    changes = suggest_changes(named(name), "h100", **options)
    assert changes
    keys = {"TP": "tp", "kv_cache_dtype": "kv_dtype"}
    for change in changes:  # what is proposed fits
        key, value = change.split(":")[0].split("=")
        parsed = value if value == "fp8" else float(value) if "." in value else int(value)
        assert gpu_budget(named(name), "h100", **{**options, keys.get(key, key): parsed}).fits


@pytest.mark.parametrize("device", ["a10g", "l4"])
def test_a_share_of_0_95_is_not_refused_for_an_estimate(device: str) -> None:
    budget = gpu_budget(named("llama-3.2-1b"), device, gpu_memory_utilization=0.95)
    assert budget.fits and not budget.warning
    deep = gpu_budget(named("llama-3.1-8b"), device, gpu_memory_utilization=0.97)
    assert deep.fits and "lower gpu_memory_utilization if vLLM" in deep.warning


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
def test_the_adviser_takes_the_fewest_gpus(name: str, device: str, expected: Any) -> None:
    plans = advise(named(name), device, requests=16)
    assert (plans[0]["tp"], plans[0]["pp"]) == expected
    assert all(plan["requests"] >= 16 for plan in plans)
    assert [plan["gpus"] for plan in plans] == sorted(plan["gpus"] for plan in plans)
    more = advise_table([named(name)], device, requests=1600)
    assert more.gpus[0] > plans[0]["gpus"] and more.requests[0] >= 1600


def test_what_no_node_can_hold_is_said() -> None:
    with pytest.raises(WorkshopError, match=r"does not fit 32 x L4: .*no memory for the KV cache"):
        advise(named("llama-3.1-405b"), "l4")


def test_shapes_are_found_by_repository() -> None:
    assert known_shape("mistralai/Mistral-7B-Instruct-v0.3") == named("mistral-7b")
    assert known_shape("meta-llama/Llama-3.1-70B-Instruct") == named("llama-3.1-70b")
    assert known_shape("nobody/nothing") is None


# -- training ----------------------------------------------------------------------------------


def test_the_trainers_state_is_sixteen_bytes_a_parameter() -> None:
    shape = named("mistral-7b")
    alone = training_budget(shape, "h100")
    state = ("weights", "gradients", "optimizer")
    assert sum(alone.update[part] for part in state) == pytest.approx(16 * shape.parameters / GIB)
    shared = training_budget(shape, "h100", gpus=8)
    assert shared.update["optimizer"] == pytest.approx(alone.update["optimizer"] / 8)
    assert not alone.fits and "LoRA or more GPUs" in alone.reason
    assert shared.fits and shared.reason == ""


def test_lora_keeps_the_frozen_weights_in_float32() -> None:
    """NeMo RL v0.7.0 loads them so: 70B on two H100 takes 131 GiB of each, not 66."""
    budget = training_budget(named("llama-3.1-70b"), "h100", gpus=2, tp=2, lora_rank=16)
    assert budget.update["weights"] == pytest.approx(131.8, abs=0.5)
    assert not budget.fits and "most of it weights; use more GPUs" in budget.reason
    small = training_budget(named("mistral-7b"), "a100-40", lora_rank=16)
    # 16 · (inputs + outputs) of seven projections in 32 layers.
    trained = 41_943_040
    assert small.update["optimizer"] == pytest.approx(8 * trained / GIB)
    assert small.fits
    with pytest.raises(WorkshopError, match="LoRA on experts"):
        training_budget(named("mixtral-8x7b"), "h100", lora_rank=16)


def test_dedicated_generation_leaves_the_trainer_alone() -> None:
    shape = named("mistral-7b")
    together = training_budget(shape, "h100", lora_rank=16, offload=False)
    apart = training_budget(shape, "h100", lora_rank=16, where="dedicated")
    assert "vLLM asleep" in together.update and "vLLM asleep" not in apart.update
    assert sum(apart.generate.values()) < sum(together.generate.values())


def test_claims_are_corrected() -> None:
    tokens = claimed_kv([named("llama-2-7b"), named("mistral-7b")])
    assert tokens.factor.min() > 2 and tokens.factor.max() < 10
    table = claimed_budget(named("mistral-7b"))
    assert table.loc["sum", "claimed"] == 42.0
    # Named as missing: the trainer's copy of the weights beside vLLM's, and the gradients.
    assert table.loc["gradients"].isna()["claimed"] and table.loc["gradients", "full"] > 14
    assert table.loc["sum", "lora"] > 50 > table.loc["sum", "lora_generate"]
    cures = claimed_cures(named("mistral-7b")).set_index(["cure", "training"]).fits
    assert not cures["share 0.65", "LoRA"] and cures["taking turns (offload)", "LoRA"]
    assert not cures.xs("full", level="training").any()


# -- the command line and bad input ------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], name: str, options: str) -> dict[str, Any]:
    path = str(data_path(f"models/{name}.json"))
    assert main(["--config", path, *options.split(), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(
        capsys,
        "mistral-7b-shape-h200",
        "--gpu h200 --tp 2 --gpu-memory-utilization 0.9 --max-model-len 4096",
    )
    # Half of the weights and half of the bytes a token: a little more than twice TP=1's tokens.
    assert 2 * 908_512 < said["kv_cache_tokens"] < 2.2 * 908_512
    assert type(said["kv_cache_tokens"]) is int and said["fits"] and said["changes"] == []
    assert said["measured"] == "vLLM 0.25.1 on H200" and "activations" in said["estimated"]
    laptop = "--cpu-kv-gib 1 --dtype float32 --max-model-len 1024"
    assert run(capsys, "smollm2-135m", laptop)["kv_cache_tokens"] == 23_296
    path = str(CASES / "gpt-oss-20b.config.json")
    assert main(["--config", path, "--gpu", "a100-80"]) == 0
    assert "not on A100-80GB." in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    ["--max-num-batched-tokens 32768 --max-num-seqs 32", "--enforce-eager", "--block-size 32768"],
)
def test_the_advice_keeps_every_option(capsys: pytest.CaptureFixture[str], options: str) -> None:
    """A proposed change, given as an option beside the others, must give the promised tokens."""
    base = f"--gpu l4 --max-model-len 65536 {options}"
    answer = run(capsys, "llama-3.1-8b", base)
    assert not answer["fits"] and answer["changes"]
    for change in answer["changes"]:
        (name, _, value), promised = change.split(":")[0].partition("="), change.split(": ")[1]
        changed = run(capsys, "llama-3.1-8b", f"{base} --{name.lower().replace('_', '-')} {value}")
        assert changed["fits"] and f"{changed['kv_cache_tokens']:,} tokens" == promised


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gpu h200 --tp 7", "over 7 GPUs does not divide"),
        ("--gpu h200 --tp 0", "over 0 GPUs does not divide"),
        ("--gpu h200 --pp 33", "cannot be cut into 33"),
        ("--gpu h200 --gpu-memory-utilization nan", "out of range"),
        ("--gpu h200 --max-model-len 0", "max_model_len must be a number above 0"),
        ("--gpu h200 --max-model-len 1000000000000", "knows 131,072 positions"),
        ("--gpu h200 --block-size 17", "multiple of 16"),
        ("--gpu h200 --max-num-seqs 9000", "less than max_num_seqs 9,000"),
        ("--gpu h200 --kv-cache-dtype fp4", "'fp4' is not known"),
        ("--gpu h200 --vllm newest", "vLLM's version 'newest' is none"),
        ("--cpu-kv-gib 0", "VLLM_CPU_KVCACHE_SPACE must be a number above 0"),
        ("--cpu-kv-gib 1 --max-num-seqs 4", "on a CPU there is no max_num_seqs"),
    ],
)
def test_command_line_refuses_absurd_options(
    options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(data_path("models/llama-3.1-8b.json"))
    assert main(["--config", path, *options.split(), "--json"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not modelled; known: Llama"),
        ({"architectures": []}, "no 'architectures'"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "'compressed-tensors', got 'model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "Input should be 4 or 8"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "0 weight formats"),
        ({"sliding_window": "4k"}, "windows.0: Input should be a valid integer"),
        ({"hidden_size": None}, "a-model: config.json, ModelShape: hidden_size: Field required"),
        ({"hidden_size": 10**30}, "less than or equal to 1000000000, got"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"torch_dtype": "int4"}, "'int4' is not known"),
        ({"architectures": ["MixtralForCausalLM"]}, "Experts: num_local_experts: Field required"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]*$") as caught:
        ModelShape.from_config(config("mistral-7b", **change), name="a-model")
    assert words in str(caught.value)


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    with pytest.raises(ModelError, match="cannot be read"):
        ModelShape.from_config(broken)
    for text, words in (("{", "is not JSON"), ("[]", "no JSON object")):
        broken.write_text(text)
        with pytest.raises(ModelError, match=words):
            ModelShape.from_config(tmp_path)
    with pytest.raises(ModelError, match=r"there are: .*mistral-7b"):
        named("mistral")


MODULES = ["simulators", "client", "prompts", "benchmark.load", "memory.model", "memory.vllm"]
MODULES += ["memory.engine_log", "memory.training", "memory.advise"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"workshop_lib.serving.{module}"))
    assert result.attempted and not result.failed
