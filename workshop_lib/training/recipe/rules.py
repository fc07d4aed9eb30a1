"""What must fit together in a recipe: batches, lengths, GPUs, data, names, and what needs what.

NeMo RL v0.7.0 stops at some of these after minutes on a cluster, at the first assertion that meets
them; others it never notices. `needs` of `data/nemo-rl-keys.yaml` has the plain ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.schema import REWARD_ENVIRONMENTS, closest, nemo_rl, own_values

__all__ = ["contradictions", "not_checked", "oddities"]

_ADAMW = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused")
_VLLM = "policy.generation.vllm_cfg"
_DTENSOR = "policy.dtensor_cfg"


def contradictions(recipe: Recipe) -> list[str]:
    """What the settings of a recipe say that cannot be true together, a line each."""
    rules = (_batches, _needs, _lengths, _backend, _gpus, _optimizer, _data, _saving)
    return [problem for rule in rules for problem in rule(recipe)]


def oddities(recipe: Recipe) -> Iterator[str]:
    """What a recipe's settings do that is not wrong and may not be meant."""
    two = recipe.grpo.num_generations_per_prompt == 2
    if two and recipe.normalize_rewards and recipe.leave_one_out:
        yield (
            "with 2 answers a prompt and a leave-one-out baseline nothing is normalised: the spread"
            " is that of the other answers, and one answer has none"
        )
    saving = recipe.checkpointing
    if saving.enabled and (saving.metric_name or "").startswith("val:") and not _validates(recipe):
        yield (
            f"checkpointing.metric_name is {saving.metric_name}, and no validation runs: the"
            " checkpoints are not ranked"
        )


def not_checked(recipe: Recipe) -> list[str]:
    """What of a recipe only the cluster can tell."""
    entries = [*recipe.datasets("train"), *recipe.datasets("validation")]
    own = {entry.processor for entry in entries} - {None, *nemo_rl()["processors"]}
    others = set(recipe.env) - {*nemo_rl()["environments"], *REWARD_ENVIRONMENTS}
    names = [f"processor {n}" for n in sorted(own)] + [f"environment {n}" for n in sorted(others)]
    found = [f"the {name}, which your own code must register" for name in names]
    found += ["the other keys of policy.megatron_cfg"] if recipe.megatron else []
    sizes = f"the layers and heads of {recipe.policy.model_name} against the parallel sizes"
    return [*found, sizes, "the length of prompts in tokens"]


def _needs(recipe: Recipe) -> Iterator[str]:
    """Settings that are on while what they need is not so."""
    off = {_DTENSOR: not recipe.policy.dtensor_cfg.enabled}
    off[_VLLM] = recipe.generation.backend != "vllm"
    for setting, needed in nemo_rl()["needs"].items():
        key, _, only = setting.partition("=")
        value = recipe.value(key)
        on = str(value) == only if only else value and value != own_values().get(key)
        for other, wanted in needed.items() if on and not off.get(key.rpartition(".")[0]) else ():
            if recipe.value(other) != wanted and not off.get(other.rpartition(".")[0]):
                shown = key if value is True else f"{key} {value}"
                yield f"{shown} needs {other}: {json.dumps(wanted)}"


def _batches(recipe: Recipe) -> Iterator[str]:
    grpo, policy, sampled = recipe.grpo, recipe.policy, recipe.completions_per_step
    batch, micro = policy.train_global_batch_size, policy.train_micro_batch_size
    made = (
        f"grpo.num_prompts_per_step x grpo.num_generations_per_prompt ="
        f" {grpo.num_prompts_per_step} x {grpo.num_generations_per_prompt} = {sampled}"
    )
    if grpo.num_generations_per_prompt < 2:
        yield "grpo.num_generations_per_prompt must be at least 2: one answer is no group"
    if sampled % batch:
        yield f"policy.train_global_batch_size {batch} does not divide {made}"
    if recipe.loss_fn.force_on_policy_ratio and batch != sampled:
        yield (
            f"loss_fn.force_on_policy_ratio needs policy.train_global_batch_size = {sampled},"
            f" one update a step ({made}); it is {batch}"
        )
    if batch % micro:
        yield (
            f"policy.train_micro_batch_size {micro} does not divide"
            f" policy.train_global_batch_size {batch}"
        )


