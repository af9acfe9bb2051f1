"""Several maps of each image: `target = "mask+depth+normals"`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import Item
from vpeft.data.joint_maps import MapLayer, maps_transform
from vpeft.data.on_pixels import CheckDepth, CheckedTarget, OnPixels, Size
from vpeft.data.problems import DataError, Problems
from vpeft.data.target import JOIN, Given, Target, joins_kinds

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class SeveralMaps(OnPixels):
    """The maps of one image by their kind, and how many classes the source names for each."""

    parts: Mapping[TargetName, OnPixels]
    classes: Mapping[TargetName, int | None]

    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at each map; the first fault is that of all."""
        looked = {kind: one.checked(depth, size, self.classes.get(kind)) for kind, one in self.parts.items()}
        for one in looked.values():
            if one.fault is not None or one.unreadable:
                return one
        content = "".join(one.content for one in looked.values())
        return CheckedTarget(
            replace(self, parts={kind: one.target for kind, one in looked.items()}),
            hashlib.sha256(content.encode()).hexdigest() if content else "",
            notes=tuple(note for one in looked.values() for note in one.notes),
        )


@joins_kinds
class Several(Target):
    """Several maps of each image; a sample carries a mapping from the kind to the map.

    Labels are those of each kind behind its name, `mask/floor`.

    Raises:
        DataError: a kind does not lie on the pixels of an image.
    """

    given = "several maps are"
    plural = "several maps"
    wants = "several maps"
    task = "multi_task"
    on_pixels = True

    def __init__(self, kinds: Sequence[Target]) -> None:
        self.kinds = {kind.name: kind for kind in kinds}
        self.name = JOIN.join(self.kinds)  # type: ignore[misc]
        flat = [kind for kind in kinds if not kind.on_pixels or kind.name == "objects"]
        if flat:
            raise DataError(f"{flat[0].name} is no map, so it cannot be read together with others: {self.name}.")

    def _of(self, items: Iterable[Item], kind: str) -> list[Item]:
        return [replace(item, target=item.target.parts[kind]) for item in items]

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        raise DataError(f"{where}: several maps are read from a folder for each kind, or from a named data set.")

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        raise DataError(f"{where}: several maps are read from a folder for each kind, or from a named data set.")

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        raise DataError(f"{where} is one array; several maps are read from a folder for each kind.")

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        found = []
        for kind, one in self.kinds.items():
            own = [name.removeprefix(f"{kind}/") for name in stated or () if name.startswith(f"{kind}/")]
            found += [f"{kind}/{name}" for name in one.labels(self._of(items, kind), own or None)]
        return found

    def _own(self, labels: Iterable[str], kind: str) -> list[str]:
        return [name.removeprefix(f"{kind}/") for name in labels if name.startswith(f"{kind}/")]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        named = list(stated)
        for kind, one in self.kinds.items():
            of_kind = {split: self._of(items, kind) for split, items in splits.items()}
            one.compare(of_kind, self._own(labels, kind), self._own(named, kind), problems)

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """One group."""
        return {item.name: "" for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return [
            f"{kind}/{name}"
            for kind, one in self.kinds.items()
            for name in one.of_item(replace(item, target=item.target.parts[kind]), self._own(labels, kind))
        ]

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], dict[str, Any]]:
        encoders = {kind: one.encoder(self._own(labels, kind)) for kind, one in self.kinds.items()}
        return lambda item: {
            kind: encode(replace(item, target=item.target.parts[kind])) for kind, encode in encoders.items()
        }

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        layers = [getattr(one, "layer", MapLayer(kind, "classes")) for kind, one in self.kinds.items()]
        return maps_transform(preprocessing, training, layers, augment=augmentation)

    def untransformed(self, drawn: Any, size: tuple[int, int]) -> Any:
        return {kind: self.kinds[kind].untransformed(one, size).as_subclass(Tensor) for kind, one in drawn.items()}

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return [column for one in self.kinds.values() for column in one.list_columns([])]

    def cells(self, item: Item) -> list[str]:
        return [
            cell
            for kind, one in self.kinds.items()
            for cell in one.cells(replace(item, target=item.target.parts[kind]))
        ]
