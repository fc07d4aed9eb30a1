"""A check and a list of them: what was looked at, what was seen, what to do if it fails."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Literal, TypeAlias

from workshop_lib.errors import WorkshopError

__all__ = ["Check", "CheckList", "Outcome"]

Outcome: TypeAlias = Literal["pass", "fail", "not applicable", "cannot tell"]

# A mark and a word: a table is read by people who do not see colours, too.
_MARKS: dict[Outcome, str] = {"pass": "✓", "fail": "✗", "not applicable": "-", "cannot tell": "?"}


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
    def outcome(self) -> Outcome:
        """What came of it, in a word or two."""
        if not self.applies:
            return "not applicable"
        if self.passed is None:
            return "cannot tell"
        return "pass" if self.passed else "fail"


class CheckList(list[Check]):
    """Several checks, shown as a table.

    Example:
        >>> checks = CheckList([Check("two nodes", True, "2 alive")])
        >>> checks.passed
        True
        >>> checks.require()
    """

    @property
    def passed(self) -> bool:
        """Whether every check that applies passed."""
        return not self.open

    @property
    def open(self) -> list[Check]:
        """The checks that failed or could not be told."""
        return [check for check in self if check.outcome in ("fail", "cannot tell")]

    def require(self) -> None:
        """Raise when a check failed or could not be told.

        Raises:
            WorkshopError: The first such check, with its evidence and fix.
        """
        for check in self.open:
            answer = "no" if check.outcome == "fail" else "cannot tell"
            raise WorkshopError(f"{check.name}: {answer} ({check.evidence}); {check.fix}")

    def __str__(self) -> str:
        return "\n".join(
            f"{_MARKS[check.outcome]} {check.name}: {check.evidence}"
            + (f"; {check.fix}" if check in self.open else "")
            for check in self
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>"
            f"<td title='{check.outcome}'>{_MARKS[check.outcome]}</td>"
            f"<td style='text-align:left'>{html.escape(check.name)}</td>"
            f"<td style='text-align:left'>{html.escape(check.evidence)}"
            f"{'<br><b>' + html.escape(check.fix) + '</b>' if check in self.open else ''}</td></tr>"
            for check in self
        )
        return f"<table>{rows}</table>"
