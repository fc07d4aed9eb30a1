"""Memory arithmetic against published totals, real logs, and an independent count."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError, WorkshopError
from workshop_lib.serving.memory import (
    CPU_BLOCK_SIZE,
    DEVICES,
    GIB,
    EngineKV,
    ModelShape,
    block_waste,
    contiguous_waste,
    cpu_budget,
    find_device,
    gpu_budget,
    kv_bytes_per_token,
    kv_cache_capacity,
    kv_cache_tokens,
    kv_table,
    parse_engine_line,
    parse_engine_log,
)
from workshop_lib.serving.memory.__main__ import main
from workshop_lib.serving.memory.architectures import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
LOG = (ROOT / "data/recorded/h200/vllm-0.25.1-tp1-util0.90.log").read_text()
LAPTOP_LINE = (
    "(EngineCore pid=12) INFO 11-21 10:00:00 [kv_cache_utils.py:2327] CPU KV cache size: "
    "23,296 tokens, Maximum concurrency for 1,024 tokens per request: 22.75x"
)

# Parameters that the models' repositories state.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_248_023_552,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "deepseek-v2-lite": 15_706_484_224,
}
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "sliding_window": 32768,
    "use_sliding_window": False,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}

QWEN25_72B = {
    **QWEN25_05B,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
GEMMA2_27B = {
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_hidden_layers": 46,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}


def laptop_model() -> ModelShape:
    return ModelShape.named("smollm2-135m").with_dtype("float32")


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameters_equal_the_published_totals(name: str, parameters: int) -> None:
    assert ModelShape.named(name).parameters == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN25_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (QWEN25_72B, 72_706_203_648),
        (GEMMA2_27B, 27_227_128_320),
        (PHI3_MINI, 3_821_079_552),
        (DEEPSEEK_V3, 671_026_419_200),
    ],
    ids=["qwen2.5-0.5b", "qwen3-0.6b", "qwen2.5-72b", "gemma-2-27b", "phi-3-mini", "deepseek-v3"],
)
def test_biases_and_norms_are_counted(config: dict[str, object], parameters: int) -> None:
    assert ModelShape.from_config(config).parameters == parameters


def test_head_dim_is_read_or_derived() -> None:
    assert ModelShape.from_config(QWEN3_06B).head_dim == 128  # not 1024 / 16
    assert ModelShape.from_config(QWEN25_05B).head_dim == 64


def test_kv_heads_default_to_heads() -> None:
    config = {k: v for k, v in QWEN25_05B.items() if k != "num_key_value_heads"}
    assert ModelShape.from_config(config).kv_heads == 14


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_left_out_mean_what_transformers_takes_for_them(architecture: str) -> None:
    import transformers

    if architecture.startswith("Deepseek"):
        pytest.skip("its config.json states all keys: they are asked for")
    classes = {"Gemma3ForCausalLM": "Gemma3TextConfig"}
    name = classes.get(architecture, architecture.replace("ForCausalLM", "Config"))
    theirs = getattr(transformers, name)()
    config = {
        "architectures": [architecture],
        "hidden_size": 4096,
        "intermediate_size": 1024,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32_000,
        "num_experts_per_tok": 2,
        "num_experts": 8,
    }
    shape = ModelShape.from_config(config)
    assert shape.kv_heads == (getattr(theirs, "num_key_value_heads", None) or 32)
    assert shape.head_dim == (getattr(theirs, "head_dim", None) or 128)
    assert shape.max_positions == theirs.max_position_embeddings
    assert shape.tied_embeddings == theirs.tie_word_embeddings
    window = getattr(theirs, "sliding_window", None)
    if not getattr(theirs, "use_sliding_window", True):
        window = None
    assert set(shape.windows) - {0} == ({window} if window else set())


def test_a_written_null_is_no_window() -> None:
    mistral = {**json.loads(data_path("models/mistral-7b.json").read_text())}
    assert ModelShape.from_config(mistral).windows == ()
    del mistral["sliding_window"]
    assert ModelShape.from_config(mistral).windows == (4096,) * 32


def test_auto_never_means_float32() -> None:
    shape = ModelShape.named("llama-3.2-1b")
    assert shape.with_dtype("float32").with_dtype("auto").dtype == "bfloat16"
    assert shape.with_dtype("float16").with_dtype("auto").dtype == "float16"


def test_weights_equal_the_h200_log() -> None:
    said_gib = parse_engine_log(LOG).weights_gib
    weights_gib = ModelShape.named("mistral-7b-shape-h200").weights_bytes() / GIB
    assert said_gib == 13.76
    assert round(weights_gib, 2) == said_gib


def test_weights_under_tensor_parallelism() -> None:
    shape = ModelShape.named("llama-3.1-70b")
    whole = shape.weights_bytes()
    for tp in (2, 4, 8):
        part = shape.weights_bytes(tp)
        # Norms and the rotary table are on every GPU, so a part is a little more than its share.
        assert whole / tp < part < whole / tp * 1.01
    # Beyond 8 KV heads they are copied: 16 GPUs hold 16 heads' keys and values, not 8.
    copied = 2 * 80 * 8192 * 128 * 8 * 2 / 16
    assert shape.weights_bytes(16) > whole / 16 + copied


@pytest.mark.parametrize(
    ("name", "tp", "mib"),
    [
        ("llama-2-7b", 1, 0.5),
        ("mistral-7b", 1, 0.125),
        ("mistral-7b", 2, 0.0625),
        ("llama-3.1-70b", 1, 0.3125),
        ("llama-3.1-70b", 8, 0.3125 / 8),
        ("llama-3.1-70b", 16, 0.3125 / 8),  # one head at least: no smaller than with 8
    ],
)
def test_kv_bytes_a_token(name: str, tp: int, mib: float) -> None:
    assert kv_bytes_per_token(ModelShape.named(name), tp=tp) == mib * 2**20


def test_fp8_cache_is_half_of_bf16() -> None:
    shape = ModelShape.named("mistral-7b")
    assert kv_bytes_per_token(shape, kv_dtype="fp8") * 2 == kv_bytes_per_token(shape)


def test_the_laptops_line_comes_out_exactly() -> None:
    capacity = kv_cache_capacity(GIB, laptop_model(), max_model_len=1024, block_size=CPU_BLOCK_SIZE)
    assert capacity.line("CPU") in LAPTOP_LINE
    assert capacity.blocks == 182  # vllm:cache_config_info: num_gpu_blocks 182, block_size 128
    assert parse_engine_line(LAPTOP_LINE) == EngineKV("CPU", capacity.tokens, 1024, 22.75)


def test_a_length_that_is_no_multiple_of_the_block_comes_out_exactly() -> None:
    """Seen on the laptop: VLLM_CPU_KVCACHE_SPACE=2, --max-model-len 1000."""
    said = (
        "CPU KV cache size: 45,500 tokens, Maximum concurrency for 1,000 tokens per request: 45.50x"
    )
    capacity = kv_cache_capacity(
        2 * GIB, laptop_model(), max_model_len=1000, block_size=CPU_BLOCK_SIZE
    )
    assert capacity.line("CPU") == said
    assert capacity.blocks * capacity.block_size == 46_592  # what the cache could hold


def test_the_h200_line_comes_out_exactly_from_its_blocks() -> None:
    shape = ModelShape.named("mistral-7b-shape-h200")
    said = parse_engine_line(LOG)
    block_bytes = 16 * kv_bytes_per_token(shape)
    kv_bytes = said.tokens // 16 * block_bytes
    assert round(kv_bytes / GIB, 1) == parse_engine_log(LOG).available_kv_gib == 110.9
    for spare in (0, block_bytes - 1):
        capacity = kv_cache_capacity(kv_bytes + spare, shape, max_model_len=4096)
        assert capacity.tokens == said.tokens == 908_512
        assert round(capacity.concurrency, 2) == said.concurrency == 221.80


def test_the_h200_budget_is_within_one_percent_of_the_log() -> None:
    budget = gpu_budget(
        ModelShape.named("mistral-7b-shape-h200"),
        "h200",
        gpu_memory_utilization=0.9,
        max_model_len=4096,
    )
    said = parse_engine_line(LOG)
    assert budget.kv.tokens == pytest.approx(said.tokens, rel=0.01)
    assert budget.cuda_graphs_gib == parse_engine_log(LOG).cuda_graphs_gib
    assert budget.fits and budget.reason == ""


def test_capacity_follows_vllms_rule_for_any_size() -> None:
    """The rule counted another way: request by request, block by block."""
    rng = random.Random(7)
    named = [ModelShape.named(name) for name in PUBLISHED]
    shapes = [shape for shape in named if not shape.windows]
    for _ in range(300):
        shape = rng.choice(shapes)
        block_size = rng.choice([16, 32, 64, 128])
        length = rng.randint(1, 9000)
        kv_bytes = rng.randint(0, 80 * GIB)
        capacity = kv_cache_capacity(kv_bytes, shape, max_model_len=length, block_size=block_size)
        slots = kv_bytes // kv_bytes_per_token(shape)
        blocks = slots // block_size
        per_request = math.ceil(length / block_size)
        assert capacity.blocks == blocks
        assert capacity.tokens == int(blocks / per_request * length)
        assert capacity.tokens <= blocks * block_size <= slots
        whole_requests = int(capacity.concurrency)
        assert whole_requests * per_request <= blocks < (whole_requests + 1) * per_request
        # vLLM keeps one block back, so exactly one request's blocks are not enough.
        assert capacity.fits == (blocks - 1 >= per_request)
        more = kv_cache_tokens(kv_bytes + GIB, shape, max_model_len=length, block_size=block_size)
        assert more >= capacity.tokens


def test_waste_of_blocks_and_of_one_piece() -> None:
    assert (block_waste(100, 16), block_waste(100, 64)) == (12, 28)  # the seeds' example
    assert contiguous_waste(100, 1024) == 924
    for tokens in range(1, 400):
        for size in (1, 16, 128):
            waste = block_waste(tokens, size)
            assert 0 <= waste < size and (tokens + waste) % size == 0


def test_the_seeds_table_recomputed() -> None:
    table = kv_table([ModelShape.named("llama-2-7b"), ModelShape.named("mistral-7b")], kv_gib=56)
    assert table.tokens.tolist() == [114_688, 458_752]
    assert [round(tokens / 45_000, 1) for tokens in table.tokens] == [2.5, 10.2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["mistral-7b", "llama-3.1-70b"])
def test_parts_of_a_budget_add_up_to_the_device(device: str, name: str) -> None:
    for utilization in (0.4, 0.9, 1.0):
        budget = gpu_budget(ModelShape.named(name), device, gpu_memory_utilization=utilization)
        assert sum(budget.parts().values()) == pytest.approx(budget.capacity_gib)
        assert budget.fits == (budget.reason == "")


def test_a_device_gives_less_than_nvidia_smi_shows() -> None:
    for device in DEVICES.values():
        assert 0.95 < device.cuda_gib / device.smi_gib < 1
    assert find_device("NVIDIA H200") is DEVICES["h200"]
    assert find_device("H100-80GB") is DEVICES["h100"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama-3.1-70b", {"tp": 1}, "more than the device has"),
        ("llama-3.1-70b", {"tp": 2, "gpu_memory_utilization": 0.8}, "no memory for the KV cache"),
        (
            "llama-3.1-8b",
            {"max_model_len": 131_072, "gpu_memory_utilization": 0.3},
            "set max_model_len to at most",
        ),
        ("mistral-7b", {"gpu_memory_utilization": 1.0}, "lower gpu_memory_utilization"),
    ],
)
def test_what_does_not_fit_says_what_to_change(
    name: str, options: dict[str, float], words: str
) -> None:
    budget = gpu_budget(ModelShape.named(name), "h100", **options)  # type: ignore[arg-type]
    assert not budget.fits
    assert words in budget.reason and "\n" not in budget.reason


def test_the_advised_max_model_len_fits() -> None:
    shape = ModelShape.named("llama-3.1-8b")
    budget = gpu_budget(shape, "l4", max_model_len=131_072)
    longest = int(budget.reason.rsplit(" ", 1)[1].replace(",", ""))
    assert gpu_budget(shape, "l4", max_model_len=longest).fits
    assert not gpu_budget(shape, "l4", max_model_len=longest + 1).fits


def test_cpu_budget_uses_the_given_cache() -> None:
    budget = cpu_budget(laptop_model(), kv_gib=1, memory_gib=24, max_model_len=1024)
    assert budget.kv.tokens == 23_296
    assert budget.parts()["KV cache"] == 1
    assert sum(budget.parts().values()) == pytest.approx(24)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not modelled"),
        ({"architectures": []}, "no 'architectures'"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "is not modelled; known: Llama"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized weights (mxfp4)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "gptq with 3 bits"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
            "fp8 in groups of 0",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": "x"}},
            "awq in groups of 'x'",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
            "0 weight formats",
        ),
        ({"sliding_window": "4k", "use_sliding_window": True}, "sliding_window '4k'"),
        ({"hidden_size": None}, "positive integer 'hidden_size'"),
        ({"hidden_size": 10**30}, "up to 1,000,000,000"),
        ({"hidden_size": float("nan")}, "positive integer 'hidden_size'"),
        ({"num_hidden_layers": -1}, "positive integer 'num_hidden_layers'"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"torch_dtype": "int4"}, "'int4' is not known"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]*$") as caught:
        ModelShape.from_config({**QWEN25_05B, **change}, name="a-model")
    assert words in str(caught.value)


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    with pytest.raises(ModelError, match="cannot be read"):
        ModelShape.from_config(broken)
    broken.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        ModelShape.from_config(tmp_path)
    broken.write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        ModelShape.from_config(broken)
    with pytest.raises(ModelError, match=r"there are: .*mistral-7b"):
        ModelShape.named("mistral")


def test_sizes_that_cannot_be_are_refused() -> None:
    shape = ModelShape.named("smollm2-135m")
    with pytest.raises(ModelError, match=r"over 2 GPUs does not divide.*possible sizes: 1, 3"):
        kv_bytes_per_token(shape, tp=2)
    for utilization in (0.0, -1.0, 1.5):
        with pytest.raises(WorkshopError, match="gpu_memory_utilization"):
            gpu_budget(shape, "h100", gpu_memory_utilization=utilization)
    with pytest.raises(WorkshopError, match="'h300' is not in the table; use one of a10g"):
        gpu_budget(shape, "h300")
    with pytest.raises(WorkshopError, match="max_model_len must be a number above 0"):
        gpu_budget(shape, "h100", max_model_len=0)
    with pytest.raises(WorkshopError, match="VLLM_CPU_KVCACHE_SPACE"):
        cpu_budget(shape, kv_gib=0, memory_gib=24)
    with pytest.raises(ModelError, match="'float8' is not known"):
        shape.with_dtype("float8")


def test_log_without_the_line_and_log_of_a_restarted_server() -> None:
    with pytest.raises(WorkshopError, match=r"no 'KV cache size.*its last line: 'still loading'"):
        parse_engine_line("starting\nstill loading\n")
    older = LAPTOP_LINE.replace("23,296", "11,648").replace("22.75", "11.38")
    assert parse_engine_line(f"{older}\n{LAPTOP_LINE}\n").tokens == 23_296
    assert parse_engine_line("GPU KV cache size: 16 tokens") == EngineKV("GPU", 16)


def test_command_line_prints_json_with_an_integer(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text((ROOT / "data/models/mistral-7b-shape-h200.json").read_text())
    options = "--gpu h200 --tp 2 --gpu-memory-utilization 0.9 --max-model-len 4096 --json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "workshop_lib.serving.memory",
            "--config",
            str(config),
            *options.split(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert type(answer["kv_cache_tokens"]) is int
    # Half of the weights and half of the bytes a token: a little more than twice TP=1's tokens.
    assert 2 * 908_512 < answer["kv_cache_tokens"] < 2.2 * 908_512
    assert answer["tp"] == 2 and answer["fits"] and "activations" in answer["estimated"]


def test_command_line_for_the_laptop(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "data/models/smollm2-135m.json")
    options = ["--config", config, "--cpu-kv-gib", "1", "--dtype", "float32"]
    assert main([*options, "--max-model-len", "1024", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache_tokens"] == 23_296
    assert main([*options, "--max-model-len", "1024"]) == 0
    assert "23,296 tokens" in capsys.readouterr().out


def test_command_line_explains_bad_input_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "data/models/smollm2-135m.json")
    assert main(["--config", config, "--gpu", "h200", "--tp", "2"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "possible sizes: 1, 3" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gpu h200 --tp 0", "over 0 GPUs"),
        ("--gpu h200 --tp 7", "over 7 GPUs does not divide"),
        ("--gpu h200 --pp -1", "pp must be a number above 0"),
        ("--gpu h200 --gpu-memory-utilization nan", "out of range"),
        ("--gpu h200 --gpu-memory-utilization 1.5", "out of range"),
        ("--gpu h200 --max-model-len 0", "max_model_len must be a number above 0"),
        ("--gpu h200 --max-model-len 1000000000000", "knows 131,072 positions"),
        ("--gpu h200 --block-size 0", "multiple of 16"),
        ("--gpu h200 --block-size 17", "multiple of 16"),
        ("--gpu h200 --max-num-seqs 0", "max_num_seqs must be a number above 0"),
        ("--gpu h200 --max-num-seqs 9000", "less than max_num_seqs 9,000"),
        ("--gpu h200 --max-num-batched-tokens -1", "max_num_batched_tokens must be a number"),
        ("--gpu h200 --kv-cache-dtype fp4", "'fp4' is not known"),
        ("--gpu h300", "'h300' is not in the table"),
        ("--cpu-kv-gib 0", "VLLM_CPU_KVCACHE_SPACE must be a number above 0"),
        ("--cpu-kv-gib 1 --memory-gib 0", "memory_gib must be a number above 0"),
        ("--cpu-kv-gib 1 --memory-gib nan", "memory_gib must be a number above 0"),
        ("--cpu-kv-gib 1 --block-size 0", "block_size must be at least 1"),
    ],
)
def test_command_line_refuses_absurd_options(
    options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "data/models/llama-3.1-8b.json")
    assert main(["--config", config, *options.split(), "--json"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and words in error


def test_command_line_names_an_architecture_that_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**QWEN25_05B, "architectures": ["GptOssForCausalLM"]}))
    assert main(["--config", str(config), "--gpu", "h200", "--json"]) == 2
    assert "the architecture GptOssForCausalLM is not modelled" in capsys.readouterr().err


def test_other_names_of_number_formats() -> None:
    shape = ModelShape.named("llama-3.1-8b")
    fp8 = gpu_budget(shape, "h200", kv_dtype="fp8").kv.tokens
    assert gpu_budget(shape, "h200", kv_dtype="fp8_e4m3").kv.tokens == fp8
    assert shape.with_dtype("half").dtype == "float16"


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 32_768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),
        ({"rope_type": "linear", "factor": 2.0}, 65_536),
        ({"rope_type": "llama3", "factor": 8.0}, 32_768),
        ({"rope_type": "default"}, 32_768),
    ],
)
def test_positions_are_stretched_as_vllm_stretches_them(
    scaling: dict[str, object] | None, positions: int
) -> None:
    shape = ModelShape.from_config({**QWEN25_05B, "rope_scaling": scaling})
    assert shape.max_positions == positions
    shape.check_length(positions)
    with pytest.raises(ModelError, match="vLLM refuses more"):
        shape.check_length(positions + 1)


def test_a_step_has_as_many_requests_as_vllm_settles() -> None:
    """With few tokens a step, requests are as few by default, and their logits smaller."""
    shape = ModelShape.named("llama-3.1-8b")
    few = gpu_budget(shape, "h200", max_num_batched_tokens=256, enforce_eager=True)
    same = gpu_budget(
        shape, "h200", max_num_batched_tokens=256, max_num_seqs=256, enforce_eager=True
    )
    assert few == same


@pytest.mark.parametrize(
    "module",
    [
        "data",
        "serving.memory.shape",
        "serving.memory.devices",
        "serving.memory.kv_cache",
        "serving.memory.engine_log",
        "serving.memory.architectures",
        "serving.memory.quantization",
        "serving.memory.weights",
        "serving.memory.activations",
        "serving.memory.training",
        "serving.memory.adviser",
        "serving.memory.claims",
        "serving.memory.budget",
        "serving.metrics",
    ],
)
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"workshop_lib.{module}"))
    assert result.attempted and not result.failed


def test_memory_needs_no_heavy_package() -> None:
    code = (
        "import sys, workshop_lib.serving.memory; "
        "print({'torch', 'vllm', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
