"""What a rule hands to the ranking: a cause, how deep it lies, and what would explain it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["Cause", "Depth", "Lesson"]


class Depth(IntEnum):
    """How near to the root a kind of cause lies: what comes first explains what comes later."""

    NODE = 0
    STORAGE = 1
    ADMISSION = 2
    SCHEDULING = 3
    IMAGE = 4
    SETUP = 5
    CRASH = 6
    PROBE = 7
    STALL = 8
    CONTROLLER = 9
    SERVICE = 10
    APPLICATION = 11
    UNKNOWN = 12


class Lesson:
    """Where the workshop explains what."""

    RAY_JOB = "01 Ray cluster, 'Method 1: an Indexed Job'"
    RAY_ENDS = "01 Ray cluster, 'When does a Job end?'"
    RAY_GPUS = "01 Ray cluster, 'What if there are not enough GPUs?'"
    RAY_STALE = "01 Ray cluster, 'Break and fix: the stale address'"
    RAY_WHEN = "01 Ray cluster, 'When it does not work'"
    KUBERAY = "01 Ray cluster, 'Method 2: KubeRay'"
    VLLM_MEMORY = "02 vLLM serving, 'How much fits? A prediction'"
    VLLM_DEPLOY = "02 vLLM serving, 'Option 1: vLLM behind a Service'"
    VLLM_SERVE = "02 vLLM serving, 'Option 2: Ray Serve'"
    VLLM_WHEN = "02 vLLM serving, 'When it does not work'"
    GRPO_WHEN = "03 GRPO training, 'When it does not work'"
    SCALING = "04 Production, 'How many replicas?'"
    BELOW_SERVE = "04 Production, 'What scales below Serve'"
    HEALTH = "04 Production, 'Health: what watches what'"
    WHEN = "04 Production, 'When it does not work'"


@dataclass
class Cause:
    """What one rule found out about one object.

    Attributes:
        rule: The rule's name.
        key: Two causes of one rule and key are the same broken thing.
        cause: What is wrong, in plain words.
        evidence: Quotes from the snapshot.
        fix: What mends it.
        taught_in: Where it is explained.
        objects: What it concerns, the broken one first.
        depth: How near to the root it lies.
        waits_for: Objects whose own trouble would explain this one.
        vague: It only says how something ended; a cause that says why takes its place.
        background: It comes last, unless something waits for it: a node that nobody here uses.
    """

    rule: str
    key: str
    cause: str
    evidence: list[str]
    fix: str
    taught_in: str
    objects: list[str]
    depth: Depth
    waits_for: set[str] = field(default_factory=set)
    vague: bool = False
    background: bool = False
