"""The contract as a table: every method on every family, passed or refused with the reason.

python -m tests.contract.matrix --write docs/coverage.md      runs every check and writes the page
python -m tests.contract.matrix --check docs/coverage.md      only asks whether every method and family is on the page
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import torch

import vpeft
from tests.contract.checks import FAST, SLOW, Cell
from tests.families import EVERY
from vpeft.methods import all_methods


@cache
def cell_or_refusal(name: str, family: str) -> tuple[Cell | None, str | None]:
    """The method with fields that fit the family, or the sentence that refuses it.

    The defaults are tried first; where a method offers a setting for other kinds of backbone (`Method.variants`), the
    first one whose places exist is taken.
    """
    kind = all_methods()[name]
    refusal = None
    for fields in ({}, *kind.variants):
        method = kind(**fields)
        try:
            vpeft.tune(EVERY[family](), method, num_classes=2, verify=False, show=False)
        except vpeft.MissingPlace as error:
            refusal = refusal or str(error)
            continue
        return Cell(method, family), None
    return None, refusal


def _cell(name: str, family: str, slow: bool) -> tuple[str, str | None]:
    """What the page shows for one cell, and the note below it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cell, refusal = cell_or_refusal(name, family)
    if cell is None:
        return "refused", refusal
    passed, failed, declared = 0, [], []
    for check in (*FAST, *SLOW) if slow else FAST:
        torch.manual_seed(0)
        if check.__name__ in cell.method.exceptions:
            declared.append(f"{check.__name__.replace('_', ' ')}: {cell.method.exceptions[check.__name__]}")
            continue
        try:
            check(cell)
            passed += 1
        except Exception as error:
            failed.append(f"{check.__name__}: {error}")
    fields = ", ".join(f"{k}={v!r}" for k, v in cell.method.model_dump(exclude_defaults=True).items())
    note = "; ".join([*declared, *failed, *([f"with {fields}"] if fields else [])]) or None
    return (f"FAILED {len(failed)}" if failed else f"{passed} passed"), note


def page(workers: int, slow: bool) -> tuple[str, bool]:
    """The page in Markdown, and whether no cell failed."""
    rows, notes, good = [], [], True
    pool = ProcessPoolExecutor(workers)
    waiting = {(n, f): pool.submit(_cell, n, f, slow) for n in all_methods() for f in EVERY}
    for name in all_methods():
        shown = []
        for family in EVERY:
            text, note = waiting[name, family].result()
            good &= not text.startswith("FAILED")
            if note:
                notes.append(f"{len(notes) + 1}. `{name}` on {family}: {note}")
                text += f" ({len(notes)})"
            shown.append(text)
            print(f"{name:24} {family:16} {text}", file=sys.stderr, flush=True)
        rows.append(f"| `{name}` | " + " | ".join(shown) + " |")
    head = ["| method | " + " | ".join(EVERY) + " |", "|---|" + "---|" * len(EVERY)]
    run = (*FAST, *SLOW) if slow else FAST
    checks = ", ".join(check.__name__.replace("_", " ") for check in run)
    passed, refused = (sum(row.count(word) for row in rows) for word in ("passed", "refused"))
    lines = [
        "# Methods on families",
        "",
        "Made by `make matrix`; do not edit. Each cell is a method on a tiny backbone of the family. It attaches and"
        f" passes these checks: {checks}. Or it is refused, with the sentence that a user sees. A number in brackets"
        " points to a note below.",
        "",
        f"{len(rows)} methods on {len(EVERY)} families: {passed} cells pass, {refused} are refused.",
        "",
        *head,
        *rows,
        "",
        "## Notes",
        "",
        *notes,
        "",
    ]
    return "\n".join(lines), good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    if options.check is not None:
        written = options.check.read_text()
        listed = set(re.findall(r"^\| `(\w+)` \|", written, flags=re.MULTILINE))
        head = re.search(r"^\| method \| (.*) \|$", written, flags=re.MULTILINE)
        columns = set(head.group(1).split(" | ")) if head else set()
        lacking = sorted((set(all_methods()) ^ listed) | (set(EVERY) ^ columns))
        if lacking:
            print(f"{options.check} is stale ({', '.join(lacking)}). Run: make matrix")
        return 1 if lacking else 0
    text, good = page(options.workers, options.slow)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
