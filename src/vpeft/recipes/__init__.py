"""Recipes that ship with the package, one TOML file each: the settings of published comparisons, by id.

    vpeft train coco-cascade-swin-b@v-petl --data coco/ --method mona --out runs/mona

A file is an ordinary recipe without data, method and output folder, which the command adds. Its first comment line is
its title; the further ones say where the settings are from and how they depart from the source, and
"Reported rows: NAME" names the published table (`vpeft report LEDGER --reported NAME`) that was made with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpeft.errors import VpeftError, nearest

_REPORTED = "Reported rows: "


class NoSuchRecipe(VpeftError):
    """A recipe is neither a file nor the id of a shipped one."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package.

    Attributes:
        id, file, title: of the recipe.
        source: what its comments say of where the settings are from.
        reported: the published table whose rows were made with these settings; None for none.
    """

    id: str
    file: Path
    title: str
    source: str
    reported: str | None


def shipped_recipes() -> Mapping[str, ShippedRecipe]:
    """All shipped recipes by id, sorted."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.toml")):
        lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        title, *rest = lines or [""]
        tables = [line.removeprefix(_REPORTED) for line in rest if line.startswith(_REPORTED)]
        source = " ".join(line for line in rest if not line.startswith(_REPORTED))
        found[file.stem] = ShippedRecipe(file.stem, file, title, source, tables[0] if tables else None)
    return found


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
