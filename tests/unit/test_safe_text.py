"""Text on its way to a terminal, a spreadsheet and a Markdown page."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import BarColumn, Progress
from rich.table import Table
from rich.text import Text

from vpeft.safe_text import (
    SafeConsole,
    csv_cell,
    json_text,
    markdown,
    quoted_formula,
    unquoted_formula,
    visible,
    visible_line,
    write_csv,
)

# What a terminal obeys: all control characters but line feed and tab, and what changes the direction of letters.
OBEYED = st.characters(categories=("Cc", "Cs", "Zl", "Zp")).filter(lambda one: one not in "\n\t") | st.sampled_from(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
TEXT = st.text(st.characters() | OBEYED)


def _obeyed(text: str) -> list[str]:
    odd = ("L", "R", "AL", "EN", "ES", "ET", "AN", "CS", "NSM", "BN", "B", "S", "WS", "ON", "")
    return [
        one
        for one in text
        if (unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") and one not in "\n\t")
        or unicodedata.bidirectional(one) not in odd
    ]


@given(TEXT)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert not _obeyed(visible(text))
    assert not _obeyed(visible_line(text))
    assert "\n" not in visible_line(text)
    assert visible(visible(text)) == visible(text)


def test_letters_of_all_scripts_and_emoji_stay() -> None:
    text = "Käfer 猫 кот قطة 👩‍🔬 किताब naïve"
    assert visible(text) == text


def test_it_can_be_seen_what_was_there() -> None:
    assert visible("a\x1b[31m\x9b1m\x07\u202eb") == "a\\x1b[31m\\x9b1m\\x07\\u202eb"
    assert visible("two\nlines\tand a tab") == "two\nlines\tand a tab"
    assert visible_line("two\nlines") == "two\\nlines"


@given(TEXT.filter(lambda text: text == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")))
def test_json_is_exact_and_safe(text: str) -> None:
    written = json_text({"name": text})
    assert not _obeyed(written)
    assert json.loads(written) == {"name": text}


@given(TEXT, TEXT)
def test_a_console_sends_nothing_of_it(text: str, label: str) -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=False, width=200)
    table = Table(label[:50].replace("[", ""), "n")
    table.add_row(Text(text), "1")
    console.print(table)
    console.print(Text(text))
    assert not _obeyed(file.getvalue())


def test_rich_may_still_move_the_cursor_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard", width=60)
    console.print(Text("red\x1b]0;owned", style="red"))
    with Progress(BarColumn(), console=console, auto_refresh=False) as progress:
        progress.add_task("x", total=2)
        progress.refresh()
    assert "\x1b[31mred\\x1b]0;owned\x1b[0m" in file.getvalue()
    assert "\x1b[?25l" in file.getvalue()  # the bar hides the cursor


@pytest.mark.parametrize(
    "cell", ["=1+1", "@SUM(A1)", "+49 30 1", "-2+3", "\t=1", "\r=1", " =1", "\n=1", "=HYPERLINK(...)", "＝1", "-", "-a"]
)
def test_what_a_spreadsheet_runs_is_quoted(cell: str) -> None:
    assert quoted_formula(cell) == f"'{cell}"
    assert str(csv_cell(cell)).startswith("'")


@pytest.mark.parametrize("cell", ["-1.5", "+3", "1e-5", "-1E+7", "-inf", "-5%", "cat", "", "a=b", "2-1", "'quoted'"])
def test_numbers_and_words_stay(cell: str) -> None:
    assert csv_cell(cell) == cell


@pytest.mark.parametrize("cell", [-1.5, 0, True, None, float("nan")])
def test_values_stay_values(cell: object) -> None:
    assert csv_cell(cell) is cell


@given(st.text() | st.text("'=+-@\t 1"))
def test_quoting_is_undone_exactly(text: str) -> None:
    assert unquoted_formula(quoted_formula(text)) == text


@given(st.lists(st.lists(TEXT.filter(lambda text: "\n" not in text and "\0" not in text), min_size=1, max_size=3)))
def test_no_cell_of_a_csv_file_begins_as_a_formula(rows: list[list[str]]) -> None:
    file = io.StringIO()
    write_csv(file, ["=column"], rows)
    read = list(csv.reader(io.StringIO(file.getvalue())))
    assert len(read) == 1 + len(rows)
    assert read[0] == ["'=column"]
    for cell in (cell for row in read for cell in row):
        if cell.lstrip().startswith(("=", "+", "-", "@")) or cell.startswith(("\t", "\r")):
            float(cell.strip(" ").rstrip("%"))  # only numbers may


def test_markdown_shows_text_as_it_is() -> None:
    text = "a|b <img src=x onerror=1> [l](u) `c` *d* _e_ $f$ ~g~ \\h &amp; \x1b\ni"
    shown = r"a\|b \<img src=x onerror=1\> \[l\](u) \`c\` \*d\* \_e\_ \$f\$ \~g\~ \\h \&amp; \\x1b i"
    assert markdown(text) == shown
    assert markdown("pocket_vit lora(rank=8)") == "pocket_vit lora(rank=8)"
