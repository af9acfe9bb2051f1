"""A depth for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, FilePicture, Item, Picture, digest
from vpeft.data.joint import depth_transform
from vpeft.data.joint_maps import MapLayer
from vpeft.data.on_pixels import CheckDepth, CheckedTarget, OnPixels, Size
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import all_numbers, column_place
from vpeft.data.target import Given, Target, register_target

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class DepthMap(OnPixels):
    """Where a depth map is, and the factor that makes its stored numbers the unit of depth."""

    picture: Picture
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

    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at the map as deep as asked."""
        file = self.picture.file
        if file is not None and not file.is_file():
            return CheckedTarget(self, fault=("missing_depth", f"{file.name} is not there"))
        content = ""
        try:
            if depth != "none":
                content = digest(self.picture.content() + repr(self.scale).encode())
            if depth != "decode":
                return CheckedTarget(self, content)
            values = self.values()
        except (UnreadableImage, OSError) as error:
            return CheckedTarget(self, content, unreadable=f"its depth map: {error}")
        if size is not None and tuple(values.shape) != size:
            detail = f"{values.shape[1]} x {values.shape[0]} for an image of {size[1]} x {size[0]}"
            return CheckedTarget(self, content, fault=("depth_size", detail))
        if not bool(torch.isfinite(values).any()):
            return CheckedTarget(self, content, fault=("depth_value", ""))
        return CheckedTarget(self, content)


@register_target("depth")
class DepthMaps(Target):
    """A depth for each pixel; a sample carries float32 (H, W), NaN where nothing is known."""

    given = "depth maps are"
    plural = "depth maps"
    task = "depth"
    wants = "a depth map"
    on_pixels = True
    layer: ClassVar[MapLayer] = MapLayer("depth", "depth")

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        return [column_place(header, config.label_column or "depth", where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        cells = [cells[0] for _, cells in rows]
        if cells and all_numbers(cells):
            raise self.refused(f"{where}, column {names[0]!r}", "values")
        folder = config.masks or root
        return [Given("", DepthMap(FilePicture(folder / cell), config.depth_scale)) if cell else None for cell in cells]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
            array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
        if array.ndim < 3:
            raise self.refused(where, "values" if array.dtype.kind == "f" else "label")
        if array.ndim != 3 or array.dtype.kind not in "iuf":
            raise DataError(f"{where} is {array.dtype} {array.shape}; give depths of the shape (N, H, W).")
        return [Given("", DepthMap(ArrayPicture(array, index))) for index in range(len(array))]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        return ["depth"]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        """Nothing is compared: each map was looked at by itself."""

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """One group."""
        return {item.name: "" for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return labels

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Tensor]:
        return lambda item: item.target.values()

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        return depth_transform(preprocessing, training, augment=augmentation)

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["depth"]

    def cells(self, item: Item) -> list[str]:
        file = item.target.picture.file
        return ["" if file is None else file.as_posix()]
