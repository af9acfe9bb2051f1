"""The contract as a table: every method on every family, passed or refused with the reason.

python -m tests.contract.matrix --write docs/coverage.md      runs every check and writes the page
python -m tests.contract.matrix --check docs/coverage.md      only asks whether every method and family is on the page
python -m tests.contract.matrix --refusals                    attaches every cell and writes refusals.json

With `--only NAME` the cells of one method, or of several with commas, are run, and those of the others are left as the
page has them: what somebody who adds a method needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch

import vpeft
from tests.contract import refusals
from tests.contract.checks import FAST, OF_FAMILIES, SLOW, Cell, hold
from tests.contract.refusals import difference, kind_of
from tests.contract.task_cells import LEARNT, attach_default_head, attach_for_task, attach_head, refusal_of
from tests.families import EVERY
from tests.models import ANY_SIZE, FAMILIES
from vpeft.head import all_heads
from vpeft.method import Method
from vpeft.methods import all_methods


@cache
def cell_or_refusal(name: str, family: str) -> tuple[Cell | None, vpeft.MissingPlace | None]:
    """The method with fields that fit the family, or the refusal of its defaults.

    The defaults are tried first; where a method offers a setting for other kinds of backbone (`Method.variants`), the
    first one whose places exist is taken.
    """
    kind = all_methods()[name]
    refusal: vpeft.MissingPlace | None = None
    for fields in ({}, *kind.variants):
        method = kind(**fields)
        try:
            _attach(method, family)
        except vpeft.MissingPlace as error:
            refusal = refusal or error.with_traceback(None)
            continue
        return Cell(method, family), None
    return None, refusal


_DESCRIBED: dict[str, vpeft.Backbone] = {}


def _attach(method: Method, family: str) -> None:
    """Attach a method to the tiny model of a family, which all methods share: each is taken off again.

    Raises:
        MissingPlace: the family refuses the method.
    """
    description = _DESCRIBED.pop(family, None) or vpeft.describe(EVERY[family]())
    tuned = vpeft.tune(description, method, num_classes=2, verify=False, show=False)
    if type(method).restorable:
        tuned.detach()
        _DESCRIBED[family] = description


def cell_text(name: str, family: str, checks: Sequence[Callable[[Cell], None]]) -> tuple[str, str | None]:
    """What the page shows for one cell, and the note below it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        cell, refusal = cell_or_refusal(name, family)
    except Exception as error:
        return "FAILED", f"attaching: {error}"
    if cell is None:
        changed = difference("methods", name, family, refusal and kind_of(refusal))
        return ("refused", str(refusal)) if changed is None else ("FAILED", changed)
    passed, failed, declared = 0, [], []
    if changed := difference("methods", name, family, None):
        failed.append(changed)
    for check in checks:
        torch.manual_seed(0)
        try:
            known = hold(check, cell)
            if known is None:
                passed += 1
            else:
                declared.append(f"{check.__name__.replace('_', ' ')}: {known.reason}")
        except Exception as error:
            failed.append(f"{check.__name__}: {error}")
    fields = ", ".join(f"{k}={v!r}" for k, v in cell.method.model_dump(exclude_defaults=True).items())
    note = "; ".join([*declared, *failed, *([f"with {fields}"] if fields else [])]) or None
    return (f"FAILED {len(failed)}" if failed else str(passed)), note


