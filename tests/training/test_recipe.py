"""Recipes: read as NeMo RL reads them, strictly, and checked before they cost GPU time."""

import pytest

from workshop_lib.data import data_dir, data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe import (
    RecipeError,
    check_recipe,
    leaves,
    override,
    read_recipe,
)
from workshop_lib.training.recipe.check import main
from workshop_lib.training.recipe.files import load_settings
from workshop_lib.training.recipe.schema import known_keys, nemo_rl

ARITHMETIC = data_path("recipes/arithmetic.yaml")
CASES = data_dir().parent / "tests" / "data" / "recipes"

# What NeMo RL v0.7.0's run_grpo.py reads with config["key"] on the way of this recipe
# (DTensor v1, colocated vLLM), so that a missing one is a KeyError on the cluster.
READ_BY_NEMO_RL = """
grpo.num_prompts_per_step grpo.num_generations_per_prompt grpo.max_num_steps grpo.max_num_epochs
grpo.max_rollout_turns grpo.normalize_rewards grpo.use_leave_one_out_baseline grpo.val_period
grpo.val_at_start grpo.val_at_end grpo.val_batch_size grpo.max_val_samples grpo.seed
grpo.overlong_filtering grpo.use_dynamic_sampling grpo.batch_multiplier
grpo.seq_logprob_error_threshold grpo.reward_shaping.enabled grpo.reward_scaling.enabled
grpo.adv_estimator.name grpo.adv_estimator.normalize_rewards
grpo.adv_estimator.use_leave_one_out_baseline grpo.async_grpo.enabled
policy.model_name policy.tokenizer.name policy.train_global_batch_size
policy.train_micro_batch_size policy.logprob_batch_size policy.max_total_sequence_length
policy.precision policy.offload_optimizer_for_logprob policy.max_grad_norm
policy.make_sequence_length_divisible_by policy.draft.enabled policy.dynamic_batching.enabled
policy.sequence_packing.enabled policy.optimizer.name policy.optimizer.kwargs.lr
policy.dtensor_cfg.enabled policy.dtensor_cfg.cpu_offload policy.dtensor_cfg.sequence_parallel
policy.dtensor_cfg.activation_checkpointing policy.dtensor_cfg.tensor_parallel_size
policy.dtensor_cfg.context_parallel_size policy.dtensor_cfg.custom_parallel_plan
policy.generation.backend policy.generation.max_new_tokens policy.generation.temperature
policy.generation.top_p policy.generation.top_k policy.generation.stop_token_ids
policy.generation.stop_strings policy.generation.colocated.enabled
policy.generation.colocated.resources.gpus_per_node
policy.generation.colocated.resources.num_nodes
policy.generation.vllm_cfg.async_engine policy.generation.vllm_cfg.precision
policy.generation.vllm_cfg.kv_cache_dtype policy.generation.vllm_cfg.tensor_parallel_size
policy.generation.vllm_cfg.pipeline_parallel_size policy.generation.vllm_cfg.expert_parallel_size
policy.generation.vllm_cfg.gpu_memory_utilization policy.generation.vllm_cfg.max_model_len
data.max_input_seq_length data.shuffle data.num_workers data.use_multiple_dataloader
data.train.dataset_name data.train.data_path data.default.processor data.default.env_name
checkpointing.enabled checkpointing.checkpoint_dir checkpointing.metric_name
checkpointing.higher_is_better checkpointing.keep_top_k checkpointing.save_period
checkpointing.save_optimizer checkpointing.checkpoint_must_save_by
logger.log_dir logger.wandb_enabled logger.swanlab_enabled logger.tensorboard_enabled
logger.mlflow_enabled logger.monitor_gpus logger.num_val_samples_to_print
logger.gpu_monitoring.collection_interval logger.gpu_monitoring.flush_interval
cluster.gpus_per_node cluster.num_nodes env.first_integer.num_workers
"""


