"""Image files that are too large, of foreign formats, no files, or not the ones that were checked."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.unit.data.pictures import pixels, write, write_classes
from torchvision.tv_tensors import Mask

from vpeft.data import DataConfig, find_images, open_data
from vpeft.data import decoding as files
from vpeft.data import steps as resizing
from vpeft.data.decoding import Limits, MemoryPool, deep_png
from vpeft.data.images import read, read_image
from vpeft.data.pixels import Reading, stored_values
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.steps import Fit


def _encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    data = BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def _png(values: np.ndarray, colour: int, extra: bytes = b"") -> bytes:
    """A PNG file of 16 bits (H, W, C), written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    more = chunk(b"tRNS", extra) if extra else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".eps", ".jpg"])
def test_postscript_reaches_no_other_program(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _never(*words: object, **more: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", _never)
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 setlinewidth\n%%EOF\n")
    with pytest.raises(DataError, match="not an image of a format that is read"):
        read_image(file)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "TGA", "JPEG2000", "ICO"])
def test_named_formats_are_read(format: str) -> None:
    assert read_image(_encoded(Image.new("RGB", (16, 16), (200, 10, 10)), format)).size == (16, 16)


# -- limits that are settings ------------------------------------------------------------------------------------------


def test_a_narrow_image_is_refused_and_the_message_names_the_setting() -> None:
    data = _encoded(Image.new("RGB", (1, 300)))
    with pytest.raises(DataError, match=r"1 x 300, .* more than max_aspect = 200 .* allow it with max_aspect = 300"):
        read_image(data)
    made = read(data, Reading(max_aspect=300))
    assert isinstance(made, Image.Image)
    assert made.size == (1, 300)


def test_values_beyond_the_memory_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(Image.new("RGB", (1000, 1000)))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="need 3 MiB, more than max_mib = 1; allow it with max_mib = 3"):
        read(data, Reading(max_mib=1))


def test_a_file_beyond_the_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(DataError, match="it has 3 MiB, more than max_mib = 2"):
        read(tmp_path / "a.png", Reading(max_mib=2))


@pytest.mark.parametrize("shape", ["(999999, 999999, 3)", "(2, 2, -3)", "(2, 2, 4)"])
def test_an_array_whose_header_lies_takes_no_memory(shape: str) -> None:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(12)
    with pytest.raises(DataError):
        read_image(data)


def test_a_tiff_whose_header_lies_takes_no_memory() -> None:
    data = BytesIO()
    tifffile.imwrite(data, np.zeros((8, 9, 3), np.uint16), photometric="rgb")
    forged = data.getvalue()
    for tag, side in ((256, 9), (257, 8)):
        stated, other = struct.pack("<HHII", tag, 4, 1, side), struct.pack("<HHII", tag, 4, 1, 60000)
        assert forged.count(stated) == 1
        forged = forged.replace(stated, other)
    with pytest.raises(DataError, match="max_mib = 64"):
        read(forged, Reading(3, (0.0, 100.0), max_mib=64))


