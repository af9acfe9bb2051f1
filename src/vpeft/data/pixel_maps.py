"""What kinds of maps besides masks have in common: how tables and arrays give them, and what is looked at."""

from __future__ import annotations

from abc import abstractmethod
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
from vpeft.data.joint_maps import MapLayer, maps_transform
from vpeft.data.on_pixels import CheckDepth, CheckedTarget, OnPixels, Size
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import DataError, Kind, Problems
from vpeft.data.table_cells import all_numbers, column_place
from vpeft.data.target import Given, Target

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class PixelMap(OnPixels):
    """Where a map is.

    Class attributes:
        called: what it is, for messages.
        faults: what a file that is not there, another size and a map without anything are counted as.
    """

    called: ClassVar[str] = "map"
    faults: ClassVar[tuple[Kind, Kind, Kind]] = ("missing_mask", "mask_size", "mask_value")
    picture: Picture

    @abstractmethod
    def values(self) -> Tensor:
        """What a sample carries, (H, W) or (C, H, W). Raises `UnreadableImage`."""

    def known(self, values: Tensor) -> bool:
        """Whether anything in the map counts."""
        return True

    def stored_content(self) -> bytes:
        """What the map is made of, for its digest."""
        return self.picture.content()

    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at the map as deep as asked."""
        file = self.picture.file
        if file is not None and not file.is_file():
            return CheckedTarget(self, fault=(self.faults[0], f"{file.name} is not there"))
        content = ""
        try:
            if depth != "none":
                content = digest(self.stored_content())
            if depth != "decode":
                return CheckedTarget(self, content)
            values = self.values()
        except (UnreadableImage, OSError) as error:
            return CheckedTarget(self, content, unreadable=f"its {self.called}: {error}")
        if size is not None and tuple(values.shape[-2:]) != size:
            detail = f"{values.shape[-1]} x {values.shape[-2]} for an image of {size[1]} x {size[0]}"
            return CheckedTarget(self, content, fault=(self.faults[1], detail))
        if not self.known(values):
            return CheckedTarget(self, content, fault=(self.faults[2], "nothing in it counts"))
        return CheckedTarget(self, content)


@dataclass(frozen=True, slots=True)
class BinaryMap(PixelMap):
    """A map of two values: 0 and 1, or dark and light, of which what is above the middle is light."""

    def values(self) -> Tensor:
        """0 and 1, int64 (H, W).

        Raises:
            UnreadableImage: the file is damaged, or its pixels are colours.
        """
        stored = self.picture.stored()
        if (stored != stored[..., :1]).any():
            raise UnreadableImage("it shows colours; a map of two values holds one number in each pixel")
        one = stored[..., 0]
        top = 1.0 if one.dtype.kind in "bf" or not one.size or one.max() <= 1 else float(np.iinfo(one.dtype).max)
        return torch.from_numpy((one.astype(np.float64) > 0.5 * top).astype(np.int64))


class PixelMaps(Target):
    """A map for each image, from files or arrays.

    Class attributes:
        column: of a table, which holds the files.
        one: makes the map of a picture.
        names: of the outputs, as labels.
        layer: how the map goes through transforms.
    """

    column: ClassVar[str]
    one: ClassVar[type[PixelMap]]
    names: ClassVar[tuple[str, ...]]
    layer: ClassVar[MapLayer]
    on_pixels = True

    def made(self, picture: Picture, config: DataConfig | None = None) -> PixelMap:
        """The map that a picture stores; the configuration is that of a table's data set."""
        return type(self).one(picture)

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        return [column_place(header, config.label_column or self.column, where)]

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
        return [Given("", self.made(FilePicture(folder / cell), config)) if cell else None for cell in cells]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        channels = self.layer.channels
        fits = array.ndim == 4 and array.shape[3] == channels if channels > 1 else array.ndim == 3
        if not fits or array.dtype.kind not in "biuf":
            shape = f"(N, H, W, {channels})" if channels > 1 else "(N, H, W)"
            raise DataError(f"{where} is {array.dtype} {array.shape}; give {self.plural} of the shape {shape}.")
        return [Given("", self.made(ArrayPicture(array, index))) for index in range(len(array))]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        return list(self.names)

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
        return maps_transform(preprocessing, training, self.layer, augment=augmentation)

    def untransformed(self, drawn: Any, size: tuple[int, int]) -> Any:
        return drawn.as_subclass(Tensor)

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return [self.column]

    def cells(self, item: Item) -> list[str]:
        file = item.target.picture.file
        return ["" if file is None else file.as_posix()]