def refusal(overrides):
    with pytest.raises(RecipeError) as error:
        read_recipe(ARITHMETIC, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_laptops_recipe():
    recipe = read_recipe(ARITHMETIC)
    assert (recipe.completions_per_step, recipe.updates_per_step) == (64, 1)
    assert recipe.plain_prompts and recipe.environments == ["first_integer"]
    assert recipe.normalize_rewards and not recipe.leave_one_out
    # Inherited, and resolved: from base.yaml, by reference.
    assert recipe.generation.vllm_cfg.max_model_len == 64
    assert recipe.policy.tokenizer.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe.grpo.adv_estimator.use_leave_one_out_baseline is False
    given = leaves(recipe.settings)
    assert [key for key in READ_BY_NEMO_RL.split() if key not in given] == []


def test_nemo_rls_own_values_where_a_recipe_is_silent(tmp_path):
    with pytest.raises(RecipeError, match=r"policy.model_name is missing \(and 2 more\)"):
        read_recipe(write(tmp_path, "a.yaml", "grpo: {seed: 1}\n"))
    text = (
        "policy: {model_name: m}\nenv: {math: {num_workers: 1}}\n"
        "data: {train: {dataset_name: gsm8k, env_name: math, split_validation_size: 0.05}}\n"
    )
    recipe = read_recipe(write(tmp_path, "b.yaml", text))
    assert recipe.completions_per_step == 512 and recipe.loss_fn.ratio_clip_max == 0.2
    assert recipe.leave_one_out and not recipe.plain_prompts
    assert recipe.value("policy.dtensor_cfg._v2") is True


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("grpo.num_generation_per_prompt", "did you mean grpo.num_generations_per_prompt?"),
        ("policy.generation.temprature", "did you mean policy.generation.temperature?"),
        ("policy.num_generations_per_prompt", "did you mean grpo.num_generations_per_prompt?"),
        ("policy.lora_cfg.dim", "did you mean policy.dtensor_cfg.lora_cfg?"),
        ("policy.gpu_memory_utilization", "policy.generation.vllm_cfg.gpu_memory_utilization?"),
        ("grpo.lr", "did you mean policy.optimizer.kwargs.lr?"),
        ("loss_fn.beta", "did you mean loss_fn.reference_policy_kl_penalty?"),
        ("policy.optimizer.kwargs.weigth_decay", "policy.optimizer.kwargs.weight_decay?"),
        ("env.first_integer.num_worker", "did you mean env.first_integer.num_workers?"),
        ("data.dataset_name", "it is now data.train.dataset_name"),
        ("lossfn", "did you mean loss_fn?"),
        ("policy.lora_rank", "did you mean policy.dtensor_cfg.lora_cfg.dim?"),
        ("grpo.zzz", "grpo has adv_estimator, "),
    ],
)
def test_an_unknown_key_names_the_right_one(key, right):
    text = refusal({key: 1})
    assert "unknown key" in text and right in text


def test_unknown_keys_in_lists_and_keys_that_are_no_words(tmp_path):
    text = refusal({"data.train": [{"data_path": "a"}, {"data_pth": "b"}]})
    assert "data.train[1].data_pth" in text and "data_path?" in text
    own = {"dataset_name": "my.module.Problems", "difficulty": "hard", "env_name": "first_integer"}
    assert read_recipe(ARITHMETIC, {"data.train": own})  # a class of one's own has its own
    for text, said in (
        ("grpo.seed: 1\n", r"unknown key grpo\.seed; write it in sections: grpo: {"),
        ("grpo: {on: x}\n", "grpo has a key that is no word: True"),
    ):
        with pytest.raises(RecipeError, match=said):
            read_recipe(write(tmp_path, "a.yaml", f"defaults: {ARITHMETIC}\n{text}"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"grpo.seed": "x"}, "grpo.seed is 'x': Input should be a valid integer"),
        ({"grpo.seed": 2**32}, "less than 4294967296"),
        ({"loss_fn.token_level_loss": 1}, "loss_fn.token_level_loss is 1: Input should be a valid"),
        ({"policy.precision": "fp16"}, "should be 'float32', 'bfloat16' or 'float16'"),
        ({"policy.generation.top_p": 2}, "less than or equal to 1"),
        ({"policy.generation.temperature": 0}, "greater than 0"),
        ({"checkpointing.metric_name": "val_reward"}, '"val:accuracy"'),
        ({"policy.scheduler": 3}, "policy.scheduler is 3"),
        ({"policy.optimizer.kwargs.lr": float("nan")}, "policy.optimizer.kwargs.lr is nan"),
        ({"policy.optimizer.kwargs.betas": [0.9, 1.0]}, "should be two numbers from 0 to under 1"),
        ({"data.train": []}, "data.train is []"),
        ({"cluster": 3}, "cluster is 3: Input should be"),
        ({"policy.model_name": "???"}, "Missing mandatory value: policy.model_name"),
        ({"policy.generation.stop_strings": [1]}, "stop_strings.0 is 1: Input should be a valid"),
        ({"env.math": True}, "env.math is True and should be a section"),
    ],
)
def test_a_wrong_value_is_named(overrides, said):
    assert said in refusal(overrides)


