"""Other inputs than eight-bit RGB: channels, number types, windows, and what is said where images would be black."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vpeft.data import ArraySet, DataConfig, Datasets, Preprocessing, open_data
from vpeft.data.images import UnreadableImage, find_images, read, read_image
from vpeft.data.pixels import Reading, as_channels, scaled
from vpeft.data.problems import DataError, DataWarning


def _ramp(channels: int, dtype: type = np.uint16, height: int = 20, width: int = 24) -> np.ndarray:
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    values = np.random.default_rng(channels).random((height, width, channels))
    return (values * top).astype(dtype)


def _classes(root: Path, write, count: int = 6) -> Path:  # type: ignore[no-untyped-def]
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True)
        for index in range(count):
            write(root / label / f"{index}", np.random.default_rng([index, len(label), ord(label[0])]))
    return root


def _open(source: Path, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 5, 13])
@pytest.mark.parametrize("planes", [False, True])
def test_tiff_of_many_bands(dtype: type, channels: int, planes: bool, tmp_path: Path) -> None:
    values = _ramp(channels, dtype)
    stored = np.moveaxis(values, 2, 0) if planes else values
    layout = None if channels == 1 else "separate" if planes else "contig"
    stored = values[..., 0] if channels == 1 else stored
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=layout)
    image = read(tmp_path / "a.tif", Reading(channels))
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    assert isinstance(image, torch.Tensor)
    assert image.dtype == torch.float32
    assert np.allclose(image.numpy(), np.moveaxis(values, 2, 0) / top, atol=1e-6)
    again = read((tmp_path / "a.tif").read_bytes(), Reading(channels))
    assert torch.equal(image, again)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 4), (4, 20, 24), (20, 24, 1)])
def test_arrays_as_files(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    channels = 4 if 4 in shape else 1
    image = read(tmp_path / "a.npy", Reading(channels))
    assert tuple(image.shape) == (channels, 20, 24)  # type: ignore[union-attr]
    expected = values[None] if values.ndim == 2 else values if shape[0] == 4 else np.moveaxis(values, 2, 0)
    assert np.allclose(image, expected)  # type: ignore[arg-type]


def test_arrays_as_rgb(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.npy")), values)
    np.save(tmp_path / "b.npy", values[..., 0])
    assert np.array_equal(np.asarray(read_image(tmp_path / "b.npy")), np.repeat(values[..., :1], 3, axis=2))
    assert find_images([tmp_path]) == [tmp_path / "a.npy", tmp_path / "b.npy"]
    Image.fromarray(values).save(tmp_path / "c.png")
    assert find_images([tmp_path]) == [tmp_path / "c.png"]  # arrays beside pictures are features, as a rule


@pytest.mark.parametrize("values", [np.zeros((3, 4, 5, 6)), np.zeros((20, 24, 40)), np.array(["a"]), np.zeros((0, 4))])
def test_arrays_that_are_no_image(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UnreadableImage, match=r"a\.npy: it "):
        read_image(tmp_path / "a.npy")


def test_channels_that_do_not_fit_are_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _ramp(7), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImage, match="it has 7 channels, and 3 are asked for; say channels = 7"):
        read_image(tmp_path / "a.tif")


def test_rules_between_channels() -> None:
    colour = np.array([[[1.0, 0.5, 0.0]]])
    assert as_channels(colour, 1).item() == pytest.approx(0.299 + 0.587 / 2)
    assert as_channels(colour[..., :1], 3).tolist() == [[[1.0, 1.0, 1.0]]]
    half = np.array([[[0, 51]]], np.uint8)  # black, a fifth opaque: light grey on white
    assert Reading(1).of_values(half).item() == pytest.approx(0.8)  # type: ignore[union-attr]
    assert Reading(1, (0.0, 10.0)).of_values(half).item() == pytest.approx(0.8)  # type: ignore[union-attr]
    with pytest.raises(UnreadableImage, match="4 channels, and 3 are asked for"):  # no opacity in four bands of light
        Reading(3, "percentiles").of_values(_ramp(4))


def test_a_window_of_sixteen_bits_leaves_eight_bits_alone() -> None:
    values = np.array([[[0], [255]]], np.uint8)
    assert scaled(values, (0.0, 4095.0)).ravel().tolist() == [0, 1]
    assert scaled(values, (0.0, 100.0)).ravel().tolist() == [0, 1]
    assert scaled(values, (0.0, 200.0))[0, 1, 0] == 1


@pytest.mark.parametrize(
    ("window", "expected"),
    [("type", [0, 1000 / 65535, 4095 / 65535]), ((0.0, 4095.0), [0, 1000 / 4095, 1]), ((1000.0, 2000.0), [0, 0, 1])],
)
def test_windows(window: object, expected: list[float]) -> None:
    values = np.array([[[0], [1000], [4095]]], np.uint16)
    assert scaled(values, window).ravel().tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).normal(-300, 50, (30, 30, 1))
    low, high = np.percentile(values, [1, 99])
    assert np.allclose(scaled(values, "percentiles"), np.clip((values - low) / (high - low), 0, 1))
    assert np.isfinite(scaled(np.zeros((4, 4, 1)), "percentiles")).all()


def test_an_unknown_range_says_what_to_do() -> None:
    with pytest.raises(UnreadableImage, match=r"from -1000 to 3000.*window = \(-1000, 3000\)"):
        scaled(np.array([[[-1000], [3000]]], np.int32), "type")


def test_a_window_has_two_sides() -> None:
    with pytest.raises(ValueError, match="first number must be below"):
        DataConfig(source="x", window=(5, 5))


# -- sets --------------------------------------------------------------------------------------------------------------


def _twelve_bits(file: Path, rng: np.random.Generator) -> None:
    Image.fromarray((rng.random((16, 16)) * 4095).astype(np.uint16)).save(file.with_suffix(".png"))


def test_never_black_without_a_word(tmp_path: Path) -> None:
    root = _classes(tmp_path, _twelve_bits)
    with pytest.warns(
        DataWarning, match=r"come out nearly black: 12 with values from \d+ to 40\d\d of 65535 .*\(0, 4095\)"
    ):
        dark = _open(root)
    assert int(dark.train[0].input.max()) <= 16
    light = _open(root, window=(0, 4095))
    assert int(light.train[0].input.max()) > 240
    assert light.manifest.digest == dark.manifest.digest
    with pytest.raises(DataError, match="nearly black"):
        _open(root, strict=True)


def test_auto_finds_the_bits_and_keeps_them(tmp_path: Path) -> None:
    data = _open(_classes(tmp_path, _twelve_bits), window="auto")
    assert data.config.window == (0.0, 4095.0)
    assert int(data.train[0].input.max()) > 240
    applied = data.preprocessing_of(Preprocessing(size=(16, 16)))
    assert applied.window == (0.0, 4095.0)
    again = Preprocessing.model_validate_json(applied.model_dump_json())
    file = Path(data.train.items[0].where)
    prepared = data.prepared(Preprocessing(size=(16, 16)))
    assert torch.equal(again.transform()(again.read(file)), prepared.train[0].input)


def test_dark_arrays(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).random((12, 8, 8)) * 4095).astype(np.uint16)
    np.savez(tmp_path / "a.npz", images=values, labels=np.arange(12) % 2)
    with pytest.warns(DataWarning, match=r"nearly black.*\(0, 4095\)"):
        _open(tmp_path / "a.npz")
    data = _open(tmp_path / "a.npz", window="auto")
    assert data.config.window == (0.0, 4095.0)
    number = int(data.train.items[0].name[7:-1])
    expected = (values[number] / 4095 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(data.train[0].input[0], expected)


def test_auto_leaves_eight_bits(tmp_path: Path) -> None:
    def eight(file: Path, rng: np.random.Generator) -> None:
        Image.fromarray(rng.integers(0, 40, (8, 8, 3), np.uint8)).save(file.with_suffix(".png"))

    root = _classes(tmp_path, eight)
    auto, plain = _open(root, window="auto"), _open(root)
    assert auto.config.window == "type"
    assert torch.equal(auto.train[0].input, plain.train[0].input)


@pytest.mark.parametrize("policy", ["none", "flip", "simple", "crop", "gentle"])
def test_five_channels_from_folder_to_batch(policy: str, tmp_path: Path) -> None:
    def bands(file: Path, rng: np.random.Generator) -> None:
        tifffile.imwrite(file.with_suffix(".tif"), rng.random((20, 24, 5)).astype(np.float32), photometric="minisblack")

    data = _open(_classes(tmp_path, bands), channels=5, augmentation=policy)
    prepared = data.prepared(Preprocessing(size=(12, 16)))
    images, labels = next(iter(DataLoader(prepared.train, batch_size=4)))
    assert images.shape == (4, 5, 12, 16)
    assert labels.shape == (4,)
    assert images.isfinite().all()
    applied = data.preprocessing_of(Preprocessing(size=(12, 16)))
    assert applied.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    with pytest.raises(DataError, match="changes colours, and images of 5 channels have none"):
        applied.augmented("randaugment")


def test_one_channel_of_pictures_is_normalised_once(tmp_path: Path) -> None:
    def grey(file: Path, rng: np.random.Generator) -> None:
        Image.new("RGB", (10, 10), (51, 51, 51)).save(file.with_suffix(".png"))

    data = _open(_classes(tmp_path, grey, 4), channels=1, check="none")
    seen = data.prepared(Preprocessing(size=(8, 8), mean=(0.5,), std=(0.25,))).train[0].input
    assert seen.shape == (1, 8, 8)
    assert torch.allclose(seen, torch.tensor((0.2 - 0.5) / 0.25), atol=1e-5)


def test_the_channels_of_a_backbone_are_read(tmp_path: Path) -> None:
    def grey(file: Path, rng: np.random.Generator) -> None:
        Image.fromarray(rng.integers(0, 256, (10, 10), np.uint8)).save(file.with_suffix(".png"))

    data = _open(_classes(tmp_path, grey), cache="ram")
    assert data.prepared(Preprocessing(size=(8, 8), mean=(0.5, 0.5), std=(1.0, 1.0))).train[0].input.shape == (2, 8, 8)


def test_arrays_of_channels_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 6, 10, 10), np.uint16)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "a.npz", images=values, labels=labels)
    data = _open(tmp_path / "a.npz", channels=6)
    item = data.train.items[0]
    number = int(item.name[7:-1])
    assert torch.allclose(data.train[0].input, torch.from_numpy(values[number] / 65535).float())
    made = ArraySet(np.moveaxis(values, 1, 3), labels, channels=6)
    assert torch.equal(made[number].input, data.train[0].input)
    with pytest.raises(DataError, match=r"shape \(8, 6, 10, 10\).*channels"):
        _open(tmp_path / "a.npz")


def test_preprocessing_of_three_channels_is_the_same_json() -> None:
    stated = json.loads(Preprocessing().model_dump_json())
    assert stated == {
        "size": [224, 224],
        "resize": "shorter",
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    with pytest.raises(ValueError, match="mean has 2 values and std 3"):
        Preprocessing(mean=(0.5, 0.5))


# -- large files -------------------------------------------------------------------------------------------------------


def test_large_images_have_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # stands for a scan of 200 million pixels
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="it has 200 pixels.*allow it with max_pixels = 200"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=200).size == (20, 10)
    with pytest.raises(UnreadableImage, match="more than max_pixels = 150"):
        read_image(tmp_path / "a.png", max_pixels=150)


def test_long_text_beside_the_pixels_is_no_obstacle(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("x", "y" * 3_000_000, zip=True)
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png", pnginfo=text)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), values)