def refused(part: refusals.Part, name: str, family: str) -> str | Exception | None:
    """The kind of the refusal of one cell, None where it attaches, or the error where it does neither."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    attach = {"tasks": attach_default_head, "heads": attach_head, "methods for tasks": attach_for_task}
    try:
        refusal = cell_or_refusal(name, family)[1] if part == "methods" else refusal_of(attach[part], family, name)
    except Exception as error:
        return RuntimeError(f"{part}, {name}, {family}: {type(error).__name__}: {error}")
    return None if refusal is None else kind_of(refusal)


def every_refusal(workers: int) -> dict[tuple[refusals.Part, str, str], str]:
    """The kind of each refused cell of every part of the table.

    Raises:
        ExceptionGroup: of all cells that neither attach nor are refused.
    """
    parts: dict[refusals.Part, Iterable[str]] = {"methods": all_methods(), "tasks": LEARNT, "heads": all_heads()}
    todo = [(part, name, family) for part, names in parts.items() for name in names for family in EVERY]
    both = [f"{method} for {task}" for method in all_methods() for task in LEARNT]
    todo += [("methods for tasks", name, family) for name in both for family in ANY_SIZE]
    with ProcessPoolExecutor(workers) as pool:
        kinds = list(pool.map(refused, *zip(*todo, strict=True), chunksize=20))
    broken = [kind for kind in kinds if isinstance(kind, Exception)]
    if broken:
        raise ExceptionGroup("cells that neither attach nor are refused", broken)
    return {cell: kind for cell, kind in zip(todo, kinds, strict=True) if isinstance(kind, str)}


def results(
    workers: int, slow: bool, kept: Path | None, others: Mapping[tuple[str, str], tuple[str, str | None]] | None = None
) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Every cell's text and note. With `kept`, cells found in that file are not run again, and new ones are added.

    Args:
        others: cells that are not run, whatever code they are of.
    """
    found = dict(others or {})
    state = _state_of_the_code(slow)
    if kept is not None and kept.exists():
        first, *lines = kept.read_text().splitlines()
        if first == state:
            found |= {(name, family): (text, note) for name, family, text, note in map(json.loads, lines)}
    if kept is not None and not (kept.exists() and kept.read_text().startswith(state)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{state}\n")
    todo = [(n, f) for f in EVERY for n in all_methods() if (n, f) not in found]
    began = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(cell_text, n, f, checks_of(f, slow)): (n, f) for n, f in todo}
        for number, done in enumerate(as_completed(waiting), 1):
            name, family = waiting[done]
            found[name, family] = done.result()
            if kept is not None:
                with kept.open("a") as out:
                    out.write(json.dumps([name, family, *found[name, family]]) + "\n")
            left = (time.monotonic() - began) / number * (len(todo) - number) / 60
            text = found[name, family][0]
            print(f"{number}/{len(todo)} {name} {family}: {text} ({left:.0f} min left)", file=sys.stderr, flush=True)
    return found


def checks_of(family: str, slow: bool) -> tuple[Callable[[Cell], None], ...]:
    """All checks on the three families that every test uses; on the others, those that depend on the backbone."""
    fast = FAST if family in FAMILIES else OF_FAMILIES
    return (*fast, *SLOW) if slow else fast


def _state_of_the_code(slow: bool) -> str:
    """A digest of what decides a cell, so that results of other code are not taken up."""
    root = Path(__file__).parents[2]
    files = sorted(
        [*root.glob("src/vpeft/**/*.py"), *root.glob("tests/contract/*.py"), *root.glob("tests/families/*.py")]
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + bytes([slow])).hexdigest()


def page(found: Mapping[tuple[str, str], tuple[str, str | None]], slow: bool) -> str:
    """The page in Markdown."""
    texts = [text for text, _ in found.values()]
    refused, failed = texts.count("refused"), sum(text.startswith("FAILED") for text in texts)
    core, others = (
        ", ".join(c.__name__.replace("_", " ") for c in checks_of(f, slow)) for f in (next(iter(FAMILIES)), "")
    )
    lines = [
        "# Methods on families",
        "",
        "Made by `make matrix`; do not edit. A cell is a method on a tiny backbone of the family: the number of checks"
        " that it passes, or *refused*, with the number of the sentence that a user then sees. No cell attaches and"
        " trains nothing: that is the first check.",
        "",
        f"{len(all_methods())} methods on {len(EVERY)} families, {len(found)} cells:"
        f" {len(found) - refused - failed} pass, {refused} are refused, {failed} fail.",
        "",
        f"- Checks on {', '.join(FAMILIES)}: {core}.",
        f"- Checks on the other families: {others}.",
    ]
    numbers: dict[str, int] = {}
    for title, families in _by_library().items():
        lines += ["", f"## {title}", "", "| method | " + " | ".join(families) + " |", "|---|" + "---|" * len(families)]
        for name in all_methods():
            cells = []
            for family in families:
                text, note = found[name, family]
                number = None if note is None else numbers.setdefault(f"`{name}`: {note}", len(numbers) + 1)
                cells.append(text if number is None else f"{text} ({number})")
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "## Notes", "", *(f"{number}. {note}" for note, number in numbers.items()), ""]
    return "\n".join(lines)