LORA, VLLM = "policy.dtensor_cfg.lora_cfg", "policy.generation.vllm_cfg"
DEDICATED, GPUS = "policy.generation.colocated", "cluster.gpus_per_node"
MEGATRON = {"policy.dtensor_cfg.enabled": False, "policy.megatron_cfg.enabled": True}
BATCHINGS = {"policy.dynamic_batching.enabled": True, "policy.sequence_packing.enabled": True}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"grpo.num_prompts_per_step": 7, "policy.train_global_batch_size": 64}, "7 x 8 = 56"),
        ({"policy.train_global_batch_size": 32}, "force_on_policy_ratio needs"),
        ({"policy.train_micro_batch_size": 48}, "does not divide"),
        ({"grpo.num_generations_per_prompt": 1}, "at least 2"),
        ({"policy.generation.max_new_tokens": 65}, "max_new_tokens 65"),
        ({f"{VLLM}.max_model_len": 32}, "vLLM would cut"),
        ({"loss_fn.reference_policy_kl_penalty": 0.1}, "logprobs_calculation needs"),
        ({"loss_fn.sequence_level_importance_ratios": True}, "token_level_loss: false"),
        ({"loss_fn.use_cispo": True}, "use_cispo needs loss_fn.force_on_policy_ratio: false"),
        ({"loss_fn.truncated_importance_sampling_type": "tis"}, "correction: true"),
        ({"loss_fn.truncated_importance_sampling_type": "icepop"}, "ratio_min is None: icepop"),
        ({"grpo.batch_multiplier": 2}, "use_dynamic_sampling"),
        ({"data.default.env_name": "physics"}, "env.physics, and env has first_integer"),
        ({"grpo.val_period": 5, "data.validation": None}, "data.validation has no problems"),
        ({"data.train.dataset_name": "OpenMathInstruct2"}, "did you mean OpenMathInstruct-2?"),
        ({"data.train.data_path": None}, "a ResponseDataset needs a data_path"),
        ({f"{LORA}.enabled": True}, "_v2: true"),
        ({"policy.megatron_cfg.enabled": True}, "exactly one of"),
        ({"policy.scheduler": None}, "leave it out"),
        (BATCHINGS, "policy.dynamic_batching.enabled needs policy.sequence_packing.enabled: false"),
        ({f"{DEDICATED}.enabled": False}, "resources.gpus_per_node"),
        ({f"{DEDICATED}.enabled": False, f"{DEDICATED}.resources.gpus_per_node": 1}, "none of the"),
        ({f"{DEDICATED}.enabled": False, "cluster.num_nodes": 2}, "with 2 nodes set"),
        ({f"{VLLM}.tensor_parallel_size": 2}, "2 x 1 = 2 must divide the 1 GPU that"),
        ({"policy.dtensor_cfg.tensor_parallel_size": 3, GPUS: 4}, "must divide the GPUs that"),
        (MEGATRON | {"policy.megatron_cfg.pipeline_model_parallel_size": 2}, "needs 2 GPUs"),
        ({GPUS: 3}, "cannot be shared evenly between the 3 data-parallel copies"),
        ({GPUS: 2}, "each of the 2 data-parallel copies"),
        ({f"{VLLM}.pipeline_parallel_size": 2, GPUS: 2}, "async_engine: true"),
        ({f"{VLLM}.expert_parallel_size": 3, f"{VLLM}.tensor_parallel_size": 2}, "a multiple of"),
        ({f"{VLLM}.precision": "fp8"}, "use_importance_sampling_correction: true"),
        ({f"{VLLM}.kv_cache_dtype": "fp8"}, 'precision: "fp8"'),
        ({"grpo.async_grpo.enabled": True}, "grpo.async_grpo.enabled needs"),
        ({"checkpointing.metric_name": "train:loss_mean"}, "did you mean train:loss?"),
    ],
)
def test_contradictions(overrides, said):
    with pytest.raises(RecipeError) as error:
        read_recipe(ARITHMETIC, overrides)
    assert any(said in problem for problem in error.value.problems), error.value.problems


