"""The frame of a measurement: sides in turn, medians, a ratio, a bar, a table.

A comparison has two sides, measured in turn (A B A B …) in one run, so that whatever
else the machine does falls on both. What counts is the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from workshop_lib.errors import WorkshopError
from workshop_lib.progress import Progress

__all__ = [
    "Bar",
    "Comparison",
    "Entry",
    "Quantity",
    "Report",
    "Row",
    "Sample",
    "Side",
    "compare",
    "interleave",
    "measure",
    "table",
    "timed_ms",
]

Sample = Mapping[str, float]
Side = Callable[[], Sample]
"""Measures once: the name of a quantity to its value."""

Samples = dict[str, list[float]]
"""A quantity's name to its value in each round."""


@dataclass(frozen=True)
class Bar:
    """What a quantity must reach.

    Attributes:
        of: The ratio of the medians, the first side's median, or each side's.
        direction: Which way is good; `1 ±`: a ratio that is no further from 1.
        limit: In the quantity's unit, or a plain ratio.
        proves: Without it the measurement itself means nothing, whatever it says.
    """

    of: Literal["ratio", "median", "each median"]
    direction: Literal["at most", "at least", "1 ±"]
    limit: float
    proves: bool = False

    def met(self, row: Row) -> bool:
        """Whether a row reaches it; what is not known does not."""
        values = {
            "ratio": [row.ratio],
            "median": [row.first],
            "each median": [row.first, row.second],
        }
        return all(value is not None and self._good(value) for value in values[self.of])

    def _good(self, value: float) -> bool:
        if self.direction == "1 ±":
            return abs(value - 1) <= self.limit
        return value <= self.limit if self.direction == "at most" else value >= self.limit

    def text(self, unit: str) -> str:
        """The bar for people.

        Example:
            >>> Bar("ratio", "at most", 0.5).text("µs")
            'ratio at most 0.5'
        """
        return f"{self.of} {self.direction} {self.limit:g}" + (
            "" if self.of == "ratio" else f" {unit}"
        )


@dataclass(frozen=True)
class Quantity:
    """One line of a table.

    Attributes:
        key: Its name in the samples.
        label: Its name for people.
        unit: Its unit.
        bar: What it must reach, if anything.
    """

    key: str
    label: str
    unit: str
    bar: Bar | None = None


@dataclass(frozen=True)
class Comparison:
    """Two sides and what is compared.

    Attributes:
        title: One line above the table.
        sides: Two, by their names; the first is ours.
        quantities: The table's lines.
    """

    title: str
    sides: Mapping[str, Side]
    quantities: Sequence[Quantity]


class Entry(Protocol):
    """Something that `make bench` measures."""

    @property
    def name(self) -> str:
        """What `--only` takes."""

    @property
    def rounds(self) -> int:
        """How often each side is measured, unless it is said otherwise."""

    def prepare(self, say: Callable[[str], None]) -> AbstractContextManager[Sequence[Comparison]]:
        """Start what is needed, give the comparisons, and stop it.

        Args:
            say: Shows what is going on.
        """


@dataclass(frozen=True)
class Row:
    """One line of a table, measured.

    Attributes:
        label, unit: As of the `Quantity`.
        first, second: The sides' medians; None where a side has no such quantity.
        ranges: The sides' least and greatest values.
        ratio: First by second.
        bar: The bar in words.
        met: Whether it is reached; None without one.
        proves: See `Bar`.
    """

    label: str
    unit: str
    first: float | None
    second: float | None
    ranges: tuple[tuple[float, float] | None, tuple[float, float] | None]
    ratio: float | None
    bar: str = ""
    met: bool | None = None
    proves: bool = False