def _lengths(recipe: Recipe) -> Iterator[str]:
    total = recipe.policy.max_total_sequence_length
    new, held = recipe.generation.max_new_tokens, recipe.generation.vllm_cfg.max_model_len
    if new is not None and new > total:
        yield (
            f"policy.generation.max_new_tokens {new} is more than"
            f" policy.max_total_sequence_length {total}, which holds prompt and answer"
        )
    if held is not None and held < total:
        yield (
            f"{_VLLM}.max_model_len {held} is less than policy.max_total_sequence_length {total}:"
            " vLLM would cut the answers"
        )
    loss, place = recipe.loss_fn, "loss_fn.truncated_importance_sampling_ratio"
    kind, most = loss.truncated_importance_sampling_type, loss.truncated_importance_sampling_ratio
    least = loss.truncated_importance_sampling_ratio_min
    if kind and not (most or 0) > 0:
        yield f"{place} is {most}: {kind} needs one above 0"
    if kind in ("icepop", "seq-mask-tis") and not 0 <= (math.inf if least is None else least) <= (
        most or 0
    ):
        yield f"{place}_min is {least}: {kind} needs one of at most {place} {most}"


def _backend(recipe: Recipe) -> Iterator[str]:
    dtensor, vllm = recipe.policy.dtensor_cfg, recipe.generation.vllm_cfg
    if dtensor.enabled == bool(recipe.megatron):
        which = "both are" if dtensor.enabled else "neither is"
        yield f"exactly one of {_DTENSOR} and policy.megatron_cfg must be enabled; {which}"
    if dtensor.enabled and recipe.settings["policy"].get("scheduler", {}) is None:
        yield "policy.scheduler is null, which NeMo RL cannot use; leave it out: a constant rate"
    tp, ep = vllm.tensor_parallel_size, vllm.expert_parallel_size
    if ep > 1 and ep % tp:
        yield f"{_VLLM}.expert_parallel_size {ep} must be a multiple of its TP, {tp}"


def _split(recipe: Recipe) -> tuple[int, int, str]:
    """GPUs that train, GPUs that sample, and what is wrong with their split."""
    colocated, nodes = recipe.generation.colocated, recipe.cluster.num_nodes
    each = recipe.cluster.gpus_per_node
    if colocated.enabled:
        return nodes * each, nodes * each, ""
    own, own_nodes = colocated.resources.gpus_per_node, colocated.resources.num_nodes
    place = "policy.generation.colocated.resources"
    dedicated = "policy.generation.colocated.enabled is false, so generation needs GPUs of its own:"
    problem = ""
    if nodes == 1:
        if not own or own < 1:
            problem = f"{dedicated} set {place}.gpus_per_node"
        elif own_nodes not in (None, 1):
            problem = f"{place}.num_nodes is {own_nodes}: with one node it must be null or 1"
        elif own >= each:
            problem = f"{place}.gpus_per_node {own} leaves none of the node's {each} to train"
        return each - (own or 0), own or 0, problem
    if not own_nodes or own_nodes < 1:
        problem = f"{dedicated} with {nodes} nodes set {place}.num_nodes"
    elif own != each:
        problem = (
            f"{place}.gpus_per_node is {own}: with several nodes generation takes whole ones, so it"
            f" must be cluster.gpus_per_node, {each}"
        )
    elif own_nodes >= nodes:
        problem = f"{place}.num_nodes {own_nodes} leaves none of {nodes} nodes to train"
    return (nodes - (own_nodes or 0)) * each, (own_nodes or 0) * each, problem


