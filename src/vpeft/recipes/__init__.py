"""Recipes that ship with the package, one TOML file each: settings of published comparisons, and applications, by id.

    vpeft train coco-cascade-swin-b@v-petl --data coco/ --method mona --out runs/mona
    vpeft train inspection@pocket --out runs/inspection

A file is an ordinary recipe without an output folder, which the command adds. Recipes of comparisons leave the data and
the method to the command as well; those of applications have both and run offline. The first comment line is the title;
the further ones say where the settings are from and how they depart from the source. "Reported rows: NAME" names the
published table (`vpeft report LEDGER --reported NAME`) that was made with them, "Application: NAME" what the recipe is
an example of, and each "Run: COMMAND" a line of shell of that example, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpeft.errors import VpeftError, nearest

_REPORTED, _APPLICATION, _RUN = "Reported rows: ", "Application: ", "Run: "


class NoSuchRecipe(VpeftError):
    """A recipe is neither a file nor the id of a shipped one."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package.

    Attributes:
        id, file, title: of the recipe.
        source: what its comments say of where the settings are from.
        reported: the published table whose rows were made with these settings; None for none.
        application: what it is an example of; None for a comparison.
        commands: lines of shell that run the example, in their order.
    """

    id: str
    file: Path
    title: str
    source: str
    reported: str | None
    application: str | None = None
    commands: tuple[str, ...] = ()


def shipped_recipes() -> Mapping[str, ShippedRecipe]:
    """All shipped recipes by id, sorted."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.toml")):
        lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        title, *rest = lines or [""]
        said = {mark: _after(mark, rest) for mark in (_REPORTED, _APPLICATION, _RUN)}
        source = " ".join(line for line in rest if not line.startswith(tuple(said)))
        found[file.stem] = ShippedRecipe(
            file.stem,
            file,
            title,
            source,
            next(iter(said[_REPORTED]), None),
            next(iter(said[_APPLICATION]), None),
            tuple(said[_RUN]),
        )
    return found


def _after(mark: str, lines: Iterable[str]) -> list[str]:
    """What lines that begin with a mark say behind it."""
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def recipe_file(path: Path) -> Path:
    """The file of a recipe that a command names: the file itself, or a shipped one by its id.

    Raises:
        NoSuchRecipe: there is neither; the message has the nearest ids.
    """
    if path.exists():
        return path
    known = shipped_recipes()
    if str(path) in known:
        return known[str(path)].file
    raise NoSuchRecipe(
        f"There is no recipe file {path}, and no recipe of this name ships with vpeft. {nearest(str(path), known)} "
        "A run needs no recipe: vpeft train --data FOLDER --backbone NAME --method NAME --out FOLDER."
    )
