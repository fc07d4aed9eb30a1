"""Tables of words in notebooks."""

import re

import pandas as pd

from workshop_lib.tables import text_table

FRAME = pd.DataFrame(
    {
        "setting": ["completionMode", "limits"],
        "why": ["each pod gets a rank, in JOB_COMPLETION_INDEX " * 3, "x"],
    }
)


def rule(html: str, column: int) -> str:
    found = re.search(rf"\.col{column} {{(.*?)}}", html, re.DOTALL)
    assert found
    return found[1]


def test_nothing_is_cut_off_and_names_are_not_broken() -> None:
    html = text_table(FRAME).to_html()
    assert FRAME["why"][0].strip() in html and "..." not in html
    assert "nowrap" in rule(html, 0) and "nowrap" not in rule(html, 1)


def test_headers_stand_above_their_texts_and_rows_have_no_numbers() -> None:
    html = text_table(FRAME).to_html()
    for cell in ("th", "td"):
        assert re.search(rf"#T_\w+\s+{cell} {{\s*text-align: left", html)
    assert "row_heading" not in html


def test_an_equal_table_is_equal_html() -> None:
    first, again = text_table(FRAME).to_html(), text_table(FRAME.copy()).to_html()
    assert first == again
    assert text_table(FRAME.iloc[:1]).to_html() != first


def test_markup_in_a_text_is_shown_as_text() -> None:
    alerts = pd.DataFrame({"what it says": ["Ray node <pod> does not answer"]})
    assert "<pod>" not in text_table(alerts).to_html()
