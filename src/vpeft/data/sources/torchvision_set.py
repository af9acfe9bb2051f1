"""The classification data sets of torchvision, by name: 'torchvision:CIFAR10'. Kept in `root`, by default ./data."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torchvision.datasets

from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, Picture, SamplePicture, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest

_PREFIX = "torchvision:"
_DEFAULT_ROOT = Path("data")

# Values of `split`, best first: a set with both train and trainval gives train, and so keeps its val apart.
_SPLIT_VALUES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}

# Where the data sets keep their labels, so that listing them decodes no image.
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")
_SAMPLE_ATTRIBUTES = ("samples", "_samples", "imgs")


@source
class TorchvisionSet:
    """Any of `torchvision.datasets` that gives (image, class index)."""

    name = "torchvision"
    title = "a data set of torchvision, 'torchvision:CIFAR10'"

    def claims(self, config: DataConfig) -> Claim:
        return Claim.MARK if config.source.startswith(_PREFIX) else Claim.NONE

    def names(self) -> Iterable[str]:
        return [_PREFIX + name for name in _classes()]

    def read(self, config: DataConfig) -> Listing:
        name = config.source.removeprefix(_PREFIX)
        known = _classes()
        if name not in known:
            raise DataError(f"torchvision has no data set {name!r}. {nearest(name, known)}")
        kind = known[name]
        root = (config.root or _DEFAULT_ROOT).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        for split, arguments in _ways_to_split(kind).items():
            made = _open(kind, name, root, arguments, config.download)
            if made is not None:
                _add(listing, made, split, name)
        if not listing.whole and not listing.splits:
            raise DataError(f"torchvision's {name} states no split that vpeft knows (train, val, test).")
        return listing


def _classes() -> dict[str, Any]:
    """The data sets of torchvision that take a folder, or nothing at all, and pass on one sample at a time."""
    return {
        name: getattr(torchvision.datasets, name)
        for name in torchvision.datasets.__all__
        if inspect.isclass(getattr(torchvision.datasets, name)) and name not in ("VisionDataset", "DatasetFolder")
    }


def _ways_to_split(kind: Any) -> dict[SplitName | None, list[dict[str, Any]]]:
    """Arguments that give each split, several to be tried in turn; the key None where the set has no splits."""
    takes = inspect.signature(kind.__init__).parameters
    if "train" in takes:
        return {"train": [{"train": True}], "test": [{"train": False}]}
    for argument in ("split", "image_set"):
        if argument in takes:
            return {split: [{argument: value} for value in values] for split, values in _SPLIT_VALUES.items()}
    return {None: [{}]}


def _open(kind: Any, name: str, root: Path, ways: list[dict[str, Any]], download: bool) -> Any:
    """The data set by the first of `ways` that it knows; None when it knows none."""
    takes = inspect.signature(kind.__init__).parameters
    common: dict[str, Any] = {"root": str(root)} if "root" in takes else {}
    if download and "download" in takes:
        common["download"] = True
    for way in ways:
        try:
            return kind(**common, **way)
        except ValueError as error:
            if next(iter(way), "") and "Unknown value" in str(error):
                continue  # torchvision's complaint about a split that this set does not have
            raise DataError(f"torchvision's {name} in {root}: {error}") from error
        except TypeError as error:
            raise DataError(f"torchvision's {name} is not a classification set of one folder: {error}") from error
        except (RuntimeError, OSError) as error:
            hint = "" if download else " Allow it with download = true, or state where it is with root."
            raise DataError(f"torchvision's {name} is not in {root}: {error}{hint}") from error
    return None


def _add(listing: Listing, dataset: Any, split: SplitName | None, name: str) -> None:
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = [_text(one) for one in classes] if classes else None
    labels = _labels(dataset)
    if labels is None:
        raise DataError(f"torchvision's {name} gives no class index per image; it is not a classification set.")
    if names is not None and labels and max(labels) < len(names) and len(set(names)) == len(names):
        listing.labels = names
    else:
        names = None
    files = _files(dataset)
    prefix = f"{split}/" if split else ""
    for index, label in enumerate(labels):
        picture: Picture = FilePicture(files[index]) if files is not None else SamplePicture(dataset, index)
        text = names[label] if names is not None else str(label)
        listing.add(split, Item(f"{prefix}{index:06d}", text, picture))


def _text(name: Any) -> str:
    return name if isinstance(name, str) else ", ".join(map(str, name))


def _labels(dataset: Any) -> list[int] | None:
    """The class index of each image, without decoding where the set allows it; None where they are no integers."""
    found: Sequence[Any] | None = None
    for attribute in _LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            found = values
            break
    else:
        for attribute in _SAMPLE_ATTRIBUTES:
            values = getattr(dataset, attribute, None)
            if values is not None and len(values) == len(dataset) and len(values[0]) == 2:
                found = [label for _, label in values]
                break
    try:
        labels = found if found is not None else [dataset[index][1] for index in range(len(dataset))]
        return [int(label) for label in labels]
    except (TypeError, ValueError, IndexError):
        return None


def _files(dataset: Any) -> list[Path] | None:
    """The image files of a set that keeps (file, label) pairs or a list of files, else None."""
    for attribute in (*_SAMPLE_ATTRIBUTES, "_image_files", "_images"):
        values = getattr(dataset, attribute, None)
        if not values or len(values) != len(dataset):
            continue
        first = values[0][0] if isinstance(values[0], tuple) else values[0]
        if isinstance(first, (str, Path)):
            return [Path(value[0] if isinstance(value, tuple) else value) for value in values]
    return None
