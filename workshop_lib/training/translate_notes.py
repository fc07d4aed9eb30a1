"""What the translation to TRL says of the keys that become no argument, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DROPPED", "READ_HERE", "SWITCHES", "different_defaults"]

# Key: (value that changes nothing, what is missing otherwise).
SWITCHES: dict[str, tuple[Any, str]] = {
    "grpo.adv_estimator.name": ("grpo", "TRL's GRPOTrainer has GRPO's advantages alone"),
    "grpo.max_rollout_turns": (1, "answers of several turns need an environment that replies"),
    "grpo.overlong_filtering": (False, "not translated"),
    "grpo.advantage_clip_low": (None, "TRL does not clip advantages"),
    "grpo.advantage_clip_high": (None, "TRL does not clip advantages"),
    "grpo.seq_logprob_error_threshold": (None, "there is no second engine to disagree with"),
    "grpo.invalid_tool_call_advantage": (None, "no tools here"),
    "grpo.malformed_thinking_advantage": (None, "no thinking here"),
    "grpo.reward_shaping.enabled": (False, "rewards are taken as they are"),
    "grpo.reward_scaling.enabled": (False, "rewards are taken as they are"),
    "grpo.async_grpo.enabled": (False, "sampling and training take turns here"),
    "loss_fn.use_kl_in_reward": (False, "TRL has the penalty in the loss alone"),
    "loss_fn.disable_ppo_ratio": (False, "TRL always has the ratio"),
    "loss_fn.use_cispo": (False, "not translated"),
    "loss_fn.positive_example_nll_weight": (0.0, "TRL has no such term"),
    "policy.generation.stop_strings": (None, "answers end at the model's own end token"),
    "policy.generation.stop_token_ids": (None, "answers end at the model's own end token"),
    "policy.generation.bad_words": (None, "not translated"),
    "policy.hf_config_overrides": ({}, "the model is trained as its folder has it"),
    "on_policy_distillation": (None, "another algorithm"),
}

# By the beginning of the key, the longer ones first.
DROPPED: dict[str, str] = {
    "grpo.val": "accuracy is measured before and after, by `evaluate`",
    "grpo.max_val_samples.": "accuracy is measured before and after, by `evaluate`",
    "grpo.dynamic_sampling_max_gen_batches.": "only read with use_dynamic_sampling",
    "grpo.batch_multiplier.": "only read with use_dynamic_sampling",
    "grpo.calculate_advantages_on_gpu.": "no GPU",
    "grpo.": "only read with a switch that is off",
    "loss_fn.": "corrects for a second engine; here the trained model samples",
    "policy.generation.vllm": "transformers samples here, vLLM on the cluster",
    "policy.generation.": "transformers samples here, in this process",
    "policy.dtensor_cfg.": "one process holds the whole model",
    "policy.megatron_cfg.": "Megatron trains on GPUs",
    "policy.": "a matter of GPU memory and speed",
    "data.": "read by `problems`",
    "env.": "rewards are functions of this process",
    "checkpointing.": "checkpoints are Hugging Face folders in the output folder",
    "logger.": "one record a step, in metrics.jsonl",
    "cluster.": "one machine without a GPU",
    "data_plane.": "one process",
}

# Keys under `data` that mean here what they mean under NeMo RL.
READ_HERE = (
    "dataset_name",
    "data_path",
    "input_key",
    "output_key",
    "prompt_file",
    "system_prompt_file",
    "env_name",
)

_DIFFERENT_DEFAULTS: list[tuple[str, Any, str, Any, str]] = [
    ("baseline", "the others' mean", "", "the group's mean", "advantages G/(G-1) times smaller"),
    ("spread", "the others'", "scale_rewards", "group", "an only right answer counts more"),
    ("KL penalty", 0.01, "beta", 0.0, "TRL keeps no reference model"),
    ("loss averaged over", "tokens of the batch", "loss_type", "dapo", "the same, named otherwise"),
    ("updates a step", 1, "num_iterations", 1, "NeMo RL: sampled answers / global batch"),
    ("learning rate", 5e-6, "learning_rate", 1e-6, "five times slower"),
    ("schedule", "warm-up, constant", "lr_scheduler_type", "linear", "TRL's falls to zero"),
    ("weight decay", 0.01, "weight_decay", 0.0, "TRL spares biases and norms"),
    ("answers a prompt", 16, "num_generations", 8, "a noisier baseline"),
    ("new tokens", 512, "max_completion_length", 512, "NeMo RL's include the prompt"),
    ("checkpointing of activations", False, "gradient_checkpointing", True, "a fifth slower"),
    ("number format", "bfloat16", "bf16", True, "four times slower on a CPU without AVX-512"),
]


def different_defaults() -> pd.DataFrame:
    """Where TRL's defaults are not NeMo RL's: what a careless translation would change.

    Returns:
        One row a setting: `setting`, `nemo_rl` (grpo_math_1B.yaml), `trl`, `matters`.

    Example:
        >>> len(different_defaults()) > 8
        True
    """
    import pandas as pd

    columns = ["setting", "nemo_rl", "trl_argument", "trl", "matters"]
    return pd.DataFrame(_DIFFERENT_DEFAULTS, columns=columns)
