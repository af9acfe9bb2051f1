"""Odd pictures, made here with Pillow, and the pixels that must come out."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vpeft.data.decoding import known_formats
from vpeft.data.images import (
    UnreadableImage,
    as_eight_bits,
    as_image,
    find_images,
    image_suffixes,
    is_image_name,
    read_image,
)
from vpeft.data.problems import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _read(image: Image.Image, format: str = "PNG", **options: object) -> np.ndarray:
    data = BytesIO()
    image.save(data, format, **options)
    return _pixels(data.getvalue())


def _pixels(data: bytes) -> np.ndarray:
    image = read_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file by hand, for kinds that Pillow does not write. `rows` has the filter byte of each row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_palette_gives_its_colours_and_not_its_indices() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([1, 0])
    assert _read(image).tolist() == [[list(BLUE), list(RED)]]


@pytest.mark.parametrize("transparent", [1, bytes([255, 0])], ids=["index", "per-entry alpha"])
def test_transparent_palette_entry_is_laid_over_white(transparent: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([1, 0])
    assert _read(image, transparency=transparent).tolist() == [[list(WHITE), list(RED)]]


def test_half_transparent_palette_entry_is_mixed_with_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0])
    assert _read(image, transparency=bytes([128])).ravel() == pytest.approx([127] * 3, abs=1)


def test_alpha_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 255, 51)])
    # 51 / 255 = 0.2 of blue on 0.8 of white.
    assert _read(image).tolist() == [[list(RED), list(WHITE), [204, 204, 255]]]


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (0, 0)])
    assert _read(image).tolist() == [[[40] * 3, [255] * 3]]


def test_transparent_colour_of_an_rgb_png() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([GREEN, RED])
    assert _read(image, transparency=GREEN).tolist() == [[list(WHITE), list(RED)]]


def test_transparent_grey_level() -> None:
    image = Image.new("L", (2, 1))
    image.putdata([7, 9])
    assert _read(image, transparency=7).tolist() == [[[255] * 3, [9] * 3]]


def test_premultiplied_alpha() -> None:
    image = Image.new("RGBA", (1, 1), (0, 0, 255, 51)).convert("RGBa")
    assert np.asarray(as_image(image)).ravel() == pytest.approx([204, 204, 255], abs=3)
    grey = Image.new("LA", (1, 1), (0, 51)).convert("La")
    assert np.asarray(as_image(grey)).ravel() == pytest.approx([204] * 3, abs=3)


def test_grey_and_bilevel() -> None:
    assert _read(Image.new("L", (1, 1), 90)).tolist() == [[[90] * 3]]
    bilevel = Image.new("1", (2, 1))
    bilevel.putdata([1, 0])
    assert _read(bilevel).tolist() == [[[255] * 3, [0] * 3]]


def test_sixteen_bit_grey_is_scaled_and_not_cut_off() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    assert _read(Image.fromarray(values))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert _read(Image.fromarray(values), "TIFF")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_dark_sixteen_bit_image_stays_dark() -> None:
    """Twelve-bit cameras store small values in sixteen bits: stretching each image would lose what brightness says."""
    assert _read(Image.fromarray(np.full((2, 2), 4095, np.uint16))).max() == 16
    # Even where all of it would fit into eight bits: the type says the range, not the values.
    assert _read(Image.fromarray(np.full((2, 2), 255, np.uint16))).max() == 1


def test_big_endian_sixteen_bit_tiff() -> None:
    pixels = struct.pack(">HH", 65535, 257)
    image = Image.frombytes("I;16B", (2, 1), pixels)
    assert np.asarray(as_image(image))[0, :, 0].tolist() == [255, 1]


def test_sixteen_bit_colour_png() -> None:
    row = b"\x00" + struct.pack(">HHH", 65535, 32896, 0)
    assert _pixels(_png(1, 1, 16, 2, row)).ravel() == pytest.approx([255, 128, 0], abs=1)


def test_sixteen_bit_colour_and_alpha_png() -> None:
    row = b"\x00" + struct.pack(">HHHH", 0, 0, 65535, 51 * 257)
    assert _pixels(_png(1, 1, 16, 6, row)).ravel() == pytest.approx([204, 204, 255], abs=1)


@pytest.mark.parametrize(("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 64.0, 255.0], [0, 64, 255])])
def test_floating_point_tiff(values: list[float], expected: list[int]) -> None:
    assert _read(Image.fromarray(np.array([values], np.float32)), "TIFF")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, -1.0, 1e6])
def test_floating_point_without_a_known_range_is_refused(value: float) -> None:
    with pytest.raises(UnreadableImage, match=r"values"):
        as_image(Image.fromarray(np.array([[0.0, value]], np.float32)))


def test_integers_of_32_bits() -> None:
    assert np.asarray(as_image(Image.fromarray(np.array([[0, 255]], np.int32))))[0, :, 0].tolist() == [0, 255]
    assert np.asarray(as_image(Image.fromarray(np.array([[0, 65535]], np.int32))))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(UnreadableImage, match="70000"):
        as_image(Image.fromarray(np.array([[0, 70000]], np.int32)))


# What the eight EXIF orientations say: where the top-left stored pixel is to be seen.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [
        (1, "top left"),
        (2, "top right"),
        (3, "bottom right"),
        (4, "bottom left"),
        (5, "top left"),
        (6, "top right"),
        (7, "bottom right"),
        (8, "bottom left"),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation(orientation: int, corner: str, format: str) -> None:
    image = Image.new("RGB", (48, 32), WHITE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = _read(image, format, exif=exif)
    assert seen.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    vertical, horizontal = corner.split()
    patch = seen[:8] if vertical == "top" else seen[-8:]
    patch = patch[:, :8] if horizontal == "left" else patch[:, -8:]
    assert np.abs(patch.astype(int) - RED).max() < 40  # JPEG rounds
    assert (seen.reshape(-1, 3).astype(int).sum(axis=1) > 700).mean() > 0.75  # the rest is white


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = BytesIO()
    Image.new("RGB", (8, 8), RED).save(data, "PNG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff")
    assert _pixels(data.getvalue()).shape == (8, 8, 3)


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    assert np.abs(_read(image, "JPEG", quality=95).reshape(-1, 3).astype(int) - RED).max() < 12
    black = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    assert _read(black, "TIFF").max() == 0


def test_lab_tiff() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (4, 4), (200, 30, 60)), srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(_read(image, "TIFF").reshape(-1, 3).astype(int) - (200, 30, 60)).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    seen = _read(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.abs(seen.astype(int) - RED).max() <= 1


def test_first_frame_even_if_another_one_was_looked_at() -> None:
    data = BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    assert _pixels(data.getvalue())[0, 0].tolist() == list(RED)


def test_transparent_gif() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    assert _read(image, "GIF", transparency=0).tolist() == [[list(WHITE), list(BLUE)]]


@pytest.mark.parametrize(
    "format", ["BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
)
def test_formats(format: str) -> None:
    image = Image.new("RGB", (32, 32), (60, 120, 180))
    assert np.abs(_read(image, format).astype(int) - (60, 120, 180)).max() <= 6


def test_reading_twice_is_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    first, second = read_image(tmp_path / "a.jpg"), read_image((tmp_path / "a.jpg").read_bytes())
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 1000])
def test_truncated_files_are_refused_by_name(tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "broken.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UnreadableImage, match=r"broken\.jpg"):
        read_image(file)


def test_any_damage_raises_unreadable_or_gives_a_picture() -> None:
    """Bytes changed at random in files of several formats: never another exception than our own."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    for format in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "TGA"):
        file = BytesIO()
        picture.save(file, format)
        for _ in range(40):
            data = bytearray(file.getvalue())
            for position in rng.integers(0, len(data), 6):
                data[position] = rng.integers(0, 256)
            # Anything but UnreadableImage would fail the test here.
            with suppress(UnreadableImage):
                assert read_image(bytes(data)).mode == "RGB"


