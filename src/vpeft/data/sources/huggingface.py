"""Data sets of the Hugging Face library: 'hf:beans' from the hub, 'hf:owner/name:configuration', or one saved to disk.

Images stay encoded until they are needed and are decoded by vpeft, so that the rules of `images.py` hold for them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpeft.data.config import DataConfig
from vpeft.data.items import Item, Listing, SamplePicture, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest, need_extra

_PREFIX = "hf:"

# What `save_to_disk` leaves in the folder of several splits, and of one.
_MARKS = ("dataset_dict.json", "state.json")


@source
class HuggingFace:
    """The image column is the one of type Image, the label column the one of type ClassLabel, unless stated."""

    name = "hf"
    title = "a data set of Hugging Face, 'hf:owner/name', or a folder that its save_to_disk made"

    def claims(self, config: DataConfig) -> Claim:
        marked = config.source.startswith(_PREFIX) or _is_saved(Path(config.source).expanduser())
        return Claim.MARK if marked else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        library = need_extra("datasets", "hf")
        listing = Listing(f"Expected: {self.title}.")
        loaded = _load(library, config)
        splits = loaded if isinstance(loaded, Mapping) else {"": loaded}
        for word, dataset in splits.items():
            split = split_of(word)
            if split is None and len(splits) > 1:
                listing.problems.add("ignored", f"split {word!r}", "none of train, val, test")
                continue
            # A lone split of any name is the whole, unless it is a split for testing only.
            alone = split is None or (len(splits) == 1 and split == "train")
            _add(library, listing, dataset, None if alone else split, config)
        return listing


def _is_saved(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _MARKS)


def _load(library: Any, config: DataConfig) -> Any:
    text = config.source.removeprefix(_PREFIX)
    path = Path(text).expanduser()
    try:
        if _is_saved(path):
            return library.load_from_disk(str(path))
        name, _, configuration = text.partition(":")
        cache = str(config.root.expanduser()) if config.root else None
        return library.load_dataset(name, configuration or None, cache_dir=cache)
    except Exception as error:  # the library and its transports raise too many kinds to list
        raise DataError(
            f"Hugging Face cannot give {text!r}: {type(error).__name__}: {error}. "
            "Check the name and the network, or give a folder made by its save_to_disk."
        ) from error


def _add(library: Any, listing: Listing, dataset: Any, split: Any, config: DataConfig) -> None:
    image = _column(dataset, config.image_column, library.Image, "image_column")
    label = _column(dataset, config.label_column, library.ClassLabel, "label_column")
    feature = dataset.features[label]
    names = list(feature.names) if isinstance(feature, library.ClassLabel) else None
    if names is not None:
        listing.labels = names
    if isinstance(dataset.features[image], library.Image):
        dataset = dataset.cast_column(image, library.Image(decode=False))
    prefix = f"{split}/" if split else ""
    for index, value in enumerate(dataset[label]):
        name = f"{prefix}{index:06d}"
        if value is None or value == -1:  # the library's mark for a label that is kept back
            listing.problems.add("unlabelled", name)
            continue
        text = names[value] if names is not None else str(value)
        listing.add(split, Item(name, text, SamplePicture(dataset, index, image)))


def _column(dataset: Any, stated: str | None, kind: Any, option: str) -> str:
    """The column that is stated, or the only one of this kind, or the only one of the kind's usual name."""
    columns = list(dataset.features)
    if stated is not None:
        if stated not in columns:
            raise DataError(f"There is no column {stated!r}. {nearest(stated, columns)}")
        return stated
    fitting = [column for column in columns if isinstance(dataset.features[column], kind)]
    if not fitting:
        fitting = [column for column in columns if column == option.removesuffix("_column")]
    if len(fitting) != 1:
        what = "Several columns" if fitting else "No column"
        shown = ", ".join(fitting or columns)
        raise DataError(f"{what} can be the {option}: {shown}. State it with {option}.")
    return str(fitting[0])
