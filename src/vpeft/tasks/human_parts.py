"""A part of the body for each pixel."""

from __future__ import annotations

from typing import ClassVar

from ..task import TargetKind, register_task
from .semantic_segmentation import SemanticSegmentation


@register_task("human_parts", short="parts")
class HumanParts(SemanticSegmentation):
    """The part of a body that each pixel shows, or the background: as semantic segmentation, of maps of parts.

    A picture without people has 255 at every pixel, so that it counts nowhere.
    """

    target_kind: ClassVar[TargetKind] = "parts"
