"""The HTML report of a run: one file that needs no network, to look at together.

It is made from `build/results.json` and the executed notebooks that it names. On top is
what a room looks at together: where the time went, and a card for each notebook with its key
figure and results (`report_results` knows their words and bars). Then every figure, every
result, and each notebook with light code and folded logs.

A notebook's key figure is in the cell that it tags `key-figure`; without one, its last.

```
python -m workshop_lib.tools.report          writes build/report.html again
```
"""

from __future__ import annotations

import datetime
import html
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import OKABE_ITO, PALE
from workshop_lib.progress import format_duration
from workshop_lib.results import RECORD_MIME
from workshop_lib.tools.execute import INJECTED_TAG, MARKER_TAG, read_notebook
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.report_results import key_results, readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workshop_lib.tools.report_results import Shown
    from workshop_lib.tools.report_text import Heading

__all__ = ["write_report"]

TEMPLATES = Path(__file__).with_name("templates")
FOLD_LINES = {"output": 25, "messages": 4, "traceback": 0}
"""Text of more lines than these is folded."""

IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
INTERACTIVE = ("application/vnd.jupyter.widget-view+json", "application/javascript")
"""What shows nothing without a kernel or scripts."""

KEY_FIGURE_TAG = "key-figure"

PALETTE = ("sky", "orange", "green", "purple", "yellow")
"""Colours of the notebooks in the picture of the times; names of `OKABE_ITO`."""


@dataclass(frozen=True)
class Figure:
    """A picture in a notebook.

    Attributes:
        id: Its anchor in the report.
        caption: The heading that it stands under.
    """

    id: str
    caption: str


@dataclass
class Chapter:
    """One notebook in the report."""

    name: str
    title: str
    status: str
    seconds: float
    time: str
    keys: list[Shown]
    records: list[tuple[str, str]]
    failure: Mapping[str, Any] | None
    body: str = ""
    failed_id: str = ""
    key_figure: str = ""
    headings: list[Heading] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def number(self) -> str:
        """The digits that its name begins with."""
        return self.name[:2]


@dataclass(frozen=True)
class Times:
    """Where the time of a run went, as parts of a line.

    Attributes:
        parts: Of each part its label, its time, its share of the line in percent, its colour,
            and the anchor that it leads to.
        limit: Where the bar stands, percent; None when the run has none.
        limit_time: The bar in words.
        met: Whether the run took no longer than that.
    """

    parts: list[tuple[str, str, float, str, str]]
    limit: float | None = None
    limit_time: str = ""
    met: bool = True


def _times(chapters: Sequence[Chapter], seconds: float, bar_s: float | None) -> Times:
    """Draw the times of the notebooks, and of what lay between, on one line."""
    whole = max(seconds, bar_s or 0.0, 1e-9)
    ran = [chapter for chapter in chapters if chapter.seconds]
    parts = [
        (
            chapter.number,
            chapter.time,
            100 * chapter.seconds / whole,
            OKABE_ITO[PALETTE[index % len(PALETTE)]],
            chapter.name,
        )
        for index, chapter in enumerate(ran)
    ]
    rest = seconds - sum(chapter.seconds for chapter in ran)
    if rest > 0:
        parts.append(("rest", format_duration(rest), 100 * rest / whole, PALE, ""))
    if bar_s is None:
        return Times(parts)
    return Times(parts, 100 * bar_s / whole, f"{bar_s / 60:g} min", seconds <= bar_s)


def write_report(root: Path = CHECKOUT) -> Path:
    """Write `build/report.html` from `build/results.json` and the executed notebooks.

    Args:
        root: Where `build/` and `notebooks/` lie.

    Returns:
        The report's file.

    Raises:
        WorkshopError: There are no results.
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    source = root / "build" / "results.json"
    try:
        results = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkshopError(f"{source} holds no results ({error}); run `make run` first") from error
    chapters = [_chapter(root, name, result) for name, result in results["notebooks"].items()]
    for chapter in chapters:
        chapter.body = Markup(chapter.body)  # the template escapes everything else
    machine = results["machine"]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        css=Markup(_css()),
        notebooks=chapters,
        figures=[figure for chapter in chapters for figure in chapter.figures],
        times=_times(chapters, results["seconds"], results.get("bar_s")),
        done=sum(chapter.status == "done" for chapter in chapters),
        date=datetime.datetime.fromisoformat(results["date"]).strftime("%d %B %Y, %H:%M UTC"),
        took=format_duration(results["seconds"]),
        profile=results["profile"],
        machine=f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']:g} GiB",
        system=machine["system"],
        versions=results["versions"],
        commit=_short(results["commit"]),
    )
    path = root / "build" / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _short(commit: str | None) -> str:
    """A commit's first ten digits, and whether files had changed."""
    return f"{commit[:10]}{' with changes' if commit.endswith('+') else ''}" if commit else ""


def _css() -> str:
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    own = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    colours = HtmlFormatter(style="friendly", nobackground=True).get_style_defs(".highlight")
    return f"{own}\n{colours}\n"


def _chapter(root: Path, name: str, result: Mapping[str, Any]) -> Chapter:
    """A notebook's part of the report; only its line of the summary if it was not run."""
    chapter = Chapter(
        name=name,
        title=name[3:].replace("_", " "),
        status=result["status"],
        seconds=result["seconds"],
        time=format_duration(result["seconds"]) if result["seconds"] else "",
        keys=key_results(result["records"]),
        records=[(key, readable(value)) for key, value in result["records"].items()],
        failure=result["failure"],
    )
    executed = root / result["executed"]
    source = root / "notebooks" / f"{name}.ipynb"
    if executed.exists() and result["status"] != "not run":
        _fill(chapter, read_notebook(executed), source.parent)
    elif source.exists():
        chapter.title = _title(read_notebook(source)) or chapter.title
    chapter.title = re.sub(rf"^{chapter.number}\s*[·:.-]?\s*", "", chapter.title)
    return chapter


