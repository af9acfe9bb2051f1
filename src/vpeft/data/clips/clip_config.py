"""How frames are chosen from a clip; one model for the command line, the recipe and the adapter file."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

Sampling = Literal["dense", "segments", "all"]
Short = Literal["spread", "hold", "loop"]
DecoderName = Literal["auto", "pyav", "torchcodec"]

# Frames of a clip where neither the user nor the backbone says a number, as VideoMAE and ViT-based models mostly take.
FRAMES = 16
# More crops or segments than published protocols take are most likely a typing error.
_MOST_VIEWS = 64


class ClipConfig(BaseModel):
    """Which frames of a video a model sees, and how often a video is looked at in a test.

    Frames are counted from 0 in the order in which they are shown; times in the file do not matter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int | None = Field(
        default=None, ge=1, le=4096, description="Frames of a clip; by default those of the backbone, otherwise 16."
    )
    stride: int = Field(default=4, ge=1, description="Take every so many frames (sampling = dense).")
    sampling: Sampling = Field(
        default="dense",
        description="dense: frames with the stride, from a random start in training and from the middle otherwise; "
        "segments: one frame out of each of as many equal parts (TSN); all: every frame of clips that have just "
        "the number of frames.",
    )
    short: Short = Field(
        default="spread",
        description="A clip that is too short for dense: its frames spread evenly, some of them twice where needed; "
        "hold: the last one repeats; loop: it begins again.",
    )
    views: str = Field(
        default="1x1",
        description="Views of a video in tests, parts in time x crops in space, such as 4x3; their probabilities are "
        "averaged. Training and validation see one.",
    )
    no_flip: tuple[str, ...] = Field(
        default=(), description="Classes whose clips are never mirrored, as those that speak of left and right."
    )
    decoder: DecoderName = Field(
        default="auto", description="What reads videos; auto takes torchcodec where it loads, otherwise PyAV."
    )

    @field_validator("views")
    @classmethod
    def _two_numbers(cls, views: str) -> str:
        found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", views)
        if found is None or int(found[1]) * int(found[2]) > _MOST_VIEWS:
            raise ValueError(f"views are parts in time x crops in space, such as 1x1, 4x3 or 10x3, not {views!r}")
        if int(found[2]) not in (1, 3):
            raise ValueError(f"a view has one crop or three, not {found[2]}")
        return views

    @property
    def parts(self) -> int:
        """Views in time."""
        return int(self.views.split("x")[0])

    @property
    def crops(self) -> int:
        """Views in space."""
        return int(self.views.split("x")[1])

    @property
    def count(self) -> int:
        """All views of a video."""
        return self.parts * self.crops

    def over(self, other: ClipConfig | None) -> Self | ClipConfig:
        """`other` with the fields that are set here."""
        if other is None:
            return self
        return other.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})