def test_a_large_jpeg_is_decoded_smaller_and_nothing_else_is() -> None:
    image = Image.fromarray(np.kron(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10, np.ones((32, 32), np.uint8)))
    data = _encoded(image, "JPEG", quality=95)
    assert read_image(data).size == (192, 128)
    smaller = read_image(data, max_pixels=192 * 128 // 4)
    assert smaller.size == (96, 64)
    means = np.asarray(smaller)[..., 0].reshape(4, 16, 6, 16).mean((1, 3))
    assert np.abs(means - np.asarray(image)[16::32, 16::32]).max() < 3
    assert read_image(data, max_pixels=500).size == (24, 16)
    with pytest.raises(DataError, match="more than max_pixels = 383"):
        read_image(data, max_pixels=383)
    for other in (_encoded(image, "JPEG", progressive=True), _encoded(image)):
        with pytest.raises(DataError, match="24576 pixels"):
            read_image(other, max_pixels=6144)


def test_limits_are_settings_of_the_data(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", cat=30, dog=30)
    Image.new("RGB", (1, 250)).save(root / "cat" / "narrow.png")
    config = DataConfig(source=str(root), max_unreadable=0.1)
    with pytest.warns(DataWarning, match="narrow.png .*max_aspect"):
        data = open_data(config)
    assert sum(map(len, data.splits.values())) == 60
    data = open_data(config.model_copy(update={"max_aspect": 250.0}))
    assert sum(map(len, data.splits.values())) == 61
    assert data.train.reading.max_aspect == 250
    assert "max_aspect" not in config.model_dump()  # digests of older recipes stay


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 24), (25, 24), (32, 17)])
@pytest.mark.parametrize("source", [(5, 400), (401, 7), (3, 601)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_the_centre_of_a_long_image_is_the_one_of_the_whole(
    size: tuple[int, int], source: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*source, 3), np.uint8))
    mask = Mask(torch.from_numpy(random.integers(0, 9, source)))
    largest: list[int] = []

    def fitted() -> tuple[np.ndarray, torch.Tensor]:
        made, drawn = image, mask
        for step in Fit(size, "shorter", mode, 0.875, (0.5, 0.5, 0.5)).steps():  # type: ignore[arg-type]
            made, drawn = step(made, drawn)
            largest.append(made.width * made.height)
        return np.asarray(made).astype(int), drawn

    part, part_mask = fitted()
    assert max(largest) < 3 * size[0] * size[1]
    monkeypatch.setattr(resizing, "_EXCESS", 10**9)
    whole, whole_mask = fitted()
    assert np.abs(part - whole).max() <= 1  # rounding
    assert torch.equal(part_mask, whole_mask)


def test_channels_of_a_long_image_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 4, 5, 20), (5, 800), mode="bilinear")[0]
    steps = Fit((24, 24), "shorter", "bilinear", 1.0, (0.5,) * 4).steps()
    part = steps[1](steps[0](smooth))
    monkeypatch.setattr(resizing, "_EXCESS", 10**9)
    whole = steps[1](steps[0](smooth))
    assert steps[0](smooth).shape[2] > 3000
    assert (part - whole).abs().max() < 0.02


def test_ordinary_images_are_resized_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing.Part, "of", lambda *_: pytest.fail("it was cut first"))
    for size in ((30, 20), (64, 500), (2000, 180)):
        for step in Fit((32, 32), "shorter", "bicubic", 0.9, (0.5, 0.5, 0.5)).steps():
            step(Image.new("RGB", size))


def test_the_pool_lets_no_more_in_than_it_holds() -> None:
    pool, most, now, lock = MemoryPool(100), 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal most, now
        with pool.take(size):
            with lock:
                now += min(size, 100)
                most = max(most, now)
            with pool.take(90):  # a thread that holds some waits for no more
                time.sleep(0.002)
            with lock:
                now -= min(size, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in [40, 50, 60, 1000] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert most <= 100
    with pool.take(100):  # all was given back
        pass


def test_decoding_takes_part_in_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_classes(tmp_path, cat=20, dog=20)
    held: list[int] = []

    class Watched(MemoryPool):
        def take(self, size: int):  # type: ignore[no-untyped-def]
            held.append(size)
            return super().take(size)

    monkeypatch.setattr(files, "POOL", Watched(12 * 12 * 12))  # one picture
    assert sum(map(len, open_data(DataConfig(source=str(root))).splits.values())) == 40
    assert held == [12 * 12 * 12] * 40


# -- sixteen bits in colour --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_png_of_sixteen_bits_is_read_in_full(colour: int, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    data = _png(values, colour)
    assert np.array_equal(deep_png(BytesIO(data), Limits()), values)
    if channels == 3:
        assert np.array_equal(stored_values(data), values)
        assert np.array_equal(np.asarray(read_image(data)), np.floor(values / 257 + 0.5))
    else:
        colours, opacity = values[..., :-1] / 65535, values[..., -1:] / 65535
        expected = np.broadcast_to(255 * (colours * opacity + 1 - opacity), (5, 7, 3))
        assert np.abs(np.asarray(read_image(data)) - expected).max() <= 0.51


def test_the_transparent_colour_of_a_png_of_sixteen_bits_is_white() -> None:
    data = _png(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16), 2, struct.pack(">3H", 1, 2, 3))
    assert np.asarray(read_image(data)).tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_twelve_bits_in_a_colour_png_are_made_visible_by_a_window() -> None:
    values = np.random.default_rng(2).integers(0, 4096, (4, 4, 3)).astype(np.uint16)
    made = read(_png(values, 2), Reading(3, (0.0, 4095.0)))
    assert np.array_equal(np.asarray(made), np.floor(values / 4095 * 255 + 0.5))


