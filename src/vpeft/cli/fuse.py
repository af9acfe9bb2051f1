"""`vpeft fuse`: fine-tuned adapters of one backbone as one adapter with a head for each task, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.cli import show
from vpeft.cli.flags import Switch, split_list
from vpeft.cli.loaded import Device, backbone_of, pick_device
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError, nearest
from vpeft.interop.hub import adapter_path
from vpeft.regimes.fusion.fuse import fuse_sources, names_of
from vpeft.regimes.fusion.sources import CannotFuse, Source, is_adapter, require_one_base, source_of
from vpeft.regimes.fusion.way import make_way
from vpeft.training.batches import Samples


class NoSuchTask(VpeftError):
    """Names or data were given for a task that no adapter has."""


def fuse(
    *adapters: Path,
    out: Path,
    how: str = "smile",
    names: str | None = None,
    data: Annotated[Sequence[str], Parameter(name=("--data",), negative=())] = (),
    one_head: Switch = False,
    seed: int = 0,
    workers: int = 0,
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    allow_download: Switch = False,
    json: Switch = False,
) -> None:
    """Make one adapter out of several that were trained on the same backbone; nothing is trained on their images.

    vpeft fuse runs/a/adapter.safetensors runs/b/adapter.safetensors --how "ties(density=0.1)" --out fused.safetensors

    The adapters may be of any methods that can be folded into weights, and of different ones: LoRA beside SSF beside
    full fine-tuning. The result has a head for each task. Ways without images: averaging, task_arithmetic, ties, dare,
    smile. Ways that look at images of every task, without labels: fisher, regmean, regmean_plus_plus, adamerging,
    wemoe.

    Parameters
    ----------
    adapters:
        Two or more adapter files; or files of fully fine-tuned weights, whose base --backbone names.
    out:
        The file of the fused adapter.
    how:
        The way and its options, for instance task_arithmetic(scale=0.5) or smile(rank=32, gate_rank=16).
    names:
        Names of the tasks, with commas, in the order of the files; by default those of the files or their folders.
    data:
        Images of a task for ways that look at some, NAME=SOURCE, for each task anew; the training split is read.
    one_head:
        One head over the classes of all tasks, for images of which nobody says the task.
    seed:
        Of everything that is drawn.
    workers:
        Loading processes.
    device:
        The device; auto uses the best one of this machine.
    weights:
        The backbone's file of weights, if it has moved since training.
    backbone:
        The backbone, if no file can create it: a name, or py:FILE.py:NAME for your own code.
    allow_download:
        Download a backbone hf:ID that the adapters name, if it is not on this machine.
    json:
        Print the record as JSON instead of sentences.
    """
    way = make_way(how)
    if not adapters:
        raise CannotFuse("There is nothing to fuse: name two or more adapter files.")
    if out.suffix != ".safetensors":
        raise CannotFuse(f"The fused adapter is a safetensors file: name it {out.with_suffix('.safetensors')}.")
    paths = [adapter_path(one) for one in adapters]
    named = split_list(names) if names is not None else names_of(paths)
    if len(named) != len(paths) or len(set(named)) != len(named):
        raise NoSuchTask(f"--names {names} is {len(named)} names for {len(paths)} adapters. Give one each, all unlike.")
    stated = _stated(data, named)
    require_one_base(paths)
    files = [path for path in paths if is_adapter(path)]
    if files:
        model = backbone_of(files[0], backbone=backbone, weights=weights, allow_download=allow_download)
    elif backbone is not None:
        model = create_backbone(backbone, pretrained=weights is None, weights=weights)
    else:
        raise CannotFuse(
            f"{paths[0]} is no adapter. Files of weights need their base: --backbone NAME, for instance pocket_vit."
        )
    base = describe(model.to(pick_device(device)))
    sources = [source_of(base, name, path) for name, path in zip(named, paths, strict=True)]
    images = {source.name: _images(source, stated[source.name], model) for source in sources if source.name in stated}
    out_console = show.console()
    say = (lambda _: None) if json else (lambda line: out_console.print(Text(line)))
    tuned = fuse_sources(
        base, sources, way, data=images, one_head=one_head, out=out, seed=seed, workers=workers, say=say
    )
    size = out.stat().st_size
    record = {
        "how": way.name,
        "options": way.model_dump(mode="json"),
        "tasks": {source.name: dict(source.facts) for source in sources},
        "one_head": one_head,
        "parameters": sum(value.numel() for value in tuned.adapter_state().values()),
        "bytes": size,
        "out": str(out),
    }
    if json:
        show.as_json(record)
        return
    rows = [(source.name, source.facts.get("methods", ""), len(source.task.labels)) for source in sources]
    out_console.print(show.table(("task", "from", "outputs"), rows))
    out_console.print(Text(f"{out}: {way.name}, {record['parameters']} numbers, {size / 2**20:.2f} MiB"))


def _stated(data: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The sources of images by task."""
    found: dict[str, str] = {}
    for word in data:
        name, equals, source = word.partition("=")
        if not equals or not source:
            raise NoSuchTask(f"--data {word} names no task. Write --data NAME=SOURCE, for instance {names[0]}=photos/.")
        if name not in names:
            raise NoSuchTask(f"--data {word}: there is no task {name!r}. {nearest(name, names)}")
        found[name] = source
    return found


def _images(source: Source, where: str, model: Any) -> Samples:
    """The training images of a data set, prepared as those of the task were."""
    config = DataConfig(source=where).model_copy(update={"target": source.task.target_kind})
    stated = source.preprocessing
    preprocessing = Preprocessing.from_model(model) if stated is None else Preprocessing.model_validate(stated)
    prepared: Samples = open_data(config).train.prepared(preprocessing, source.task)
    return prepared
