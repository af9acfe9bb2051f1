"""Files that are either the old one or the new one, never half of it, whatever is killed when."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, bring it to the disk, and put it in `path`'s place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name, so that what a killed process left is overwritten by the next and never piles up.
    fresh = path.with_name(path.name + ".partial")
    write(fresh)
    with fresh.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(fresh, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically, as UTF-8."""
    replace_file(path, lambda fresh: _write(fresh, text))


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as JSON; NaN and infinity, which JSON has not, are an error."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
