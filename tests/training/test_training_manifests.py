"""The component `grpo` as data, its scripts for NeMo RL, and the log that both trainers print."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from workshop_lib.cluster.manifests import manifests_dir, render, render_folder
from workshop_lib.errors import ManifestError
from workshop_lib.training.recipe import RecipeError
from workshop_lib.training.rewards import REWARDS
from workshop_lib.training.runs import MARK, marked_line, read_log
from workshop_lib.training.watch import _environment, training_recipe

SCRIPTS = manifests_dir() / "base/grpo/scripts"


def script(name: str) -> ModuleType:
    """A script of the component, imported; what it needs of NeMo RL is inside its functions."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(objects: list[Any]) -> dict[str, Any]:
    return next(item.body for item in objects if item.kind == "Job")


def test_the_recipe_that_pods_will_read() -> None:
    recipe = training_recipe("local", {"steps": 3, "prompts": 2, "generations": 4, "seed": 9})
    assert (recipe.grpo.max_num_steps, recipe.grpo.seed) == (3, 9)
    assert recipe.completions_per_step == recipe.policy.train_global_batch_size == 8
    other = {"overrides": "policy.optimizer.kwargs.lr=1.0e-4 grpo.normalize_rewards=false"}
    recipe = training_recipe("local", other)
    assert recipe.policy.optimizer is not None
    assert recipe.policy.optimizer.kwargs["lr"] == 1e-4 and recipe.normalize_rewards is False


def test_what_is_wrong_is_said_before_anything_starts() -> None:
    with pytest.raises(RecipeError, match=r"did you mean grpo\.seed"):
        training_recipe("local", {"overrides": "grpo.sed=3"})
    with pytest.raises(RecipeError, match=r"at least 2|must be at least"):
        training_recipe("local", {"overrides": "grpo.num_generations_per_prompt=1"})
    with pytest.raises(ManifestError, match="no parameter 'step'"):
        training_recipe("local", {"step": 3})
    with pytest.raises(ManifestError, match="no Job with a RECIPE"):
        training_recipe("local", component="vllm")


def test_both_worlds_get_one_recipe_with_the_same_switches() -> None:
    """The ConfigMap's files lie where the recipe's paths lead, and its keys are NeMo RL's own."""
    base = job(render_folder(manifests_dir() / "base/grpo"))
    here = job(render("local", "grpo"))
    shared = ("RECIPE", "STEPS", "SEED", "PROMPTS", "GENERATIONS", "OUTPUT_DIR", "MODEL_FOLDER")
    told = [_environment(body) for body in (base, here)]
    assert all(told[0][name] == told[1][name] for name in shared)
    words = [body["spec"]["template"]["spec"]["containers"][0]["args"] for body in (base, here)]
    grpo = [[word for word in args if word.startswith("grpo.")] for args in words]
    assert grpo[0] == grpo[1] and len(grpo[0]) == 4
    volumes = {each["name"]: each for each in base["spec"]["template"]["spec"]["volumes"]}
    paths = {item["path"] for item in volumes["recipe"]["configMap"]["items"]}
    checkout = manifests_dir().parent
    assert all((checkout / path).is_file() for path in paths)
    named = {
        file for path in paths if path.endswith(".yaml") for file in _files_named(checkout / path)
    }
    assert named <= paths


def _files_named(recipe: Path) -> set[str]:
    text = yaml.safe_load(recipe.read_text())
    data = text.get("data") or {}
    found = {each.get(key) for each in data.values() if isinstance(each, dict)
             for key in ("data_path", "prompt_file")}  # fmt: skip
    default = {f"data/recipes/{text['defaults']}"} if "defaults" in text else set()
    return {str(name) for name in found if name} | default


# As a pod of NeMo RL imports them: from /rewards, where there is no workshop_lib otherwise, and
# with its two classes of NeMo RL, which is not a package of this environment.
POD = """
import json, sys, types
from pathlib import Path
layout, scripts, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if p and not (Path(p) / "workshop_lib").exists()]
sys.path[:0] = [scripts, layout]
import typing
interfaces = types.ModuleType("nemo_rl.environments.interfaces")
class EnvironmentReturn(typing.NamedTuple):
    observations: list; metadata: list; next_stop_strings: list; rewards: object
    terminateds: object; answers: object
interfaces.EnvironmentInterface, interfaces.EnvironmentReturn = object, EnvironmentReturn
for name in ("nemo_rl", "nemo_rl.environments"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[interfaces.__name__] = interfaces
import reward_envs, workshop_lib.training.rewards as rewards
assert rewards.__file__.startswith(layout), rewards.__file__
found = {}
for name, actor in reward_envs.NAMES.items():
    environment = getattr(reward_envs, actor).__ray_metadata__.modified_class({"num_workers": 1})
    logs = [[{"role": "user", "content": "99"}, {"role": "assistant", "content": said}]
            for said, _ in cases]
    back = environment.step(logs, [{"ground_truth": right} for _, right in cases])
    assert back.terminateds.tolist() == [1] * len(cases) and len(back.observations) == len(cases)
    found[name] = back.rewards.tolist()
print(json.dumps(found))
"""

