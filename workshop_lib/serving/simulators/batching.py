"""Which request runs in which step: static batches, and batches made anew at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workshop_lib.errors import WorkshopError

__all__ = ["Job", "Schedule", "simulate_batching"]

Policy = Literal["static", "continuous"]


@dataclass(frozen=True, slots=True)
class Job:
    """A request: when it arrives and how many tokens it wants, one a step.

    Attributes:
        name: Shown in figures.
        arrival: Step at which it arrives, from 0.
        tokens: Steps that it runs; the first one also reads its prompt.
    """

    name: str
    arrival: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a job: it ran in `slot` from step `start` up to, not including, `end`."""

    job: Job
    slot: int
    start: int
    end: int

    @property
    def wait(self) -> int:
        """Steps from its arrival to its first."""
        return self.start - self.job.arrival


@dataclass(frozen=True, slots=True)
class Schedule:
    """All runs under one policy.

    Attributes:
        policy: `static` or `continuous`.
        slots: Requests that run at once, at most.
        runs: One for each job, in the order of the jobs.
    """

    policy: Policy
    slots: int
    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """Steps until the last job is done."""
        return max(run.end for run in self.runs)

    @property
    def mean_wait(self) -> float:
        """Mean steps between arrival and first step."""
        return sum(run.wait for run in self.runs) / len(self.runs)

    @property
    def utilization(self) -> float:
        """Share of slots, over all steps, that made a token."""
        return sum(run.job.tokens for run in self.runs) / (self.slots * self.steps)

    def rows(self) -> list[dict[str, Any]]:
        """One row a job, for a table: name, arrival, start, end, wait.

        Example:
            >>> simulate_batching([Job("a", 0, 3)], slots=1).rows()
            [{'request': 'a', 'arrival': 0, 'start': 0, 'end': 3, 'wait': 0}]
        """
        return [
            {
                "request": run.job.name,
                "arrival": run.job.arrival,
                "start": run.start,
                "end": run.end,
                "wait": run.wait,
            }
            for run in self.runs
        ]


def simulate_batching(
    jobs: Sequence[Job], *, slots: int, policy: Policy = "continuous"
) -> Schedule:
    """Run jobs on an engine with that many slots, first come, first served.

    Static: the engine takes what is waiting, at most `slots` jobs, and takes the next ones
    when all of them are done. Continuous: at every step a free slot takes the next job
    (iteration-level scheduling: Yu et al., "Orca", OSDI 2022).

    Args:
        jobs: The jobs.
        slots: Requests that run at once, at most (vLLM: `--max-num-seqs`).
        policy: `static` or `continuous`.

    Raises:
        WorkshopError: No jobs, a size out of range, or an unknown policy.

    Example:
        >>> jobs = [Job("long", 0, 8), Job("short", 0, 2), Job("late", 1, 2)]
        >>> [simulate_batching(jobs, slots=2, policy=p).runs[2].start
        ...  for p in ("static", "continuous")]
        [8, 2]
    """
    if policy not in ("static", "continuous"):
        raise WorkshopError(f"the policy {policy!r} is not known; use static or continuous")
    if slots < 1 or not jobs:
        raise WorkshopError(f"at least one slot and one job are needed, got {slots}, {len(jobs)}")
    for job in jobs:
        if job.tokens < 1 or job.arrival < 0:
            raise WorkshopError(
                f"{job.name}: tokens must be at least 1 and arrival at least 0, "
                f"got {job.tokens} and {job.arrival}"
            )
    waiting = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival)
    busy_until = [0] * slots
    runs: dict[int, Run] = {}
    step = 0
    while waiting:
        free = [slot for slot in range(slots) if busy_until[slot] <= step]
        if policy == "static" and len(free) < slots:
            free = []
        for slot in free:
            if waiting and jobs[waiting[0]].arrival <= step:
                index = waiting.pop(0)
                busy_until[slot] = step + jobs[index].tokens
                runs[index] = Run(jobs[index], slot, step, busy_until[slot])
        step += 1
    return Schedule(policy, slots, tuple(runs[index] for index in range(len(jobs))))
