"""A model and a recipe so small that a training takes seconds."""

from pathlib import Path

from workshop_lib.data import data_path

ARITHMETIC = data_path("recipes/arithmetic.yaml")
# 8 completions a step in place of 64: what is written is the same, what is learned is not.
SMALL = {
    "grpo.num_prompts_per_step": 2,
    "grpo.num_generations_per_prompt": 4,
    "policy.train_global_batch_size": 8,
    "policy.train_micro_batch_size": 8,
}


def make_tiny_model(model: Path, folder: Path) -> Path:
    """Make a model of two small layers with another's tokenizer: knows nothing, fast.

    Args:
        model: Whose tokenizer and kind of model to take.
        folder: Where to save it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(str(model))
    config.update(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        }
    )
    config.layer_types = None
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(model)).save_pretrained(str(folder))
    return folder
