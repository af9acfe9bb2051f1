"""Images among which the nearest to others are looked for: `vpeft predict --gallery`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vpeft.batch import Batch
from vpeft.cli.drawings import Drawings, as_picture, write
from vpeft.cli.flags import Switch
from vpeft.cli.loaded import Loaded
from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.cli.read_samples import readable_images, samples_of
from vpeft.data.decoding import Limits
from vpeft.drawing import panel, picture_of
from vpeft.task import Prediction, Task

# How many of the gallery's images a picture shows, at most.
SHOWN = 8


class Gallery:
    """The model's outputs for the images of a gallery.

    Where the images lie in several folders, the name of its folder is the label of each.

    Args:
        loaded: the model.
        files: the gallery's images.
        batch: images per pass.
        strict: raise at the first file that is no image, instead of skipping it with a warning.
        limits: of what is read.

    Raises:
        NoGallery: the task does not compare images.
        NothingToPredict: none of the files is an image, or the task's samples have several images.
    """

    def __init__(self, loaded: Loaded, files: Sequence[Path], *, batch: int, strict: Switch, limits: Limits) -> None:
        self.loaded, self.batch, self.strict, self.limits = loaded, batch, strict, limits
        if type(loaded.task).nearest is Task.nearest:
            loaded.task.nearest(None, Batch(()), None, (), 0)  # says so, before images are read
        self.names: list[str] = []
        found: list[Tensor] = []
        for outputs, some in self._outputs(files):
            found.append(outputs)
            self.names += some.ids
        if not found:
            raise NothingToPredict(f"None of the {len(files)} files of the gallery could be read as an image.")
        self.outputs = torch.cat(found)
        folders = {name: Path(name).parent.name for name in self.names}
        self.labels = folders if len({Path(name).parent for name in self.names}) > 1 else {}

    def _outputs(self, files: Iterable[Path]) -> Iterator[tuple[Tensor, Batch]]:
        images = readable_images(files, self.loaded.preprocessing, self.strict, self.limits)
        samples = samples_of(self.loaded, images)
        while chunk := list(islice(samples, self.batch)):
            yield self.loaded.outputs(chunk)

    def nearest(self, files: Iterable[Path], top: int) -> Iterator[Prediction]:
        """For each image the `top` nearest of the gallery, with the labels that their folders give."""
        for outputs, batch in self._outputs(files):
            for one in self.loaded.task.nearest(outputs, batch, self.outputs, self.names, top):
                yield replace(one, rows=tuple(self._labelled(row) for row in one.rows))

    def _labelled(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        label = self.labels.get(str(row["image"]))
        return row if label is None else {"image": row["image"], "label": label, **row}

    def drawn(self, found: Iterable[Prediction], folder: Path | None) -> Iterator[Prediction]:
        """The predictions as they are; each is drawn on the way, the image first and the nearest beside it.

        Args:
            found: predictions of `nearest`.
            folder: where the pictures go; None draws nothing.
        """
        names = None if folder is None else Drawings(folder, self.loaded)
        for one in found:
            if folder is not None and names is not None:
                rows = one.rows[:SHOWN]
                titles = [" ".join((f"{row['similarity']:.3f}", str(row.get("label", "")))) for row in rows]
                pictures = [self._picture(str(name)) for name in (one.id, *(row["image"] for row in rows))]
                made = panel([(one.id, pictures)], ["looked for", *titles])
                write(made, folder / f"{names.name_for(Path(one.id))}.png")
            yield one

    def _picture(self, name: str) -> Image.Image:
        return picture_of(as_picture(self.loaded.preprocessing.read(name)))
