"""What must fit together in a recipe: batches, lengths, the loss, GPUs, data, names.

NeMo RL stops at some of these after minutes on a cluster, at the first assertion that meets
them (v0.7.0: `algorithms/grpo.py`, `algorithms/loss/loss_functions.py`,
`models/policy/lm_policy.py`, `models/generation/vllm/vllm_generation.py`); others it never notices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.schema import REWARD_ENVIRONMENTS, closest, nemo_rl

__all__ = ["contradictions", "not_checked", "oddities"]

_ADAMW = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused")


def contradictions(recipe: Recipe) -> list[str]:
    """What the settings of a recipe say that cannot be true together, a line each."""
    rules = (_batches, _lengths, _loss, _backend, _gpus, _generation, _optimizer, _data, _saving)
    return [problem for rule in rules for problem in rule(recipe)]


def oddities(recipe: Recipe) -> Iterator[str]:
    """What a recipe's settings do that is not wrong and may not be meant."""
    two = recipe.grpo.num_generations_per_prompt == 2
    if two and recipe.normalize_rewards and recipe.leave_one_out:
        yield (
            "with 2 answers a prompt and a leave-one-out baseline nothing is normalised: the spread"
            " is that of the other answers, and one answer has none"
        )
    policy, megatron = recipe.policy, recipe.policy.megatron_cfg or {}
    tp = policy.dtensor_cfg.tensor_parallel_size
    if not policy.dtensor_cfg.enabled:
        tp = megatron.get("tensor_model_parallel_size") or 1
    micro, logprob = policy.train_micro_batch_size, policy.logprob_batch_size
    if tp >= 4 and logprob not in (None, micro) and not recipe.loss_fn.force_on_policy_ratio:
        yield (
            f"with a tensor-parallel size of {tp} NeMo RL stops unless policy.logprob_batch_size"
            f" {logprob} = policy.train_micro_batch_size {micro}, or NRL_IGNORE_TP_ACCURACY_CHECK=1"
            " is set where it runs"
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
    found = [f"the processor {name}, which your own code must register" for name in sorted(own)]
    known = (*nemo_rl()["environments"], *REWARD_ENVIRONMENTS)
    others = [name for name in recipe.env if name not in known]
    found += [f"the environment {name}, which your own code must register" for name in others]
    if recipe.policy.megatron_cfg and recipe.policy.megatron_cfg.get("enabled"):
        found.append("the other keys of policy.megatron_cfg")
    return [
        *found,
        f"the layers and heads of {recipe.policy.model_name} against the parallel sizes",
    ]


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
    if grpo.batch_multiplier != 1 and not grpo.use_dynamic_sampling:
        yield "grpo.batch_multiplier other than 1 needs grpo.use_dynamic_sampling: true"
    if grpo.use_dynamic_sampling and grpo.dynamic_sampling_max_gen_batches < 1:
        yield "grpo.dynamic_sampling_max_gen_batches must be at least 1"
    if policy.dynamic_batching.enabled and policy.sequence_packing.enabled:
        yield (
            "policy.dynamic_batching.enabled and policy.sequence_packing.enabled exclude each"
            " other: set one of them to false"
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
            f"policy.generation.vllm_cfg.max_model_len {held} is less than"
            f" policy.max_total_sequence_length {total}: vLLM would cut the answers"
        )


def _loss(recipe: Recipe) -> Iterator[str]:
    loss, skip = recipe.loss_fn, recipe.grpo.skip_reference_policy_logprobs_calculation
    if skip and loss.reference_policy_kl_penalty != 0:
        yield (
            "grpo.skip_reference_policy_logprobs_calculation needs"
            " loss_fn.reference_policy_kl_penalty: 0"
        )
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield (
            "loss_fn.sequence_level_importance_ratios (GSPO) needs loss_fn.token_level_loss: false"
        )
    excluded = {
        "disable_ppo_ratio": loss.disable_ppo_ratio,
        "force_on_policy_ratio": loss.force_on_policy_ratio,
        "sequence_level_importance_ratios": loss.sequence_level_importance_ratios,
        "ratio_clip_c": loss.ratio_clip_c is not None,
        "token_level_loss: false": not loss.token_level_loss,
    }
    if loss.use_cispo and (on := [name for name, is_on in excluded.items() if is_on]):
        yield f"loss_fn.use_cispo needs the plain probability ratio: not with {' or '.join(on)}"
    kind, most = loss.truncated_importance_sampling_type, loss.truncated_importance_sampling_ratio
    least = loss.truncated_importance_sampling_ratio_min
    if kind and not loss.use_importance_sampling_correction:
        yield (
            "loss_fn.truncated_importance_sampling_type needs"
            " loss_fn.use_importance_sampling_correction: true"
        )
    if kind and not (most or 0) > 0:
        yield f"loss_fn.truncated_importance_sampling_ratio is {most}: {kind} needs one above 0"
    if kind in ("icepop", "seq-mask-tis") and least is None:
        yield f"loss_fn.truncated_importance_sampling_ratio_min is null: {kind} needs one"
    if kind and most and least is not None and least > most:
        yield "loss_fn.truncated_importance_sampling_ratio_min is more than …_ratio"


def _backend(recipe: Recipe) -> Iterator[str]:
    policy, dtensor = recipe.policy, recipe.policy.dtensor_cfg
    megatron = bool((policy.megatron_cfg or {}).get("enabled"))
    if dtensor.enabled == megatron:
        which = "both are" if megatron else "neither is"
        yield f"exactly one of policy.dtensor_cfg and policy.megatron_cfg must be enabled; {which}"
    if policy.draft and policy.draft.get("enabled") and not megatron:
        yield "policy.draft.enabled needs Megatron: policy.megatron_cfg.enabled: true"
    if not dtensor.enabled:
        return
    for key, on in (("lora_cfg.enabled", dtensor.lora_cfg.enabled),):
        if on and not dtensor.v2:
            yield f"policy.dtensor_cfg.{key} needs policy.dtensor_cfg._v2: true"
    if dtensor.dp_replicate_size > 1 and not dtensor.v2:
        yield "policy.dtensor_cfg.dp_replicate_size needs policy.dtensor_cfg._v2: true"
    if dtensor.context_parallel_size > 1 and policy.sequence_packing.enabled:
        yield (
            "policy.dtensor_cfg.context_parallel_size above 1 needs"
            " policy.sequence_packing.enabled: false"
        )
    if policy.scheduler is None and "scheduler" in recipe.settings.get("policy", {}):
        yield "policy.scheduler is null, which NeMo RL cannot use; leave it out: a constant rate"


def _train_gpus(recipe: Recipe) -> tuple[int, int, str]:
    """GPUs that train, GPUs that sample, and what is wrong with their split."""
    cluster, colocated = recipe.cluster, recipe.generation.colocated
    nodes, each = cluster.num_nodes, cluster.gpus_per_node
    if colocated.enabled:
        return nodes * each, nodes * each, ""
    own, own_nodes = colocated.resources.gpus_per_node, colocated.resources.num_nodes
    place = "policy.generation.colocated.resources"
    dedicated = "policy.generation.colocated.enabled is false, so generation needs GPUs of its own:"
    if nodes == 1:
        if not own or own < 1:
            return 0, 0, f"{dedicated} set {place}.gpus_per_node"
        if own_nodes not in (None, 1):
            return 0, 0, f"{place}.num_nodes is {own_nodes}: with one node it must be null or 1"
        if own >= each:
            return 0, 0, f"{place}.gpus_per_node {own} leaves none of the node's {each} to train"
        return each - own, own, ""
    if not own_nodes or own_nodes < 1:
        return 0, 0, f"{dedicated} with {nodes} nodes set {place}.num_nodes"
    if own != each:
        problem = f"{place}.gpus_per_node is {own}: with several nodes generation takes whole ones,"
        return 0, 0, f"{problem} so it must be cluster.gpus_per_node, {each}"
    if own_nodes >= nodes:
        return 0, 0, f"{place}.num_nodes {own_nodes} leaves none of {nodes} nodes to train"
    return (nodes - own_nodes) * each, own_nodes * each, ""


def _gpus(recipe: Recipe) -> Iterator[str]:
    """GPUs against the sizes that split the model and the batch over them."""
    policy, megatron = recipe.policy, recipe.policy.megatron_cfg or {}
    training, sampling, problem = _train_gpus(recipe)
    if problem:
        yield problem
        return
    cluster, colocated = recipe.cluster, recipe.generation.colocated.enabled
    has = f"{cluster.num_nodes} x {cluster.gpus_per_node} GPUs"
    if not colocated:
        has = f"{training} of {has}"
    if policy.dtensor_cfg.enabled:
        section, names = "policy.dtensor_cfg", ["tensor_parallel_size", "context_parallel_size"]
        sizes = [getattr(policy.dtensor_cfg, name) for name in names]
    else:
        section = "policy.megatron_cfg"
        names = ["tensor_model_parallel_size", "pipeline_model_parallel_size"]
        names.append("context_parallel_size")
        sizes = [megatron.get(name) or 1 for name in names]
    if not all(type(size) is int and size >= 1 for size in sizes):
        yield f"{section}: the parallel sizes {sizes} should be whole numbers of at least 1"
        return
    model = math.prod(sizes)
    made = f"{section}.{' x '.join(names)} = {' x '.join(map(str, sizes))} = {model}"
    if training % model:
        few = f"needs {model} GPUs" if training < model else "must divide the GPUs that train"
        yield f"{made} {few}; cluster has {has}"
        return
    yield from _replicas(recipe, training // model)
    if policy.dynamic_batching.enabled and len(sizes) == 3 and sizes[1] > 1:
        yield "policy.dynamic_batching needs one pipeline stage: pipeline_model_parallel_size: 1"
    if policy.dtensor_cfg.enabled and policy.dtensor_cfg.cpu_offload and training == 1:
        yield "policy.dtensor_cfg.cpu_offload does not work on a single GPU"
    vllm = recipe.generation.vllm_cfg
    engine = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    if recipe.generation.backend == "vllm" and sampling % engine:
        yield (
            "policy.generation.vllm_cfg.tensor_parallel_size x pipeline_parallel_size ="
            f" {vllm.tensor_parallel_size} x {vllm.pipeline_parallel_size} = {engine} must divide"
            f" the {sampling} GPU{'s' * (sampling > 1)} that generation has (cluster: {has})"
        )


def _replicas(recipe: Recipe, replicas: int) -> Iterator[str]:
    """What each data-parallel copy of the model gets of a batch."""
    policy = recipe.policy
    batch, micro = policy.train_global_batch_size, policy.train_micro_batch_size
    copies = f"the {replicas} data-parallel copies of the model"
    for key, size in (
        ("policy.train_global_batch_size", batch),
        (
            "grpo.num_prompts_per_step x grpo.num_generations_per_prompt",
            recipe.completions_per_step,
        ),
    ):
        if size % replicas:
            yield f"{key} = {size} cannot be shared evenly between {copies}"
            return
    packed = policy.dynamic_batching.enabled or policy.sequence_packing.enabled
    if not packed and batch % micro == 0 and batch // replicas % micro:
        yield (
            f"policy.train_micro_batch_size {micro} does not divide what each of {copies} gets of"
            f" policy.train_global_batch_size: {batch} / {replicas} = {batch // replicas}"
        )
    if policy.dtensor_cfg.enabled and replicas % policy.dtensor_cfg.dp_replicate_size:
        yield (
            f"policy.dtensor_cfg.dp_replicate_size {policy.dtensor_cfg.dp_replicate_size} does not"
            f" divide {copies}"
        )


def _generation(recipe: Recipe) -> Iterator[str]:
    vllm, loss = recipe.generation.vllm_cfg, recipe.loss_fn
    tp, ep, place = vllm.tensor_parallel_size, vllm.expert_parallel_size, "policy.generation"
    if vllm.pipeline_parallel_size > 1 and not vllm.async_engine:
        yield f"{place}.vllm_cfg.pipeline_parallel_size above 1 needs async_engine: true"
    if ep > 1 and ep % tp:
        yield f"{place}.vllm_cfg.expert_parallel_size {ep} must be a multiple of its TP, {tp}"
    elif ep > 1 and ep != tp and vllm.async_engine:
        yield f"{place}.vllm_cfg.expert_parallel_size {ep} with TP {tp} needs async_engine: false"
    if vllm.precision == "fp8" and not loss.use_importance_sampling_correction:
        yield (
            f"{place}.vllm_cfg.precision fp8 needs loss_fn.use_importance_sampling_correction: true"
        )
    if vllm.kv_cache_dtype.startswith("fp8"):
        if vllm.precision != "fp8":
            yield f"{place}.vllm_cfg.kv_cache_dtype {vllm.kv_cache_dtype} needs precision: fp8"
        if recipe.policy.dtensor_cfg.enabled or vllm.async_engine:
            yield f"{place}.vllm_cfg.kv_cache_dtype fp8 needs Megatron, and async_engine: false"
    if not recipe.grpo.async_grpo.enabled:
        return
    needs = {
        "loss_fn.use_importance_sampling_correction: true": loss.use_importance_sampling_correction,
        f"{place}.colocated.enabled: false": not recipe.generation.colocated.enabled,
        f"{place}.vllm_cfg.async_engine: true": vllm.async_engine
        or recipe.generation.backend != "vllm",
    }
    for setting, holds in needs.items():
        if not holds:
            yield f"grpo.async_grpo.enabled needs {setting}"


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.policy.optimizer
    if optimizer is None or optimizer.name != "torch.optim.AdamW":
        return  # Megatron's, or another class: its arguments are its own
    place = "policy.optimizer.kwargs"
    for name in optimizer.kwargs:
        if name not in _ADAMW:
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
    known, version = nemo_rl()["datasets"], nemo_rl()["version"]
    for split in ("train", "validation"):
        for entry in recipe.datasets(split):
            name = entry.dataset_name
            if name is None:
                yield f"data.{split} names no dataset_name; for a file: ResponseDataset, data_path"
            elif name not in known and "." not in name:  # with a dot: a class of your own
                close = closest(name, known)
                meant = (
                    f"did you mean {close}?" if close else "use ResponseDataset with a data_path"
                )
                yield (
                    f"data.{split}.dataset_name {name} is no data set of NeMo RL {version}; {meant}"
                    " (a class of your own: its dotted path)"
                )
            elif name == "ResponseDataset" and not entry.data_path:
                yield f"data.{split}: a ResponseDataset needs a data_path"
            if entry.env_name is None:
                yield f"data.{split} names no env_name, so nothing scores the answers"
            elif entry.env_name not in recipe.env:
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
