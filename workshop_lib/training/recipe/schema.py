"""The keys of a NeMo RL recipe, with their types and NeMo RL's own values.

Names and types are those of NeMo RL v0.7.0 (its `MasterConfig` and the classes
that it is made of); the value of a key that a recipe leaves out is that of
NeMo RL's `examples/configs/grpo_math_1B.yaml`, from which its published recipes
inherit. What only GPUs or Megatron use is let through unread (`Free`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from workshop_lib.training.recipe.sections import (
    Checkpointing,
    Cluster,
    Count,
    Data,
    Dataset,
    Free,
    Logger,
    MathEnvironment,
    Section,
    Share,
)

__all__ = [
    "REWARD_ENVIRONMENTS",
    "Checkpointing",
    "Cluster",
    "Data",
    "Dataset",
    "Generation",
    "Grpo",
    "Logger",
    "LossFn",
    "MathEnvironment",
    "Policy",
    "RecipeConfig",
    "Section",
]


class AdvantageEstimator(Section):
    """`grpo.adv_estimator`; its two switches win over those of `grpo`."""

    name: Literal["grpo", "gdpo", "opd", "reinforce_plus_plus"] = "grpo"
    normalize_rewards: bool | None = None
    use_leave_one_out_baseline: bool | None = None
    minus_baseline: bool = True


class AsyncGrpo(Section):
    """`grpo.async_grpo`."""

    enabled: bool = False
    max_trajectory_age_steps: int = 1
    in_flight_weight_updates: bool = False
    recompute_kv_cache_after_weight_updates: bool = False


class RewardShaping(Section):
    """`grpo.reward_shaping`: DAPO's penalty on overlong answers."""

    enabled: bool = False
    overlong_buffer_length: int = 128
    overlong_buffer_penalty: float = 1.0
    max_response_length: int | None = None
    stop_properly_penalty_coef: float | None = None


class RewardScaling(Section):
    """`grpo.reward_scaling`."""

    enabled: bool = False
    source_min: float = 0.0
    source_max: float = 1.0
    target_min: float = 0.0
    target_max: float = 1.0


class Grpo(Section):
    """`grpo`: how many prompts and answers a step, how many steps, what an advantage is."""

    num_prompts_per_step: Count = 32
    num_generations_per_prompt: Count = 16
    max_num_epochs: Count = 1
    max_num_steps: Count = 1_000_000
    max_rollout_turns: int | None = 1
    normalize_rewards: bool = True
    use_leave_one_out_baseline: bool = True
    advantage_clip_low: float | None = None
    advantage_clip_high: float | None = None
    val_period: int = 10
    val_at_start: bool = False
    val_at_end: bool = False
    val_batch_size: int | None = 256
    max_val_samples: int | None = 256
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42  # what NumPy takes
    overlong_filtering: bool = False
    use_dynamic_sampling: bool = False
    dynamic_sampling_max_gen_batches: int = 10
    batch_multiplier: float = 1.0
    skip_reference_policy_logprobs_calculation: bool = False
    calculate_advantages_on_gpu: bool = False
    seq_logprob_error_threshold: float | None = None
    invalid_tool_call_advantage: float | None = None
    malformed_thinking_advantage: float | None = None
    adv_estimator: AdvantageEstimator = AdvantageEstimator()
    async_grpo: AsyncGrpo = AsyncGrpo()
    reward_shaping: RewardShaping = RewardShaping()
    reward_scaling: RewardScaling = RewardScaling()


class LossFn(Section):
    """`loss_fn`: the clipped policy gradient."""

    reference_policy_kl_penalty: Annotated[float, Field(ge=0)] = 0.01
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    kl_input_clamp_value: float | None = 20.0
    kl_output_clamp_value: float | None = 10.0
    ratio_clip_min: Annotated[float, Field(ge=0)] = 0.2
    ratio_clip_max: Annotated[float, Field(ge=0)] = 0.2
    ratio_clip_c: Annotated[float, Field(gt=1)] | None = None
    use_on_policy_kl_approximation: bool = False
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: Literal["tis", "icepop", "seq-mask-tis"] | None = None
    truncated_importance_sampling_ratio: float | None = None
    truncated_importance_sampling_ratio_min: float | None = None
    sequence_level_importance_ratios: bool = False
    token_level_loss: bool = True
    force_on_policy_ratio: bool = False
    use_kl_in_reward: bool = False
    use_cispo: bool = False
    disable_ppo_ratio: bool = False
    positive_example_nll_weight: float = 0.0


class Tokenizer(Section):
    """`policy.tokenizer`. `chat_template: null` means: the prompt as it is, no template."""

    name: str | None = None
    chat_template: str | None = "default"
    chat_template_kwargs: Free = None
    audio: Free = None
    video: Free = None
    use_processor: bool | None = None


class LoraCfg(Section):
    """`policy.dtensor_cfg.lora_cfg`."""

    enabled: bool = False
    target_modules: list[str] = Field(default_factory=list)
    exclude_modules: list[str] = Field(default_factory=list)
    match_all_linear: bool = True
    dim: Count = 8
    alpha: Count = 32
    dropout: float = 0.0
    dropout_position: Literal["pre", "post"] = "post"
    lora_A_init: str = "xavier"
    use_triton: bool = True


class DTensorCfg(Section):
    """`policy.dtensor_cfg`: training with PyTorch's FSDP2."""

    v2: bool = Field(default=True, alias="_v2")
    enabled: bool = True
    cpu_offload: bool = False
    sequence_parallel: bool = False
    activation_checkpointing: bool = False
    tensor_parallel_size: Count = 1
    context_parallel_size: Count = 1
    expert_parallel_size: Count = 1
    dp_replicate_size: Count = 1
    custom_parallel_plan: str | None = None
    defer_fsdp_grad_sync: bool | None = None
    clear_cache_every_n_steps: int | None = None
    automodel_kwargs: Free = None
    moe_parallelizer: Free = None
    env_vars: Free = None
    lora_cfg: LoraCfg = LoraCfg()


