"""Tables of words, as a notebook shows them: read from left to right, nothing cut off."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["text_table"]

SHORT = 24
"""Characters up to which a column is kept on one line, so that names are not broken."""


def text_table(frame: pd.DataFrame) -> Styler:
    """Show a table of words: left-aligned, whole texts, without the row numbers.

    Args:
        frame: The table.

    Returns:
        What a notebook shows as the cell's last value; equal tables give equal HTML.

    Example:
        >>> import pandas as pd
        >>> table = text_table(pd.DataFrame({"what": ["a pod"], "why": ["it asks " * 20]}))
        >>> "it asks it asks" in table.to_html()
        True
    """
    name = hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8]  # pandas' own is random
    styles: list[Any] = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    for place, column in enumerate(frame.columns):
        longest = max(map(len, map(str, [column, *frame[column]])))
        width = "white-space: nowrap" if longest <= SHORT else "min-width: 12em"
        styles.append({"selector": f".col{place}", "props": f"{width}; overflow-wrap: anywhere"})
    table = frame.style.set_uuid(name).hide(axis="index").format(escape="html")
    return table.set_table_styles(styles, overwrite=False)
