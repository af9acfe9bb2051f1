"""Arrays: an .npz with images and labels (or train_images, train_labels, val_..., test_...), or two .npy files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.images import as_eight_bits
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing, SplitName
from vpeft.data.pixels import MOST_CHANNELS, RGB, Reading, range_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Values, target_of
from vpeft.data.targets.depth import DepthMap

_PREFIXES: dict[str, SplitName | None] = {"": None, **{f"{split}_": split for split in SPLITS}}


@source
class NumpyPair:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W); labels (N,) or (N, 1), numbers or names; `classes` names them.

    Instead of labels (also `y` or `targets`): 0 and 1 (N, K) for several labels, numbers (N,) or (N, K) for values,
    class numbers (N, H, W) for masks (also `masks`), depths (N, H, W) (also `depth`). Images may be called `x`, and
    `x_train` is `train_images`.
    """

    name = "numpy"
    targets = ("label", "labels", "values", "mask", "depth")
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
        arrays = _usual_names(_arrays(config.source), config)
        listing = Listing(f"Expected: {self.title}.")
        target = target_of(config)
        # With "auto" the values stay as they are stored until the window is found.
        reading = Reading(config.channels or 3, "percentiles" if config.window == "auto" else config.window)
        classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
        if classes is None and config.label_names:
            classes = list(config.label_names)
        listing.labels = classes
        for prefix, split in _PREFIXES.items():
            if f"{prefix}images" not in arrays:
                continue
            if f"{prefix}labels" not in arrays:
                raise DataError(f"{config.source} has {prefix}images but not {prefix}labels.")
            where = f"{config.source}, {prefix}images"
            stored = arrays[f"{prefix}images"]
            images = stack(stored, where, reading)
            if reading.plain and (values := range_of(stored)) is not None:
                listing.values = values.joined(listing.values)
            given = target.of_array(arrays[f"{prefix}labels"], classes, f"{config.source}, {prefix}labels")
            if isinstance(target, Values):
                listing.labels = target.names
            given = [one._replace(value=_scaled(one.value, config)) for one in given]
            if len(images) != len(given):
                raise DataError(f"{config.source} has {len(images)} {prefix}images but {len(given)} {prefix}labels.")
            for index, (text, value) in enumerate(given):
                listing.add(split, Item(f"{prefix}images[{index}]", text, ArrayPicture(images, index), value))
        if listing.whole and listing.splits:
            raise DataError(f"{config.source} has both images and train_images; keep one kind.")
        if not listing.whole and not listing.splits:
            raise DataError(
                f"{config.source} holds {', '.join(_arrays(config.source)) or 'nothing'}. {listing.expected}"
            )
        return listing


def _scaled(value: Any, config: DataConfig) -> Any:
    return replace(value, scale=config.depth_scale) if isinstance(value, DepthMap) else value


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


def _usual_names(arrays: Mapping[str, NDArray[Any]], config: DataConfig) -> dict[str, NDArray[Any]]:
    """Arrays under the names images, labels, train_images, ...; those under other usual names are renamed."""
    own: dict[str, tuple[str, ...]] = {"mask": ("masks",), "depth": ("depth", "depths")}
    targets = (*own.get(config.target, ()), "labels", "y", "targets", *(() if config.target in own else ("values",)))
    images = ("images", "x", "X")
    found = dict(arrays)
    for prefix, split in _PREFIXES.items():
        for wanted, names in (("images", images), ("labels", targets)):
            spelt = [f"{prefix}{name}" for name in names] + ([f"{name}_{split}" for name in names] if split else [])
            used = next((name for name in spelt if name in found), None)
            if used is not None and used != f"{prefix}{wanted}":
                found[f"{prefix}{wanted}"] = found.pop(used)
        if f"{prefix}labels" not in found and f"{prefix}images" not in arrays:
            found.pop(f"{prefix}images", None)  # an x alone is no image
    return found


def stack(images: NDArray[Any], where: str, reading: Reading = RGB) -> NDArray[Any]:
    """Images of any accepted layout as (N, H, W) or (N, H, W, C).

    They become uint8 of one, three or four channels, by one range for all; or stay as they are stored where `reading`
    asks for another window or number of channels.
    """
    accepted = (1, 3, 4) if reading.plain else range(1, MOST_CHANNELS + 1)
    if images.ndim == 4:
        first, last = images.shape[1], images.shape[3]
        stated = not reading.plain and first == reading.channels != last
        if stated or (last not in accepted and first in accepted):
            images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in accepted):
        several = " For other channels state them with channels." if images.ndim == 4 and reading.plain else ""
        raise DataError(f"{where} has the shape {images.shape}; give (N, H, W), (N, H, W, 3) or (N, 3, H, W).{several}")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return as_eight_bits(images, where) if reading.plain else images
