"""What a method does to a backbone, computed from its edits, and what it keeps for backward, measured.

Everything happens on the meta device, so that a ViT-B/16 costs a second and no memory, and the figures are exact.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpeft.backbones.create import create_backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.own_model import Anatomy
from vpeft.backbones.points import MissingPlace
from vpeft.injection.merge import why_not
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import all_methods
from vpeft.training.memory import saved_bytes

from .pattern import kept_shapes, shares_tensors, trained_shapes

BACKBONES = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
FRAMES = 16  # of clips, for methods that need the axis of time: the first of `BACKBONES` then reads them one by one
BATCH = 32
CLASSES = 100
STORED = Path(__file__).with_name("properties.json")
_CHANGES = ("before", "after", "parallel", "wrap", "replace")


@dataclass(frozen=True)
class Properties:
    """One method with its default settings; each field is a name that `vpeft methods --where` knows.

    Attributes:
        name, family, category, year, venue, paper: as registered; a year that is not known is 0.
        backbone: what all the rest is about: ViT-B/16, or the first of `BACKBONES` that has the method's places; for
            methods that need clips, ViT-B/16 on 16 frames.
        places: where it acts, without the numbers of blocks: `blocks.*.attn.q`.
        reads: places whose output it reads without changing it.
        verbs: what it does there.
        parameters: trained, without the head.
        share: the same as a fraction of the backbone.
        adds_modules: some edit has a layer of its own.
        keeps_structure: once merged where that is possible, nothing new stands inside the blocks; further tokens, keys
            and values, readers on the side and changed weights are not counted as new.
        mergeable: all of it folds into the backbone's weights.
        latency: it still adds work at inference.
        reach: how far gradients travel back: "none", "from block k", "full".
        identity: before training the features are those of the frozen backbone.
        memory: bytes kept for backward at a batch of 32, relative to full fine-tuning; 1 is as much.
        trains: shapes of the tensors that train, in letters, as in `vpeft.taxonomy.pattern`: `r x D`.
        keeps: the same of the matrices that its layers keep frozen.
        shares: one tensor that trains serves several edits.
        reads_data: it looks at training images before the first step.
    """

    name: str
    family: str
    category: str
    year: int
    venue: str
    paper: str
    backbone: str
    places: tuple[str, ...]
    reads: tuple[str, ...]
    verbs: tuple[str, ...]
    parameters: int
    share: float
    adds_modules: bool
    keeps_structure: bool
    mergeable: bool
    latency: bool
    reach: str
    identity: bool
    memory: float
    trains: tuple[str, ...]
    keeps: tuple[str, ...]
    shares: bool
    reads_data: bool


@cache
def _frozen(backbone: str, described: bool = True, frames: int | None = None) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(backbone, pretrained=False, described=described, frames=frames)


def on_meta(method: Method) -> TunedModel:
    """`method` on the first of `BACKBONES` that has its places, or on the first as a reader of frames, without weights.

    Raises:
        MissingPlace: none of them has; the message is about the first.
    """
    refused: list[MissingPlace] = []
    for backbone in BACKBONES:
        try:
            return _tuned(method, backbone)
        except MissingPlace as error:
            refused.append(error)
    try:
        return _tuned(method, BACKBONES[0], frames=FRAMES)
    except MissingPlace:
        raise refused[0] from None


def _tuned(method: Method, backbone: str, anatomy: Anatomy | None = None, frames: int | None = None) -> TunedModel:
    with torch.device("meta"):
        model = copy.deepcopy(_frozen(backbone, anatomy is None, frames))
        return tune(model, method, num_classes=CLASSES, anatomy=anatomy, verify=False, show=False)


def bytes_for_backward(tuned: TunedModel) -> int:
    """What one forward pass at a batch of `BATCH` keeps for backward, in training mode; shapes decide, not values."""
    tuned.train()
    return saved_bytes(tuned, tuned.description.inputs.blank(BATCH, "meta"))


@cache
def _full(backbone: str, anatomy: Anatomy | None = None, frames: int | None = None) -> int:
    return bytes_for_backward(_tuned(all_methods()["full_finetuning"](), backbone, anatomy, frames))


def relative_memory(tuned: TunedModel, backbone: str | None = None) -> float:
    """`bytes_for_backward` relative to full fine-tuning of the same backbone, to three decimals.

    Args:
        backbone: how `tuned`'s backbone was asked for; by default by the name of its architecture.
    """
    nouns = tuned.description.anatomy
    full = _full(backbone or _architecture(tuned), None if nouns is None else Anatomy(**nouns), _frames(tuned))
    return round(bytes_for_backward(tuned) / full, 3)


def kind_of_place(name: str) -> str:
    """`blocks.*.attn.q` for `blocks.3.attn.q`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def changes_the_inside(edit: Edit, depth: int) -> bool:
    """Whether this edit leaves something new in the way of the tokens inside the blocks, even after a merge."""
    if why_not(edit) is None or not 0 <= edit.place.depth < depth:
        return False
    sees_the_map = hasattr(edit.layer, "scores") or hasattr(edit.layer, "weights")
    return edit.verb in _CHANGES or (edit.verb == "extend" and sees_the_map)


