"""Arrays: an .npz with images and labels (or train_images, train_labels, val_..., test_...), or two .npy files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.images import as_eight_bits
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source

_PREFIXES: dict[str, SplitName | None] = {"": None, **{f"{split}_": split for split in SPLITS}}


@source
class NumpyPair:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W); labels (N,) or (N, 1), numbers or names; `classes` names them."""

    name = "numpy"
    title = "an .npz with images and labels (or train_images, train_labels, ...), or 'images.npy,labels.npy'"

    def claims(self, config: DataConfig) -> Claim:
        parts = config.source.split(",")
        if len(parts) == 2:
            both = all(Path(part).suffix == ".npy" and Path(part).expanduser().is_file() for part in parts)
            return Claim.MARK if both else Claim.NONE
        path = Path(config.source).expanduser()
        marked = (path.suffix == ".npz" and path.is_file()) or (path / "images.npy").is_file()
        return Claim.MARK if marked else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        arrays = _arrays(config.source)
        listing = Listing(f"Expected: {self.title}.")
        classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
        listing.labels = classes
        for prefix, split in _PREFIXES.items():
            if f"{prefix}images" not in arrays:
                continue
            if f"{prefix}labels" not in arrays:
                raise DataError(f"{config.source} has {prefix}images but not {prefix}labels.")
            where = f"{config.source}, {prefix}images"
            images = stack(arrays[f"{prefix}images"], where)
            labels = _labels(arrays[f"{prefix}labels"], classes, f"{config.source}, {prefix}labels")
            if len(images) != len(labels):
                raise DataError(f"{config.source} has {len(images)} {prefix}images but {len(labels)} {prefix}labels.")
            for index, label in enumerate(labels):
                listing.add(split, Item(f"{prefix}images[{index}]", label, ArrayPicture(images, index)))
        if listing.whole and listing.splits:
            raise DataError(f"{config.source} has both images and train_images; keep one kind.")
        if not listing.whole and not listing.splits:
            raise DataError(f"{config.source} holds {', '.join(arrays) or 'nothing'}. {listing.expected}")
        return listing


def _arrays(text: str) -> Mapping[str, NDArray[Any]]:
    parts = [Path(part).expanduser() for part in text.split(",")]
    if len(parts) == 1 and parts[0].is_dir():
        parts = [parts[0] / "images.npy", parts[0] / "labels.npy"]
    try:
        if len(parts) == 2:
            loaded = [np.load(part, allow_pickle=False) for part in parts]
            return dict(zip(("images", "labels"), loaded, strict=True))
        with np.load(parts[0], allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError) as error:
        raise DataError(
            f"{text} cannot be read: {error}. Arrays of Python objects are refused; store numbers or plain text."
        ) from error


def stack(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Images of any accepted layout and number type as uint8 (N, H, W), (N, H, W, 3) or (N, H, W, 4)."""
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DataError(f"{where} has the shape {images.shape}; give (N, H, W), (N, H, W, 3) or (N, 3, H, W).")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return as_eight_bits(images, where)


def _labels(labels: NDArray[Any], classes: list[str] | None, where: str) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where} has the shape {labels.shape}; give one label per image, (N,).")
    if labels.dtype.kind in "US":
        return [str(np.char.decode(label, "utf-8") if labels.dtype.kind == "S" else label) for label in labels]
    if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where} holds {labels.dtype}; give whole numbers or names.")
    if classes is None:
        return [str(int(label)) for label in labels]
    wrong = [int(label) for label in labels if not 0 <= label < len(classes)]
    if wrong:
        raise DataError(
            f"{where} holds {wrong[0]}, but there are {len(classes)} class names (0 to {len(classes) - 1})."
        )
    return [classes[int(label)] for label in labels]