def cells_of(written: str) -> dict[tuple[str, str], tuple[str, str | None]]:
    """The cells of a page, as `page` wrote them: text and note."""
    notes = dict(re.findall(r"^(\d+)\. `\w+`: (.*)$", written, flags=re.MULTILINE))
    found: dict[tuple[str, str], tuple[str, str | None]] = {}
    families: list[str] = []
    for line in written.splitlines():
        if line.startswith("| "):
            name, *cells = line.strip("| ").split(" | ")
            if name == "method":
                families = cells
                continue
            for family, cell in zip(families, cells, strict=True):
                text, _, number = cell.partition(" (")
                found[name.strip("`"), family] = text, notes[number.rstrip(")")] if number else None
    return found


def _by_library() -> dict[str, list[str]]:
    """The families under the names of their libraries."""
    titles = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision", "open": "open_clip"}
    found: dict[str, list[str]] = {}
    for family in EVERY:
        found.setdefault(titles.get(family.split("_")[0], "others"), []).append(family)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--keep", type=Path, help="file of finished cells: a killed run goes on from it")
    parser.add_argument("--only", default="", help="methods to run, with commas; the others stay as the page has them")
    parser.add_argument("--missing", action="store_true", help="run the cells that the page lacks; the others stay")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--refusals", action="store_true", help="attach every cell and write refusals.json anew")
    options = parser.parse_args()
    if options.refusals:
        refusals.write(every_refusal(options.workers))
        return 0
    if options.check is not None:
        written = options.check.read_text()
        listed = set(re.findall(r"^\| `(\w+)` \|", written, flags=re.MULTILINE))
        heads = re.findall(r"^\| method \| (.*) \|$", written, flags=re.MULTILINE)
        columns = {column for head in heads for column in head.split(" | ")}
        lacking = sorted((set(all_methods()) ^ listed) | (set(EVERY) ^ columns))
        if lacking:
            print(f"{options.check} is stale ({', '.join(lacking)}). Run: make matrix")
        return 1 if lacking else 0
    only = tuple(filter(None, options.only.split(",")))
    if unknown := sorted({*only} - {*all_methods()}):
        parser.error(f"there is no method {', '.join(unknown)}; there are {', '.join(all_methods())}")
    others: dict[tuple[str, str], tuple[str, str | None]] = {}
    if only or options.missing:
        if options.write is None or not options.write.exists():
            parser.error("--only and --missing need --write with a page that is there, for the cells that stay")
        there = {(name, family) for name in all_methods() for family in EVERY}
        others = {
            cell: was
            for cell, was in cells_of(options.write.read_text()).items()
            if cell in there and cell[0] not in only
        }
        lacking = {name for name, family in there - {*others}} - {*only}
        if lacking and not options.missing:
            parser.error(f"{options.write} lacks cells of {', '.join(sorted(lacking))}: name them too, or run all")
    found = results(options.workers, options.slow, options.keep, others)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page(found, options.slow))
    failed = [
        f"{name} on {family}: {note}" for (name, family), (text, note) in found.items() if text.startswith("FAILED")
    ]
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
