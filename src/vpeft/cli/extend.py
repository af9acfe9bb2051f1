"""`vpeft extend`: new classes for a saved adapter, without the images it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.evaluate import NoData
from vpeft.cli.flags import Flag, Switch, flags_of, nested, with_flags
from vpeft.cli.loaded import Device, open_adapter
from vpeft.cli.validated import validated
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data, open_for_evaluation
from vpeft.regimes.extend import Learnt, sums_of
from vpeft.regimes.extend import extend as extended
from vpeft.training.optimisation import Optimisation

_DATA = data_flags()
_OPTIMISATION: tuple[Flag, ...] = tuple(
    flags_of(Optimisation, group=Group("The optimisation", sort_key=30), path=("optimisation",))
)


def _extend(
    adapter: Path,
    /,
    *,
    out: Path,
    old: str | None = None,
    learn: Learnt = "head",
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    allow_download: Switch = False,
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Add new classes to a saved adapter, without the images that it was trained on.

    vpeft extend runs/a/adapter.safetensors --data new_classes/ --out runs/b

    The head gains outputs. Those of a prototype head are class means; those of a linear or cosine head are trained on
    the new images, and the rows of old classes stay as they are. Those of a head of random projections (ranpac) follow
    from sums, which lie in state.safetensors beside the adapter. One new class is enough. With --old, the forgetting is
    measured.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` or `vpeft continual` saved, of a classifier.
    out:
        Folder for the new adapter file and the record.
    old:
        Labelled images of old classes, to measure what is forgotten; nothing is learnt from them.
    learn:
        What trains besides the new rows of the head: nothing (head), or the method's own tensors too (all).
    device:
        The device; auto uses the best one of this machine.
    weights:
        The backbone's file of weights, if it has moved since training.
    backbone:
        The backbone, if the adapter file cannot create it: py:FILE.py:NAME for your own code.
    allow_download:
        Download a backbone hf:ID that the adapter names, if it is not on this machine.
    json:
        Print JSON instead of sentences.
    """
    values = nested(_DATA, given)
    if "source" not in values:
        raise NoData("No new classes were given. Add --data FOLDER, with one sub-folder of images for each.")
    config = validated(DataConfig, values, _DATA).model_copy(update={"target": "label"})
    settings = validated(Optimisation, nested(_OPTIMISATION, given).get("optimisation", {}), _OPTIMISATION)
    loaded = open_adapter(adapter, device=device, weights=weights, backbone=backbone, allow_download=allow_download)
    seen = None
    if old is not None:
        before = config.model_copy(update={"source": old})
        seen = open_for_evaluation(before, loaded.labels, loaded.used_images).prepared(loaded.preprocessing)
    found = extended(
        loaded.model,
        open_data(config, fewest_classes=1),
        loaded.preprocessing,
        optimisation=settings,
        old=seen,
        learnt=learn,
        out=out,
        used=loaded.used_images,
        workers=config.workers,
        sums=sums_of(loaded.path),
        facts={"from": str(adapter), "data": config.model_dump(mode="json")},
    )
    if json:
        show.as_json(found.as_dict())
        return
    known = () if loaded.manifest is None else loaded.manifest.labels or ()
    new = len(found.labels) - len(known)
    lines = [f"{new} new classes, {len(found.labels)} in all: {', '.join(found.labels[-new:][:10])}"]
    if found.new is not None:
        lines.append(f"held-out images of the new classes: {100 * found.new:.2f} % right, over all classes")
    if found.old_before is not None and found.old_after is not None:
        lines.append(
            f"old classes: {100 * found.old_before:.2f} % right before, {100 * found.old_after:.2f} % after; forgetting"
            f" {100 * (found.old_before - found.old_after):.2f} points"
        )
    lines.append(f"adapter: {found.adapter}")
    show.console().print(Text("\n".join(lines)))


extend = with_flags(_extend, (*_DATA, *_OPTIMISATION))
