"""The production checklist, evaluated on a cluster or on manifests, with evidence.

Every item of the workshop's first checklist is here. Where it was wrong or out of date the item
says what holds instead, and why (`corrected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.production.checks import production_rules as rules
from workshop_lib.production.checks.evidence import Objects
from workshop_lib.production.checks.production_rules import Finding

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CHECKLIST", "Item", "check_production", "production_table"]

Json = Mapping[str, Any]


LABS = ("lab-server", "stale-address")
"""Components that are broken on purpose: of a profile's manifests they are left out."""


class HasSnapshot(Protocol):
    """A cluster that gives its objects as one mapping of lists."""

    def snapshot(self, component: str | None = None) -> dict[str, Any]:
        """Everything that is looked at."""


@dataclass(frozen=True)
class Item:
    """One line of the checklist.

    Attributes:
        section: `infrastructure`, `serving`, `training` or `monitoring`.
        name: What should hold.
        rule: How it is told.
        fix: What to do when it does not hold, or cannot be told.
        corrected: What the first checklist had instead and why that is not asked; else empty.
    """

    section: str
    name: str
    rule: Callable[[Objects], Finding]
    fix: str
    corrected: str = ""


CHECKLIST = (
    Item("infrastructure", "GPU nodes offer their EFA devices", rules.efa_plugin,
         "install the EFA device plugin (from EKS 1.34 with managed nodes: the DRA driver)"),
    Item("infrastructure", "the security group has rules for itself, in and out",
         rules.security_group, "efa_network.fix_security_group(ec2, group_id) shows the commands",
         "egress alone is not enough: EFA needs ingress from the group itself too"),
    Item("infrastructure", "nodes are in the VPC's primary CIDR", rules.primary_cidr,
         "efa_network.check_subnets(ec2, subnet_ids), and the counters under load",
         "that EFA drops packets in a secondary CIDR is reported without a public source"),
    Item("infrastructure", "the shared volume is bound, and for many nodes", rules.shared_volume,
         "kubectl describe pvc; cluster.apply('storage', ...) as an administrator"),
    Item("infrastructure", "hostNetwork only where EFA is asked for", rules.host_network,
         "use the components with EFA on EFA nodes, the plain ones elsewhere",
         "it is not required for several nodes: NetworkPolicy does not bind it and ports clash"),
    Item("infrastructure", "/dev/shm is in memory, and large enough", rules.shared_memory,
         "an emptyDir with medium: Memory; 128Gi for a pod with eight GPUs",
         "128Gi is for a whole node's GPUs; a pod with one GPU needs far less"),
    Item("serving", "gpu_memory_utilization is set for inference", rules.memory_share,
         "0.85 to 0.95; python -m workshop_lib.serving.memory shows what it leaves for KV",
         "it bounds the whole instance, weights included, not the KV cache alone"),
    Item("serving", "startup, readiness and liveness probes, sized for loading", rules.probes,
         "startupProbe: failureThreshold x periodSeconds longer than the slowest load"),
    Item("serving", "weights come from a volume, not from a download", rules.cached_weights,
         "cluster.apply('model') first; HF_HUB_OFFLINE=1"),
    Item("serving", "autoscaling has both bounds, and GPUs for the upper", rules.replicas,
         "max_replicas x tensor_parallel_size within the worker group's maxReplicas"),
    Item("serving", "the executor is left to ray.serve.llm", rules.executor,
         "remove distributed_executor_backend from engine_kwargs",
         "\"mp\" was needed in hand-written deployments; ray.serve.llm refuses it on GPUs"),
    Item("training", "NCCL's timeout does not hide a hang", rules.timeouts,
         "600 s finds a dead rank in ten minutes; raise it only for a measured slow start",
         "7200 s lets a hung job hold its GPUs for two hours before anyone is told"),
    Item("training", "workers find the head by a name of this Job", rules.head_address,
         "a headless Service with publishNotReadyAddresses; a file only with the Job's UID",
         "a file with the head's address can be the previous run's; DNS has no such file"),
    Item("training", "checkpoints go to the shared volume", rules.checkpoints,
         "OUTPUT_DIR below the mount of a claim"),
    Item("training", "vLLM leaves room for the trainer", rules.colocated_share,
         "policy.generation.vllm_cfg.gpu_memory_utilization between 0.5 and 0.7 (0.4 on 24 GB)"),
    Item("training", "LoRA where the full state does not fit", rules.lora,
         "policy.dtensor_cfg.lora_cfg.enabled: true",
         "not always: with memory enough all parameters are trained"),
    Item("monitoring", "the Ray dashboard can be reached, with a token", rules.dashboard,
         "RAY_AUTH_MODE=token, or authOptions.mode: token; then cluster.forward(..., 8265)",
         "reachable without a token is an open shell: Ray runs what is sent to it"),
    Item("monitoring", "GPU metrics are exported", rules.gpu_metrics,
         "install dcgm-exporter, or read nvidia-smi: workshop_lib.production.checks.gpu"),
    Item("monitoring", "training metrics are logged", rules.training_metrics,
         "logger.tensorboard_enabled: true (or wandb, mlflow)"),
    Item("monitoring", "alerts on restarts, memory kills and GPU errors", rules.alerts,
         "apply the monitoring component's PrometheusRule"),
)  # fmt: skip
"""The items, in the order of their sections."""


def check_production(target: HasSnapshot | Mapping[str, Any] | str | Iterable[Json]) -> CheckList:
    """The checklist's verdicts.

    Args:
        target: A cluster (its `snapshot()` is taken), a snapshot, a profile's name (all of its
            manifests but the labs are rendered), or objects.

    Returns:
        One check an item, named `section: item`.

    Raises:
        ManifestError: There is no such profile.

    Example:
        >>> [check.outcome for check in check_production([])][:1]
        ['not applicable']
    """
    objects = _objects(target)
    return CheckList(_checked(item, objects) for item in CHECKLIST)


def _checked(item: Item, objects: Objects) -> Check:
    passed, evidence = item.rule(objects)
    name = f"{item.section}: {item.name}"
    if passed == "not applicable":
        return Check(name, None, evidence, applies=False)
    return Check(name, passed, evidence, "" if passed else item.fix)


def _objects(target: HasSnapshot | Mapping[str, Any] | str | Iterable[Json]) -> Objects:
    if isinstance(target, str):
        names = [name for name in manifests.components(target) if name not in LABS]
        return Objects(each.body for name in names for each in manifests.render(target, name))
    if isinstance(target, Mapping):
        return Objects.of_snapshot(target)
    if isinstance(target, Iterable):
        return Objects(target)
    return Objects.of_snapshot(target.snapshot())


def production_table(
    target: HasSnapshot | Mapping[str, Any] | str | Iterable[Json],
) -> pd.DataFrame:
    """The checklist as a table, with what was corrected.

    Args:
        target: As for `check_production`.

    Returns:
        Columns `section`, `item`, `outcome`, `evidence`, `corrected`.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {"section": item.section, "item": item.name, "outcome": check.outcome,
             "evidence": check.evidence, "corrected": item.corrected}
            for item, check in zip(CHECKLIST, check_production(target), strict=True)
        ]
    )  # fmt: skip
