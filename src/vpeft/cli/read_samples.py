"""Image files as samples of a task, one image in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vpeft.batch import Sample
from vpeft.cli.failure import say_warning
from vpeft.cli.loaded import Loaded
from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.data.decoding import Limits
from vpeft.data.images import UnreadableImage
from vpeft.data.preprocessing import Preprocessing


def samples_of(loaded: Loaded, images: Iterable[tuple[Path, Any]]) -> Iterator[Sample]:
    """Samples for the task of images in their own size; raises `NothingToPredict` if some are left over."""
    transform, each = loaded.task.transforms(loaded.preprocessing, "none", False), loaded.task.images_per_sample
    names: list[str] = []
    group: list[torch.Tensor] = []
    for file, image in images:
        if each == 1:
            yield loaded.task.sample_of(image, transform, str(file))
            continue
        names.append(str(file))
        group.append(transform(image))
        if len(group) == each:
            yield Sample(torch.stack(group), None, " ".join(names))
            names, group = [], []
    if group:
        raise NothingToPredict(
            f"The task {loaded.task.name} takes {each} images at a time, and {len(group)} are left over."
        )


def readable_images(
    files: Iterable[Path], preprocessing: Preprocessing, strict: bool, limits: Limits
) -> Iterator[tuple[Path, Any]]:
    """Each file with its image; one that cannot be read is skipped with a warning, or raises if `strict`."""
    for file in files:
        try:
            yield file, preprocessing.read(file, limits.max_pixels, limits.max_aspect, limits.max_mib)
        except UnreadableImage as error:
            if strict:
                raise
            say_warning(f"skipped: {error}")
