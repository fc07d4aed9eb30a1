"""The HTML report of a run: one file that needs no network, to look at together.

It is made from `build/results.json` and the executed notebooks that it names. A notebook's key
figure is that of the cell tagged `key-figure`, else the last; `results.yaml` has the bars.
"""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.errors import WorkshopError
from workshop_lib.progress import format_duration
from workshop_lib.results import RECORD_MIME
from workshop_lib.tools.execute import CHECKOUT, MARKER_TAG, read_notebook

TEMPLATES = Path(__file__).with_name("templates")
SIGNS = {"==": operator.eq, ">=": operator.ge, "<=": operator.le}
KEYS_SHOWN = 5
"""Results in a card: what a room can read at once."""

IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
INTERACTIVE = ("application/vnd.jupyter.widget-view+json", "application/javascript")
"""What shows nothing without a kernel or scripts."""

COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442")


def readable(value: Any) -> str:
    """A recorded value for people: a few digits, one line.

    Example:
        >>> readable(True), readable(23168), readable(0.123456), readable([1, 2])
        ('yes', '23,168', '0.1235', '1, 2')
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, int | float):
        return format(value, ",.4g" if isinstance(value, float) and abs(value) < 1000 else ",.0f")
    if isinstance(value, dict) and value and all(isinstance(v, bool) for v in value.values()):
        return f"{sum(value.values())} of {len(value)}"
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        value = ", ".join(map(readable, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def key_results(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a notebook's card shows: label, value, bar, and whether it is met (None: no bar).

    At most `KEYS_SHOWN`; those that miss their bar are always among them.
    """
    table = yaml.safe_load((TEMPLATES / "results.yaml").read_text(encoding="utf-8"))
    known = {name: entry for name, entry in table.items() if name in records}
    plain = {k: {"label": k} for k, v in records.items() if not isinstance(v, list | dict)}
    shown = [_shown(records[name], entry, records) for name, entry in (known or plain).items()]
    kept = sorted(shown, key=lambda each: each["met"] is not False)[:KEYS_SHOWN]
    return [each for each in shown if each in kept]


def _shown(value: Any, entry: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    def text(value: Any) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        plain = format(value, entry["format"]) if number and "format" in entry else readable(value)
        return f"{plain} {entry.get('unit', '')}".rstrip()

    met, bar, said = None, "", text(value)
    if "bar" in entry:
        sign, _, wanted = entry["bar"].partition(" ")
        asked = records.get(wanted, yaml.safe_load(wanted))
        found = all(value.values()) if isinstance(value, dict) else value
        met = type(found) in (type(asked), int, float) and SIGNS[sign](found, asked)
        bar = "" if met and found == asked else f"{sign} {text(asked)}"
    if entry.get("before") in records:
        said = f"{text(records[entry['before']])} → {said}"
    return {"label": entry["label"], "value": said, "bar": bar, "met": met}


def without_interactive(outputs: Sequence[Any]) -> list[Any]:
    """Leave out what shows nothing without a kernel; a widget's own static picture stays.

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


def formula(tex: str) -> str:
    """Draw a formula as an embedded SVG, since the usual ways fetch a script from the network."""
    from matplotlib.mathtext import math_to_image

    picture, tex = io.BytesIO(), " ".join(tex.split())
    try:
        depth = math_to_image(f"${tex}$", picture, dpi=72, format="svg")
    except ValueError:  # a command that mathtext does not have
        return f"<code>{html.escape(tex)}</code>"
    data = base64.b64encode(picture.getvalue()).decode()
    image = f'alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{data}"'
    return f'<img {image} style="vertical-align:-{float(depth):.1f}pt">'


def _body(name: str, notebook: Any, folder: Path) -> str:
    """A notebook as HTML, its anchors and links made for a page that holds several."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):  # type: ignore[misc]
        def inline_math(self, body: str) -> str:
            return formula(body)

        def block_math(self, body: str) -> str:
            return f"<p>{formula(body)}</p>"

    def markdown(source: str) -> str:
        renderer = Renderer(
            escape=False, embed_images=True, exclude_anchor_links=True, path=str(folder)
        )
        return str(MarkdownWithMath(renderer=renderer).render(source))

    template = (TEMPLATES / "notebook.html.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(template_name="basic", raw_template=template)
    exporter.register_filter("markdown", markdown)
    body = re.sub(
        r'(<h\d id="|href="#)', rf"\g<1>{name}-", exporter.from_notebook_node(notebook)[0]
    )
    return re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb(?:#[^"]*)?"', r'href="#\1"', body)


def _chapter(root: Path, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A notebook's part of the report; only its card if it was not run."""
    source, executed = root / "notebooks" / f"{name}.ipynb", Path(result["executed"])
    ran = executed.exists() and result["status"] != "not run"
    notebook = read_notebook(executed if ran else source)
    notebook.cells = [c for c in notebook.cells if MARKER_TAG not in c.metadata.get("tags", [])]
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    title = re.search(r"^# (?:\d\d)?[\s·:.-]*(.*)$", text, re.MULTILINE)
    count, key = 0, 0
    for cell in (each for each in notebook.cells if each.cell_type == "code"):
        cell.outputs = without_interactive(cell.outputs)
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "execute_result":
                output.output_type = "display_data"  # shown alike; the template has one case
            if output.output_type == "error" and result["failure"]:
                cell.metadata.failed = f"{name}-failed"
            if RECORD_MIME in data:
                kept = data[RECORD_MIME]
                output.data = {"text/plain": f"recorded {kept['name']} = {readable(kept['value'])}"}
            elif any(mime in data for mime in IMAGES):
                count += 1
                output.metadata.figure = f"{name}-figure-{count}"
                key = count if "key-figure" in cell.metadata.get("tags", []) else key
    return {
        **result,
        "name": name,
        "number": name[:2],
        "title": re.sub(r"[*`]", "", title[1]) if title else name,
        "time": format_duration(result["seconds"]) if result["seconds"] else "",
        "key_results": key_results(result["records"]),
        "records": {key: readable(value) for key, value in result["records"].items()},
        "key_figure": f"{name}-figure-{key or count}" if count else "",
        "body": _body(name, notebook, source.parent) if ran else "",
    }


def write_report(root: Path = CHECKOUT) -> Path:
    """Write `build/report.html` from `build/results.json` and the executed notebooks."""
    from jinja2 import Environment, FileSystemLoader
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    source = root / "build" / "results.json"
    try:
        results = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkshopError(f"{source} holds no results ({error}); run `make run` first") from error
    chapters = [_chapter(root, name, result) for name, result in results["notebooks"].items()]
    whole = max(results["seconds"], results["bar_s"] or 0, 0.1)
    page = (
        Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
        .get_template("report.html.j2")
        .render(
            results,
            chapters=chapters,
            colours=COLOURS,
            whole=whole,
            rest=results["seconds"] - sum(each["seconds"] for each in chapters),
            done=sum(each["status"] == "done" for each in chapters),
            day=datetime.datetime.fromisoformat(results["date"]).strftime("%d %B %Y, %H:%M UTC"),
            took=format_duration(results["seconds"]),
            code_css=HtmlFormatter(style="friendly", nobackground=True).get_style_defs("pre"),
        )
    )
    path = root / "build" / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