class Batching(Section):
    """`policy.dynamic_batching` and `policy.sequence_packing`."""

    enabled: bool = False
    train_mb_tokens: int | None = None
    logprob_mb_tokens: int | None = None
    sequence_length_round: int | None = None
    algorithm: str | None = None
    fuse_loss: bool | None = None


class Optimizer(Section):
    """`policy.optimizer`: a class of torch and its arguments."""

    name: str = "torch.optim.AdamW"
    kwargs: dict[str, Any] = Field(
        default_factory=lambda: {"lr": 5.0e-6, "weight_decay": 0.01, "betas": [0.9, 0.999]}
    )


class Resources(Section):
    """`policy.generation.colocated.resources`."""

    gpus_per_node: int | None = None
    num_nodes: int | None = None


class Colocated(Section):
    """`policy.generation.colocated`: whether generation shares the training GPUs."""

    enabled: bool = True
    resources: Resources = Resources()


class VllmCfg(Section):
    """`policy.generation.vllm_cfg`."""

    async_engine: bool = False
    precision: str | None = None
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3"] = "auto"
    tensor_parallel_size: Count = 1
    pipeline_parallel_size: Count = 1
    expert_parallel_size: Count = 1
    gpu_memory_utilization: Share = 0.6
    max_model_len: Count | None = None
    enforce_eager: bool = False
    use_tqdm: bool = True
    use_deep_gemm: bool = False
    load_format: str | None = None
    num_last_layers_in_bf16: int = 0
    num_first_layers_in_bf16: int = 0
    skip_tokenizer_init: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_expert_parallel: bool | None = None
    enable_return_routed_experts: bool | None = None
    enable_vllm_metrics_logger: bool = True
    vllm_metrics_logger_interval: float = 0.5
    expose_http_server: bool | None = None
    http_server_serving_chat_kwargs: Free = None
    tool_parser_plugin: str | None = None
    reasoning_parser_plugin: str | None = None
    limit_mm_per_prompt: Free = None
    quantization_ignored_layer_kws: list[str] | None = None
    env_vars: Free = None


class Generation(Section):
    """`policy.generation`: how answers are sampled."""

    backend: Literal["vllm", "megatron", "sglang"] = "vllm"
    max_new_tokens: Count | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Share = 1.0
    top_k: Count | None = None
    stop_token_ids: list[int] | None = None
    stop_strings: list[str] | None = None
    bad_words: list[str] | None = None
    port_range_low: int | None = None
    port_range_high: int | None = None
    use_async_rollouts: bool | None = None
    quant_cfg: str | None = None
    real_quant: bool | None = None
    real_quant_ignore: list[str] | None = None
    vllm_cfg: VllmCfg = VllmCfg()
    vllm_kwargs: Free = None
    colocated: Colocated = Colocated()
    mcore_generation_config: Free = None
    sglang_cfg: Free = None
    sglang_kwargs: Free = None


class Policy(Section):
    """`policy`: the model, its batches, its optimizer."""

    model_name: str
    tokenizer: Tokenizer = Tokenizer()
    hf_config_overrides: Free = None
    train_global_batch_size: Count = 512
    train_micro_batch_size: Count = 4
    generation_batch_size: Count = 32
    logprob_batch_size: Count | None = None
    max_total_sequence_length: Count = 512
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    logprob_chunk_size: Count | None = None
    offload_optimizer_for_logprob: bool = False
    dtensor_cfg: DTensorCfg = DTensorCfg()
    megatron_cfg: Free = None
    draft: Free = None
    dynamic_batching: Batching = Batching()
    sequence_packing: Batching = Batching(enabled=True)
    make_sequence_length_divisible_by: Count = 1
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    optimizer: Optimizer | None = Optimizer()
    scheduler: dict[str, Any] | list[dict[str, Any]] | None = None
    generation: Generation = Generation()
    reward_model_cfg: Free = None
    pretrained_checkpoint: Free = None
    router_replay: Free = None
    quant_cfg: str | None = None
    quant_calib_data: str | None = None
    quant_calib_size: Count | None = None
    quant_batch_size: Count | None = None
    quant_sequence_length: Count | None = None
    disable_modelopt_layer_spec: bool | None = None
    refit_buffer_size_gb: float | None = None


def _environments_alone(env: Any) -> Any:
    """`env` without NeMo Gym's switches, which stand among the environments."""
    if not isinstance(env, dict):
        return env
    return {
        name: value
        for name, value in env.items()
        if not (name in _GYM_SWITCHES and isinstance(value, bool))
    }


_GYM_SWITCHES = ("should_use_nemo_gym", "should_log_nemo_gym_responses")


class RecipeConfig(Section):
    """A whole recipe."""

    grpo: Grpo = Grpo()
    loss_fn: LossFn = LossFn()
    policy: Policy
    data: Data
    env: Annotated[dict[str, dict[Any, Any] | None], BeforeValidator(_environments_alone)]
    checkpointing: Checkpointing = Checkpointing()
    logger: Logger = Logger()
    cluster: Cluster = Cluster()
    data_plane: Free = None
    on_policy_distillation: Free = None


# Environments whose keys are checked; others (nemo_gym, code, a reward model) have their own.
REWARD_ENVIRONMENTS = (
    "first_integer",
    "math_verify",
    "format",
    "techpulse",
    "math",
    "math_default",
)