@dataclass
class Report:
    """One comparison, measured: its title, the sides' names, the lines and all samples."""

    title: str
    sides: tuple[str, str]
    rows: list[Row]
    samples: dict[str, Samples]

    @property
    def missed(self) -> list[Row]:
        """Lines whose bar is missed."""
        return [row for row in self.rows if row.met is False and not row.proves]

    @property
    def unproven(self) -> list[Row]:
        """Lines that show that the measurement means nothing."""
        return [row for row in self.rows if row.met is False and row.proves]

    def data(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def interleave(
    sides: Mapping[str, Side], rounds: int, on_step: Callable[[str], None] = lambda text: None
) -> dict[str, Samples]:
    """Measure each side once a round, in turn.

    Args:
        sides: What to measure.
        rounds: How often.
        on_step: Called before each measurement with what comes.

    Returns:
        For each side its samples.

    Raises:
        WorkshopError: A measurement failed; it names the side and the round.

    Example:
        >>> interleave({"a": lambda: {"x": 1.0}, "b": lambda: {"x": 2.0}}, rounds=2)
        {'a': {'x': [1.0, 1.0]}, 'b': {'x': [2.0, 2.0]}}
    """
    samples: dict[str, Samples] = {name: {} for name in sides}
    for number in range(1, rounds + 1):
        for name, side in sides.items():
            on_step(f"round {number} of {rounds}: {name}")
            try:
                sample = side()
            except WorkshopError as error:
                raise WorkshopError(f"{name}, round {number} of {rounds}: {error}") from error
            for key, value in sample.items():
                samples[name].setdefault(key, []).append(value)
    return samples


def compare(quantity: Quantity, first: Sequence[float], second: Sequence[float]) -> Row:
    """Make a line of a table from both sides' samples.

    Args:
        quantity: What they measured.
        first: Of our side, in the quantity's unit; empty where a side does not have it.
        second: Of the other side.

    Example:
        >>> compare(Quantity("x", "time", "s"), [1, 2, 9], [4, 4]).ratio
        0.5
    """
    medians = [statistics.median(values) if values else None for values in (first, second)]
    ratio = medians[0] / medians[1] if medians[0] is not None and medians[1] else None
    row = Row(
        label=quantity.label,
        unit=quantity.unit,
        first=medians[0],
        second=medians[1],
        ranges=(
            (min(first), max(first)) if first else None,
            (min(second), max(second)) if second else None,
        ),
        ratio=ratio,
    )
    bar = quantity.bar
    if bar is None:
        return row
    about_bar = {"bar": bar.text(quantity.unit), "met": bar.met(row), "proves": bar.proves}
    return Row(**{**vars(row), **about_bar})


def measure(
    entry: Entry, rounds: int | None = None, on_report: Callable[[Report], None] = lambda _: None
) -> list[Report]:
    """Measure an entry, showing progress.

    Args:
        entry: What to measure.
        rounds: How often; None: as the entry says.
        on_report: Given each report as it is done: a later comparison may fail.

    Returns:
        The comparisons' reports.

    Raises:
        WorkshopError: Something that is measured failed.
    """
    rounds = rounds or entry.rounds
    reports = []
    with (
        Progress(label=entry.name, tick_s=1.0) as progress,
        entry.prepare(progress.say) as comparisons,
    ):
        steps = rounds * sum(len(comparison.sides) for comparison in comparisons)
        coming = iter(range(steps))
        for comparison in comparisons:
            samples = interleave(
                comparison.sides,
                rounds,
                lambda text: progress.update(done=next(coming), total=steps, text=text),
            )
            reports.append(_report(comparison, samples))
            on_report(reports[-1])
        progress.update(done=steps, text="")
    return reports


def _report(comparison: Comparison, samples: dict[str, Samples]) -> Report:
    first, second = comparison.sides
    rows = [
        compare(each, samples[first].get(each.key, []), samples[second].get(each.key, []))
        for each in comparison.quantities
    ]
    return Report(comparison.title, (first, second), rows, samples)


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(median: float | None, spread: tuple[float, float] | None) -> str:
    if median is None or spread is None:
        return "-"
    return f"{_number(median)} ({_number(spread[0])} to {_number(spread[1])})"


def table(report: Report) -> str:
    """Write a report as a table: medians, least and greatest, ratio, bar.

    Args:
        report: The report.
    """
    lines = [["", "unit", *report.sides, "ratio", "bar", ""]]
    for row in report.rows:
        verdict = {None: "", True: "pass", False: "INVALID" if row.proves else "MISSED"}[row.met]
        lines.append(
            [
                row.label,
                row.unit,
                _cell(row.first, row.ranges[0]),
                _cell(row.second, row.ranges[1]),
                "-" if row.ratio is None else _number(row.ratio),
                row.bar,
                verdict,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([report.title, *(_padded(line, widths) for line in lines)])


def _padded(cells: Iterable[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return ("  " + "  ".join(padded)).rstrip()


def timed_ms(action: Callable[[], object]) -> float:
    """Wall time of an action in ms."""
    began = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - began)
