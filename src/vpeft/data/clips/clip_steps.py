"""Steps from a clip to the tensor of a model. Random numbers are drawn once for a clip, so all frames move alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Video

from vpeft.data.clips.clip import Clip
from vpeft.data.clips.clip_config import FRAMES, ClipConfig
from vpeft.data.clips.sampling import drawn, frame_numbers
from vpeft.data.problems import DataError
from vpeft.data.steps import Fit


class SampleFrames(nn.Module):
    """From a clip to the frames that a model sees of it, uint8 (T, 3, H, W).

    Args:
        clip: the rules.
        random: choose at random, as in training; otherwise the frames of view `part`.
        part: the view in time.
    """

    def __init__(self, clip: ClipConfig, *, random: bool, part: int = 0) -> None:
        super().__init__()
        self.clip, self.random, self.part = clip, random, part

    def forward(self, clip: Any) -> Video:
        if not isinstance(clip, Clip):
            raise DataError(
                "The backbone takes clips, and the data are images. Name videos or folders of frames, or take a"
                " backbone for images."
            )
        frames = self.clip.frames or FRAMES
        try:
            numbers = frame_numbers(self.clip, frames, clip.count, drawn if self.random else None, self.part)
        except DataError as error:
            raise DataError(f"{clip.name}: {error}") from None
        return clip.frames(numbers, self.clip.decoder)


class CropAlong(nn.Module):
    """Crop number `place` of three along the longer side: the start, the middle, the end; centred along the other."""

    random = False

    def __init__(self, size: tuple[int, int], place: int) -> None:
        super().__init__()
        self.size, self.place = size, place

    def forward(self, frames: Video) -> Video:
        spare = [side - wanted for side, wanted in zip(frames.shape[-2:], self.size, strict=True)]
        along = 0 if spare[0] > spare[1] else 1
        start = [room // 2 for room in spare]
        start[along] = (0, spare[along] // 2, spare[along])[self.place]
        made: Video = functional.crop(frames, start[0], start[1], *self.size)
        return made


class InputLayout(nn.Module):
    """Frames (T, 3, H, W) as a model takes them: (3, T, H, W), or as they are for the time axis 1 of a batch."""

    random = False

    def __init__(self, time_axis: Literal[1, 2]) -> None:
        super().__init__()
        self.time_axis = time_axis

    def forward(self, frames: Tensor) -> Tensor:
        plain = frames.as_subclass(Tensor)
        return plain.transpose(0, 1).contiguous() if self.time_axis == 2 else plain


class ClipTransform(v2.Compose):  # type: ignore[misc]
    """Steps one after the other, without the mirror for clips of the classes `no_flip`."""

    def __init__(self, steps: Sequence[nn.Module], no_flip: Sequence[str] = ()) -> None:
        super().__init__(list(steps))
        self.no_flip = frozenset(no_flip)

    def forward(self, clip: Any) -> Any:
        kept = isinstance(clip, Clip) and clip.label in self.no_flip
        for step in self.transforms:
            if not (kept and isinstance(step, v2.RandomHorizontalFlip)):
                clip = step(clip)
        return clip


def clip_fit(fit: Fit) -> Fit:
    """The fit for frames, which are tensors: they know no lanczos, box or hamming."""
    mode: Any = fit.mode_of_warps.value
    return replace(fit, interpolation=mode)


def view_steps(fit: Fit, crops: int, crop: int) -> list[nn.Module]:
    """Steps from frames of any size to view `crop` of `crops` in space; a single one is the usual centre."""
    made = clip_fit(fit)
    if crops == 1:
        return made.steps()
    # The shorter side has the size before the centre crop, whatever way of resizing images have.
    return [replace(made, resize="shorter").resized(), CropAlong(made.size, crop)]
