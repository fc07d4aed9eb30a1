"""What a diagnosis says: findings, each with its cause, evidence and fix, root cause first."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

__all__ = ["Diagnosis", "Finding", "Verdict"]

Verdict: TypeAlias = Literal["healthy", "problems", "unknown"]

UNKNOWN = "unknown"
"""The rule of a finding that only says where to look: something is wrong, and no rule knows it."""

_SHOWN_OBJECTS = 6


@dataclass(frozen=True)
class Finding:
    """One broken thing.

    Attributes:
        rule: Name of the rule that found it, such as `gpu-not-offered`.
        cause: What is wrong, in plain words.
        objects: The objects it concerns as `Kind/name`: the broken one first.
        evidence: What the cluster itself said, word for word.
        fix: A command or a change that mends it.
        taught_in: Where the workshop explains it.
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
        body: dict[str, Any] = {
            "rule": self.rule,
            "cause": self.cause,
            "objects": list(self.objects),
            "evidence": list(self.evidence),
            "fix": self.fix,
            "taught_in": self.taught_in,
        }
        if self.explains:
            body["explains"] = list(self.explains)
        return body

    def __str__(self) -> str:
        lines = [
            f"{self.rule}: {self.cause}",
            f"  objects   {_some(self.objects)}",
            *(f"  evidence  {text}" for text in self.evidence),
            f"  fix       {self.fix}",
            f"  taught in {self.taught_in}",
        ]
        if self.explains:
            lines.append(f"  explains  {_some(self.explains)}")
        return "\n".join(lines)


class Diagnosis(Sequence[Finding]):
    """The findings of one look at a cluster, the root cause first; shows itself as a table.

    Args:
        findings: What is wrong.
        notes: What is no fault, but worth knowing: what still starts, what could not be read.

    Example:
        >>> Diagnosis([]).verdict
        'healthy'
    """

    def __init__(self, findings: Sequence[Finding], notes: Sequence[str] = ()) -> None:
        self.findings = tuple(findings)
        self.notes = tuple(notes)

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
        """`healthy`, `problems`, or `unknown` when no rule knows what is wrong."""
        if not self.findings:
            return "healthy"
        return "unknown" if all(f.rule == UNKNOWN for f in self.findings) else "problems"

    @property
    def rules(self) -> list[str]:
        """The findings' rules, in order."""
        return [finding.rule for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON data."""
        return {
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        parts = [f"verdict: {self.verdict}"]
        parts += [f"{number}. {found}" for number, found in enumerate(self.findings, 1)]
        parts += [f"note: {note}" for note in self.notes]
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left;vertical-align:top'>"
        rows = "".join(
            f"<tr>{cell}<b>{html.escape(found.cause)}</b><br>{html.escape(_some(found.objects))}"
            f"</td>{cell}{'<br>'.join(f'<code>{html.escape(t)}</code>' for t in found.evidence)}"
            f"</td>{cell}{html.escape(found.fix)}</td>{cell}{html.escape(found.taught_in)}</td></tr>"
            for found in self.findings
        )
        head = "".join(f"<th style='text-align:left'>{word}</th>"
                       for word in ("cause", "evidence", "fix", "taught in"))  # fmt: skip
        table = f"<table><tr>{head}</tr>{rows}</table>" if rows else ""
        notes = "".join(f"<div>note: {html.escape(note)}</div>" for note in self.notes)
        return f"<div>verdict: <b>{self.verdict}</b></div>{table}{notes}"


def _some(objects: Sequence[str]) -> str:
    """The objects in a line; of many, the first ones and how many more."""
    shown = ", ".join(objects[:_SHOWN_OBJECTS])
    more = len(objects) - _SHOWN_OBJECTS
    return f"{shown} and {more} more" if more > 0 else shown
