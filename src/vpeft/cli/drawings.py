"""Pictures of predictions, one file for each image: `vpeft predict --draw`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vpeft.cli.loaded import Loaded
from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.drawing import drawn, index_picture, picture_of
from vpeft.task import Prediction


class Drawings:
    """Pictures of predictions in a folder, each named as its image.

    Args:
        folder: where they go; it is made with the first one.
        loaded: the model, whose labels name classes and whose preprocessing reads images.
    """

    def __init__(self, folder: Path, loaded: Loaded) -> None:
        self.folder, self.loaded = folder, loaded
        self._names: set[str] = set()

    def add(self, prediction: Prediction) -> None:
        """Draw one prediction; its `id` is the file of the image.

        Raises:
            NothingToPredict: the task predicts neither maps nor objects nor pictures.
        """
        found = prediction.map
        if found is None and prediction.objects is None and not prediction.pictures:
            raise NothingToPredict(
                f"The task {self.loaded.task.name} predicts neither maps nor objects, so there is nothing to draw."
            )
        name = self.name_for(Path(prediction.id))
        for shows, picture in prediction.pictures.items():
            write(picture_of(picture), self.folder / shows / f"{name}.png")
        image = as_picture(self.loaded.preprocessing.read(prediction.id))
        write(drawn(image, prediction, self.loaded.labels), self.folder / f"{name}.png")
        if found is not None and found.is_floating_point():
            write_array(found.float().numpy(), self.folder / "depth" / f"{name}.npy")
        elif found is not None:
            write(index_picture(found), self.folder / "masks" / f"{name}.png")

    def name_for(self, file: Path) -> str:
        """The name of the image's file without its ending, with those of its folders where another has the same."""
        name = file.stem
        for folder in [one.name for one in file.parents if one.name]:
            if name not in self._names:
                break
            name = f"{folder}_{name}"
        number, plain = 2, name
        while name in self._names:
            name, number = f"{plain}_{number}", number + 1
        self._names.add(name)
        return name


def as_picture(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """An image as `Preprocessing.read` gives it as uint8 (3, H, W): a tensor's first three channels, or its first."""
    if isinstance(image, Image.Image):
        pixels = np.array(image.convert("RGB"), copy=True)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return (shown.clamp(0, 1) * 255).round().byte()


def write(picture: Image.Image, path: Path) -> None:
    """Write a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_array(values: NDArray[np.float32], path: Path) -> None:
    """Write an array for numpy, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
