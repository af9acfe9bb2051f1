"""Where a backbone came from: enough to make it again, kept on the model and in adapter files."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from .weights import Difference

ATTRIBUTE = "made_from"


class Origin(BaseModel):
    """How `create_backbone` made a model.

    Attributes:
        name: the name that it was given.
        pretrained: whether the library's own weights were loaded.
        weights: the file of weights that was loaded instead, as it was named; None for none.
        weights_sha256: its checksum.
        prefix: what the file's keys start with.
        allow: which differences between file and model were accepted.
        image_size: height and width in pixels that were asked for; None for the model's own.
        any_size: whether it was made so that it takes images of any size, where the library can.
        channels: of the images that were asked for; None for those of the weights.
        frames: of clips that were asked for; None where none were.
        frames_rule: how positions in time were fitted to them.
        channels_rule: how the first convolution was adapted to them.
        fresh: names of modules whose weights were made anew for them, so that they train beside every adapter.
        seed: of random weights, where it is known.
        notes: sentences on what was resized or left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pretrained: bool = True
    weights: str | None = None
    weights_sha256: str | None = None
    prefix: str = ""
    allow: tuple[Difference, ...] = ()
    image_size: tuple[int, int] | None = None
    any_size: bool = False
    channels: int | None = None
    channels_rule: Literal["repeat", "mean", "new"] = "repeat"
    frames: int | None = None
    frames_rule: Literal["interpolate", "first"] = "interpolate"
    fresh: tuple[str, ...] = ()
    seed: int | None = None
    notes: tuple[str, ...] = ()


def origin_of(model: nn.Module) -> Origin | None:
    """How the model was made, if `create_backbone` made it."""
    found = model.__dict__.get(ATTRIBUTE)
    return found if isinstance(found, Origin) else None


def remember(model: nn.Module, origin: Origin) -> None:
    """Keep on the model how it was made."""
    model.__dict__[ATTRIBUTE] = origin