@pytest.mark.parametrize(
    "overrides",
    [
        {GPUS: 8, "policy.train_micro_batch_size": 4, f"{VLLM}.tensor_parallel_size": 4},
        {GPUS: 8, "policy.dtensor_cfg.tensor_parallel_size": 8, "policy.logprob_batch_size": 64},
        {f"{DEDICATED}.enabled": False, f"{DEDICATED}.resources.gpus_per_node": 1, GPUS: 2},
        {"checkpointing.metric_name": "train:reward"},
        # Not read by Megatron, and by SGLang.
        MEGATRON | {"policy.dtensor_cfg.context_parallel_size": 2},
        {"policy.generation.backend": "sglang", f"{VLLM}.precision": "fp8"},
    ],
)
def test_what_fits_together(overrides):
    assert check_recipe(ARITHMETIC, overrides).problems == ()


@pytest.mark.parametrize(
    ("case", "must"),
    [
        ("metric-unknown", ["metric_name", "train:loss"]),
        ("dataset-name", ["OpenMathInstruct-2"]),
        ("world-size-megatron", ["32", "8"]),
        ("world-size-dtensor", ["32", "8"]),
        ("vllm-tp", ["tensor_parallel_size"]),
        ("both-batchings", ["dynamic_batching", "sequence_packing"]),
        ("base-ok", ["right for NeMo RL v0.7.0", "not checked"]),
    ],
)
def test_public_cases(case, must, capsys):
    status = main(["check", str(CASES / f"{case}.yaml")])
    said = capsys.readouterr().out
    assert all(word in said for word in must) and "\n\n" not in said
    assert status == int(case != "base-ok")


def test_notes():
    two = {"grpo.num_generations_per_prompt": 2, "grpo.num_prompts_per_step": 32}
    assert read_recipe(ARITHMETIC, two).notes == ()
    (note,) = read_recipe(ARITHMETIC, two | {"grpo.use_leave_one_out_baseline": True}).notes
    assert "nothing is normalised" in note
    (note,) = read_recipe(ARITHMETIC, {"checkpointing.metric_name": "val:accuracy"}).notes
    assert "no validation runs" in note
    # NeMo RL v0.7.0's own grpo-moonlight-16b has this key.
    stale = "policy.activation_checkpointing_enabled"
    (note,) = read_recipe(ARITHMETIC, {stale: False}).notes
    assert f"{stale} is read by nothing" in note and "dtensor_cfg.activation_checkpointing" in note


def test_inheritance_references_and_the_environment(tmp_path, monkeypatch):
    write(tmp_path, "a.yaml", "grpo: {seed: 1, val_period: 2}\npolicy: {x: {y: 1, z: 2}}\n")
    write(tmp_path, "b.yaml", "policy: {list: [1, 2]}\n")
    child = write(
        tmp_path,
        "c.yaml",
        "defaults: [a.yaml, b.yaml]\n"
        "grpo: {seed: 3, again: '${.seed}', text: 'seed ${grpo.seed}!', rate: 1e-5}\n"
        "policy:\n"
        "  _override_: true\n"
        "  x: {_override_: true, w: '${mul:${grpo.seed}, ${grpo.val_period}}'}\n"
        "  deep: {most: '${max:1,2}', half: '${div:1,2}', date: 2024-01-01}\n",
    )
    deep = {"most": 2, "half": 0.5, "date": "2024-01-01"}
    assert load_settings(child) == {
        "grpo": {"seed": 3, "val_period": 2, "again": 3, "text": "seed 3!", "rate": 1e-5},
        # Further down the marker is a key like any other, as in NeMo RL.
        "policy": {"x": {"w": 6, "_override_": True}, "deep": deep},
    }
    assert load_settings(child, {"grpo.seed": 5})["grpo"]["text"] == "seed 5!"
    path = write(tmp_path, "d.yaml", "a: {b: '${oc.env:WS_A}/x'}\nb: {c: '${oc.env:WS_B,other}'}\n")
    with pytest.raises(RecipeError, match=r"a\.b: .*environment variable WS_A is not set"):
        load_settings(path)
    unset = set()
    assert load_settings(path, unset=unset)["a"]["b"] == "<WS_A>/x" and unset == {"WS_A"}
    monkeypatch.setenv("WS_A", "/data")
    assert load_settings(path) == {"a": {"b": "/data/x"}, "b": {"c": "other"}}


