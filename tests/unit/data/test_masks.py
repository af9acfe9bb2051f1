"""Image and mask together: read, checked, split, and moved by the same transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from vpeft.data import ArraySet, DataConfig, Datasets, Preprocessing, open_data
from vpeft.data.augmentation import RandomOperation, RandomOperations, policies
from vpeft.data.fitted import FittedImages, parted
from vpeft.data.problems import DataError, DataWarning

# Pixels of a picture whose red says the column and whose green the row, in steps of four.
SIDE = 64
STEP = 4


def _position(height: int = SIDE, width: int = SIDE) -> tuple[Image.Image, Mask]:
    """A picture whose pixels say where they are, and a mask that says the same of each pixel's column."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns * STEP, rows * STEP, np.full_like(rows, 128)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels), Mask(torch.from_numpy(columns.astype(np.int64)))


def _disagreement(image: torch.Tensor, mask: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """How many columns the image's own pixels are away from what the mask says, where the mask counts."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    red = (image * std[:, None, None] + mean[:, None, None])[0] * 255 / STEP
    return (red - mask).abs()[mask != 255]


@pytest.mark.parametrize("how", ["shorter", "squash", "longer"])
@pytest.mark.parametrize("name", ["none", "flip", "simple", "crop", "gentle"])
def test_every_policy_keeps_image_and_mask_on_each_other(name: str, how: str) -> None:
    preprocessing = Preprocessing(size=(32, 48), resize=how, interpolation="bilinear", crop_pct=0.9)  # type: ignore[arg-type]
    transform = preprocessing.augmented(name)
    for seed in range(6):
        torch.manual_seed(seed)
        image, mask = transform(*_position())
        assert image.shape == (3, 32, 48)
        assert mask.shape == (32, 48)
        assert mask.dtype == torch.int64
        off = _disagreement(image, mask, preprocessing)
        assert len(off) > 0
        # Nearest is at most half a column of the source off, bilinear with antialias a bit at the border.
        assert off.median() <= 0.51
        assert off.quantile(0.9) <= 1.5


def test_bars_do_not_count() -> None:
    preprocessing = Preprocessing(size=(32, 32), resize="longer", crop_pct=1.0)
    image, mask = preprocessing.transform()(*_position(64, 32))
    assert (mask[:, :8] == 255).all()
    assert (mask[:, 24:] == 255).all()
    assert (mask[:, 8:24] < 32).all()
    assert torch.allclose(image[:, :, 0], torch.zeros(3, 32), atol=0.01)  # the mean colour


@pytest.mark.parametrize("name", sorted(policies()))
def test_the_image_is_what_it_is_without_a_mask(name: str) -> None:
    transform = Preprocessing(size=(24, 24)).augmented(name)
    picture, mask = _position()
    torch.manual_seed(3)
    alone = transform(picture)
    torch.manual_seed(3)
    together, moved = transform(picture, mask)
    assert torch.equal(alone, together)
    assert set(moved.unique().tolist()) <= {*range(SIDE), 255}


@pytest.mark.parametrize("kind", [RandomOperations, RandomOperation])
@pytest.mark.parametrize("operation", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_operations_that_move_pixels_move_the_mask(kind: type, operation: str) -> None:
    step = kind(interpolation=v2.InterpolationMode.NEAREST)
    space = kind._AUGMENTATION_SPACE
    step._AUGMENTATION_SPACE = {operation: space[operation]}
    picture, mask = _position()
    moved_at_all = False
    for seed in range(8):
        torch.manual_seed(seed)
        image, moved = step(picture, mask)
        red = torch.from_numpy(np.asarray(image)[..., 0].astype(np.int64))
        counts = moved != 255
        off = (red[counts] // STEP - moved[counts]).abs()
        assert off.max() <= 1  # Pillow and torch decide ties differently
        assert (off > 0).float().mean() < 0.02
        moved_at_all |= not torch.equal(moved, mask)
    assert moved_at_all


def test_operations_that_change_colours_leave_the_mask() -> None:
    step = RandomOperations(2, 9)
    step._AUGMENTATION_SPACE = {"Invert": v2.RandAugment._AUGMENTATION_SPACE["AutoContrast"]}
    picture, mask = _position()
    _, moved = step(picture, mask)
    assert torch.equal(moved, mask)


# -- sets --------------------------------------------------------------------------------------------------------------


def _pair(root: Path, count: int = 12, names: str | None = "sky\ngrass\n", split: str = "") -> Path:
    """`count` pictures whose left half is class 0, right half 1."""
    for index in range(count):
        picture, _ = _position(20, 16)
        pixels = np.asarray(picture).copy()
        pixels[..., 2] = index + (100 if split == "val" else 0)
        mask = np.zeros((20, 16), np.uint8)
        mask[:, 8:] = 1
        for kind, values in (("images", pixels), ("masks", mask)):
            file = root / split / kind / f"{index:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    if names is not None:
        (root / "classes.txt").write_text(names)
    return root


def _open(source: Path, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), target="mask", **fields))  # type: ignore[arg-type]


def test_folder_pair(tmp_path: Path) -> None:
    data = _open(_pair(tmp_path))
    assert data.labels == ["sky", "grass"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 2, "test": 2}
    sample = data.train[0]
    assert sample.target.dtype == torch.int64
    assert sample.target.shape == (20, 16)
    assert type(sample.target) is torch.Tensor
    assert sample.id == data.train.items[0].name
    prepared = data.prepared(Preprocessing(size=(8, 8), resize="squash", crop_pct=1.0))
    image, mask = prepared.train[0]
    assert image.shape == (3, 8, 8)
    assert mask.tolist() == [[0] * 4 + [1] * 4] * 8
    assert torch.equal(prepared.train.targets[0], mask)
    assert data.train.counts() == {"sky": 8, "grass": 8}
    assert data.manifest.target == "mask"


def test_splits_of_folders_in_both_orders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _pair(tmp_path / "a", 4, None, split)
    data = _open(tmp_path / "a", val_fraction=0.0, test_fraction=0.0)
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 4, "val": 4}
    assert data.labels == ["0", "1"]
    other = tmp_path / "b"
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (other / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / split / kind).rename(other / kind / split)
    assert [len(one) for one in _open(other, test_fraction=0.0).splits.values()] == [4, 4]


def test_masks_elsewhere(tmp_path: Path) -> None:
    root = _pair(tmp_path / "x")
    (root / "masks").rename(tmp_path / "truth")
    data = _open(root / "images", masks=tmp_path / "truth", label_names=("a", "b"))
    assert data.labels == ["a", "b"]
    assert len(data.train) == 8


def test_what_is_wrong_is_counted_and_said(tmp_path: Path) -> None:
    root = _pair(tmp_path, 16)
    (root / "masks" / "00.png").unlink()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(root / "masks" / "01.png")
    Image.fromarray(np.full((20, 16), 7, np.uint8)).save(root / "masks" / "02.png")
    with pytest.warns(DataWarning) as said:
        data = _open(root)
    text = "\n".join(str(one.message) for one in said)
    assert "1 images have no mask and are skipped: images/00.png" in text
    assert "4 x 3 for an image of 16 x 20" in text
    assert "it holds 7; there are 2 classes, 0 to 1" in text
    assert sum(len(split) for split in data.splits.values()) == 13
    with pytest.raises(DataError, match="no mask"):
        _open(root, strict=True)


def test_masks_of_nothing_but_255_are_explained(tmp_path: Path) -> None:
    root = _pair(tmp_path, 4, None)
    for file in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    with pytest.raises(DataError, match="write the pixels of one object as 1, not as 255"):
        _open(root)


def test_pictures_of_colours_are_no_masks(tmp_path: Path) -> None:
    root = _pair(tmp_path, 4)
    for file in (root / "images").iterdir():
        (root / "masks" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="it shows colours"):
        _open(root)


@pytest.mark.parametrize("form", ["palette", "rgb", "sixteen", "npy"])
def test_forms_of_masks(form: str, tmp_path: Path) -> None:
    root = _pair(tmp_path, 4)
    for file in list((root / "masks").iterdir()):
        numbers = np.asarray(Image.open(file)).copy()
        numbers[0, 0] = 255
        if form == "palette":
            image = Image.fromarray(numbers, "L").convert("P")
            image.putdata(numbers.ravel().tolist())
            image.save(file)
        elif form == "rgb":
            Image.fromarray(np.repeat(numbers[..., None], 3, axis=2)).save(file)
        elif form == "sixteen":
            Image.fromarray(numbers.astype(np.uint16)).save(file)
        else:
            file.unlink()
            np.save(file.with_suffix(".npy"), numbers.astype(np.int32))
    data = _open(root, val_fraction=0.0, test_fraction=0.0)
    target = data.train[0].target
    assert target[0, 0] == 255
    assert target.unique().tolist() == [0, 1, 255]


def test_a_pair_is_not_read_as_two_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="masks are given where classification wants one label: use --task"):
        open_data(DataConfig(source=str(_pair(tmp_path))))


def test_the_digest_knows_the_masks(tmp_path: Path) -> None:
    root = _pair(tmp_path)
    before = _open(root).manifest
    numbers = np.asarray(Image.open(root / "masks" / "03.png")).copy()
    numbers[0] = 1
    Image.fromarray(numbers).save(root / "masks" / "03.png")
    assert _open(root).manifest.digest != before.digest


def test_arrays_of_masks_and_kept_pixels() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 30, 3), np.uint8)
    masks = rng.integers(0, 3, (6, 20, 30))
    data = ArraySet(images, masks, target="mask")
    assert data.labels == ["0", "1", "2"]
    assert torch.equal(data[2].target, torch.from_numpy(masks[2]))
    preprocessing = Preprocessing(size=(10, 10))
    fitted = data.with_transform(preprocessing.augmented("flip"))
    first, rest, size = parted(fitted.transform)
    assert size == (10, 10)
    rows = []
    for index in range(6):
        picture = fitted.image(index)
        for step in first:
            picture = step(picture)
        rows.append(torch.from_numpy(np.array(picture)))
    kept = FittedImages.of(fitted, torch.stack(rows), rest)
    for index in range(6):
        assert torch.equal(kept[index].input, fitted[index].input)
        assert torch.equal(kept[index].target, fitted[index].target)