# -- what changed, and what is no file ---------------------------------------------------------------------------------


def _other_picture(file: Path) -> None:
    file.write_bytes(_encoded(Image.fromarray(pixels("another"))))


def _nothing(file: Path) -> None:
    file.unlink()


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("check", ["decode", "header", "none"])
@pytest.mark.parametrize("change", [_other_picture, _nothing, _folder, _pipe])
def test_what_changed_since_the_check_stops_by_name_and_waits_for_nothing(
    change: object, check: str, tmp_path: Path
) -> None:
    root = write_classes(tmp_path / "photos", cat=8, dog=8)
    data = open_data(DataConfig(source=str(root), check=check, workers=0))  # type: ignore[arg-type]
    file = data.train.items[0].picture.file
    assert file is not None
    change(file)  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"{file.name}: .* restore it or start again"):
        data.train[0]
    data.train[1]


@pytest.mark.parametrize("change", [_other_picture, _nothing, _folder, _pipe])
def test_a_mask_that_changed_since_the_check_stops_by_name(change: object, tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / "images" / f"{number}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 12), number % 2, np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    data = open_data(DataConfig(source=str(tmp_path), target="mask"))
    name = data.train.items[0].name
    change(tmp_path / "masks" / Path(name).name)  # type: ignore[operator]
    with pytest.raises(DataError, match="restore it or start again"):
        data.train[0]


def test_pipes_and_devices_among_the_images_are_skipped_by_name(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", cat=8, dog=8)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "dog" / "zero.png").symlink_to("/dev/zero")
    (root / "dog" / "lost.png").symlink_to("nowhere")
    with pytest.warns(DataWarning) as said:
        data = open_data(DataConfig(source=str(root), max_unreadable=0.5))
    assert sum(map(len, data.splits.values())) == 16
    text = "\n".join(str(one.message) for one in said)
    assert "2 files cannot be read as images" in text
    assert "pipe.png (it cannot be opened: it is no plain file)" in text
    assert "1 files are listed but do not exist; they are skipped: dog/lost.png" in text


def test_a_pipe_is_no_image_to_predict(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="is no plain file"):
        find_images([tmp_path / "a.png"])
    with pytest.raises(DataError, match="cannot be opened"):
        read_image(tmp_path / "a.png")


# -- what is left out --------------------------------------------------------------------------------------------------


def test_links_to_folders_are_left_out_counted_and_said(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", cat=8, dog=8)
    write_classes(tmp_path / "elsewhere", more=3)
    (root / "cat" / "again").symlink_to(root)  # a circle
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(DataWarning, match="2 links to folders are not followed, .*: cat/again; dog/more"):
        data = open_data(DataConfig(source=str(root), strict=True))
    assert sum(map(len, data.splits.values())) == 16
    assert [one.kind for one in data.problems] == ["linked", "linked"]
    with pytest.warns(DataWarning, match="2 links to folders are not followed"):
        assert len(find_images([root])) == 16


def test_folders_that_cannot_be_opened_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_classes(tmp_path / "photos", cat=8, dog=8)
    write(root / "cat" / "shut" / "x.png")
    real = os.scandir

    def scandir(path: str) -> object:  # root may open everything, so that a mode would not do
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(DataWarning, match="1 folders cannot be opened, and what is in them is left out: cat/shut"):
        data = open_data(DataConfig(source=str(root)))
    assert sum(map(len, data.splits.values())) == 16
    with pytest.raises(DataError, match="cat/shut"):
        open_data(DataConfig(source=str(root), strict=True))


def test_images_whose_names_begin_with_a_dot_are_in_the_record(tmp_path: Path) -> None:
    root = write_classes(tmp_path, cat=8, dog=8)
    write(root / "cat" / ".secret.png")
    (root / "cat" / "._000.png").write_bytes(b"a note of macOS")
    data = open_data(DataConfig(source=str(root)))
    assert [str(one) for one in data.problems] == ["cat/.secret.png (its name begins with a dot)"]