def _gpus(recipe: Recipe) -> Iterator[str]:
    """GPUs against the sizes that split the model and the batch over them."""
    policy, cluster, vllm = recipe.policy, recipe.cluster, recipe.generation.vllm_cfg
    training, sampling, problem = _split(recipe)
    if problem:
        yield problem
        return
    has = f"{cluster.num_nodes} x {cluster.gpus_per_node} GPUs"
    has = has if recipe.generation.colocated.enabled else f"{training} of {has}"
    section, names = _DTENSOR, ["tensor_parallel_size", "context_parallel_size"]
    sizes = [getattr(policy.dtensor_cfg, name) for name in names]
    if not policy.dtensor_cfg.enabled:
        section, names = "policy.megatron_cfg", ["tensor_model_parallel_size"]
        names += ["pipeline_model_parallel_size", "context_parallel_size"]
        sizes = [recipe.megatron.get(name) or 1 for name in names]
    if not all(type(size) is int and size >= 1 for size in sizes):
        yield f"{section}: the parallel sizes {sizes} should be whole numbers of at least 1"
        return
    model = math.prod(sizes)
    if training % model:
        few = f"needs {model} GPUs" if training < model else "must divide the GPUs that train"
        made = f"{' x '.join(names)} = {' x '.join(map(str, sizes))} = {model}"
        yield f"{section}.{made} {few}; cluster has {has}"
        return
    yield from _replicas(recipe, training // model)
    if policy.dynamic_batching.enabled and len(sizes) == 3 and sizes[1] > 1:
        yield "policy.dynamic_batching needs one pipeline stage: pipeline_model_parallel_size: 1"
    if policy.dtensor_cfg.enabled and policy.dtensor_cfg.cpu_offload and training == 1:
        yield f"{_DTENSOR}.cpu_offload does not work on a single GPU"
    engine = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    if recipe.generation.backend == "vllm" and sampling % engine:
        yield (
            f"{_VLLM}.tensor_parallel_size x pipeline_parallel_size = {vllm.tensor_parallel_size} x"
            f" {vllm.pipeline_parallel_size} = {engine} must divide the {sampling}"
            f" GPU{'s' * (sampling > 1)} that generation has (cluster: {has})"
        )


def _replicas(recipe: Recipe, replicas: int) -> Iterator[str]:
    """What each data-parallel copy of the model gets of a batch."""
    policy, sampled = recipe.policy, recipe.completions_per_step
    batch, micro = policy.train_global_batch_size, policy.train_micro_batch_size
    copies = f"the {replicas} data-parallel copies of the model"
    packed = policy.dynamic_batching.enabled or policy.sequence_packing.enabled
    if batch % replicas:
        yield f"policy.train_global_batch_size = {batch} cannot be shared evenly between {copies}"
    elif sampled % replicas:
        yield (
            f"grpo.num_prompts_per_step x grpo.num_generations_per_prompt = {sampled} cannot be"
            f" shared evenly between {copies}"
        )
    elif not packed and batch % micro == 0 and batch // replicas % micro:
        yield (
            f"policy.train_micro_batch_size {micro} does not divide what each of {copies} gets of"
            f" policy.train_global_batch_size: {batch} / {replicas} = {batch // replicas}"
        )
    if policy.dtensor_cfg.enabled and replicas % policy.dtensor_cfg.dp_replicate_size:
        yield f"{_DTENSOR}.dp_replicate_size does not divide {copies}"


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer, place = recipe.policy.optimizer, "policy.optimizer.kwargs"
    if optimizer is None or optimizer.name != "torch.optim.AdamW":
        return  # Megatron's, or another class: its arguments are its own
    for name in [name for name in optimizer.kwargs if name not in _ADAMW]:
        close = closest(name, _ADAMW)
        meant = f"did you mean {place}.{close}?" if close else f"it has {', '.join(_ADAMW)}"
        yield f"unknown key {place}.{name} of torch.optim.AdamW; {meant}"
    rate = optimizer.kwargs.get("lr", 1e-3)
    if type(rate) not in (int, float) or not 0 <= rate < math.inf:
        yield f"{place}.lr is {rate!r} and should be a number of at least 0"
    betas = optimizer.kwargs.get("betas", [0.9, 0.999])
    pair = isinstance(betas, list) and len(betas) == 2
    if not pair or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        yield f"{place}.betas is {betas!r} and should be two numbers from 0 to under 1"


def _validates(recipe: Recipe) -> bool:
    grpo = recipe.grpo
    return bool(grpo.val_period > 0 or grpo.val_at_start or grpo.val_at_end)


def _data(recipe: Recipe) -> Iterator[str]:
    known = nemo_rl()["datasets"]
    for split in ("train", "validation"):
        for entry in recipe.datasets(split):
            name = entry.dataset_name
            if name is None:
                yield f"data.{split} names no dataset_name; for a file: ResponseDataset, data_path"
            elif name not in known and "." not in name:  # with a dot: a class of your own
                close = closest(name, known)
                meant = f"did you mean {close}?" if close else "a file: ResponseDataset, data_path"
                yield (
                    f"data.{split}.dataset_name {name} is no data set of NeMo RL"
                    f" {nemo_rl()['version']}; {meant} (a class of your own: its dotted path)"
                )
            elif name == "ResponseDataset" and not entry.data_path:
                yield f"data.{split}: a ResponseDataset needs a data_path"
            if entry.env_name not in recipe.env:
                has = ", ".join(recipe.env) or "nothing"
                yield f"data.{split} is scored by env.{entry.env_name}, and env has {has}"
    splits = any(entry.split_validation_size for entry in recipe.datasets("train"))
    if _validates(recipe) and not recipe.data.validation and not splits:
        yield "grpo.val_period asks for validation, and data.validation has no problems"


def _saving(recipe: Recipe) -> Iterator[str]:
    name = recipe.checkpointing.metric_name
    if name is None or not recipe.checkpointing.enabled:
        return
    source, colon, metric = name.partition(":")
    known = nemo_rl()["metrics"].get(source)
    if not colon or known is None:
        yield (
            f"checkpointing.metric_name is {name!r}; since NeMo RL v0.6 it says where the metric"
            ' comes from: "val:accuracy" in place of "val_reward"'
        )
    elif metric not in known and "nemo_gym" not in recipe.env and "/" not in metric:
        close = closest(metric, known, cutoff=0.5)
        meant = f"did you mean {source}:{close}?" if close else f"it has {', '.join(known)}"
        yield (
            f"checkpointing.metric_name: NeMo RL {nemo_rl()['version']} records no {source} metric"
            f" {metric}, and stops at the first save; {meant}"
        )
