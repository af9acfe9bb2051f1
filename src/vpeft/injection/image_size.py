"""Errors for inputs that are no images or of a size that a backbone does not take, in place of the library's own."""

from __future__ import annotations

from typing import Any

from torch import OutOfMemoryError, Tensor

from ..arguments import WrongArgument
from ..backbones.backbone import Backbone
from ..backbones.library_create import UnsuitableSize
from ..errors import VpeftError

# What libraries raise when a table of positions, a mask or a window does not fit the images.
_OF_SIZES = (AssertionError, IndexError, RuntimeError, ValueError)
RAISED = (*_OF_SIZES, AttributeError, TypeError)  # and of inputs that are no tensors


def input_refused(description: Backbone, inputs: Any, error: Exception) -> WrongArgument | None:
    """The error that says that the inputs are no images; None where they do not explain `error`.

    Args:
        description: of the backbone that ran.
        inputs: what it was given.
        error: what the pass raised.
    """
    if isinstance(error, (VpeftError, OutOfMemoryError)) or description.host is not None:
        return None
    if description.inputs.layout not in ("images", "clips"):
        return None
    clips = description.inputs.layout == "clips"
    wanted = f"{'clips (B, C, T, H, W)' if clips else 'images (B, C, H, W)'} as a tensor of floating-point numbers"
    if not isinstance(inputs, Tensor):
        given = f"{type(inputs).__name__} is none"
    elif inputs.dim() != 4 + clips and not (clips and inputs.dim() == 4):
        given = f"a tensor of the shape {tuple(inputs.shape)} is none"
        if inputs.dim() == 3 + clips:
            given += "; images[None] is a batch of one"
    elif not inputs.is_floating_point():
        given = f"a tensor of {inputs.dtype} is none; `Preprocessing` makes them of pictures"
    else:
        return None
    return WrongArgument(f"{description.facts.architecture} takes {wanted}, and {given}.")


def size_refused(description: Backbone, size: tuple[int, ...] | None, error: Exception) -> UnsuitableSize | None:
    """The error that says that images of `size` do not fit; None where the size does not explain `error`.

    Args:
        description: of the backbone that ran.
        size: height and width of the images of the pass, or frames, height and width of its clips; None where none were
            seen.
        error: what the pass raised.
    """
    if isinstance(error, (VpeftError, OutOfMemoryError)) or not isinstance(error, _OF_SIZES):
        return None
    if description.host is not None:
        return None
    facts = description.facts
    if size is not None and len(size) == 3:
        return _clip_refused(description, size, error)
    if size is None or len(size) != 2 or size == facts.image_size:
        return None
    patch = max((place.stride for place in description.places() if place.name == "patch"), default=1)
    whole = all(side % patch == 0 for side in size)
    if facts.dynamic_size and whole:
        return None
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    if facts.dynamic_size:
        way = f"Take sides that are multiples of its patches of {patch} pixels."
    else:
        own = " x ".join(map(str, facts.image_size))
        way = (
            f"It takes {own}. Make it for this size, create_backbone(name, image_size={size}), or, where its library"
            " can, for any size, create_backbone(name, any_size=True). Libraries call these img_size=... and"
            " dynamic_img_size=True."
        )
    asked = " x ".join(map(str, size))
    return UnsuitableSize(f"{facts.architecture} does not take images of {asked} pixels: {said.rstrip('.')}. {way}")


def _clip_refused(description: Backbone, size: tuple[int, ...], error: Exception) -> UnsuitableSize | None:
    """The same for clips."""
    own = (description.inputs.frames, *description.inputs.size)
    if size == own or (size[1:] == own[1:] and description.frames_enter is not None):
        return None
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    frames, height, width = size
    way = f"create_backbone(name, frames={frames})"
    if size[1:] != own[1:]:
        way = f"create_backbone(name, image_size={size[1:]}, frames={frames})"
    return UnsuitableSize(
        f"{description.facts.architecture} does not take clips of {frames} frames of {height} x {width} pixels:"
        f" {said.rstrip('.')}. It takes {own[0]} frames of {own[1]} x {own[2]}. Make it for these: {way}."
    )
