"""Labelled images as a torch data set; every item is a function of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vpeft.batch import Sample, as_sample
from vpeft.data.clips.clip import Clip, as_tensor
from vpeft.data.config import TargetName, Window
from vpeft.data.images import UnreadableImage, as_eight_bits
from vpeft.data.items import ArrayPicture, Item, in_order
from vpeft.data.pixels import MOST_CHANNELS, RGB, Reading
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError
from vpeft.data.target import Target, target_of
from vpeft.errors import nearest

if TYPE_CHECKING:
    from vpeft.task import Task

Transform = Callable[..., Any]
"""An image -> a tensor; if the target lies on the pixels, (image, target) -> both."""


class DecodedImages:
    """A cache of decoded images by name. It stops adding images when `limit` bytes are used.

    Images are kept as uint8 (H, W, 3), or as float (C, H, W) for other numbers of channels; clips as uint8
    (T, H, W, 3), all frames. If it is filled before data-loading processes start, they share its memory (fork).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._pixels: dict[str, NDArray[Any] | Tensor | Clip] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def get(self, name: str) -> Image.Image | Tensor | Clip | None:
        """Return the image or clip of this name, if it is in the cache."""
        pixels = self._pixels.get(name)
        return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels

    def keep(self, name: str, image: Image.Image | Tensor | Clip) -> None:
        """Add `image` if there is room; of a clip, decode all frames."""
        pixels = image if isinstance(image, Tensor | Clip) else np.asarray(image)
        if name not in self._pixels and self.used + pixels.nbytes <= self.limit:
            self._pixels[name] = pixels.loaded() if isinstance(pixels, Clip) else pixels
            self.used += pixels.nbytes


