"""The cache of decoded images: every image is decoded and resized once, and its eight-bit pixels are kept.

Decoding and resizing a photograph takes many times as long as reading 150 KiB. Random transforms and normalisation act
on the cached pixels, so every tensor is bit-equal to that without a cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.prefix_store import Spec, Store, mebibytes, room
from vpeft.acceleration.views import Views
from vpeft.data.fitted import FittedImages, parted
from vpeft.data.image_set import ImageSet
from vpeft.data.items import ArrayPicture
from vpeft.version import __version__

NAME = "decoded_images"
SAMPLE = 4
# As many as check files when a data set is opened; decoding releases the interpreter lock.
_THREADS = 8
_PORTION = 256


def keep(situation: Situation) -> tuple[ImageSet, ImageSet | None, str]:
    """Cache the pixels of the images; return training and validation images that read them, and a line of text.

    The validation images are None if they are not cached.

    Raises:
        NotApplicable: with the reason.
    """
    if situation.epochs < 2:
        raise NotApplicable("in a single epoch no image is read twice")
    train = situation.train.images if isinstance(situation.train, Views) else situation.train
    if not isinstance(train, ImageSet):
        raise NotApplicable("only vpeft's own image sets state which part of their transform is not random")
    _why_not(train)
    sets = [train]
    if isinstance(situation.val, ImageSet) and situation.val is not train:
        try:
            _why_not(situation.val)
        except NotApplicable:
            pass
        else:
            sets.append(situation.val)
    on_disk = situation.folder is not None and _known(sets, situation)
    folder = situation.folder if on_disk else None
    allowed, where = room(situation.gib, folder)
    if sum(_bytes(images) for images in sets) > allowed:
        sets = sets[:1]
    count, size = sum(map(len, sets)), sum(_bytes(images) for images in sets)
    if size > allowed:
        raise NotApplicable(
            f"{count} images take {mebibytes(size)}, and {mebibytes(allowed)} {where}; raise prefix_gib, or give"
            " prefix_folder"
        )
    stores = [_filled(images, situation) for images in sets]
    made = [
        FittedImages.of(images, store.arrays[0], parted(images.transform)[1])
        for images, (store, _) in zip(sets, stores, strict=True)
    ]
    found = all(was_there for _, was_there in stores)
    place = "kept in memory" if folder is None else f"{'found' if found else 'kept'} in {folder}"
    text = f"{count} images decoded and resized once, {mebibytes(size)} {place}, the same bits on a sample"
    return made[0], made[1] if len(made) > 1 else None, text


def _why_not(images: ImageSet) -> None:
    """Raise `NotApplicable` if cached pixels would not equal the images or would save nothing."""
    if isinstance(images, FittedImages) or all(isinstance(item.picture, ArrayPicture) for item in images.items):
        raise NotApplicable("the images are in memory already")
    if images.cache is not None:
        raise NotApplicable("decoded images are kept in memory already (data.cache)")
    steps, rest, size = parted(images.transform)
    if size is None:
        what = type(rest[0]).__name__ if rest else "the preprocessing"
        reason = "draws from images of any size" if not steps else "acts on images of different sizes"
        raise NotApplicable(f"{what} {reason}; data.cache = 'ram' keeps them at their own size")


def _bytes(images: ImageSet) -> int:
    return len(images) * _spec(images).bytes


def _spec(images: ImageSet) -> Spec:
    _, _, size = parted(images.transform)
    assert size is not None
    return Spec((*size, 3), torch.uint8)


def _known(sets: Sequence[ImageSet], situation: Situation) -> bool:
    """Whether the images can be identified: by their files, or by the digest of their content."""
    return "data" in situation.identity or all(item.picture.file is not None for one in sets for item in one.items)


def _facts(images: ImageSet, steps: Sequence[nn.Module], situation: Situation) -> dict[str, Any]:
    """Return everything that the pixels depend on. A file with a new modification time counts as another file."""
    listed = hashlib.sha256()
    for item in images.items:
        file = item.picture.file
        state = None if file is None else file.stat()
        listed.update(f"{item.name}\t{state and (state.st_size, state.st_mtime_ns)}\n".encode())
    return {
        "what": NAME,
        "files": listed.hexdigest(),
        "data": situation.identity.get("data"),
        "steps": [_words(step) for step in steps],
        "versions": {"vpeft": __version__, **{name: version(name) for name in ("pillow", "torchvision", "numpy")}},
    }


def _words(step: nn.Module) -> str:
    settings = {key: str(value) for key, value in vars(step).items() if not key.startswith("_") and key != "training"}
    return f"{type(step).__name__} {sorted(settings.items())}"


def _filled(images: ImageSet, situation: Situation) -> tuple[Store, bool]:
    """Return the pixels of all images, tested on a sample, and whether a cache on disk had them."""
    steps, _, _ = parted(images.transform)
    spec, store, found = _spec(images), None, False
    folder = situation.folder if _known([images], situation) else None
    if folder is None:
        store = Store.in_memory(len(images), [spec])
    else:
        facts = _facts(images, steps, situation)
        store = Store.find(folder, len(images), [spec], facts)
        found = store is not None
        if store is None:
            store = Store.on_disk(folder, len(images), [spec], facts)
    try:
        if not found:
            for index, pixels in enumerate(_all(images, steps)):
                store.put(index, [pixels[None]])
        for index in sorted({round(i * (len(images) - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}):
            if not torch.equal(store.arrays[0][index], _pixels(images, steps, index)):
                raise NotApplicable(f"the cached pixels of {images.path(index)} differ from those of decoding it again")
        store.finish()
    except BaseException:
        store.discard()
        raise
    return store, found


def _all(images: ImageSet, steps: Sequence[nn.Module]) -> Iterator[Tensor]:
    """Yield the pixels of all images in order. Files are decoded in threads; few other data sets allow that."""
    if any(item.picture.file is None for item in images.items):
        yield from (_pixels(images, steps, index) for index in range(len(images)))
        return
    _pixels(images, steps, 0)  # loads Pillow's plugins once, before the threads would
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(images), _PORTION):  # limits the pixels that wait to be stored
            portion = range(start, min(start + _PORTION, len(images)))
            yield from pool.map(lambda index: _pixels(images, steps, index), portion)


def _pixels(images: ImageSet, steps: Sequence[nn.Module], index: int) -> Tensor:
    """Return the pixels of one image, uint8 (H, W, 3)."""
    picture: Any = images.image(index)
    for step in steps:
        picture = step(picture)
    return torch.from_numpy(np.array(picture))
