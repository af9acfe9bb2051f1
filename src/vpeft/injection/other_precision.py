"""An adapter file on the same frozen weights in another floating-point precision: recognised, and said."""

from __future__ import annotations

import math

import torch

from ..backbones import digest
from ..backbones.backbone import Backbone
from .adapter_file import Manifest

COARSE = ("float16", "bfloat16")
# Outputs of a deep model in 16 bits differ from those in 32 by some hundredths of their size.
COARSE_TOLERANCE = 0.1


class OtherPrecision(UserWarning):
    """An adapter was put on the weights that it was made on in another precision."""


def same_in_other_precision(description: Backbone, manifest: Manifest) -> bool:
    """Whether the backbone holds the weights of the file's backbone, rounded to another precision.

    The digests agree in the coarser of the two precisions. Between float16 and bfloat16, neither of which holds all
    numbers of the other, some values are compared, as far as both round them.
    """
    if not manifest.base_rounded or any(parameter.is_meta for parameter in description.root.parameters()):
        return False
    own = digest.rounded_digests(description)
    if any(own.get(kind) == value for kind, value in manifest.base_rounded.items()):
        return True
    if {digest.precision_of(description), manifest.base_precision} != set(COARSE):
        return False
    seen, saved = digest.compared_values(description), manifest.base_values
    step, least = torch.finfo(torch.bfloat16).eps, torch.finfo(torch.float16).smallest_normal
    return len(seen) == len(saved) > 0 and all(
        math.isclose(a, b, rel_tol=step, abs_tol=least * step) for a, b in zip(seen, saved, strict=True)
    )


def said(description: Backbone, manifest: Manifest, path: object) -> str:
    """The sentence for an adapter that is put on the same weights in another precision."""
    return (
        f"{path} was made on weights in {manifest.base_precision}. These are the same weights in"
        f" {digest.precision_of(description)}, so the outputs differ by rounding."
    )


def precision_hint(description: Backbone, manifest: Manifest) -> str:
    """What to do where the precisions differ and the weights could not be recognised; empty where they agree."""
    own = digest.precision_of(description)
    if manifest.base_precision in (None, own):
        return ""
    return (
        f" The file's weights are in {manifest.base_precision} and these in {own}: if the checkpoint is the same, load"
        f" it in {manifest.base_precision}, put the adapter on, and convert the result."
    )


def coarse(description: Backbone) -> bool:
    """Whether the weights are in 16 bits."""
    return digest.precision_of(description) in COARSE