def test_a_variable_of_the_top_level(tmp_path):
    """NeMo RL's nemo_gym recipes name a folder once and refer to it."""
    text = f"defaults: {ARITHMETIC}\nfolder: /data\nlogger: {{log_dir: '${{folder}}/logs'}}\n"
    assert read_recipe(write(tmp_path, "a.yaml", text)).logger.log_dir == "/data/logs"
    with pytest.raises(RecipeError, match="unknown key folder"):
        read_recipe(write(tmp_path, "b.yaml", text.replace("${folder}", "")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "line 2"),
        ("- a\n", "holds no sections"),
        ("a: ${b}\n", "a: Interpolation key 'b' not found"),
        ("a: ${env:HOME}\n", "a: Unsupported interpolation type env"),
        ("a: ${mul:ab,10000000000}\n", "'ab' is no number"),
        ("defaults: me.yaml\n", "in a circle"),
        ("defaults: gone.yaml\n", "gone.yaml (named in the defaults of me.yaml) cannot be read"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a: " + "[" * 3000, "me.yaml"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, said):
    with pytest.raises(RecipeError) as error:
        load_settings(write(tmp_path, "me.yaml", text))
    assert said in str(error.value) and "me.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_the_command_line_are_read_as_in_a_file():
    assert override("policy.optimizer.kwargs.lr=1e-5") == ("policy.optimizer.kwargs.lr", 1e-5)
    assert override("a=[1, x]") == ("a", [1, "x"]) and override("a=x=y") == ("a", "x=y")
    for wrong, said in (("a", "is no KEY=VALUE"), ("a=[1", "the value is not YAML")):
        with pytest.raises(RecipeError, match=said):
            override(wrong)


def test_every_error_is_a_line(tmp_path):
    path = write(
        tmp_path,
        "wrong.yaml",
        f"defaults: {ARITHMETIC}\n"
        "grpo: {num_generation_per_prompt: 16, num_prompts_per_step: 7}\n"
        "data: {dataset_name: gsm8k}\n"
        "policy: {train_global_batch_size: 64, generation: {max_new_tokens: 65}}\n",
    )
    said = str(check_recipe(path)).splitlines()
    # What does not exist and what does not fit together are told at once.
    for part in (
        "did you mean grpo.num_generations_per_prompt?",
        "it is now data.train.dataset_name",
        "train_global_batch_size 64 does not divide",
        "max_new_tokens 65 is more than",
    ):
        assert sum(part in line for line in said) == 1, (part, said)
    assert all(line.startswith(f"{path}: ") for line in said)
    path = write(tmp_path, "other.yaml", "sft: {x: 1}\npolicy: {y: 2}\n")
    assert "this is a recipe for sft" in str(check_recipe(path))


def test_nemo_gym_and_what_nothing_reads(tmp_path):
    gym = (
        "policy: {model_name: m}\nenv: {should_use_nemo_gym: true, nemo_gym: {x: 1}}\n"
        "data: {train: {dataset_name: gsm8k, env_name: nemo_gym, split_validation_size: 0.1}}\n"
        "grpo: {penalize_malformed_thinking: true}\nlogger: {log_dir: '${oc.env:WS_NOT_SET}'}\n"
    )
    checked = check_recipe(write(tmp_path, "gym.yaml", gym))
    assert not checked.problems and any("WS_NOT_SET must be set" in n for n in checked.notes)
    assert any("penalize_malformed_thinking is read by nothing" in n for n in checked.notes)


def test_memory_on_a_gpu():
    big = {"policy.model_name": "mistralai/Mistral-7B-v0.3", "policy.precision": "bfloat16"}
    (problem,) = check_recipe(ARITHMETIC, big, gpu="h100").problems
    assert "optimizer" in problem and "more GPUs" in problem
    eight = big | {GPUS: 8, "policy.train_micro_batch_size": 8}
    assert check_recipe(ARITHMETIC, eight, gpu="h100").problems == ()
    for unknown, said in (
        ({"policy.model_name": "nobody/knows"}, "shape of nobody/knows is not known"),
        (MEGATRON, "not Megatron"),
    ):
        assert said in check_recipe(ARITHMETIC, unknown, gpu="h100").notes[-1]
    with pytest.raises(WorkshopError, match="abacus"):
        check_recipe(ARITHMETIC, gpu="abacus")


def test_the_names_that_are_given_exist():
    keys = {*known_keys(), "policy.optimizer.kwargs.lr", "policy.optimizer.kwargs.weight_decay"}
    keys |= {"policy.draft.enabled", "policy.megatron_cfg.enabled"}
    needs = nemo_rl()["needs"]
    given = {*nemo_rl()["moved"].values(), *nemo_rl()["elsewhere"].values()}
    given |= {key.partition("=")[0] for key in needs} | {
        key for all_ in needs.values() for key in all_
    }
    assert given - keys == set() and set(nemo_rl()["moved"]) & keys == set()
