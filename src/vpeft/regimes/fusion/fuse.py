"""Fuse fine-tuned models of one backbone into one model with a head for each task, saved in one adapter file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.arguments import PATH, Kind, one_of, require
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import describe
from vpeft.data.used_images import UsedImages
from vpeft.injection.tuned_already import refuse_tuned
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import get_method
from vpeft.regimes.fusion.ground import Ground
from vpeft.regimes.fusion.one_head import joined_heads
from vpeft.regimes.fusion.put_on import HEAD_ONLY, put_on
from vpeft.regimes.fusion.sources import CannotFuse, Source, require_one_base, source_of
from vpeft.regimes.fusion.way import Way, make_way
from vpeft.task import Task, get_task
from vpeft.training.batches import Samples
from vpeft.training.run import USED

FUSED = "fused"
"""The name of the adapter."""
_GROUND = "ground"
_SEVERAL = "multi_task"


def fuse(
    model: nn.Module | Backbone,
    sources: Mapping[str, str | Path | nn.Module] | Sequence[str | Path],
    how: str | Way = "smile",
    *,
    data: Mapping[str, Samples] | None = None,
    tasks: Mapping[str, Task] | None = None,
    one_head: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> TunedModel:
    """Make one model out of fine-tuned ones; none is trained on, and only some ways look at images.

    Args:
        model: the pre-trained backbone that all of them come from.
        sources: for the name of each task an adapter file, of any method that can be merged, or a full fine-tuned model
            with its linear classifier, or the file of its weights. Of files alone, the names are those of the files, or
            of their folders.
        how: the way and its options, such as "ties(density=0.1)"; `vpeft fuse --help` lists them.
        data: prepared samples of each task, for ways that look at images; labels in them are not looked at.
        tasks: what a source learnt, where its file does not say.
        one_head: put the classes of all tasks into one head, for images of which nobody says the task. Otherwise there
            is a head for each task.
        out: where to save the fused adapter.
        seed: of everything that is drawn.
        workers: loading processes.
        say: is told how far a long way has got.

    Returns:
        The backbone with the fused adapter, which is on. Called on images (B, C, H, W) it gives {task: outputs}, or the
        outputs of one head.

    Raises:
        CannotFuse: the models are of different bases, cannot be folded into weights, or share class names in one head.
        NoImages: the way looks at images, and a task has none.
        UnknownWay, BadWay: there is no such way, or no such option.
    """
    require(
        "fuse(model, sources)",
        model=(model, one_of(nn.Module, Backbone, says="the pre-trained model, a torch.nn.Module")),
        sources=(sources, Kind("a mapping from names to adapter files, or a list of these", _can_be_sources)),
        how=(how, one_of(str, Way, says="the name of a way")),
        out=(out, PATH.or_none()),
    )
    way = make_way(how) if isinstance(how, str) else how
    named = sources if isinstance(sources, Mapping) else dict(zip(names_of(sources), sources, strict=True))
    if not named:
        raise CannotFuse("There is nothing to fuse: no adapter was named.")
    refuse_tuned(model.root if isinstance(model, Backbone) else model)
    base = model if isinstance(model, Backbone) else describe(model)
    require_one_base([Path(one) for one in named.values() if not isinstance(one, nn.Module)])
    read = tuple(source_of(base, name, given, (tasks or {}).get(name)) for name, given in named.items())
    return fuse_sources(base, read, way, data=data, one_head=one_head, out=out, seed=seed, workers=workers, say=say)


def _can_be_sources(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (None,)
    return all(isinstance(one, nn.Module) or PATH.fits(one) for one in parts)


def fuse_sources(
    base: Backbone,
    sources: Sequence[Source],
    way: Way,
    *,
    data: Mapping[str, Samples] | None = None,
    one_head: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> TunedModel:
    """`fuse` for sources that were read already, so that several ways need not read them again."""
    stated = common_preprocessing(sources) if out is not None else None
    shared = joined_heads(sources) if one_head else None
    heads = {source.name: source.head for source in sources}
    tuned = TunedModel(base)
    tuned.attach(get_method(HEAD_ONLY)(), name=_GROUND, head=copy.deepcopy(heads))
    tuned.eval()
    ground = Ground(tuned, tuple(sources), data or {}, seed, workers, say)
    if not ground.names:
        raise CannotFuse("None of these models changed anything of the base, so there is nothing to fuse.")
    if way.needs != "nothing":
        ground.require_images(way.name)
    if way.needs == "classes":
        ground.require_classes(way.name)
    with torch.enable_grad():  # some ways learn, also where the caller wants no gradients
        fusion = way.fuse(ground)
    head: Any = copy.deepcopy(heads) if shared is None else shared[0]
    put_on(tuned, fusion, FUSED, head)
    tuned.detach(_GROUND)
    adapter = tuned.adapter(FUSED)
    adapter.task = shared[1] if shared is not None else served_tasks(sources)
    tuned.eval()
    if out is not None:
        facts = {"how": way.name, **way.model_dump(mode="json"), **fusion.facts}
        save(tuned, sources, Path(out), stated, facts)
    return tuned


def served_tasks(sources: Sequence[Source]) -> Task:
    """The task of the fused adapter: that of each source, by its name."""
    return get_task(_SEVERAL)(parts={source.name: source.task for source in sources})


def common_preprocessing(sources: Sequence[Source]) -> dict[str, Any] | None:
    """How the images of all sources are prepared; None where no file states it.

    Raises:
        CannotFuse: they are prepared in different ways.
    """
    stated = [(source.name, dict(source.preprocessing)) for source in sources if source.preprocessing is not None]
    for name, one in stated[1:]:
        differing = sorted(key for key in {*one, *stated[0][1]} if one.get(key) != stated[0][1].get(key))
        if differing:
            raise CannotFuse(
                f"{stated[0][0]!r} and {name!r} were trained on images that are prepared in different ways"
                f" ({', '.join(differing[:4])}), and one file states one way. Train them alike."
            )
    return stated[0][1] if stated else None


def save(
    tuned: TunedModel,
    sources: Sequence[Source],
    out: Path,
    preprocessing: dict[str, Any] | None,
    facts: Mapping[str, Any],
) -> Path:
    """Write the fused adapter, with what it was made of and the images that trained its parts."""
    used: UsedImages | None = None
    for source in sources:
        if source.used is not None:
            used = source.used.joined(used)
    extra: dict[str, Any] = {"fusion": {**facts, "of": {source.name: dict(source.facts) for source in sources}}}
    if used is not None:
        extra[USED] = used.model_dump(mode="json")
    return tuned.save(out, preprocessing=preprocessing, extra=extra)


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """A name for the task of each file: the file's own, or its folder's where the files are called alike.

    Raises:
        CannotFuse: two files have one name.
    """
    files = [Path(path) for path in paths]
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [file.resolve().parent.name for file in files]
    words = ["".join(letter if letter.isalnum() else "_" for letter in name) for name in names]
    words = [word if word[:1].isalpha() else f"task_{word}" for word in words]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise CannotFuse(f"Several adapters have the name {twice[0]!r}. Name their tasks yourself: --names a,b")
    return words


def values_of(tuned: TunedModel) -> dict[str, Tensor]:
    """The parameters of the backbone as the active adapter has them, by name."""
    return {name: value.detach().clone() for name, value in tuned.backbone.named_parameters()}
