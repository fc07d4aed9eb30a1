"""A check and a list of them: what was looked at, what was seen, what to do if it fails."""

from __future__ import annotations

import html
from dataclasses import dataclass

__all__ = ["Check", "CheckList"]

# A mark and a word: a table is read by people who do not see colours, too.
_MARKS = {"pass": "✓", "fail": "✗", "not applicable": "-", "cannot tell": "?"}


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What should hold.
        passed: Whether it does; None when that cannot be told.
        evidence: What was seen, or why it cannot be told.
        fix: What to do when it does not hold or cannot be told.
        applies: Whether it is asked of this cluster at all; `evidence` says why not.

    Example:
        >>> Check("the nodes have EFA", None, "no node can be listed").outcome
        'cannot tell'
    """

    name: str
    passed: bool | None
    evidence: str
    fix: str = ""
    applies: bool = True

    @property
    def outcome(self) -> str:
        """What came of it: pass, fail, not applicable or cannot tell."""
        if not self.applies:
            return "not applicable"
        return {True: "pass", False: "fail", None: "cannot tell"}[self.passed]


class CheckList(list[Check]):
    """Several checks, shown as a table.

    Example:
        >>> CheckList([Check("two nodes", True, "2 alive")]).passed
        True
    """

    @property
    def passed(self) -> bool:
        """Whether every check that applies passed."""
        return not self.open

    @property
    def open(self) -> list[Check]:
        """The checks that failed or could not be told."""
        return [check for check in self if check.outcome in ("fail", "cannot tell")]

    def __str__(self) -> str:
        return "\n".join(
            f"{_MARKS[check.outcome]} {check.name}: {check.evidence}"
            + (f"; {check.fix}" if check in self.open else "")
            for check in self
        )

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>"
        rows = "".join(
            f"<tr><td title='{check.outcome}'>{_MARKS[check.outcome]}</td>"
            f"{cell}{html.escape(check.name)}</td>{cell}{html.escape(check.evidence)}"
            f"{'<br><b>' + html.escape(check.fix) + '</b>' if check in self.open else ''}</td></tr>"
            for check in self
        )
        return f"<table>{rows}</table>"
