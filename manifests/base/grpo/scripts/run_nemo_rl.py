"""NeMo RL's own `examples/run_grpo.py`, with four things that the workshop adds.

`python run_nemo_rl.py --config RECIPE [KEY=VALUE...]`

- the workshop's rewards (`env.first_integer` and others, see `reward_envs`);
- one marked line of JSON a step, as the laptop's trainer prints it, so that one reader
  draws both (`workshop_lib.training.runs`);
- two Ray metrics a step, by which an alert sees a training that hangs;
- at the end the checkpoint in Hugging Face's format, where the laptop's trainer leaves
  its own: `<run>/checkpoints/step_<N>`.

Written against NeMo RL v0.7.0.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pvariance, stdev
from typing import Any

MARK = "@grpo "
NEMO_RL = Path(os.environ.get("NEMO_RL_DIR", "/opt/nemo-rl"))


def say(event: str, **values: Any) -> None:
    """Print one marked line."""
    print(f"{MARK}{json.dumps({'event': event, **values})}", flush=True)


def step_record(
    step: int,
    train: Mapping[str, Any],
    seconds: Mapping[str, float],
    rollouts: Mapping[str, Sequence[Any]],
    group_size: int,
) -> dict[str, Any]:
    """A step's record in the laptop's words.

    Args:
        step: Counted from 1.
        train: What NeMo RL logs under `train/`.
        seconds: What it logs under `timing/train/`.
        rollouts: What it writes to `train_data_step<N>.jsonl`.
        group_size: Answers to one prompt; they follow each other.
    """
    rewards = [float(reward) for reward in rollouts["rewards"]]
    groups = [rewards[at : at + group_size] for at in range(0, len(rewards), group_size)]

    def number(values: Mapping[str, Any], name: str) -> float | None:
        return None if values.get(name) is None else float(values[name])  # of numpy's or torch's

    silent = [group for group in groups if len(set(group)) == 1]
    samples = [
        {
            "group": at // group_size,
            "prompt": content[0],
            "completion": content[1],
            "reward": rewards[at],
        }
        for at, content in enumerate(rollouts["content"])
        if at % group_size == 0
    ]
    # The group with the largest spread, whole. An advantage is the same for an answer's tokens.
    divided = max(range(len(groups)), key=lambda number: pvariance(groups[number])) * group_size
    answers = [
        {
            "group": at // group_size,
            "prompt": content[0],
            "completion": content[1],
            "reward": rewards[at],
            "advantage": float(max(tokens, key=abs)),
        }
        for at, (content, tokens) in enumerate(
            zip(rollouts["content"], rollouts.get("advantages", []), strict=False)
        )
        if divided <= at < divided + group_size
    ]
    return {
        "step": step,
        "reward": fmean(rewards),
        "reward_std": stdev(rewards),
        "group_means": [fmean(group) for group in groups],
        "zero_std_share": len(silent) / len(groups),
        "kl": number(train, "kl_penalty"),
        "entropy": number(train, "approx_entropy"),
        "grad_norm": number(train, "grad_norm"),
        "loss": number(train, "loss"),
        "mean_length": number(train, "mean_gen_tokens_per_sample"),
        "learning_rate": number(train, "lr"),
        "step_s": number(seconds, "total_step_time"),
        "generation_s": number(seconds, "generation"),
        "time": time.time(),
        "samples": samples,
        "group": answers,
    }


def report_steps(group_size: int) -> None:
    """Have NeMo RL's logger tell of each step: a marked line, and two metrics of Ray."""
    from nemo_rl.utils.logger import Logger
    from ray.util.metrics import Gauge

    # The alert TrainingHangs compares them: when the last step ended, and how long a step takes.
    last_step = Gauge("workshop_training_last_step_unix_s", "When the last step ended, Unix time.")
    step_time = Gauge("workshop_training_step_s", "How long the last step took, seconds.")
    logged, written = Logger.log_metrics, Logger.log_batched_dict_as_jsonl
    seen: dict[str, Any] = {}
    began = time.monotonic()

    def log_metrics(
        self: Any, metrics: Any, step: int, prefix: str = "", *more: Any, **named: Any
    ) -> None:
        logged(self, metrics, step, prefix, *more, **named)
        seen[prefix] = metrics
        if prefix == "timing/train" and "rollouts" in seen:
            record = step_record(step, seen["train"], metrics, seen.pop("rollouts"), group_size)
            say("step", **record, elapsed_s=time.monotonic() - began)
            last_step.set(time.time())
            step_time.set(record["step_s"] or 0.0)

    def log_batched_dict_as_jsonl(self: Any, rows: Any, filename: str) -> None:
        written(self, rows, filename)
        if filename.startswith("train_data_step"):
            names = [name for name in ("rewards", "content", "advantages") if name in rows]
            seen["rollouts"] = {name: list(rows[name]) for name in names}

    Logger.log_metrics, Logger.log_batched_dict_as_jsonl = log_metrics, log_batched_dict_as_jsonl