def _title(notebook: Mapping[str, Any]) -> str:
    """A notebook's first heading."""
    text = "\n".join(c["source"] for c in notebook["cells"] if c["cell_type"] == "markdown")
    found = re.search(r"^#\s+(.*?)\s*#*$", text, re.MULTILINE)
    return re.sub(r"[*`]", "", found[1]) if found else ""


def _fill(chapter: Chapter, notebook: Any, sources: Path) -> None:
    """Render a notebook's body with nbconvert."""
    from nbconvert import HTMLExporter
    from nbconvert.filters import ansi2html, strip_ansi

    from workshop_lib.tools.report_text import markdown_filter

    _prepare(chapter, notebook)
    headings: list[Heading] = []
    exporter = HTMLExporter(
        template_name="basic",
        raw_template=(TEMPLATES / "notebook.html.j2").read_text(encoding="utf-8"),
    )

    def folded(text: str, kind: str) -> str:
        return fold(text, kind, ansi2html)

    exporter.register_filter("markdown2html", markdown_filter(chapter.name, sources, headings))
    exporter.register_filter("folded", folded)
    exporter.register_filter("ansi_gone", strip_ansi)
    chapter.body, _ = exporter.from_notebook_node(notebook)
    chapter.headings = headings
    chapter.title = next((each.text for each in headings if each.level == 1), chapter.title)


def _prepare(chapter: Chapter, notebook: Any) -> None:
    """Ready a notebook's cells for the template: figures numbered, records as lines."""
    kept = []
    caption = chapter.title
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if MARKER_TAG in tags:  # papermill's own note of a failure; ours is in the summary
            continue
        kept.append(cell)
        if cell.cell_type == "markdown":
            found = re.findall(r"^#{1,4}\s+(.*?)\s*#*$", cell.source, re.MULTILINE)
            caption = re.sub(r"[*`]", "", found[-1]) if found else caption
        if cell.cell_type != "code":
            continue
        if INJECTED_TAG in tags:
            cell.source = cell.source.removeprefix("# Parameters\n")
        cell.outputs = without_interactive(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.output_type = "display_data"  # shown alike, and the template has one case
            data = output.get("data", {})
            if RECORD_MIME in data:
                output.data = {"text/html": _record_line(data[RECORD_MIME])}
            elif any(mime in data for mime in IMAGES):
                figure = Figure(f"{chapter.name}-figure-{len(chapter.figures) + 1}", caption)
                chapter.figures.append(figure)
                output.metadata.update(figure=figure.id, caption=figure.caption)
                if KEY_FIGURE_TAG in tags:
                    chapter.key_figure = figure.id
            if output.output_type == "error" and chapter.failure and not chapter.failed_id:
                chapter.failed_id = cell.metadata.failed = f"{chapter.name}-failed"
    notebook.cells = kept
    if not chapter.key_figure and chapter.figures:
        chapter.key_figure = chapter.figures[-1].id


def without_interactive(outputs: Sequence[Any]) -> list[Any]:
    """Leave out what shows nothing without a kernel; a widget's own static picture stays.

    Args:
        outputs: A cell's outputs, which are changed.

    Returns:
        Those that still show something.

    Example:
        >>> view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IntSlider()"}
        >>> without_interactive([{"data": view}, {"data": {**view, "image/png": "aQ=="}}])
        [{'data': {'text/plain': 'IntSlider()', 'image/png': 'aQ=='}}]
    """
    kept = []
    for output in outputs:
        data = output.get("data", {})
        found = [data.pop(mime) for mime in INTERACTIVE if mime in data]
        if not found or any(mime in data for mime in IMAGES):
            kept.append(output)
    return kept


def _record_line(kept: Mapping[str, Any]) -> str:
    value = html.escape(readable(kept["value"]))
    return f'<div class="record">recorded {html.escape(kept["name"])} = <b>{value}</b></div>'


def fold(text: str, kind: str, to_html: Any) -> str:
    """Write text output as HTML, folded when it is long.

    Args:
        text: What a cell printed.
        kind: `output`, `messages` (stderr) or `traceback`: they fold at different lengths.
        to_html: Turns text with terminal colours into HTML.

    Example:
        >>> fold("one line", "output", str)
        '<pre class="output">one line</pre>'
    """
    text = text.rstrip("\n")
    if not text.strip():
        return ""
    lines = text.splitlines()
    body = f'<pre class="{kind}">{to_html(text)}</pre>'
    if len(lines) <= FOLD_LINES[kind]:
        return body
    label = {"output": "of output", "messages": "of messages", "traceback": "of traceback"}[kind]
    last = "" if kind == "traceback" else _last(lines, to_html)
    return f"<details><summary>{len(lines)} lines {label}{last}</summary>{body}</details>"


def _last(lines: list[str], to_html: Any) -> str:
    line = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]).strip()
    return f', the last: <span class="last">{to_html(line[:100])}</span>' if line else ""


def main() -> int:
    """Write the report again; the exit status is 0 when that worked."""
    try:
        print(f"Report: {write_report()}")
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
