"""Frames by torchcodec, where it loads: it needs the libraries of FFmpeg on the machine, which its package lacks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vpeft.data.clips.video_file import UnreadableClip, VideoFacts


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Why torchcodec cannot be used here, in a few words; None if it can."""
    try:
        importlib.import_module("torchcodec.decoders")
    except ModuleNotFoundError:
        return "torchcodec is not installed"
    except Exception as error:  # it raises RuntimeError with the search for every version of FFmpeg
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"torchcodec does not load: {first[:120]}"
    return None


def suits(facts: VideoFacts) -> bool:
    """Whether torchcodec gives the frames of this video as `read_frames` does: it has its own rules for rotation."""
    return facts.exact and not facts.rotation and not facts.cut


def read_frames(file: IO[bytes], numbers: Sequence[int], facts: VideoFacts) -> NDArray[np.uint8]:
    """Frames by number as RGB, uint8 (len(numbers), H, W, 3); see `video_file.read_frames`."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    file.seek(0)
    try:
        decoder = decoders.VideoDecoder(file, dimension_order="NHWC", seek_mode="exact")
        made: NDArray[np.uint8] = decoder.get_frames_at(list(numbers)).data.numpy()
    except Exception as error:  # its C++ part raises RuntimeError, IndexError and ValueError
        raise UnreadableClip(f"torchcodec cannot decode it: {error}") from error
    if made.shape != (len(numbers), *facts.size, 3):
        raise UnreadableClip(f"torchcodec gives frames {made.shape[1:3]} where PyAV gives {facts.size}")
    return made