CASES = [
    (said, right)
    for right in ("7", "1007", "-7")
    for said in (" 7", " 7.\nQuestion", "3 + 4 = 7", "3 + 4", "", "seven", "7.5", "1,007", "-7",
                 "07", " 17", "9" * 400, "7,00", "x" * 5000 + "7", "\\boxed{7}",
                 "3 + 4 = 7\nAnswer: 7")
]  # fmt: skip


def test_the_clusters_rewards_are_the_laptops(tmp_path: Path) -> None:
    """The ConfigMap's own files, laid out as the Job mounts them, score as this process does."""
    objects = render_folder(manifests_dir() / "base/grpo")
    spec = job(objects)["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    volume = volumes["rewards"]["configMap"]
    (config_map,) = [i.body for i in objects if i.body["metadata"]["name"] == volume["name"]]
    for item in volume["items"]:
        file = tmp_path / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(config_map["data"][item["key"]])
    environment = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert environment["PYTHONPATH"] == f"{mounts['scripts']}:{mounts['rewards']}"
    command = [sys.executable, "-c", POD, str(tmp_path), str(SCRIPTS), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    ours = {name: REWARDS[name] for name in json.loads(done.stdout)}
    assert set(ours) == {"first_integer", "math_verify", "format", "techpulse"}
    for name, scores in json.loads(done.stdout).items():
        assert scores == pytest.approx([ours[name](said, right) for said, right in CASES]), name


def test_the_scripts_that_are_mounted_are_all_there_are() -> None:
    objects = render_folder(manifests_dir() / "base/grpo")
    (scripts,) = [i.body for i in objects if "run_nemo_rl.py" in (i.body.get("data") or {})]
    assert {path.name for path in SCRIPTS.iterdir() if path.is_file()} <= set(scripts["data"])


def test_another_recipe_of_the_same_component() -> None:
    recipe = training_recipe("local", {"recipe": "graded", "steps": 3})
    assert recipe.path.name == "graded.yaml" and recipe.grpo.max_num_steps == 3
    paths = {entry.data_path for entry in recipe.datasets("validation")}
    assert paths == {"data/problems/graded-heldout.jsonl"}
    with pytest.raises(ManifestError, match="not one of arithmetic, graded, hackable"):
        training_recipe("local", {"recipe": "gradd"})


def test_a_killed_run_is_resumed_on_request(tmp_path: Path) -> None:
    trl = ["--$(EXISTING_RUN)"]
    for profile, words in (("local", trl), ("kind", trl), ("eks", [])):
        for value, written in ((None, "overwrite"), (False, "overwrite"), (True, "resume")):
            body = job(render(profile, "grpo", {"resume": value}))
            assert _environment(body)["EXISTING_RUN"] == written
            args = body["spec"]["template"]["spec"]["containers"][0]["args"]
            assert [each for each in args if "EXISTING" in each] == words
    with pytest.raises(ManifestError, match="parameter resume: 'yes' is not of type bool"):
        render("local", "grpo", {"resume": "yes"})
    resumed_step = script("run_nemo_rl").resumed_step
    with pytest.raises(SystemExit, match="left no checkpoint"):
        resumed_step(tmp_path, 9)
    (tmp_path / "step_4").mkdir()
    assert resumed_step(tmp_path, 9) == 4
    with pytest.raises(SystemExit, match="raise steps"):
        resumed_step(tmp_path, 4)


def test_nemo_rls_step_becomes_a_record() -> None:
    """Values named as NeMo RL v0.7.0 logs them."""
    rollouts = {
        "rewards": [1.0, 0.0, 0.0, 0.0],
        "content": [[f"prompt {n // 2}", f" answer {n}", ""] for n in range(4)],
        "advantages": [[0.7, 0.7], [-0.7, -0.7], [0.0, 0.0], [0.0, 0.0]],
    }
    train = {
        "grad_norm": np.float32(2.5),
        "lr": 1e-5,
        "loss": 0.1,
        "mean_gen_tokens_per_sample": 5.5,
    }
    seconds = {"total_step_time": 4.0, "generation": 1.5}
    record = script("run_nemo_rl").step_record(3, train, seconds, rollouts, 2)
    log = read_log([marked_line("start", steps=9), marked_line("step", **record)])
    row = log.frame.iloc[0]
    assert (row.step, row.reward, row.group_means) == (3, 0.25, [0.5, 0.0])
    assert (row.zero_std_share, row.grad_norm, row.mean_length) == (0.5, 2.5, 5.5)
    assert (row.step_s, row.generation_s) == (4.0, 1.5)
    assert log.samples.completion.tolist() == [" answer 0", " answer 2"]
    group = log.group(3)
    assert group[["completion", "reward", "advantage"]].to_numpy().tolist() == [
        [" answer 0", 1.0, 0.7],
        [" answer 1", 0.0, -0.7],
    ]
    assert log.group(2).empty
    assert script("run_nemo_rl").MARK == MARK
