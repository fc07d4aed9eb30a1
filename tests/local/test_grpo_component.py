"""The component `grpo`, played: real Ray, the trainer as a Ray job, its exit code the Job's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpo_helpers import held_out
from local_helpers import agent_pid, listening, shims, until

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.errors import ClusterError
from workshop_lib.serving import ModelServer
from workshop_lib.training import Accuracy, evaluate_server
from workshop_lib.training.plan import model_folder
from workshop_lib.training.watch import read_training, training_recipe, watch_training

SMALL = {"prompts": 2, "generations": 4, "seed": 1}
LIMIT_S = 600

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    cluster = new_cluster()
    cluster.apply("model").wait_complete(timeout_s=LIMIT_S)
    return cluster


@pytest.mark.slow
def test_two_ranks_train_and_the_checkpoint_outlives_them(cluster: LocalCluster) -> None:
    job = cluster.apply("grpo", **SMALL, steps=2, nodes=2, output="/shared/two")
    run = watch_training(job, timeout_s=LIMIT_S)
    assert (run.steps, run.done, run.frame.step.tolist()) == (2, 2, [1, 2])
    assert run.frame.reward.between(0, 1).all() and (run.frame.step_s > 0).all()
    assert run.samples.step.tolist() == [1, 1, 2, 2]
    assert run.samples.prompt.str.startswith("Question: What is").all()
    assert run.samples.completion.str.len().gt(0).any(), "one that ends at once is empty"
    assert run.checkpoint == "/shared/two/checkpoints/step_2"
    conditions = job.observe().body["status"]["conditions"]
    assert [c["type"] for c in conditions] == ["SuccessCriteriaMet", "Complete"]
    lines = [line.text for line in job.logs() if line.rank == 0]
    assert any("2 of 2 nodes have joined" in line for line in lines)
    token = cluster.secret("grpo-auth", "auth_token")
    assert not any(token in line.text for line in job.logs())
    cluster.delete("grpo")
    assert (cluster.paths.claims / "shared/two/checkpoints/step_2/config.json").is_file()


def test_a_trainer_that_fails_fails_the_job_with_its_last_line(cluster: LocalCluster) -> None:
    wrong = {"overrides": "grpo.num_generation_per_prompt=4"}
    job = cluster.apply("grpo", **SMALL | {"steps": 2} | wrong)
    with pytest.raises(ClusterError) as error:
        watch_training(job, timeout_s=LIMIT_S)
    said = str(error.value)
    assert "exit code 2" in said and "did you mean grpo.num_generations_per_prompt" in said
    assert "\n" not in said and "cluster.delete('grpo')" in said
    with pytest.raises(ClusterError, match=r"failed after .* exit code 2: RecipeError"):
        job.wait_complete(timeout_s=LIMIT_S)


@pytest.mark.slow
def test_deleted_in_mid_training_nothing_is_left(cluster: LocalCluster) -> None:
    job = cluster.apply("grpo", **SMALL, steps=500)
    until(lambda: read_training(job).done, timeout_s=LIMIT_S, every_s=0.5)
    ours = processes.descendants(agent_pid(cluster))
    assert any(
        b"workshop_lib.training.train" in word
        for pid in ours
        for word in processes.command_line(pid)
    )
    cluster.delete("grpo")
    assert not shims(cluster, "Job/grpo")
    cluster.delete("model")
    assert not any(map(processes.is_running, ours))
    assert listening(cluster.paths.network) == []


@pytest.mark.slow
def test_vllm_serves_what_lora_has_trained(cluster: LocalCluster) -> None:
    """The adapter is merged: vLLM's answers are those of the trained model, not of the first."""
    lora = "policy.dtensor_cfg.lora_cfg"
    wishes = f"policy.dtensor_cfg._v2=true {lora}.enabled=true {lora}.dim=8"
    wishes += " policy.optimizer.kwargs.lr=2e-3"
    settings = {"seed": 1, "steps": 3, "overrides": wishes}
    run = watch_training(
        cluster.apply("grpo", **settings, output="/shared/lora"), timeout_s=LIMIT_S
    )
    assert run.checkpoint == "/shared/lora/checkpoints/step_3" and (run.frame.grad_norm > 0).any()
    cluster.delete("grpo")

    recipe = training_recipe("local", settings)
    folder = cluster.paths.claims / "shared/lora/checkpoints/step_3"
    assert (folder / "adapter/adapter_model.safetensors").is_file()
    first, trained = (held_out(each, recipe) for each in (model_folder(recipe), folder))
    vllm = cluster.apply("vllm", model=run.checkpoint)
    vllm.wait_ready(timeout_s=LIMIT_S)
    with cluster.forward("vllm", 8000) as url:
        served = evaluate_server(ModelServer(url), recipe)

    def alike(one: Accuracy, other: Accuracy) -> float:
        pairs = zip(one.completions, other.completions, strict=True)
        return sum(a == b for a, b in pairs) / len(one.completions)

    # Two engines round differently: of two tokens that are as likely, each may take another.
    assert alike(served, trained) >= 0.9
    assert alike(served, first) < 0.5, "three steps at this rate change most answers"
