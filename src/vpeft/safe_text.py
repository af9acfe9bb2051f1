"""Text of files and users on its way to a terminal, a spreadsheet or a Markdown page, which would obey parts of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Line feed and tab stay. The rest of C0, DEL and C1 (among them ESC and CSI, which begin ANSI sequences) can move the
# cursor, set a title or answer to a program; bidirectional controls show letters in another order than they have;
# U+2028 and U+2029 break lines; tags and annotations are invisible; surrogates cannot be encoded.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# What Excel, LibreOffice and Google Sheets take for the start of a formula (OWASP, "CSV Injection").
_MARKS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?%?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)
# An underscore inside a word is one; elsewhere it may begin emphasis.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def visible(text: str) -> str:
    """Text in which each character that a terminal obeys is written as \\x1b or \\u202e, so that it can be seen."""
    return _OBEYED.sub(_escaped, text)


def visible_line(text: str) -> str:
    """`visible`, with line feeds and tabs written as \\n and \\t too: for names, which belong on one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def json_text(value: Any) -> str:
    """Indented JSON in which letters stay as they are and what a terminal obeys is a \\u escape: the value is exact."""
    written = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return _OBEYED.sub(lambda match: json.dumps(match[0])[1:-1], written)


def quoted_formula(text: str) -> str:
    """Text that a spreadsheet would run as a formula, with an apostrophe in front, which means "this is text".

    Numbers such as -1.5 stay. `unquoted_formula` is the inverse.
    """
    return f"'{text}" if _is_formula(text.lstrip("'")) else text


def unquoted_formula(text: str) -> str:
    """The text that `quoted_formula` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def _is_formula(text: str) -> bool:
    begins = text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(_MARKS)
    return begins and not _NUMBER.fullmatch(text.strip(" "))


def csv_cell(value: object) -> object:
    """A cell of a CSV file that a spreadsheet shows and does not run; numbers stay numbers."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return visible(quoted_formula(str(value)))


def write_list(to: TextIO, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write CSV that a program reads back exactly: formulas are quoted, and each cell through `unquoted_formula` is
    what was given. Other characters stay as they are."""
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow([quoted_formula(name) for name in columns])
    writer.writerows([quoted_formula(cell) for cell in row] for row in rows)


def write_csv(to: TextIO, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write CSV (RFC 4180) that people open in spreadsheets: each cell is a `csv_cell`."""
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: its marks, HTML and the bars of tables are escaped."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split("\n"))))


class SafeConsole(Console):
    """rich's console, which shows the characters of a text that a terminal would obey instead of sending them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; cursor movements of rich itself, as of progress bars, pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
