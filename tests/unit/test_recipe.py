"""Recipes: read as NeMo RL reads them, and strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workshop_lib.data import data_path
from workshop_lib.training.recipe import Recipe, RecipeError, read_recipe
from workshop_lib.training.recipe.files import leaves, load_settings, set_key

ARITHMETIC = data_path("recipes/arithmetic.yaml")

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


def read(**changes: Any) -> Recipe:
    return read_recipe(ARITHMETIC, {key.replace("__", "."): v for key, v in changes.items()})


def refusal(overrides: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        read_recipe(ARITHMETIC, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_laptops_recipe() -> None:
    recipe = read_recipe(ARITHMETIC)
    assert (recipe.completions_per_step, recipe.updates_per_step) == (64, 1)
    assert recipe.plain_prompts and recipe.environments == ["first_integer"]
    assert recipe.normalize_rewards and not recipe.leave_one_out
    assert recipe.policy.precision == "float32" and recipe.generation.max_new_tokens == 6
    # Inherited, and resolved: from base.yaml, by reference.
    assert recipe.generation.vllm_cfg.max_model_len == 64
    assert recipe.policy.tokenizer.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe.grpo.adv_estimator.use_leave_one_out_baseline is False


def test_it_says_all_that_nemo_rl_reads() -> None:
    given = leaves(read_recipe(ARITHMETIC).settings)
    assert [key for key in READ_BY_NEMO_RL.split() if key not in given] == []


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
        ("grpo.num_generations", "did you mean grpo.num_generations_per_prompt?"),
        ("policy.optimizer.kwargs.weigth_decay", "policy.optimizer.kwargs.weight_decay?"),
        ("env.first_integer.num_worker", "did you mean env.first_integer.num_workers?"),
        ("data.dataset_name", "it is now data.train.dataset_name"),
        ("data.train_data_path", "it is now data.train.data_path"),
        ("data.prompt_file", "it is now data.default.prompt_file"),
        ("lossfn", "did you mean loss_fn?"),
        ("grpo.kl_coef", "did you mean loss_fn.reference_policy_kl_penalty?"),
        ("grpo.num_iterations", "did you mean policy.train_global_batch_size?"),
        ("policy.lora_rank", "did you mean policy.dtensor_cfg.lora_cfg.dim?"),
        ("grpo.zzz", "grpo has adv_estimator, "),
    ],
)
def test_an_unknown_key_names_the_right_one(key: str, right: str) -> None:
    text = refusal({key: 1})
    assert "unknown key" in text and right in text


def test_an_unknown_key_of_a_list_is_placed() -> None:
    text = refusal({"data.train": [{"data_path": "a"}, {"data_pth": "b"}]})
    assert "data.train[1].data_pth" in text and "data_path?" in text
    assert "data.train.data_pth" in refusal({"data.train": {"data_pth": "b"}})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"grpo.seed": "x"}, "grpo.seed is 'x' and should be a valid integer"),
        ({"grpo.max_num_steps": 1.5}, "grpo.max_num_steps is 1.5"),
        ({"loss_fn.token_level_loss": 1}, "should be a valid boolean"),
        ({"policy.precision": "fp16"}, "should be 'float32', 'bfloat16' or 'float16'"),
        ({"policy.generation.top_p": 2}, "should be less than or equal to 1"),
        ({"policy.generation.temperature": 0}, "should be greater than 0"),
        ({"checkpointing.metric_name": "val_reward"}, '"val:accuracy"'),
        ({"policy.scheduler": 3}, "policy.scheduler is 3"),
        ({"policy.optimizer.kwargs.lr": "high"}, "policy.optimizer.kwargs.lr is 'high'"),
        ({"policy.optimizer.kwargs.betas": 0.9}, "should be two numbers from 0 to under 1"),
        ({"policy.optimizer.kwargs.betas": [0.9, 1.0]}, "should be two numbers from 0 to under 1"),
        ({"grpo.seed": -1}, "grpo.seed is -1 and should be greater than or equal to 0"),
        ({"grpo.seed": 2**32}, "should be less than 4294967296"),
        ({"data.train": [1]}, "data.train[0] is 1 and should be a section"),
        ({"cluster": 3}, "cluster is 3 and should be a section"),
        ({"policy.precision": "x" * 500}, "xxx... and should be 'float32'"),
        ({"grpo.a\nb": 1}, "unknown key grpo.a\\nb"),
        ({"policy.model_name": "???"}, "policy.model_name is ???: it must be given a value"),
    ],
)
def test_a_wrong_value_is_named(overrides: dict[str, Any], said: str) -> None:
    assert said in refusal(overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"grpo.num_prompts_per_step": 7, "policy.train_global_batch_size": 64}, "7 x 8 = 56"),
        ({"policy.train_global_batch_size": 32}, "force_on_policy_ratio needs"),
        ({"policy.train_micro_batch_size": 48}, "does not divide"),
        ({"grpo.num_generations_per_prompt": 1}, "at least 2"),
        ({"policy.generation.max_new_tokens": 65}, "max_new_tokens 65"),
        ({"policy.generation.vllm_cfg.max_model_len": 32}, "vLLM would cut"),
        ({"loss_fn.reference_policy_kl_penalty": 0.1}, "skip_reference_policy_logprobs"),
        ({"loss_fn.sequence_level_importance_ratios": True}, "token_level_loss: false"),
        ({"loss_fn.use_cispo": True}, "use_cispo"),
        ({"grpo.batch_multiplier": 2}, "use_dynamic_sampling"),
        ({"data.default.env_name": "physics"}, "env.physics, and env has first_integer"),
        ({"grpo.val_period": 5, "data.validation": None}, "data.validation has no problems"),
        ({"policy.generation.colocated.enabled": False}, "resources.gpus_per_node"),
        ({"policy.dtensor_cfg.lora_cfg.enabled": True}, "_v2: true"),
        ({"policy.megatron_cfg.enabled": True}, "exactly one of"),
        ({"policy.scheduler": None}, "leave it out"),
    ],
)
def test_contradictions(overrides: dict[str, Any], said: str) -> None:
    assert said in refusal(overrides)


def test_two_answers_are_a_group_without_a_spread_of_the_others() -> None:
    two = {"grpo.num_generations_per_prompt": 2, "grpo.num_prompts_per_step": 32}
    assert read_recipe(ARITHMETIC, two).notes == ()
    (note,) = read_recipe(ARITHMETIC, two | {"grpo.use_leave_one_out_baseline": True}).notes
    assert "nothing is normalised" in note


def test_several_problems_are_counted() -> None:
    assert refusal({"grpo.zzz": 1, "policy.zzz": 1, "zzz": 1}).endswith("(and 2 more)")


def test_overrides_are_resolved_like_the_file() -> None:
    recipe = read(policy__max_total_sequence_length=128, grpo__normalize_rewards=False)
    assert recipe.generation.vllm_cfg.max_model_len == 128
    assert not recipe.normalize_rewards
    with pytest.raises(RecipeError, match="seed is a value, not a section"):
        read_recipe(ARITHMETIC, {"grpo.seed.x": 1})


def test_the_advantage_estimators_switches_win() -> None:
    recipe = read(grpo__adv_estimator={"name": "grpo", "use_leave_one_out_baseline": True})
    assert recipe.leave_one_out and recipe.normalize_rewards


def test_inheritance_and_references(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "grpo: {seed: 1, val_period: 2}\npolicy: {x: {y: 1, z: 2}}\n")
    write(tmp_path, "b.yaml", "policy: {list: [1, 2]}\n")
    child = write(
        tmp_path,
        "c.yaml",
        "defaults: [a.yaml, b.yaml]\n"
        "grpo: {seed: 3, again: '${.seed}', text: 'seed ${grpo.seed}!'}\n"
        "policy:\n"
        "  _override_: true\n"
        "  x: {w: '${mul:${grpo.seed}, ${grpo.val_period}}'}\n"
        "  list: [9, '${grpo.again}']\n"
        "  deep: {here: '${..list}', most: '${max:1,2}', half: '${div:1,2}'}\n",
    )
    assert load_settings(child) == {
        "grpo": {"seed": 3, "val_period": 2, "again": 3, "text": "seed 3!"},
        "policy": {
            "x": {"w": 6},
            "list": [9, 3],
            "deep": {"here": [9, 3], "most": 2, "half": 0.5},
        },
    }


def test_a_marker_further_down_is_a_key_like_any_other(tmp_path: Path) -> None:
    # merge_with_override of nemo_rl/utils/config.py looks at the top level only.
    write(tmp_path, "a.yaml", "policy: {x: {y: 1}}\n")
    child = write(tmp_path, "b.yaml", "defaults: a.yaml\npolicy: {x: {_override_: true, w: 2}}\n")
    assert load_settings(child) == {"policy": {"x": {"y": 1, "_override_": True, "w": 2}}}


def test_anchors_are_merged_and_may_be_overridden(tmp_path: Path) -> None:
    text = "a: &all {x: 1, y: 2}\nb:\n  <<: *all\n  y: 3\n"
    assert load_settings(write(tmp_path, "a.yaml", text))["b"] == {"x": 1, "y": 3}


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.yaml", "a: ${oc.env:WS_A}/x\nb: '${oc.env:WS_B,other}'\n")
    monkeypatch.delenv("WS_B", raising=False)
    monkeypatch.setenv("WS_A", "/data")
    assert load_settings(path) == {"a": "/data/x", "b": "other"}
    monkeypatch.delenv("WS_A")
    with pytest.raises(RecipeError, match="a needs the environment variable WS_A, which is not"):
        load_settings(path)
    unset: set[str] = set()
    assert load_settings(path, unset=unset)["a"] == "<WS_A>/x" and unset == {"WS_A"}


def test_a_file_alone_without_what_it_inherits(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "defaults: gone.yaml\na: {b: 1, c: '${x.y}', d: '${.b}'}\n")
    assert load_settings(path, follow_defaults=False) == {"a": {"b": 1, "d": 1}}
    with pytest.raises(RecipeError, match=r"gone.yaml \(named in the defaults of a.yaml\)"):
        load_settings(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("12", 12),
        ("1_000", 1000),
        ("'1e-5'", "1e-5"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_as_omegaconf_reads_them(tmp_path: Path, text: str, value: object) -> None:
    found = load_settings(write(tmp_path, "n.yaml", f"x: {text}\n"))["x"]
    assert found == value and type(found) is type(value)


# Each anchor stands for ten of the one before: 10^9 values in ten lines.
MANY = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "line 2: the key 'a' stands twice"),
        ("a: [1\n", "line 2"),
        ("- a\n", "holds list, not sections"),
        ("", "it is empty"),
        ("a: ${b}\n", "a refers to b, which is not there"),
        ("a: ${b}\nb: ${a}\n", "refers to itself"),
        ("a: ${env:HOME}\n", "knows mul, div, max, oc.env, oc.decode, oc.select"),
        ("a: ${mul:1}\n", "cannot be computed"),
        ("defaults: me.yaml\n", "in a circle"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("defaults: 3\n", "defaults is 3 and should name a file"),
        ("defaults: {a: b}\n", "should name a file"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
        ("a: &here {b: *here}\n", "an anchor (&) holds itself"),
        ("a: &here [*here]\n", "an anchor (&) holds itself"),
        ("a: " + "[" * 3000, "nested too deeply"),
        (MANY, "holds more than 100,000 values"),
        # What Python would multiply into gigabytes, and NeMo RL does.
        ("a: ${mul:ab,10000000000}\n", "'ab' is no number"),
        ("a: ${mul:[1],10000000000}\n", "[1] is no number"),
        ("a: ${mul:2,3,4}\n", "it takes 2 numbers, not 3"),
        ("a: ${b.c}\nb: null\n", "b is None and should be a section: a refers to b.c"),
        # PyYAML's constructors let Python's own errors through.
        ("a: !!int x\n", "a value is not what it is said to be"),
        ("a: !!bool x\n", "a value is not what it is said to be"),
        ("a: !!timestamp x\n", "a value is not what it is said to be"),
        ("a: " + "1" * 5000, "a value is not what it is said to be"),
        ("# " + "x" * 1_000_000, "more than 1,000,000 characters"),
        # Each reference doubles the one before: 2^40 characters, or sections, in forty lines.
        (
            "a0: x\n" + "".join(f"a{n + 1}: ${{a{n}}}${{a{n}}}\n" for n in range(40)),
            "references make",
        ),
        (
            "a0: {x: 1}\n"
            + "".join(f"a{n + 1}: {{l: '${{a{n}}}', r: '${{a{n}}}'}}\n" for n in range(40)),
            "references make",
        ),
        ("".join(f"a{n}: ${{a{n + 1}}}\n" for n in range(3000)) + "a3000: 1\n", "100 others"),
        ("a: ${b\nb: 1\n", "a is '${b', no whole reference"),
        ("a: ${mul:${b},2}\nb: {c: 1}\n", "no whole reference"),
        ("a: ${b.2}\nb: [1, 2]\n", "a refers to b.2, which is not there"),
        ("a: '${oc.decode:[1}'\n", "cannot be computed: '[1' is no value"),
        ("a: '${oc.select:b,!!int x}'\n", "cannot be computed: '!!int x' is no value"),
        ("a: ${oc.select:b.c,1}\nb: {c: '${a}'}\n", "refers to itself"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_settings(write(tmp_path, "me.yaml", text))
    assert said in str(error.value) and "me.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipe(tmp_path / "latin.yaml")


def test_missing_sections_and_nemo_rls_own_values(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="policy is missing"):
        read_recipe(write(tmp_path, "a.yaml", "grpo: {}\n"))
    recipe = read_recipe(
        write(
            tmp_path,
            "b.yaml",
            "policy: {model_name: m}\nenv: {math: {num_workers: 1}}\n"
            "data: {train: {dataset_name: gsm8k, env_name: math, split_validation_size: 0.05}}\n",
        )
    )
    assert recipe.completions_per_step == 512 and recipe.loss_fn.ratio_clip_max == 0.2
    assert recipe.leave_one_out and not recipe.plain_prompts


def test_reading_takes_no_heavy_import() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from workshop_lib.training.recipe import read_recipe;"
        "print([m for m in ('torch', 'trl', 'transformers', 'pandas', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_set_key_makes_sections() -> None:
    settings: dict[str, Any] = {}
    set_key(settings, "a.b.c", 1)
    assert settings == {"a": {"b": {"c": 1}}} and leaves(settings) == {"a.b.c": 1}


def test_a_key_with_dots_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "dots.yaml", f"defaults: {ARITHMETIC}\ngrpo.seed: 1\n")
    with pytest.raises(RecipeError, match=r"unknown key grpo\.seed; write it in sections: grpo: {"):
        read_recipe(path)


@pytest.mark.parametrize("rate", [".nan", ".inf", "-1.0e-5", "fast", "true"])
def test_a_rate_that_is_none(tmp_path: Path, rate: str) -> None:
    text = f"defaults: {ARITHMETIC}\npolicy: {{optimizer: {{kwargs: {{lr: {rate}}}}}}}\n"
    with pytest.raises(RecipeError, match=r"policy\.optimizer\.kwargs\.lr is"):
        read_recipe(write(tmp_path, "rate.yaml", text))


def test_a_variable_that_may_be_missing(tmp_path: Path) -> None:
    text = "a: ${oc.env:WS_NOT_SET,null}\nb: ${oc.env:WS_NOT_SET,3}\n"
    assert load_settings(write(tmp_path, "env.yaml", text)) == {"a": None, "b": "3"}


def test_a_wrong_number_behind_a_reference_is_named() -> None:
    said = refusal({"grpo.num_prompts_per_step": "x"})
    assert "${grpo.num_prompts_per_step}" in said and "'x' is no number" in said


def test_a_moved_key_that_changes_nothing_is_noted() -> None:
    """NeMo RL v0.7.0's own grpo-moonlight-16b has this one, as false."""
    stale = "policy.activation_checkpointing_enabled"
    (note,) = read_recipe(ARITHMETIC, {stale: False}).notes
    assert stale in note and "policy.dtensor_cfg.activation_checkpointing says the same" in note
    assert f"{stale}; it is now policy.dtensor_cfg.activation_checkpointing" in refusal(
        {stale: True}
    )


