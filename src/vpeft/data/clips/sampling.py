"""Which frames of a clip a model sees: rules on frame numbers alone, so that every decoder gives the same frames."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from vpeft.data.clips.clip_config import ClipConfig, Short
from vpeft.data.problems import DataError

Draw = Callable[[int], int]
"""n -> a random whole number below n."""


def drawn(below: int) -> int:
    """A random whole number from 0 to `below` - 1, from torch's own generator."""
    return int(torch.randint(below, ()))


def frame_numbers(clip: ClipConfig, frames: int, count: int, draw: Draw | None = None, part: int = 0) -> list[int]:
    """The numbers of the frames that a model sees of a clip.

    Args:
        clip: the rules.
        frames: how many are wanted.
        count: how many the clip has.
        draw: for a random choice; None chooses the same each time.
        part: which of `clip.parts` views in time; only without `draw`.

    Returns:
        `frames` numbers from 0 to `count` - 1, in order of time but for clips that repeat.

    Raises:
        DataError: the rule "all", and the clip has another number of frames.
    """
    if clip.sampling == "all":
        if count != frames:
            raise DataError(
                f"It has {count} frames, and sampling = all takes clips of just {frames}. State another number of"
                " frames, or choose sampling = dense or segments for clips of different lengths."
            )
        return list(range(count))
    if clip.sampling == "segments":
        return segments(frames, count, draw, (part + 0.5) / clip.parts)
    return dense(frames, clip.stride, count, draw, part, clip.parts, clip.short)


def dense(
    frames: int, stride: int, count: int, draw: Draw | None, part: int = 0, parts: int = 1, short: Short = "spread"
) -> list[int]:
    """Every `stride`-th frame from a start: random, or that of view `part` of `parts`, which cover the clip evenly."""
    room = count - ((frames - 1) * stride + 1)
    if room < 0:
        return _repeated(frames, stride, count, short)
    if draw is not None:
        start = draw(room + 1)
    else:
        start = room // 2 if parts == 1 else (2 * part * room + parts - 2) // (2 * (parts - 1))
    return [start + stride * number for number in range(frames)]


def segments(frames: int, count: int, draw: Draw | None, place: float = 0.5) -> list[int]:
    """One frame out of each of `frames` equal parts: at random, or at the share `place` of each part.

    A clip of fewer frames than parts gives some frames twice.
    """
    if draw is None or count < frames:
        return [min(count - 1, int((number + place) * count / frames)) for number in range(frames)]
    edges = [number * count // frames for number in range(frames + 1)]
    return [first + draw(last - first) for first, last in pairwise(edges)]


def _repeated(frames: int, stride: int, count: int, short: Short) -> list[int]:
    if short == "hold":
        return [min(number * stride, count - 1) for number in range(frames)]
    if short == "loop":
        return [number * stride % count for number in range(frames)]
    # Evenly, halves rounded down, in whole numbers: the first and the last frame are seen.
    return [(2 * number * (count - 1) + frames - 2) // (2 * max(1, frames - 1)) for number in range(frames)]