def register_rewards() -> None:
    """Make the workshop's rewards known to NeMo RL, run by the Python of its base environment."""
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import register_env
    from reward_envs import NAMES

    for name, actor in NAMES.items():
        ACTOR_ENVIRONMENT_REGISTRY[f"reward_envs.{actor}"] = PY_EXECUTABLES.SYSTEM
        register_env(name, f"reward_envs.{actor}")


def newest_step(checkpoints: Path) -> int:
    """The step of NeMo RL's newest checkpoint."""
    steps = [int(path.name[5:]) for path in checkpoints.glob("step_*") if path.name[5:].isdigit()]
    if not steps:
        raise SystemExit(f"NeMo RL left no checkpoint in {checkpoints}; is checkpointing.enabled?")
    return max(steps)


def resumed_step(checkpoints: Path, steps: int) -> int:
    """The step that NeMo RL will go on from; it would also start anew without a word."""
    if (after := newest_step(checkpoints)) >= steps:
        raise SystemExit(f"{checkpoints}/step_{after} has the {steps} wanted steps; raise steps")
    return after


def export(checkpoints: Path, output: Path) -> str:
    """Turn the newest checkpoint into a Hugging Face folder that appears whole, and name it."""
    newest = checkpoints / f"step_{newest_step(checkpoints)}"
    place = output / "checkpoints" / newest.name
    partial = place.with_name(f".{newest.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable, NEMO_RL / "examples/converters/convert_dcp_to_hf.py",
            "--config", newest / "config.yaml",
            "--dcp-ckpt-path", newest / "policy/weights",
            "--hf-ckpt-path", partial,
        ],
        check=True,
    )  # fmt: skip
    partial.rename(place)
    return f"checkpoints/{newest.name}"


def main(arguments: Sequence[str]) -> None:
    """Train, and export the model."""
    from nemo_rl.utils.config import (
        load_config,
        parse_hydra_overrides,
        register_omegaconf_resolvers,
    )

    overrides = [word for word in arguments if not word.startswith("--")]
    recipe = next(word for word in arguments if word.startswith("--config=")).partition("=")[2]
    register_omegaconf_resolvers()
    config = parse_hydra_overrides(load_config(recipe), overrides)
    output = Path(os.environ["OUTPUT_DIR"])
    checkpoints = Path(config.checkpointing.checkpoint_dir)
    start = {"steps": config.grpo.max_num_steps}
    if os.environ.get("EXISTING_RUN") == "resume":
        start["after"] = resumed_step(checkpoints, start["steps"])
    else:  # NeMo RL would go on with the run that is there. The folder itself stays: the one
        for old in output.glob("*"):  # above may be another user's.
            shutil.rmtree(old)
    register_rewards()
    report_steps(config.grpo.num_generations_per_prompt)
    say("start", **start)
    script = NEMO_RL / "examples/run_grpo.py"
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
    say("saved", checkpoint=export(checkpoints, output))


if __name__ == "__main__":
    main(sys.argv[1:])