def test_what_omegaconf_reads_besides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places in lists, its own resolvers, dates as texts, a byte order mark; a number of a text."""
    monkeypatch.delenv("WS_A", raising=False)
    text = (
        "\ufeffa: [1, {b: 2}]\nb: ${a[1].b}\nc: ${a.0}\nd: 2024-01-01\ne: 2024-13-45\n"
        "f: ${oc.decode:${oc.env:WS_A,7}}\ng: ${oc.select:x.y,1e-5}\nh: ${oc.select:b,9}\n"
    )
    assert load_settings(write(tmp_path, "a.yaml", text)) == {
        "a": [1, {"b": 2}], "b": 2, "c": 1, "d": "2024-01-01", "e": "2024-13-45",
        "f": 7, "g": 1e-5, "h": 2,
    }  # fmt: skip


def test_what_is_still_to_be_given(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a:\n  b: ???\n  c: 1\n")
    child = write(tmp_path, "b.yaml", "defaults: a.yaml\na: {b: 2}\n")
    assert load_settings(child) == {"a": {"b": 2, "c": 1}}
    with pytest.raises(RecipeError, match=r"a\.b is \?\?\?: it must be given a value"):
        load_settings(tmp_path / "a.yaml")
    assert load_settings(tmp_path / "a.yaml", {"a.b": 3})["a"]["b"] == 3


def test_an_override_changes_one_place(tmp_path: Path) -> None:
    """An anchor is one object to PyYAML, and two places to OmegaConf."""
    path = write(tmp_path, "a.yaml", "a: &x {b: 1}\nc: *x\n")
    assert load_settings(path, {"a.b": 2}) == {"a": {"b": 2}, "c": {"b": 1}}


def test_a_variable_of_the_top_level(tmp_path: Path) -> None:
    """NeMo RL's nemo_gym recipes name a folder once and refer to it."""
    text = f"defaults: {ARITHMETIC}\nfolder: /data\nlogger: {{log_dir: '${{folder}}/logs'}}\n"
    assert read_recipe(write(tmp_path, "a.yaml", text)).logger.log_dir == "/data/logs"
    with pytest.raises(RecipeError, match="unknown key folder"):
        read_recipe(write(tmp_path, "b.yaml", text.replace("${folder}", "")))
    with pytest.raises(RecipeError, match="unknown key folder"):
        read_recipe(write(tmp_path, "c.yaml", text.replace("folder: /data", "folder: [/data]")))


@pytest.mark.parametrize("text", ["1: x\n", "on: x\n", "grpo: {1: x}\n"])
def test_a_key_that_is_no_word(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="has a key that is no word: 1"):
        read_recipe(write(tmp_path, "a.yaml", f"defaults: {ARITHMETIC}\n{text}"))
    free = "policy: {generation: {vllm_kwargs: {1: 2}}}\n"  # vLLM's own, which are not checked
    assert read_recipe(write(tmp_path, "b.yaml", f"defaults: {ARITHMETIC}\n{free}"))
