"""Make any model read clips of T frames: a video model is fitted to the number, an image model reads each frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .describe import FramesRule, family_of
from .frame_reader import FrameReader
from .library_create import UnsuitableSize
from .positions import say


def for_clips(model: nn.Module, frames: int, rule: FramesRule = "interpolate") -> tuple[nn.Module, list[str]]:
    """Return a model that takes clips (B, C, T, H, W) of `frames` frames, and sentences on what was changed for it.

    Args:
        model: a video model, which is changed in place, or an image model, which is put into a `FrameReader`.
        frames: T.
        rule: what becomes of positions in time, where the model has a table of them: "interpolate" or "first".

    Raises:
        UnsuitableSize: the video model does not take so many frames.
        NotAFrameReader: the model is neither for clips nor for images.
    """
    if isinstance(model, FrameReader):
        model.frames = frames
        return model, []
    entry = family_of(model)
    if entry is not None and entry.fit_frames is not None:
        return model, entry.fit_frames(model, frames, rule)
    return FrameReader(model, frames), []


def steps_of(name: str, frames: int, tubelet: int) -> int:
    """Return the steps of time of clips of `frames` frames where `tubelet` frames are one step.

    Raises:
        UnsuitableSize: the frames fill no whole number of tubelets.
    """
    if frames < tubelet or frames % tubelet:
        raise UnsuitableSize(
            f"{name} puts {tubelet} frames together, so it takes {tubelet}, {2 * tubelet}, {3 * tubelet} ... frames,"
            f" not {frames}."
        )
    return frames // tubelet


def fitted_in_time(name: str, table: Tensor, steps: tuple[int, int], rule: FramesRule) -> tuple[Tensor, str]:
    """Return a table of positions (1, T * N, D), time first, for another number of steps T, and a sentence on it.

    Args:
        name: of the model, for the sentence.
        table: for `steps[0]` steps of N cells each.
        steps: of the table, and those that are wanted.
        rule: "interpolate": linearly in time, in single precision; "first": the first steps of the table.

    Raises:
        UnsuitableSize: more steps are wanted than there are, and the rule is "first".
    """
    old, new = steps
    if rule == "first":
        if new > old:
            raise UnsuitableSize(
                f"{name} has positions for {old} steps of time, and {new} are wanted; the rule 'first' cannot make"
                " more. Take the rule 'interpolate'."
            )
        sentence = f"The positions of {name} in time are the first {new} of {old} steps."
        return table[:, : table.shape[1] // old * new].clone(), sentence
    cells = table.reshape(1, old, -1, table.shape[-1])  # (1, T, N, D)
    flat = cells.permute(0, 2, 3, 1).flatten(1, 2).float()  # (1, N * D, T)
    wanted = F.interpolate(flat, size=new, mode="linear", align_corners=False).to(table.dtype)
    made = wanted.reshape(1, *cells.shape[2:], new).permute(0, 3, 1, 2).flatten(1, 2)
    return torch.clone(made, memory_format=torch.contiguous_format), say(f"{name}, in steps of time,", (old,), (new,))
