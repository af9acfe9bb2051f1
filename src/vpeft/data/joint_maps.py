"""Transforms of an image with several maps at once, such as masks, depth and surface normals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpeft.data.joint import Fitting, Scene, Size, _Dense, _protocol, _steps
from vpeft.data.on_pixels import IGNORED
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError
from vpeft.data.steps import height_and_width

MapKind = Literal["classes", "depth", "vectors"]


@dataclass(frozen=True)
class MapLayer:
    """One of several maps of an image.

    Attributes:
        name: the key of the map in the target.
        kind: class numbers (H, W), which are 255 where there is no image; depth (H, W), which is NaN there and shrinks
            as the image is made larger; or unit vectors (3, H, W), which turn and are mirrored with the image.
    """

    name: str
    kind: MapKind

    @property
    def channels(self) -> int:
        """Numbers in each pixel."""
        return 3 if self.kind == "vectors" else 1

    def planes(self, drawn: Any, size: Size) -> Tensor:
        """The map as float (C, H, W)."""
        values = torch.as_tensor(np.asarray(drawn) if isinstance(drawn, Image.Image) else drawn).as_subclass(Tensor)
        if tuple(values.shape[-2:]) != size or values.numel() != self.channels * size[0] * size[1]:
            raise DataError(f"A map {self.name} of {tuple(values.shape)} does not lie on an image of {size}.")
        return values.float().reshape(self.channels, *size)

    def restored(self, planes: Tensor, scene: Scene) -> Tensor:
        """The map as a sample carries it, of planes that went through the steps."""
        if self.kind == "classes":
            return torch.where(torch.isfinite(planes[0]), planes[0], float(IGNORED)).long()
        if self.kind == "depth":
            return planes[0] / scene.zoom
        x, y, z = planes
        x = -x if scene.mirrored else x
        if scene.angle:
            angle = math.radians(scene.angle)
            x, y = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        return torch.stack((x, y, z))


@dataclass(frozen=True)
class MapsTransform(_Dense):
    """An image of any size and its maps by name -> the normalised image, float (C, H, W), and the maps.

    Maps take the pixel whose centre is nearest. With one layer and `alone` the target is that map and no mapping. An
    image alone gives the normalised image alone.
    """

    layers: tuple[MapLayer, ...] = ()
    alone: bool = False

    def __call__(self, image: Any, drawn: Any = None) -> Any:
        picture = self._started(image)
        if drawn is None:
            return self._finished(self._changed(Scene(picture)).image)
        named: Mapping[str, Any] = {self.layers[0].name: drawn} if self.alone else drawn
        size = height_and_width(picture)
        stack = torch.cat([layer.planes(named[layer.name], size) for layer in self.layers])
        scene = self._changed(Scene(picture, map=stack))
        assert scene.map is not None  # as given
        made, first = {}, 0
        for layer in self.layers:
            planes = self._filled(scene.map[first : first + layer.channels], math.nan)
            made[layer.name] = layer.restored(planes, scene)
            first += layer.channels
        return self._finished(scene.image), made[self.layers[0].name] if self.alone else made


def maps_transform(
    preprocessing: Preprocessing,
    training: bool,
    layers: MapLayer | Sequence[MapLayer],
    size: int | Size | None = None,
    shortest: int | Sequence[int] | None = None,
    longest: int | None = None,
    augment: str = "flip",
    fit: Fitting | None = None,
) -> MapsTransform:
    """The transform for images with several maps, or with one layer; other arguments as for `detection_transform`.

    PASCAL-Context's multi-task protocol trains with size=448, fit="squash", augment="flip+turn", NYUD's with
    augment="flip+zoom".
    """
    protocol = _protocol(preprocessing, size, shortest, longest, fit)
    steps = _steps(protocol, training, augment, preprocessing.channels)
    alone = isinstance(layers, MapLayer)
    several = (layers,) if isinstance(layers, MapLayer) else tuple(layers)
    channels, mean, std = preprocessing.channels, preprocessing.mean, preprocessing.std
    return MapsTransform(steps, channels, mean, std, protocol.size, several, alone)