def test_messages_are_the_same_every_time() -> None:
    with pytest.raises(UnreadableImage) as caught:
        read_image(b"no picture")
    # and no address of a buffer
    assert (
        str(caught.value) == f"an image in memory: not an image of a format that is read ({', '.join(known_formats())})"
    )


def test_text_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    with pytest.raises(UnreadableImage, match=r"note\.png: not an image of a format that is read"):
        read_image(tmp_path / "note.png")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "absent.png")


def test_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".bmp", ".jp2"} <= image_suffixes()
    assert not {".pdf", ".mpg", ".txt", ".npy", ".csv", ".json", ""} & image_suffixes()
    assert is_image_name("a/B.JPG")
    assert not is_image_name("._b.jpg")
    assert not is_image_name("Thumbs.db")


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.png", "note.txt", "odd.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = lambda *patterns: [file.relative_to(tmp_path).as_posix() for file in find_images(patterns)]  # noqa: E731
    assert names(tmp_path) == ["a.jpg", "b.png", "deep/c.png"]
    assert names(tmp_path / "*.png", tmp_path) == ["b.png", "a.jpg", "deep/c.png"]
    assert names(tmp_path / "odd.xyz") == ["odd.xyz"]
    with pytest.raises(DataError, match=r"\*\.gif does not exist"):
        find_images([tmp_path / "*.gif"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        find_images([tmp_path / "empty"])


def test_arrays_of_other_types() -> None:
    def values(array: np.ndarray) -> list[int]:
        return as_eight_bits(array, "images").tolist()

    assert values(np.array([True, False])) == [255, 0]
    assert values(np.array([0, 65535], np.uint16)) == [0, 255]
    assert values(np.array([0, 200], np.int64)) == [0, 200]
    assert values(np.array([0.0, 1.0])) == [0, 255]
    with pytest.raises(DataError, match="-3"):
        values(np.array([-3, 5]))
    with pytest.raises(DataError, match="not numbers"):
        values(np.array(["a"]))


def test_tensors_have_their_channels_first() -> None:
    image = torch.zeros(3, 2, 4, dtype=torch.uint8)
    image[0] = 255
    assert as_image(image).size == (4, 2)
    assert as_image(image).getpixel((0, 0)) == RED
    assert as_image(torch.full((1, 2, 4), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(DataError, match="str"):
        as_image("a path")