class ImageSet(Dataset[Sample]):
    """Images with targets: `set[i]` is a `Sample` (image, target) whose `id` is the image's name.

    With a transform, the image is the transform's result, float (C, H, W). Without one, it is uint8 (3, H, W) in its
    own size, or float (C, H, W) in [0, 1] for another number of channels. The target depends on its kind: the index of
    the label in `labels`; a float vector (K,) of 0 and 1, or of values; class numbers int64 (H, W), transformed with
    the image.

    Random transforms use a generator seeded by (seed, epoch, i), and torch's own generator does not change. So an epoch
    has the same tensors for any number of workers and any order of access. Call `set_epoch` before each epoch.
    """

    def __init__(
        self,
        items: Sequence[Item],
        labels: Sequence[str],
        *,
        transform: Transform | None = None,
        seed: int = 0,
        cache: DecodedImages | None = None,
        target: Target | TargetName = "label",
        reading: Reading = RGB,
    ) -> None:
        self.target = target_of(target) if isinstance(target, str) else target
        unknown = in_order({label for item in items for label in self.target.of_item(item, labels)} - set(labels))
        if unknown:
            raise DataError(
                f"Labels {', '.join(map(repr, unknown[:5]))} are in the data but not among the {len(labels)} known "
                f"ones ({', '.join(map(repr, list(labels)[:5]))}{', ...' if len(labels) > 5 else ''})."
            )
        self.items = tuple(items)
        self.labels = list(labels)
        self._targets: list[Any] | None = None
        if not self.target.on_pixels:
            encode = self.target.encoder(labels)
            self._targets = [encode(item) for item in items]
        self.transform = transform
        self.seed = seed
        self.cache = cache
        self.reading = reading
        # In shared memory, so that data-loading processes which outlive an epoch see the next one.
        self._epoch = _shared_counter()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def targets(self) -> Sequence[Any]:
        """The target of each sample, in order; those on pixels are read and transformed at each access."""
        return TransformedTargets(self) if self._targets is None else self._targets

    @property
    def labels_present(self) -> list[str]:
        """The labels that this split has, if the splits differ in labels."""
        there = {label for item in self.items for label in self.target.of_item(item, self.labels)}
        return [label for label in self.labels if label in there]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self.items))[index]
        image, drawn = self.image(index), self.drawn(index)
        name = self.items[index].name
        if self.transform is None:
            if isinstance(image, Clip):
                image = as_tensor(image)
            elif not isinstance(image, Tensor):
                image = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            if drawn is not None:
                return Sample(image, self.target.untransformed(drawn, (image.shape[-2], image.shape[-1])), name)
            return Sample(image, self.targets[index], name)
        # Only the CPU generator: torch.manual_seed would also rewind the accelerator's, hence dropout.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(_mix(self.seed, int(self._epoch), index))
        try:
            if drawn is None:
                return Sample(self.transform(image), self.targets[index], name)
            seen, target = self.transform(image, drawn)
            return Sample(seen, _plain(target), name)
        finally:
            generator.set_state(state)

    def image(self, index: int) -> Any:
        """Return image `index` in its own size: RGB, or a float tensor (C, H, W) for other numbers of channels.

        Of a source of clips, return a `Clip`, whose frames are decoded when they are asked for.

        Raises:
            DataError: the file cannot be read any more.
        """
        item = self.items[index]
        if self.cache is not None and (kept := self.cache.get(item.name)) is not None:
            return kept
        try:
            image: Any = item.picture.decode(reading=self.reading)
        except UnreadableImage as error:
            raise _changed_since(error) from error
        if isinstance(image, Clip):
            image = replace(image, label=item.label)
        if self.cache is not None:
            self.cache.keep(item.name, image)
            if isinstance(image, Clip):
                return self.cache.get(item.name) or image
        return image

    def drawn(self, index: int) -> Any:
        """Return the target on the pixels of image `index` in its own size; None if the target is not on pixels.

        It is a mask int64 (H, W) (`torchvision.tv_tensors.Mask`), `ImageObjects`, or a depth map float32 (H, W).

        Raises:
            DataError: a file cannot be read any more.
        """
        if not self.target.on_pixels:
            return None
        item = self.items[index]
        try:
            return self.target.encoder(self.labels)(item)
        except UnreadableImage as error:
            raise _changed_since(UnreadableImage(f"the {self.target.name} of {item.name}: {error}")) from error

    def path(self, index: int) -> str:
        """Return the source of image `index`: its file, or its name within the source."""
        return self.items[index].where

    def counts(self) -> dict[str, int]:
        """Return the number of images per label, zeros included; for values, the images that have each."""
        return self.target.counts(self.items, self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose random numbers the transforms use, in data-loading processes too."""
        self._epoch.fill_(epoch)

    def with_transform(self, transform: Transform | None) -> Self:
        """Return a set of the same images, sharing memory, with another transform."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.transform = transform
        twin._epoch = _shared_counter()
        return twin

    def prepared(self, preprocessing: Preprocessing, task: Task | None = None) -> Self:
        """Return a set of the same images with the channels, window and plain transform of `preprocessing`.

        The transform is that of the task, if there is one.
        """
        twin = self.with_transform((self.target if task is None else task).transforms(preprocessing, "none", False))
        old = self.reading
        reading = preprocessing.reading(old.max_pixels, old.max_aspect, old.max_mib)
        if reading != self.reading:
            twin.cache = None if self.cache is None else DecodedImages(self.cache.limit)
            twin.reading = reading
        return twin

    def contents_digest(self) -> str:
        """The sha256 of the contents of all images, whatever their names and their order; it reads each file."""
        contents = sorted(hashlib.sha256(item.picture.content()).hexdigest() for item in self.items)
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order, with the same labels and transform."""
        return self._of([self.items[index] for index in indices], self.labels)

    def relabelled(self, labels: Sequence[str]) -> ImageSet:
        """Return the same images with targets for another list of labels; `DataError` for a missing label."""
        return self._of(self.items, labels)

    def _of(self, items: Sequence[Item], labels: Sequence[str]) -> ImageSet:
        return ImageSet(
            items,
            labels,
            transform=self.transform,
            seed=self.seed,
            cache=self.cache,
            target=self.target,
            reading=self.reading,
        )


def matched(images: Any, labels: Sequence[str]) -> Any:
    """Return the set with its targets in the order of `labels`, matched by name.

    Args:
        images: an `ImageSet`, or another data set of (image, class index) with class names in `labels` or `classes`, as
            torchvision's have. It may have fewer labels, in another order, as a separate validation folder can. A set
            without names is returned unchanged.
        labels: those of the training images or of a trained model.

    Raises:
        DataError: images have labels that are not in `labels`; or names of values or mask classes differ.
    """
    names = getattr(images, "labels", None) or getattr(images, "classes", None)
    if not isinstance(names, list | tuple) or list(names) == list(labels):
        return images
    kind = images.target.name if isinstance(images, ImageSet) else "label"
    carried = list(names) if kind in ("values", "mask", "depth") else _present(images, names)
    unknown = [label for label in carried if label not in set(labels)]
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"The images carry labels that the training images do not have: {shown}. "
            f"{nearest(str(unknown[0]), [str(label) for label in labels])} Rename them, or leave out those images."
        )
    if kind in ("values", "mask", "depth"):
        raise DataError(
            f"The targets are named {', '.join(names)} here and {', '.join(labels)} in training; "
            "give them the same names."
        )
    if not isinstance(images, ImageSet):
        return Renumbered(images, names, labels)
    made = images.relabelled(labels)
    made.set_epoch(int(images._epoch))
    return made


def _present(images: Any, names: Sequence[str]) -> list[str]:
    """Return the labels that the images have; all labels if another library's set does not list its targets."""
    if isinstance(images, ImageSet):
        return images.labels_present
    targets = getattr(images, "targets", None)
    if targets is None or len(targets) != len(images):
        return list(names)
    seen = {int(target) for target in targets}
    return [name for number, name in enumerate(names) if number in seen]


class Renumbered(Dataset[Any]):
    """Another library's data set of (image, class index), with the indices of another list of labels."""

    def __init__(self, images: Any, names: Sequence[str], labels: Sequence[str]) -> None:
        self.images, self.labels = images, list(labels)
        self._number = {old: self.labels.index(name) for old, name in enumerate(names) if name in self.labels}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> list[int]:
        """The class index of each image."""
        listed = getattr(self.images, "targets", None)
        if listed is None:
            return [self[index].target for index in range(len(self))]
        return [self._number[int(target)] for target in listed]

    def __getitem__(self, index: int) -> Sample:
        sample = as_sample(self.images[index])
        return Sample(sample.input, self._number[int(sample.target)], sample.id)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch to the other set, if it has `set_epoch`."""
        tell = getattr(self.images, "set_epoch", None)
        if callable(tell):
            tell(epoch)


class TransformedTargets(Sequence[Any]):
    """The targets of a set that lie on pixels, after the transform."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._images[index].target


class ArraySet(ImageSet):
    """Images in memory with targets.

    Args:
        images: uint8 (N, H, W, 3) or grey (N, H, W); any number of channels (N, H, W, C) if `channels` says so.
        targets: N class indices; 0 and 1 (N, K) for "labels"; numbers (N,) or (N, K) for "values"; class numbers
            (N, H, W) for "mask".
        labels: names of the classes or of the values.
        transform: see `ImageSet`.
        seed: seed of the augmentation.
        target: the kind of `targets`.
        channels: channels of the model's input; 3 converts to RGB.
        window: the values of black and white; see `DataConfig.window`.
    """

    def __init__(
        self,
        images: NDArray[np.generic],
        targets: Any,
        labels: Sequence[str] | None = None,
        *,
        transform: Transform | None = None,
        seed: int = 0,
        target: TargetName = "label",
        channels: int = 3,
        window: Window = "type",
    ) -> None:
        reading = Reading(channels, window)
        accepted = (1, 3, 4) if reading.plain else range(1, MOST_CHANNELS + 1)
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in accepted):
            raise DataError(f"Images have the shape {images.shape}; give (N, H, W) or (N, H, W, 3).")
        if len(images) != len(targets):
            raise DataError(f"There are {len(images)} images but {len(targets)} labels.")
        pixels = as_eight_bits(images, "images") if reading.plain else images
        pixels = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
        if target != "label":
            kind = target_of(target)
            given = kind.of_array(np.asarray(targets), labels, "targets")
            items = [Item(f"images[{i}]", text, ArrayPicture(pixels, i), one) for i, (text, one) in enumerate(given)]
            names = list(labels) if labels is not None else _unnamed(kind, items)
            super().__init__(items, names, transform=transform, seed=seed, target=kind, reading=reading)
            return
        numbers = [int(target) for target in targets]
        names = list(labels) if labels is not None else [str(n) for n in range(max(numbers, default=-1) + 1)]
        wrong = [n for n in numbers if not 0 <= n < len(names)]
        if wrong:
            raise DataError(f"Label {wrong[0]} does not count among {len(names)} classes (0 to {len(names) - 1}).")
        items = [Item(f"images[{i}]", names[n], ArrayPicture(pixels, i)) for i, n in enumerate(numbers)]
        super().__init__(items, names, transform=transform, seed=seed, reading=reading)


def _unnamed(kind: Target, items: Sequence[Item]) -> list[str]:
    """Return default names of targets: numbers for values; for masks, numbers up to the highest class."""
    if not kind.on_pixels:
        return kind.labels(items, None)
    return kind.labels([replace(item, target=item.target.checked("decode", None, None).target) for item in items], None)


def _plain(target: Any) -> Any:
    """Return a map as an ordinary tensor (H, W); anything else is returned as it is."""
    if not isinstance(target, Tensor):
        return target
    plain = target.as_subclass(Tensor)
    several = plain.dim() > 2 and plain.shape[-3] > 1  # numbers in each pixel, as directions have
    return plain if several else plain.reshape(plain.shape[-2:])


def _changed_since(error: UnreadableImage) -> DataError:
    return DataError(f"{error}. It was there when the data set was opened; restore it or start again.")


def _shared_counter() -> Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-any-return, no-untyped-call]


def _mix(seed: int, epoch: int, index: int) -> int:
    """Mix three counters into a 64-bit seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = 0
    for part in (seed, epoch, index):
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value
