"""`vpeft recipes`: list the recipes that ship with the package."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch
from vpeft.errors import VpeftError
from vpeft.guarded import TEXT_BYTES, read_bytes, text_of
from vpeft.recipes import recipe_file, shipped_recipes
from vpeft.safe_text import visible


class UnreadableRecipe(VpeftError):
    """The file is no text."""


def recipes(name: str | None = None, /, *, json: Switch = False) -> None:
    """List the shipped recipes; with NAME, print one as TOML, to be copied and changed.

    Parameters
    ----------
    name:
        The id of a recipe, such as `coco-cascade-swin-b@v-petl`.
    json:
        Print JSON instead of a table.
    """
    known = shipped_recipes()
    if name is not None:
        what = f"The recipe {name}"
        data = read_bytes(recipe_file(Path(name)), what, UnreadableRecipe, TEXT_BYTES)
        text = text_of(data, what, UnreadableRecipe)
        show.console().print(Text(visible(text.rstrip())), soft_wrap=True)
        return
    if json:
        show.as_json(
            [
                {
                    "id": one.id,
                    "title": one.title,
                    "source": one.source,
                    "reported": one.reported,
                    "application": one.application,
                    "commands": list(one.commands),
                }
                for one in known.values()
            ]
        )
        return
    out = show.console()
    compared = [(one.id, one.title, one.reported or "") for one in known.values() if one.application is None]
    applied = [(one.id, one.title) for one in known.values() if one.application is not None]
    out.print(show.table(("application", "what it is"), applied))
    out.print(Text("\nvpeft train RECIPE --out FOLDER runs one offline; --data FOLDER takes your own images.\n"))
    out.print(show.table(("comparison", "what it is", "reported rows"), compared))
    out.print(Text("\nvpeft train RECIPE --data FOLDER --method NAME --out FOLDER; `vpeft recipes RECIPE` prints one."))
    out.print(Text("vpeft report LEDGER --reported NAME shows the published rows of that name, marked as reported."))
