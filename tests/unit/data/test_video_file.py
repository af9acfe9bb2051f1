"""Any frame of a video by its number, the same whatever the container; every broken file is named."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.unit.data.videos import counted, number_of, turn, write_sound, write_video

from vpeft.data.clips import torchcodec_frames
from vpeft.data.clips.clip import ClipFile, ClipFrames, UnknownDecoder, usable_decoder
from vpeft.data.clips.video_file import UnreadableClip, read_frames, video_facts
from vpeft.data.decoding import Limits, MissingImage, Stamp, UnreadableImage
from vpeft.data.pixels import DEFAULT


def _numbers(path: Path, wanted: list[int], stamp: bool = True) -> list[int]:
    with path.open("rb") as file:
        facts = video_facts(file)
        return [
            number_of(frame) for frame in read_frames(file, wanted, facts, DEFAULT, Stamp.of(file) if stamp else None)
        ]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")]
)
def test_a_number_means_the_same_frame_in_every_container(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, counted(24), codec=codec)
    with path.open("rb") as file:
        facts = video_facts(file)
    assert (facts.count, facts.size, facts.rate, facts.variable, facts.cut) == (24, (32, 48), 25.0, False, "")
    assert _numbers(path, [0, 5, 11, 12, 23]) == [0, 5, 11, 12, 23]
    assert _numbers(path, [7, 7, 3]) == [7, 7, 3]


def test_seeking_gives_the_frames_of_decoding_from_the_start(tmp_path: Path) -> None:
    frames = [frame for _ in range(6) for frame in counted(28)]
    path = write_video(tmp_path / "long.mp4", frames, gop=10)  # with B-frames, as the encoder chooses
    wanted = [0, 9, 10, 31, 77, 78, 120, 167]
    with path.open("rb") as file:
        facts = video_facts(file)
        assert facts.count == 168 and facts.exact
        plain = read_frames(file, wanted, facts)
        sought = read_frames(file, wanted, facts, DEFAULT, Stamp.of(file))
    assert np.array_equal(plain, sought)
    assert [number_of(frame) for frame in sought] == [number % 28 for number in wanted]


def test_a_gif_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in counted(6)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=40)
    with (tmp_path / "a.gif").open("rb") as file, Image.open(tmp_path / "a.gif") as image:
        found = read_frames(file, range(6), video_facts(file))
        for number in range(6):
            image.seek(number)
            assert np.abs(found[number].astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() <= 1


@pytest.mark.parametrize(("degrees", "corner"), [(90, "top right"), (180, "bottom right"), (270, "bottom left")])
def test_stated_rotation_is_applied(tmp_path: Path, degrees: int, corner: str) -> None:
    path = write_video(tmp_path / "a.mp4", counted(3))
    turn(path, degrees)
    with path.open("rb") as file:
        facts = video_facts(file)
        frame = read_frames(file, [0], facts)[0]
    assert facts.size == ((48, 32) if degrees != 180 else (32, 48)) and frame.shape[:2] == facts.size
    corners = {"top left": frame[2, 2], "top right": frame[2, -3], "bottom right": frame[-3, -3]}
    corners["bottom left"] = frame[-3, 2]
    assert max(corners, key=lambda name: int(corners[name][0])) == corner


def test_odd_sizes_and_uneven_times(tmp_path: Path) -> None:
    odd = write_video(tmp_path / "odd.avi", counted(4, 33, 47), codec="ffv1", pixels="bgr0")
    assert _numbers(odd, [0, 3]) == [0, 3]
    uneven = write_video(tmp_path / "uneven.mp4", counted(6), times=[0, 1, 2, 3, 13, 14])
    with uneven.open("rb") as file:
        facts = video_facts(file)
    assert facts.variable and facts.count == 6 and _numbers(uneven, [3, 4, 5]) == [3, 4, 5]


def _broken(folder: Path) -> dict[str, Path]:
    Image.fromarray(counted(1)[0]).save(folder / "picture.png")
    picture = folder / "picture.mp4"
    picture.write_bytes((folder / "picture.png").read_bytes())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    whole = write_video(folder / "whole.mp4", counted(12)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    frameless = folder / "frameless.mp4"
    with av.open(str(frameless), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    return {
        "it is a picture (PNG), not a video": picture,
        "it is empty": folder / "empty.mp4",
        "it cannot be read as a video": folder / "noise.mp4",
        "cannot be read as a video: ": folder / "list.mp4",
        "is cut off": folder / "cut.mp4",
        "it has sound and no pictures": write_sound(folder / "sound.mp4"),
        "no ": frameless,
    }


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    for sentence, path in _broken(tmp_path).items():
        for depth in (True, False):
            with path.open("rb") as file, pytest.raises(UnreadableClip) as error:
                video_facts(file, decode=depth)
            assert sentence in str(error.value), path
    with pytest.raises(MissingImage):
        ClipFile(tmp_path / "absent.mp4").checked("none", DEFAULT)
    with pytest.raises(UnreadableImage, match="max_pixels"):
        ClipFile(tmp_path / "whole.mp4").checked("header", Limits(max_pixels=100))


def test_a_video_that_ends_early_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    frames = counted(24, 96, 128)
    for frame in frames:  # something to store, so that half of the file is half of the frames
        frame[:40] = np.random.default_rng(0).integers(0, 256, (40, 128, 3))
    data = write_video(tmp_path / "a.avi", frames, codec="mpeg4", gop=1).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 6 // 10])
    seen = ClipFile(tmp_path / "cut.avi").checked("decode", DEFAULT)
    clip = seen.picture.decode()
    assert [note.kind for note in seen.notes] == ["cut_off"]
    assert 4 < clip.count < 24
    last = clip.frames([clip.count - 1])[0].permute(1, 2, 0).numpy()
    assert abs(number_of(last) - (clip.count - 1)) <= 1


def test_parts_are_frames_or_seconds(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(24))
    for part, first, count in (((5, 9), 5, 4), ((5, None), 5, 19), ((0.2, 0.4), 5, 5), ((20, 99), 20, 4)):
        clip = ClipFile(path, part).decode()
        assert clip.count == count
        assert number_of(clip.frames([0])[0].permute(1, 2, 0).numpy()) == first
    with pytest.raises(UnreadableClip, match="24 frames"):
        ClipFile(path, (30, 40)).decode()
    one, other = (ClipFile(path, part).checked("header", DEFAULT).content for part in ((0, 9), (9, 18)))
    assert one != other


def test_folders_of_frames_go_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for number, frame in enumerate(counted(12)):
        Image.fromarray(frame).save(tmp_path / f"frame_{number}.png")
    seen = ClipFrames(tmp_path).checked("decode", DEFAULT)
    clip = seen.picture.decode()
    assert clip.count == 12
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in clip.frames([2, 10, 11])] == [2, 10, 11]
    Image.fromarray(counted(1, 16, 16)[0]).save(tmp_path / "frame_5.png")
    with pytest.raises(UnreadableClip, match=r"frame_5\.png has another size"):
        ClipFrames(tmp_path).checked("decode", DEFAULT)


def test_torchcodec_reads_where_it_loads_and_is_refused_elsewhere() -> None:
    reason = torchcodec_frames.why_not()
    if reason is None:
        assert usable_decoder("auto") == usable_decoder("torchcodec") == "torchcodec"
    else:
        with pytest.raises(UnknownDecoder, match="torchcodec"):
            usable_decoder("torchcodec")
        assert usable_decoder("auto") == "pyav"
    assert usable_decoder("pyav") == "pyav"


# Twelve frames between whole ones, only whole ones, none but the first, other containers, pauses between frames.
VIDEOS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "whole.mp4": {"gop": 1},
    "far.mkv": {"gop": 250},
    "b.avi": {"codec": "mpeg4"},
    "c.webm": {"codec": "libvpx-vp9"},
    "pauses.mp4": {"times": [0, 1, 2, 7, 8, 9, 20, 21, 22, 23, 40, 41, 42, 43, 44, 45, 46, 47, 60, 61, 62, 63, 64, 65]},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_by_number_are_the_same_from_torchcodec(name: str, tmp_path: Path) -> None:
    reason = torchcodec_frames.why_not()
    if reason is not None:
        pytest.skip(reason)
    path = write_video(tmp_path / name, counted(24), **VIDEOS[name])
    wanted = [0, 3, 3, 12, 23, 7]
    with path.open("rb") as file:
        facts = video_facts(file)
        assert torchcodec_frames.suits(facts)
        both = [read_frames(file, wanted, facts), torchcodec_frames.read_frames(file, wanted, facts)]
        with pytest.raises(UnreadableClip):
            torchcodec_frames.read_frames(file, [24], facts)
    assert np.abs(both[0].astype(int) - both[1].astype(int)).max() <= 2
    assert [number_of(frame) for frame in both[1]] == wanted


def test_threads_may_look_at_once(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{number}.mp4", counted(6 + number)) for number in range(4)]
    found: dict[int, int] = {}

    def look(number: int) -> None:
        with paths[number].open("rb") as file:
            found[number] = video_facts(file).count

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 6 + number for number in range(4)}
