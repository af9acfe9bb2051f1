"""Any image model as a reader of frames: the places of the image model, at which all frames pass as one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone
from ..describe import describe, family
from ..frame_reader import frame_features, image_classifier
from ..inputs import InputSpec
from ..points import Point


@family("frame_reader", "vpeft.backbones.frame_reader.FrameReader")
def describe_frames(model: nn.Module) -> Backbone:
    """An image model that reads clips frame by frame, with shared weights and the mean over time."""
    reader: Any = model
    inner = describe(reader.image_model)
    norm = inner.norm if inner.has_norm else None
    known = {id(place) for place in (inner.pixels, inner.trunk, *inner.stages, norm, inner.outlet, inner.logits)}
    others = [place for place in inner.whole.parts.values() if id(place) not in known]
    channels = inner.inputs.channels
    return Backbone(
        module=model,
        facts=replace(inner.facts, family="frame_reader"),
        pixels=outline.pixels(Point(reader.images, "input"), channels),
        trunk=inner.trunk,
        stages=inner.stages,
        norm=norm,
        others=[outline.clips(Point(reader.clips, "input"), channels), *others],
        pooled=frame_features,
        classifier=image_classifier,
        end=inner._end,
        end_layout=inner._end_layout,
        unused=inner.unused,
        inputs=InputSpec(
            inner.inputs.size, inner.inputs.channels, layout="clips", names=("clips",), frames=reader.frames
        ),
        no_tokens=inner.trunk.refusals.get("insert_tokens", ""),
        frames_enter=reader.apart,
    )
