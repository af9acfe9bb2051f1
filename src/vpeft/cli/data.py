"""`vpeft data`: what can be a data set, a look at one, and one written out as a folder of images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cyclopts import App, Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.data.augmentation import policies
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.problems import DataWarning
from vpeft.data.sources.registry import sources
from vpeft.errors import VpeftError

app = App(name="data", help="Work with data sets: what can be one, a look at one, one written out as images.")

_FLAGS = flags_of(DataConfig, group=Group("The data", sort_key=1), skip=("source",))


class FolderInUse(VpeftError):
    """The folder to write into holds something already."""


@app.command(name="list")
def list_sources(*, json: bool = False) -> None:
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


def _check(source: str, /, *, json: bool = False, given: dict[str, Any]) -> None:
    """Open a data set, look at every image, and say what is in it and what is wrong with it.

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
    out.print(Text(f"\nlayout {data.manifest.layout}; {note}; {len(data.problems)} problems; {data.manifest.digest}"))


def _export(source: str, folder: Path, /, *, given: dict[str, Any]) -> None:
    """Write a data set as a folder of PNG images, SPLIT/LABEL/NUMBER.png, which every command reads.

    Parameters
    ----------
    source:
        A folder of images, a list, arrays, or a name such as `digits`; as `--data` of `vpeft train`.
    folder:
        Where to write; made if absent, and refused unless empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderInUse(f"{folder} exists and is not an empty folder. Name a new one.")
    data = _open(source, given)
    written = 0
    for name, split in data.splits.items():
        digits = len(str(max(len(split) - 1, 1)))
        for index, target in enumerate(split.targets):
            file = folder / name / _as_file_name(data.labels[target]) / f"{index:0{digits}d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            split.image(index).save(file)
            written += 1
    show.console().print(Text(f"{written} images in {folder}: {', '.join(data.splits)}, {len(data.labels)} labels."))


def _open(source: str, given: dict[str, Any], *, quiet: bool = False) -> Datasets:
    config = validated(DataConfig, {"source": source, **nested(_FLAGS, given)}, _FLAGS)
    with warnings.catch_warnings():
        if quiet:  # the problems are in the manifest that is printed
            warnings.simplefilter("ignore", DataWarning)
        return open_data(config)


def _as_file_name(label: str) -> str:
    """A label as the name of a folder: what a file system takes for a path or hides is replaced."""
    safe = "".join("_" if letter in '/\\:*?"<>|\0' else letter for letter in label)
    return f"_{safe}" if safe.startswith(".") else safe


app.command(with_flags(_check, _FLAGS), name="check")
app.command(with_flags(_export, _FLAGS), name="export")
