"""Labelled images as a torch data set whose every access is a function of (seed, epoch, index)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vpeft.data.images import UnreadableImage, as_eight_bits
from vpeft.data.items import ArrayPicture, Item, in_order
from vpeft.data.problems import DataError

Transform = Callable[[Image.Image], Tensor]


class DecodedImages:
    """Decoded images kept in memory as uint8 (H, W, 3), by name, until `limit` bytes are used; then no more are kept.

    Filled before data-loading processes start, it is shared with them by the operating system (fork).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._pixels: dict[str, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def get(self, name: str) -> Image.Image | None:
        """The image of this name, if it is kept."""
        pixels = self._pixels.get(name)
        return None if pixels is None else Image.fromarray(pixels)

    def keep(self, name: str, image: Image.Image) -> None:
        """Keep `image` (RGB) if it still fits."""
        pixels = np.asarray(image)
        if name not in self._pixels and self.used + pixels.nbytes <= self.limit:
            self._pixels[name] = pixels
            self.used += pixels.nbytes


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images with class indices: `set[i]` is (image, index), where index counts in `labels`.

    The image is float (3, H, W) as `transform` leaves it; without a transform uint8 (3, H, W) at its own size.
    Random transforms draw from a generator seeded by (seed, epoch, i), and torch's own is left as it was: an epoch has
    the same tensors whatever the number of workers and the order of access. Call `set_epoch` before each epoch.
    """

    def __init__(
        self,
        items: Sequence[Item],
        labels: Sequence[str],
        *,
        transform: Transform | None = None,
        seed: int = 0,
        cache: DecodedImages | None = None,
    ) -> None:
        index = {label: position for position, label in enumerate(labels)}
        unknown = in_order({item.label for item in items} - set(labels))
        if unknown:
            raise DataError(
                f"Labels {', '.join(map(repr, unknown[:5]))} are in the data but not among the {len(index)} known ones "
                f"({', '.join(map(repr, list(index)[:5]))}{', ...' if len(index) > 5 else ''})."
            )
        self.items = tuple(items)
        self.labels = list(labels)
        self.targets = [index[item.label] for item in items]
        self.transform = transform
        self.seed = seed
        self.cache = cache
        # In shared memory, so that data-loading processes which outlive an epoch see the next one.
        self._epoch = _shared_counter()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self.items))[index]
        image = self.image(index)
        if self.transform is None:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), self.targets[index]
        # Only the CPU generator: torch.manual_seed would also rewind the accelerator's, hence dropout.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(_mix(self.seed, int(self._epoch), index))
        try:
            return self.transform(image), self.targets[index]
        finally:
            generator.set_state(state)

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB at its own size. Raises `DataError` if it has become unreadable since it was listed."""
        item = self.items[index]
        if self.cache is not None and (kept := self.cache.get(item.name)) is not None:
            return kept
        try:
            image = item.picture.decode()
        except UnreadableImage as error:
            raise DataError(
                f"{error}. It was there when the data set was opened; restore it or start again."
            ) from error
        if self.cache is not None:
            self.cache.keep(item.name, image)
        return image

    def path(self, index: int) -> str:
        """Where image `index` comes from: its file, or its name within the source."""
        return self.items[index].where

    def counts(self) -> dict[str, int]:
        """Images per label, zeros included."""
        counted = Counter(self.targets)
        return {label: counted[position] for position, label in enumerate(self.labels)}

    def set_epoch(self, epoch: int) -> None:
        """Let random transforms draw for `epoch`, in data-loading processes too."""
        self._epoch.fill_(epoch)

    def with_transform(self, transform: Transform | None) -> Self:
        """The same images, and the same memory, through another transform."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.transform = transform
        twin._epoch = _shared_counter()
        return twin

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order, with the same labels and transform."""
        chosen = [self.items[index] for index in indices]
        return ImageSet(chosen, self.labels, transform=self.transform, seed=self.seed, cache=self.cache)


class ArraySet(ImageSet):
    """Images in memory: uint8 (N, H, W, 3) or grey (N, H, W), N class indices, and the names of the classes."""

    def __init__(
        self,
        images: NDArray[np.generic],
        targets: Sequence[int] | NDArray[np.integer],
        labels: Sequence[str] | None = None,
        *,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
            raise DataError(f"Images have the shape {images.shape}; give (N, H, W) or (N, H, W, 3).")
        if len(images) != len(targets):
            raise DataError(f"There are {len(images)} images but {len(targets)} labels.")
        numbers = [int(target) for target in targets]
        names = list(labels) if labels is not None else [str(n) for n in range(max(numbers, default=-1) + 1)]
        wrong = [n for n in numbers if not 0 <= n < len(names)]
        if wrong:
            raise DataError(f"Label {wrong[0]} does not count among {len(names)} classes (0 to {len(names) - 1}).")
        pixels = as_eight_bits(images, "images")
        pixels = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
        items = [Item(f"images[{i}]", names[n], ArrayPicture(pixels, i)) for i, n in enumerate(numbers)]
        super().__init__(items, names, transform=transform, seed=seed)


def _shared_counter() -> Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-any-return, no-untyped-call]


def _mix(seed: int, epoch: int, index: int) -> int:
    """A well-spread 64-bit seed from three counters (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = 0
    for part in (seed, epoch, index):
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value
