"""Tables of words, as a notebook shows them: read from left to right, nothing cut off."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["text_table"]

SHORT = 24
"""Characters up to which a column is kept on one line."""


def text_table(frame: pd.DataFrame) -> Styler:
    """Show a table of words: left-aligned, whole texts, without the row numbers.

    pandas aligns to the right and cuts what is longer than 50 characters, which is right for
    numbers. Here columns of short texts stay on one line, so that names are not broken, and
    the others share the rest of the width.

    Args:
        frame: The table.

    Returns:
        What a notebook shows as the cell's last value. Equal tables give equal HTML: a random
        id, which pandas would choose, would change a committed notebook at each run.

    Example:
        >>> import pandas as pd
        >>> table = text_table(pd.DataFrame({"what": ["a pod"], "why": ["it asks " * 20]}))
        >>> "it asks it asks" in table.to_html()
        True
    """
    name = hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8]
    styles = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    for place, column in enumerate(frame.columns):
        longest = max(map(len, map(str, [column, *frame[column]])))
        width = "white-space: nowrap" if longest <= SHORT else "min-width: 12em"
        styles.append({"selector": f".col{place}", "props": f"{width}; overflow-wrap: anywhere"})
    table = frame.style.set_uuid(name).hide(axis="index").format(escape="html")
    return table.set_table_styles(styles, overwrite=False)  # type: ignore[arg-type]
