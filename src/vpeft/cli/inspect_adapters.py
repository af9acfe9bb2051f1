"""`vpeft inspect FILE...`: what adapters changed, in numbers, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators
from rich.text import Text
from torch import Tensor

from vpeft.batch import as_sample
from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch, nested, with_flags
from vpeft.cli.loaded import Loaded, open_adapter
from vpeft.cli.validated import validated
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.errors import VpeftError
from vpeft.explanation.page import as_data, explained, write_page
from vpeft.explanation.representation import ranks_by_block
from vpeft.injection.adapter_file import Manifest, read
from vpeft.injection.merge import CannotMerge
from vpeft.interop.adapter_summary import (
    PlaceSummary,
    cosines,
    nearest_of,
    summary_of_changes,
    summary_of_tensors,
)
from vpeft.interop.hub import adapter_path
from vpeft.interop.weight_changes import weight_changes

_FLAGS = data_flags()
# Images in one pass for --rank.
_BATCH = 32


class NoAdapters(VpeftError):
    """No file was named, or not what its page needs."""


def _inspect(
    *adapters: Path,
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 12,
    file_only: Switch = False,
    backbone: str | None = None,
    weights: Path | None = None,
    allow_download: Switch = False,
    json: Switch = False,
    html: Path | None = None,
    rank: Switch = False,
    images: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 64,
    pictures: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 6,
    given: dict[str, Any],
) -> None:
    """Show what adapters changed: norms, effective ranks and shares by place; with several, the cosines between them.

    An adapter that can be merged is looked at as the change dW of the backbone's weights: |dW|, |dW| / |W|, the
    effective rank of dW. Any other is looked at by its own tensors. Cosines are between the changes where all files can
    be merged and are of one backbone, otherwise between the files' tensors.

    Parameters
    ----------
    adapters:
        Adapter files, or hf:USER/NAME.
    top:
        Places to print for each file, largest share first; JSON has all.
    file_only:
        Look at the files' own tensors, without making backbones.
    backbone:
        The backbone, if the files cannot create it: py:FILE.py:NAME for your own code.
    weights:
        The backbone's file of weights, if it has moved since training.
    allow_download:
        Download a backbone hf:ID that an adapter names, if it is not on this machine.
    json:
        Print JSON.
    html:
        Write a page on one adapter, measured on the images of --data: what each edit is worth, how features have moved
        from block to block, and where the model looks.
    rank:
        Show how many directions the features of the images of --data use behind each block, without the adapter and
        with it: their effective rank, and how alike they are (CKA).
    images:
        Images of --data that --rank and the page's figures are measured on.
    pictures:
        Images that the page shows.
    """
    if not adapters:
        raise NoAdapters("No file was named. Give adapter files: vpeft inspect a.safetensors b.safetensors")
    values = nested(_FLAGS, given)
    if html is not None:
        if len(adapters) != 1 or "source" not in values:
            raise NoAdapters("A page is on one adapter and needs images: vpeft inspect FILE --html OUT --data FOLDER")
        _page(
            open_adapter(adapters[0], device="cpu", weights=weights, backbone=backbone, allow_download=allow_download),
            validated(DataConfig, values, _FLAGS),
            html,
            images,
            pictures,
            json,
        )
        return
    if rank:
        if len(adapters) != 1 or "source" not in values:
            raise NoAdapters("Ranks are of one adapter's features on images: vpeft inspect FILE --rank --data FOLDER")
        loaded = open_adapter(
            adapters[0], device="cpu", weights=weights, backbone=backbone, allow_download=allow_download
        )
        _ranks(loaded, validated(DataConfig, values, _FLAGS), images, json)
        return
    if values:
        raise NoAdapters("Images are for --rank, or for the page of an adapter: add --html OUT.")
    found: list[tuple[Path, Manifest, list[PlaceSummary], str]] = []
    tensors: list[Mapping[str, Tensor]] = []
    deltas: list[Mapping[str, Tensor] | None] = []
    for file in adapters:
        path = adapter_path(file)
        manifest, held = read(path)
        tensors.append(held)
        rows, changed, of = summary_of_tensors(held), None, "own tensors"
        if not file_only:
            loaded = open_adapter(path, device="cpu", weights=weights, backbone=backbone, allow_download=allow_download)
            try:
                changes = weight_changes(loaded.model)
            except CannotMerge as reason:
                say_warning(f"{file}: looked at by its own tensors. {reason}")
            else:
                rows, of = summary_of_changes(changes), "change of the backbone's weights"
                changed = {
                    key: (after if before is None else after - before).float()
                    for key, (before, after) in changes.items()
                    if after.is_floating_point()
                }
        deltas.append(changed)
        found.append((file, manifest, rows, of))
    same = len({manifest.base_digest for _, manifest, _, _ in found}) == 1
    complete = [one for one in deltas if one is not None]
    by_change = same and len(complete) == len(deltas)
    alike = cosines(complete if by_change else tensors)
    if json:
        show.as_json(_as_data(found, alike, by_change))
        return
    out = show.console()
    for file, manifest, rows, of in found:
        methods = " + ".join(one.name for one in manifest.methods)
        total = sum(row.norm**2 for row in rows) ** 0.5
        out.print(
            Text(f"{file}: {methods} on {manifest.backbone}, {manifest.parameters} numbers; {of}, norm {total:.4g}\n")
        )
        largest = sorted(rows, key=lambda row: -row.share)[:top]
        out.print(
            show.table(("place", "numbers", "norm", "of the weight", "effective rank", "share"), map(_row, largest))
        )
        if len(rows) > top:
            out.print(Text(f"... and {len(rows) - top} more places; --top shows them."))
        out.print(Text())
    if len(found) > 1:
        what = "changes of the weights" if by_change else "files' tensors"
        names = [str(file) for file, *_ in found]
        out.print(Text(f"Cosines between the {what}\n"))
        nearest = [nearest_of(row, number) for number, row in enumerate(alike)]
        table = [
            (name, *(_cell(value) for value in row), "none" if near is None else names[near])
            for name, row, near in zip(names, alike, nearest, strict=True)
        ]
        out.print(show.table(("adapter", *names, "nearest"), table))


def _ranks(loaded: Loaded, config: DataConfig, images: int, json: bool) -> None:
    """Measure the features of an adapter on images, and print their ranks."""
    samples = _samples(loaded, config, images)
    batches = [loaded.task.collate(samples[at : at + _BATCH]) for at in range(0, len(samples), _BATCH)]
    tuned = loaded.model.eval()
    rows = ranks_by_block(tuned, lambda batch: loaded.task.run(tuned, batch), batches)
    if json:
        show.as_json({"images": len(samples), "blocks": [asdict(row) for row in rows]})
        return
    names = ("block", "rank before", "after", "centred before", "after", "alike (CKA)")
    table = [
        (row.name, *(f"{value:.2f}" for value in (row.before, row.after, row.centred_before, row.centred_after)))
        for row in rows
    ]
    alike = [f"{row.alike:.3f}" for row in rows]
    out = show.console()
    out.print(Text(f"Effective ranks of features of {len(samples)} images, without the adapter and with it\n"))
    out.print(show.table(names, [(*row, cka) for row, cka in zip(table, alike, strict=True)]))


def _samples(loaded: Loaded, config: DataConfig, images: int) -> list[Any]:
    """Samples of a data set, as many as wanted, spread over it."""
    task, preprocessing = loaded.task, loaded.preprocessing
    config = config.model_copy(update={"target": task.target_kind})
    found = open_for_evaluation(config, task.data_labels, loaded.used_images).prepared(preprocessing, task)
    dataset = task.dataset(found, False)
    step = max(1, len(dataset) // images)
    return [as_sample(dataset[at]) for at in range(0, len(dataset), step)][:images]


def _page(loaded: Loaded, config: DataConfig, out: Path, images: int, pictures: int, json: bool) -> None:
    """Measure an adapter on images, and write its page."""
    task, preprocessing = loaded.task, loaded.preprocessing
    if preprocessing.clip is not None:
        raise NoAdapters("The page is for models of images, and this one takes clips.")
    samples = _samples(loaded, config, images)
    held = sum(tensor.numel() for tensor in loaded.model.adapter_state().values())
    facts = {
        "name": loaded.path.name if loaded.path.stem != "adapter" else f"{loaded.path.parent.name}/{loaded.path.name}",
        "method": " + ".join(repr(one) for one in loaded.model.methods()),
        "backbone": loaded.model.description.facts.architecture,
        "task": task.name,
        "numbers": f"{held:,}",
        "images": len(samples),
    }
    made = explained(loaded.model, task, preprocessing, samples, facts=facts, pictures=pictures)
    write_page(made, out)
    if json:
        show.as_json({"page": str(out), **as_data(made)})
    else:
        show.console().print(Text(f"written: {out}"))


def _row(row: PlaceSummary) -> tuple[object, ...]:
    return (
        row.place,
        row.parameters,
        row.norm,
        "" if row.relative is None else f"{row.relative:.2%}",
        "" if row.effective_rank is None else f"{row.effective_rank:.1f}",
        f"{row.share:.1%}",
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _as_data(
    found: list[tuple[Path, Manifest, list[PlaceSummary], str]], alike: list[list[float | None]], by_change: bool
) -> dict[str, Any]:
    names = [str(given) for given, *_ in found]
    nearest = [nearest_of(row, number) for number, row in enumerate(alike)]
    return {
        "adapters": [
            {
                "file": str(given),
                "methods": [one.name for one in manifest.methods],
                "backbone": manifest.backbone,
                "parameters": manifest.parameters,
                "of": of,
                "places": [asdict(row) for row in rows],
                "nearest": None if near is None else names[near],
            }
            for (given, manifest, rows, of), near in zip(found, nearest, strict=True)
        ],
        "cosines": alike,
        "cosines_of": "changes" if by_change else "tensors",
    }


inspect_adapters = with_flags(_inspect, _FLAGS)
inspect_adapters.__name__ = "inspect_adapters"
