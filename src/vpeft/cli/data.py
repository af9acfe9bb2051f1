"""`vpeft data`: list data sources, check a data set, and export one as a folder of images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cyclopts import App, Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch, flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.data.augmentation import policies
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.export import export_folder
from vpeft.data.problems import DataWarning
from vpeft.data.sources.registry import sources, with_its_target

app = App(name="data", help="List data sources, check a data set, or export one as a folder of images.")

_FLAGS = flags_of(DataConfig, group=Group("The data", sort_key=1), skip=("source",))


@app.command(name="list")
def list_sources(*, json: Switch = False) -> None:
    """List the layouts, the data sets known by name, and the augmentation policies.

    Parameters
    ----------
    json:
        Print JSON instead of tables.
    """
    layouts = [{"layout": name, "what": one.title, "names": sorted(one.names())} for name, one in sources().items()]
    if json:
        show.as_json({"layouts": layouts, "augmentation": policies()})
        return
    out = show.console()
    rows = [(one["layout"], one["what"], ", ".join(one["names"])) for one in layouts]
    out.print(show.table(("layout", "what it is", "known by name"), rows))
    out.print()
    out.print(show.table(("augmentation", "what it does"), list(policies().items())))


def _check(source: str, /, *, json: Switch = False, given: dict[str, Any]) -> None:
    """Open a data set, check every image, and print its contents and its problems.

    Parameters
    ----------
    source:
        A folder of images, a list, arrays, or a name; as `--data` of `vpeft train`.
    json:
        Print the manifest as JSON instead of a table.
    """
    data = _open(source, given, quiet=json)
    if json:
        show.as_json({**data.manifest.model_dump(mode="json"), "digest": data.manifest.digest})
        return
    out = show.console()
    parts = {name: split.counts() for name, split in data.splits.items()}
    rows = [(label, *(counts[label] for counts in parts.values())) for label in data.labels]
    rows.append(("all", *(sum(counts.values()) for counts in parts.values())))
    out.print(show.table(("label", *parts), rows))
    made = [name for name, split in data.manifest.splits.items() if split.made]
    note = f"splits made here with seed {data.config.seed}: {', '.join(made)}" if made else "splits as stated"
    if data.train.target.on_pixels:
        out.print(Text(f"\n{', '.join(f'{len(split)} images in {name}' for name, split in data.splits.items())}"))
    out.print(Text(f"\nlayout {data.manifest.layout}; {note}; {len(data.problems)} problems; {data.manifest.digest}"))


def _export(source: str, folder: Path, /, *, given: dict[str, Any]) -> None:
    """Write a data set as a plain folder that every command reads: SPLIT/LABEL/IMAGE, or COCO JSON for objects.

    Parameters
    ----------
    source:
        A folder of images, a list, arrays, or a name such as `digits`; as `--data` of `vpeft train`.
    folder:
        The folder to write; it is created, and must be empty if it exists.
    """
    data = _open(source, given)
    out = export_folder(data, folder)
    parts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    show.console().print(Text(f"{out}: {parts}; {len(data.labels)} labels"))


def _open(source: str, given: dict[str, Any], *, quiet: bool = False) -> Datasets:
    stated = nested(_FLAGS, given)
    config = validated(DataConfig, {"source": source, **stated}, _FLAGS)
    if "target" not in stated:
        config = with_its_target(config)
    with warnings.catch_warnings():
        if quiet:  # the problems are in the manifest that is printed
            warnings.simplefilter("ignore", DataWarning)
        return open_data(config)


app.command(with_flags(_check, _FLAGS), name="check")
app.command(with_flags(_export, _FLAGS), name="export")
