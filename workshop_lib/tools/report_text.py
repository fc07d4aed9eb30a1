"""Markdown of notebooks as HTML for the report: own anchors, embedded images, formulas drawn.

Formulas are drawn by matplotlib as SVG, because the usual ways of showing TeX on a page
fetch a script from the network.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Heading", "formula", "markdown_filter"]

POINTS_PER_EM = 10.5
"""How large the page's text is in points, so that a formula matches it."""


@dataclass(frozen=True)
class Heading:
    """A heading of a notebook.

    Attributes:
        id: Its anchor in the report.
        level: 1 for the title.
        text: Without markup.
    """

    id: str
    level: int
    text: str


@functools.lru_cache(maxsize=256)
def formula(tex: str, block: bool = False) -> str:
    """Draw a formula as an embedded SVG that stands on the text's base line.

    Args:
        tex: TeX without its dollar signs.
        block: On a line of its own.

    Returns:
        HTML; the TeX itself where matplotlib does not know a command in it.

    Example:
        >>> formula("2^{10}").startswith('<img alt="2^{10}"')
        True
    """
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    one_line = " ".join(tex.split())
    picture = io.BytesIO()
    try:
        with rc_context({"mathtext.fontset": "stix", "svg.fonttype": "path"}):
            font = FontProperties(size=14.0 if block else 12.0)
            depth = math_to_image(f"${one_line}$", picture, font, dpi=72, format="svg")
    except ValueError:  # a command that mathtext does not have
        return f'<code class="{"math-block" if block else "math"}">{html.escape(one_line)}</code>'
    drawing = picture.getvalue()
    size = re.search(rb'width="([0-9.]+)pt" height="([0-9.]+)pt"', drawing)
    assert size is not None  # matplotlib writes it on every SVG
    data = base64.b64encode(drawing).decode()
    image = (
        f'<img alt="{html.escape(one_line)}" src="data:image/svg+xml;base64,{data}" style="'
        f"height:{float(size[2]) / POINTS_PER_EM:.2f}em;"
        f'vertical-align:{-float(depth) / POINTS_PER_EM:.2f}em">'
    )
    return f'<span class="math-block">{image}</span>' if block else image


def markdown_filter(name: str, folder: Path, headings: list[Heading]) -> Callable[..., str]:
    """Make the filter that renders a notebook's Markdown.

    Args:
        name: The notebook's name, which its anchors begin with: several share a page.
        folder: Where images that its text names lie.
        headings: Gets the headings, in their order.

    Returns:
        A Jinja filter from Markdown to HTML.
    """
    from jinja2 import pass_context
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):  # type: ignore[misc]
        def heading(self, text: str, level: int, **attributes: Any) -> str:
            plain = html.unescape(re.sub(r"<[^>]+>", "", text))
            slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
            known = {each.id for each in headings}
            anchor = base = f"{name}-{slug}"
            number = 2
            while anchor in known:
                anchor, number = f"{base}-{number}", number + 1
            headings.append(Heading(anchor, level, plain))
            return f'<h{level} id="{anchor}">{text}</h{level}>\n'

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target = re.fullmatch(r"(?:\./)?([0-9]{2}_\w+)\.ipynb(?:#.*)?", url)
            if target:
                url = f"#{target[1]}"
            elif url.startswith("#"):  # Jupyter's own anchors: `#A-Heading`
                url = f"#{name}-" + re.sub(r"[^a-z0-9]+", "-", url.lower()).strip("-")
            return str(super().link(text, url, title))

        def block_math(self, body: str) -> str:
            return formula(body, block=True)

        def inline_math(self, body: str) -> str:
            return formula(body)

    @pass_context
    def render(context: Any, source: str) -> str:
        attachments = getattr(context.get("cell"), "attachments", None)
        renderer = Renderer(
            escape=False, embed_images=True, path=str(folder), attachments=attachments
        )
        return str(MarkdownWithMath(renderer=renderer).render(source))

    return render
