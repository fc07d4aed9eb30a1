"""Controls, one line that answers, and a figure that follows them."""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Explorer", "slider_options"]

WIDE = {"description_width": "14em"}


def slider_options(*, moving: bool = True) -> dict[str, Any]:
    """What all controls have in common: their width and how their names are set.

    Args:
        moving: For a slider: a figure for each stop, not for each pixel on the way.

    Example:
        >>> slider_options()["continuous_update"]
        False
    """
    options: dict[str, Any] = {
        "style": WIDE,
        "layout": ipywidgets.Layout(width="40em", max_width="99%"),
    }
    return options | ({"continuous_update": False} if moving else {})


class Explorer(ipywidgets.VBox):  # type: ignore[misc]
    """A figure that is redrawn whenever a control is moved.

    It starts nothing: no thread, no process, no file.

    Attributes:
        picture: The figure.
        answer: The line above it, as HTML.
        says: The same line as plain text.
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget]) -> None:
        # As large as the figures beside it, not stretched to the notebook's width.
        size = ipywidgets.Layout(max_width="100%", align_self="flex-start")
        self.picture = ipywidgets.Image(format="png", layout=size)
        self.answer = ipywidgets.HTML()
        self.says = ""
        super().__init__([*controls, self.answer, self.picture])
        for control in controls:
            control.observe(self._redraw, names="value")
        self._redraw()

    @abstractmethod
    def look(self) -> tuple[Figure, str, bool]:
        """The figure of what is chosen now, a line about it, and whether that works.

        Raises:
            WorkshopError: The combination cannot be drawn; its line is shown instead.
        """

    def _redraw(self, change: object = None) -> None:
        """Show the figure and its answer, or only the reason why there is none."""
        try:
            figure, says, works = self.look()
        except WorkshopError as error:
            self._show(None, str(error), works=False)
            return
        drawn: Any = figure
        self._show(drawn._repr_png_(), says, works=works)

    def _show(self, png: bytes | None, says: str, *, works: bool) -> None:
        self.says = says
        mark, colour = ("✓", OKABE_ITO["green"]) if works else ("✗", OKABE_ITO["vermillion"])
        self.answer.value = f'<b style="color:{colour}">{mark}</b> {html.escape(says)}'
        # Hidden, not removed: what is below does not jump while a slider is moved.
        self.picture.layout.visibility = "visible" if png else "hidden"
        if png:
            self.picture.value = png

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and for pages that have no kernel its picture and its words."""
        bundle: dict[str, Any] = dict(super()._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = self.says
        if self.picture.layout.visibility != "hidden":
            bundle["image/png"] = bytes(self.picture.value)
        return bundle
