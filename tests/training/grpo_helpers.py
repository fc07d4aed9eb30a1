"""A model and a recipe so small that a training takes seconds, and what a model folder answers."""

from workshop_lib.data import data_path
from workshop_lib.training import Accuracy, first_integer_reward, load_problems
from workshop_lib.training.plan import plan_training
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.trainer import train

ARITHMETIC = data_path("recipes/arithmetic.yaml")
# 8 completions a step in place of 64: what is written is the same, what is learned is not.
SMALL = {
    "grpo.num_prompts_per_step": 2,
    "grpo.num_generations_per_prompt": 4,
    "policy.train_global_batch_size": 8,
    "policy.train_micro_batch_size": 8,
}


def trained(model, output, overrides, *, resume=False, report=False):
    """Train a small recipe with changes, and give what was said."""
    said = []
    recipe = read_recipe(ARITHMETIC, SMALL | overrides)
    plan = plan_training(recipe, output=output, model=model, resume=resume)
    train(plan, say=said.append, report=report)
    return said


def make_tiny_model(model, folder):
    """Make a model of two small layers with another's tokenizer: knows nothing, fast."""
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


def held_out(folder, recipe):
    """What a model folder answers to the problems held out, its likeliest tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    problems = tuple(load_problems(recipe, "validation"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    prompts = [problem.prompt for problem in problems]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    longest = recipe.generation.max_new_tokens
    written = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    new = written[:, inputs["input_ids"].shape[1] :]
    said = tokenizer.batch_decode(new, skip_special_tokens=True)
    pairs = zip(said, problems, strict=True)
    rewards = tuple(first_integer_reward(text, problem.answer) for text, problem in pairs)
    return Accuracy(problems, tuple(said), rewards)
