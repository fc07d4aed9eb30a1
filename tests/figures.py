"""What every figure must be: whole, labelled, readable."""

from itertools import combinations

from matplotlib.text import Text


def check_readable(figure):
    """Nothing is cut off, covered, too small or without a label."""
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    width_in, height_in = figure.get_size_inches()
    assert 7 <= width_in <= 10 and 2 <= height_in <= 8
    figure.canvas.draw()
    hidden = undrawn_tick_labels(figure)
    shown = [
        (text, text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]
    edges = figure.bbox.padded(1)
    for text, box in shown:
        assert text.get_fontsize() >= 9, text
        assert edges.x0 <= box.x0 and box.x1 <= edges.x1, f"cut off: {text}"
        assert edges.y0 <= box.y0 and box.y1 <= edges.y1, f"cut off: {text}"
    for (one, box), (other, another) in combinations(shown, 2):
        assert not box.padded(-1.5).overlaps(another.padded(-1.5)), f"{one} covers {other}"
    for axes in (each for each in figure.axes if each.axison):
        # Axes above each other that share their x axis name it once, below.
        together = axes.get_shared_x_axes().get_siblings(axes)
        assert any(each.get_xlabel() for each in together), "an x axis without a label"
        names = [tick.get_text() for tick in axes.get_yticklabels()]
        if names and names[0].replace(",", "").isdigit():
            assert axes.get_ylabel(), "a y axis without a label"


def undrawn_tick_labels(figure):
    """Labels of ticks outside the view: matplotlib makes them and does not draw them."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden |= {id(tick.label1), id(tick.label2)}
    return hidden
