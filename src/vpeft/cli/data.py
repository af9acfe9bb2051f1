"""`vpeft data`: list data sources and suites, check or export a data set, get VTAB-1k and prove it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from rich.text import Text

from vpeft.atomic import write_json
from vpeft.bench.protocol import protocol
from vpeft.bench.suite import Suite
from vpeft.bench.suites import suite, suites
from vpeft.cli import show
from vpeft.cli.flags import Switch, flags_of, nested, split_list, with_flags
from vpeft.cli.validated import validated
from vpeft.data.augmentation import policies
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.export import export_folder
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.sources.registry import sources, with_its_target
from vpeft.data.vtab1k.gather import HUB, download, from_archive
from vpeft.data.vtab1k.layout import task_names
from vpeft.data.vtab1k.proof import Proof, TaskProof, prove
from vpeft.data.vtab1k.search import Found, find_task_in, full_set
from vpeft.safe_text import SafeConsole

app = App(name="data", help="List data sources and suites, check or export a data set, or get VTAB-1k and prove it.")

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


@app.command(name="suites")
def list_suites(name: str | None = None, /, *, json: Switch = False) -> None:
    """List the suites of vpeft bench, or the tasks of one: numbers, licences, and what its folder holds.

    Parameters
    ----------
    name:
        A suite.
    json:
        Print JSON instead of tables.
    """
    out = show.console()
    if name is None:
        stated = [_suite_facts(one) for one in suites().values()]
        if json:
            show.as_json(stated)
            return
        heads = ("suite", "tasks", "leads", "tiers", "files", "what it is")
        lines = [
            (
                one["id"],
                len(one["tasks"]) or "yours",
                one["metric"] or "of each task",
                ", ".join(one["tiers"]),
                "--root" if one["folder"] else "none",
                one["about"],
            )
            for one in stated
        ]
        out.print(show.table(heads, lines))
        return
    chosen = _suite_facts(suite(name))
    if json:
        show.as_json(chosen)
        return
    columns = ("task", "group", "classes", "train", "val", "test", "licence")
    rows = []
    for task, of_task in chosen["tasks"].items():
        numbers = [of_task.get(key) for key in ("classes", "train", "val", "test")]
        cells = ["" if number is None else number for number in numbers]
        rows.append((task, of_task["group"], *cells, of_task.get("licence", "")))
    out.print(show.table(columns, rows))
    out.print()
    for tier, of_tier in chosen["tiers"].items():
        out.print(Text(f"{tier}: {of_tier['protocol']}, {of_tier['seeds']} seeds. {of_tier['rule']}"))
        for sentence in of_tier["differs"]:
            out.print(Text(f"  differs: {sentence}"))
    if chosen["folder"]:
        out.print(Text(f"--root names a folder with {chosen['folder']}."))


def _suite_facts(one: Suite) -> dict[str, Any]:
    """All that a suite states, as plain values."""
    rules = {tier: protocol(stated.protocol) for tier, stated in one.tiers.items()}
    return {
        "id": one.id,
        "title": one.title,
        "about": one.about,
        "metric": one.metric,
        "higher_is_better": one.higher_is_better,
        "licence": one.licence,
        "folder": one.layout,
        "tasks": {
            task: {"group": group, **(one.facts[task].model_dump(mode="json") if task in one.facts else {})}
            for task, group in one.groups.items()
        },
        "tiers": {
            tier: {
                "protocol": stated.protocol,
                "seeds": stated.seeds,
                "rule": rules[tier].rule,
                "differs": list(rules[tier].differs),
                "best_on_test_beside": rules[tier].legacy_best_on_test,
            }
            for tier, stated in one.tiers.items()
        },
    }


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


@app.command(name="vtab1k")
def vtab1k(
    folder: Path,
    /,
    *,
    origin: Annotated[Literal["hub", "folder", "archive"] | None, Parameter(name="--from")] = None,
    source: str | None = None,
    full: str | None = None,
    lists: Path | None = None,
    tasks: str | None = None,
    fetch: Annotated[bool, Parameter(name="--download", negative=(), show_default=False)] = False,
    json: Switch = False,
) -> int:
    """Get VTAB-1k and prove it: 19 tasks with 800 + 200 training images and the published test images.

    Without --from, a copy that is there is proved: every image is counted, read and hashed, and what is wrong is named
    and counted. The digests are kept as TASK/digests.tsv, with which later proofs and other copies are compared. The
    exit code is 1 unless all tasks are proved.

    Parameters
    ----------
    folder:
        The copy: TASK/train800.txt, val200.txt, train800val200.txt, test.txt and images/. With --from it is made.
    origin:
        archive: unpack the zip or tar file that --source names. hub: fetch such an archive from the Hugging Face hub
        first. folder: find the images in full data sets, in --source/TASK or where --full says, by --lists.
    source:
        The archive; owner/name:file on the hub; or the folder of the full data sets.
    full:
        Full data sets of single tasks, TASK=SOURCE with commas between; a source is a folder or a name that vpeft data
        check reads, such as cifar=torchvision:CIFAR100 or svhn=hf:owner/name.
    lists:
        A folder with TASK/digests.tsv of another copy: what is searched for in full sets, or compared with.
    tasks:
        Only these tasks, with commas between.
    fetch:
        Allow a named full data set to be downloaded.
    json:
        Print JSON instead of a table.
    """
    asked = split_list(tasks or "")
    found: list[Found] = []
    if full or origin == "folder":
        found = _found_in_full_sets(folder, source, split_list(full or ""), lists, asked, fetch)
        asked = [one.task for one in found]
        proof = prove(folder, asked, proved=_tell)
    else:
        if origin is not None:
            if origin == "archive" and source is None:
                raise DataError("--from archive needs --source, the zip or tar file.")
            from_archive(download(source or HUB) if origin == "hub" else Path(str(source)), folder)
        proof = prove(folder, asked, lists=lists, proved=_tell)
    write_json(folder / "proof.json", _stated(proof, found))
    if json:
        show.as_json(_stated(proof, found))
    else:
        _show_proof(proof, found)
    return 0 if proof.proved and not any(one.faults for one in found) else 1


def _found_in_full_sets(
    folder: Path, source: str | None, full: list[str], lists: Path | None, asked: list[str], fetch: bool
) -> list[Found]:
    if lists is None:
        raise DataError(
            "Images are found in full data sets by the digests of another copy: name its folder with --lists. A copy in"
            " the layout of VTAB-1k needs no search: vpeft data vtab1k FOLDER proves it."
        )
    named: dict[str, str] = {}
    for word in full:
        task, equals, place = word.partition("=")
        if not equals or not place:
            raise DataError(f"--full takes TASK=SOURCE, not {word!r}.")
        named[task_names([task])[0]] = place
    names = task_names(asked) if asked else (list(named) or task_names(()))
    missing = [name for name in names if name not in named and source is None]
    if missing:
        raise DataError(f"No full data set is named for {', '.join(missing)}: use --full TASK=SOURCE, or --source.")
    places = {name: named.get(name) or str(Path(str(source)) / name) for name in names}
    return [find_task_in(full_set(place, fetch), lists, name, folder) for name, place in places.items()]


def _tell(task: TaskProof) -> None:
    """One line on stderr for a task that is done."""
    SafeConsole(stderr=True).print(Text(f"{task.task}: {sum(task.counts.values())} images, {len(task.faults)} faults"))


def _stated(proof: Proof, found: list[Found]) -> Mapping[str, Any]:
    return {
        "proved": proof.proved,
        **proof.model_dump(mode="json"),
        **({"found": [one.model_dump(mode="json") for one in found]} if found else {}),
    }


def _show_proof(proof: Proof, found: list[Found]) -> None:
    out = show.console()
    rows = [
        (
            task.task,
            *(task.counts.get(split, 0) for split in ("train800", "val200", "test")),
            task.distinct,
            task.digests.get("test", "")[:12],
            "yes" if task.proved and task.compared else "counts" if task.proved else f"{len(task.faults)} faults",
        )
        for task in proof.tasks
    ]
    out.print(show.table(("task", "train800", "val200", "test", "distinct", "digest", "proved"), rows))
    for one in found:
        ways = ", ".join(f"{number} by {way}" for way, number in one.found.items())
        out.print(Text(f"{one.task}: found {ways or 'none'} among {one.looked_at} images"))
        shown = "; ".join(str(fault) for fault in one.faults[:5])
        if one.faults:
            out.print(Text(f"{one.task}: {len(one.faults)} images were not found: {shown}"))
    for sentence in proof.sentences():
        out.print(Text(sentence))
    good = sum(task.proved for task in proof.tasks)
    out.print(Text(f"{good} of {len(proof.tasks)} tasks are proved"))
    if any(task.proved and not task.compared for task in proof.tasks):
        out.print(Text("proved by counts: the numbers are the published ones, and no digests were there to compare"))


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