def properties_of(
    method: Method, memory: float | None = None, tuned: TunedModel | None = None, backbone: str | None = None
) -> Properties:
    """All properties of `method` as it is set; `memory` is measured unless it is given.

    Args:
        tuned: what `on_meta(method)` has made, if that is at hand, or the method on another backbone.
        backbone: how that one was asked for.
    """
    tuned = on_meta(method) if tuned is None else tuned
    plan, edits, depth = tuned.plan(), tuned.adapter("default").edits, len(tuned.description.blocks)
    read = [other.place if isinstance(other, Edit) else other for edit in edits for other in edit.reads]
    read += [edit.place for edit in edits if edit.verb == "tap"]
    return Properties(
        name=method.name,
        family=method.family,
        category=method.category,
        year=method.year or 0,
        venue=method.venue,
        paper=method.paper,
        backbone=_name(tuned),
        places=_distinct(kind_of_place(edit.place.name) for edit in edits if edit.verb != "tap"),
        reads=_distinct(kind_of_place(place.name) for place in read),
        verbs=_distinct(edit.verb for edit in edits),
        parameters=plan.trainable,
        share=round(plan.share, 6),
        adds_modules=any(edit.layer is not None for edit in edits),
        keeps_structure=not any(changes_the_inside(edit, depth) for edit in edits),
        mergeable=plan.mergeable,
        latency=not plan.mergeable,
        reach=plan.reach,
        identity=method.starts_as_identity,
        memory=relative_memory(tuned, backbone) if memory is None else memory,
        trains=trained_shapes(edits),
        keeps=kept_shapes(edits),
        shares=shares_tensors(edits),
        reads_data=method.reads_data,
    )


def _name(tuned: TunedModel) -> str:
    """The backbone as it is asked for: the model without the tag of its weights, and the frames that it reads."""
    frames = _frames(tuned)
    return _architecture(tuned) if frames is None else f"{_architecture(tuned)} on {frames} frames"


def _architecture(tuned: TunedModel) -> str:
    return tuned.description.facts.architecture.split(".")[0]


def _frames(tuned: TunedModel) -> int | None:
    """The frames that an image model reads one by one; None for any other model."""
    return tuned.description.inputs.frames if tuned.description.frames_enter is not None else None


def _distinct(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(name) for name in names))


@cache
def stored() -> dict[str, dict[str, Any]]:
    """What `tools/method_pages.py` has written for the methods of this package."""
    found: dict[str, dict[str, Any]] = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    return found


def default_memory(method: str, backbone: str) -> float | None:
    """What is stored as the relative memory of a method with default settings on `backbone`, if that is."""
    kept = stored().get(method, {})
    return float(kept["memory"]) if kept.get("backbone") == backbone.split(".")[0] else None


def default_properties(name: str) -> Properties:
    """The properties of a registered method with default settings; measured now where none are stored.

    Raises:
        UnknownMethod: with the nearest names.
    """
    from vpeft.methods import get

    kind, kept = get(name), _of_today(name)
    return properties_of(kind()) if kept is None else kept


def stored_properties() -> list[Properties]:
    """The properties of every registered method of which they are stored in today's form; nothing is measured."""
    return [kept for name in all_methods() if (kept := _of_today(name)) is not None]


def _of_today(name: str) -> Properties | None:
    kept = stored().get(name)
    if kept is None or set(kept) != {field.name for field in fields(Properties)}:
        return None
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
    return Properties(**given)
