"""Patch merging and norms: what the multi-task methods on Swin train beside their own layers, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import register
from .mtlora import TaskStreams


@register("merging_and_norms", category="partial", family="specification")
class MergingAndNorms(TaskStreams):
    """The maps that merge patches train, y = W [x_1, x_2, x_3, x_4], with the patch embedding, norms and bias tables.

    That is what MTLoRA and DiTASK train of the backbone itself: on Swin-T 1,548,288 numbers of W and 52,794 others,
    while DiTASK's own layers have 3,216. This baseline tells what those layers are worth, and no paper has it.
    Without patch merging, as in a plain ViT, the rest trains.
    """

    variants = ({"bias_tables": False},)

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        found = list(self.unfrozen(backbone))
        if not found:
            raise MissingPlace(
                f"{backbone.facts.architecture} has neither norms with scales of their own nor a patch embedding that"
                " could train. Biases alone are trained by BitFit."
            )
        yield from found
