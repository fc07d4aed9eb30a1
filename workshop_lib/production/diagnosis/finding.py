"""What a diagnosis says: findings, each with its cause, evidence and fix, root cause first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

__all__ = ["UNKNOWN", "Diagnosis", "Finding", "Verdict"]

Verdict: TypeAlias = Literal["healthy", "starting", "problems", "not known yet"]

UNKNOWN = "unknown"
"""The rule of a finding that only says where to look: something is wrong, and nothing says why."""

_SHOWN_OBJECTS = 6


@dataclass(frozen=True)
class Finding:
    """One broken thing.

    Attributes:
        rule: Name of the rule that found it, such as `gpu-not-offered`.
        cause: What is wrong.
        objects: The objects it concerns as `Kind/name`: the broken one first.
        evidence: What the cluster said, word for word.
        fix: A command or a change that mends it.
        taught_in: The lesson that explains it.
        explains: Objects that only wait for this one.

    Example:
        >>> found = Finding("oom-killed", "too little memory", ("Pod/a",), ("OOMKilled",), "more",
        ...                 "04 Production")
        >>> found.to_dict()["objects"]
        ['Pod/a']
    """

    rule: str
    cause: str
    objects: tuple[str, ...]
    evidence: tuple[str, ...]
    fix: str
    taught_in: str
    explains: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v}

    def __str__(self) -> str:
        quotes = [f"  evidence  {text}" for text in self.evidence]
        lines = [f"{self.rule}: {self.cause}", f"  objects   {_some(self.objects)}", *quotes]
        lines += [f"  fix       {self.fix}", f"  taught in {self.taught_in}"]
        return "\n".join(lines + [f"  explains  {_some(self.explains)}"] * bool(self.explains))


class Diagnosis(Sequence[Finding]):
    """The findings of one look at a cluster, the root cause first; shows itself as a table.

    Args:
        findings: What is wrong.
        notes: What is no fault, but worth knowing: what still starts, what could not be read.
        starting: Something is not ready yet, and still has time.

    Example:
        >>> Diagnosis([]).verdict
        'healthy'
    """

    def __init__(
        self, findings: Sequence[Finding], notes: Sequence[str] = (), *, starting: bool = False
    ) -> None:
        self.findings = tuple(findings)
        self.notes = tuple(notes)
        self.starting = starting

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        """A finding, or several."""
        return self.findings[index]

    def __len__(self) -> int:
        """How many findings there are."""
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        """The findings, the root cause first."""
        return iter(self.findings)

    @property
    def verdict(self) -> Verdict:
        """In two words.

        `healthy`: all is ready. `starting`: not yet, and it has time. `problems`: the findings say
        why. `not known yet`: something is not ready, and the snapshot does not say why.
        """
        if not self.findings:
            return "starting" if self.starting else "healthy"
        return "not known yet" if all(f.rule == UNKNOWN for f in self.findings) else "problems"

    @property
    def rules(self) -> list[str]:
        """The findings' rules, in order."""
        return [finding.rule for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON data."""
        found = [finding.to_dict() for finding in self.findings]
        return {"verdict": self.verdict, "findings": found, "notes": list(self.notes)}

    def __str__(self) -> str:
        parts = [f"verdict: {self.verdict}"]
        parts += [f"{number}. {found}" for number, found in enumerate(self.findings, 1)]
        return "\n".join(parts + [f"note: {note}" for note in self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import pandas as pd

        from workshop_lib.tables import text_table

        notes = "".join(f"<div>note: {note}</div>" for note in self.notes)
        rows = [
            {"cause": f.cause, "evidence": "\n".join(f.evidence), "fix": f.fix, "in": f.taught_in}
            for f in self.findings
        ]
        table = text_table(pd.DataFrame(rows)).to_html() if rows else ""
        return f"<div>verdict: <b>{self.verdict}</b></div>{table}{notes}"


def _some(objects: Sequence[str]) -> str:
    """The objects in a line; of many, the first ones and how many more."""
    shown = ", ".join(objects[:_SHOWN_OBJECTS])
    more = len(objects) - _SHOWN_OBJECTS
    return f"{shown} and {more} more" if more > 0 else shown
