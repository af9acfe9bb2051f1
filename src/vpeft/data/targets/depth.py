"""A depth for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, Picture
from vpeft.data.joint import depth_transform
from vpeft.data.joint_maps import MapLayer
from vpeft.data.pixel_maps import PixelMap, PixelMaps
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import DataError, Kind
from vpeft.data.target import Given, register_target

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class DepthMap(PixelMap):
    """Where a depth map is, and the factor that makes its stored numbers the unit of depth."""

    called: ClassVar[str] = "depth map"
    faults: ClassVar[tuple[Kind, Kind, Kind]] = ("missing_depth", "depth_size", "depth_value")
    scale: float = 1.0

    def values(self) -> Tensor:
        """Depths float32 (H, W); NaN where nothing is known: 0, negative numbers and what is not finite.

        Raises:
            UnreadableImage: the file is damaged, or its pixels are colours.
        """
        stored = self.picture.stored()
        if (stored != stored[..., :1]).any() and not np.isnan(stored).any():
            raise UnreadableImage("it shows colours; a depth map holds one number in each pixel")
        depth = stored[..., 0].astype(np.float64) * self.scale
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
        return torch.from_numpy(depth.astype(np.float32))

    def known(self, values: Tensor) -> bool:
        """Whether any depth is known."""
        return bool(torch.isfinite(values).any())

    def stored_content(self) -> bytes:
        """The file's content with the factor, which makes other depths of it."""
        return self.picture.content() + repr(self.scale).encode()


@register_target("depth")
class DepthMaps(PixelMaps):
    """A depth for each pixel; a sample carries float32 (H, W), NaN where nothing is known."""

    given = "depth maps are"
    plural = "depth maps"
    task = "depth"
    wants = "a depth map"
    column = "depth"
    one = DepthMap
    names = ("depth",)
    layer: ClassVar[MapLayer] = MapLayer("depth", "depth")

    def made(self, picture: Picture, config: DataConfig | None = None) -> DepthMap:
        return DepthMap(picture, 1.0 if config is None else config.depth_scale)

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
            array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
        if array.ndim < 3:
            raise self.refused(where, "values" if array.dtype.kind == "f" else "label")
        if array.ndim != 3 or array.dtype.kind not in "iuf":
            raise DataError(f"{where} is {array.dtype} {array.shape}; give depths of the shape (N, H, W).")
        return [Given("", self.made(ArrayPicture(array, index))) for index in range(len(array))]

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        return depth_transform(preprocessing, training, augment=augmentation)
