"""Folders and lists of clips: what is read, and what is wrong with it, by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image
from tests.unit.data.videos import counted, number_of, write_sound, write_video

from vpeft.data import DataConfig, DataError, Datasets, DataWarning, export_folder, open_data
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.sources.registry import find_source, holds_clips


def _frames(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(counted(count)):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")


def _folder(root: Path) -> Path:
    for kind in ("left", "right"):
        for number in range(4):
            write_video(root / kind / f"{number}.mp4", counted(3 + number + (kind == "left") * 4))
    return root


def test_a_folder_of_videos_per_class(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    config = DataConfig(source=str(root), val_fraction=0.25, test_fraction=0.25)
    assert find_source(config).name == "clip_folder" and holds_clips(config)
    data = open_data(config)
    assert data.labels == ["left", "right"] and data.config.clip == ClipConfig()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    clip, target = data.train[0]
    assert clip.shape[0] == 3 and clip.shape[2:] == (32, 48) and target == 0
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in clip.transpose(0, 1)] == list(range(clip.shape[1]))


def test_folders_of_frames_are_clips_where_clips_are_asked_for(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("a", "b"):
            _frames(tmp_path / "clips" / split / kind / "one", 5 + (kind == "b") + 2 * (split == "val"))
    source = str(tmp_path / "clips")
    assert find_source(DataConfig(source=source)).name == "folder"
    data = open_data(DataConfig(source=source, clip=ClipConfig(frames=4)))
    assert data.manifest.layout == "clip_folder"
    assert [item.name for item in data.train.items] == ["train/a/one", "train/b/one"]
    assert data.train[1][0].shape == (3, 6, 32, 48)


def test_broken_clips_are_named_and_counted(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    write_sound(root / "left" / "sound.mp4")
    Image.fromarray(counted(1)[0]).save(tmp_path / "p.png")
    (root / "left" / "picture.mp4").write_bytes((tmp_path / "p.png").read_bytes())
    (root / "right" / "empty.mkv").write_bytes(b"")
    (root / "right" / "notes.txt").write_text("hello")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = open_data(DataConfig(source=str(root), max_unreadable=0.5))
    assert any("3 files cannot be read as clips" in str(one.message) for one in said)
    wrong = {problem.name: problem.detail for problem in data.problems if problem.kind == "unreadable_clip"}
    assert wrong == {
        "left/picture.mp4": "it is a picture (PNG), not a video",
        "left/sound.mp4": "it has sound and no pictures",
        "right/empty.mkv": "it is empty",
    }
    assert [problem.name for problem in data.problems if problem.kind == "ignored"] == ["right/notes.txt"]
    with pytest.raises(DataError, match="3 of 11 images"):
        open_data(DataConfig(source=str(root)))


def test_lists_of_the_benchmarks(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    _frames(root / "frames" / "x y", 6)
    lists = tmp_path / "lists"
    lists.mkdir()
    lines = [f"{kind}/{number}.mp4 {label}" for label, kind in enumerate(("left", "right")) for number in range(4)]
    (lists / "train.csv").write_text("\n".join(lines) + "\n")
    (lists / "val.csv").write_text("left/0.mp4 1 3 0\nright/0.mp4 0.04 0.12 1\nframes/x y 4 1\n")
    data = open_data(DataConfig(source=str(lists), root=root, test_fraction=0, check="header"))
    assert data.manifest.layout == "clip_list" and data.labels == ["0", "1"]
    assert len(data.train) == 8 and data.val is not None
    assert [item.name for item in data.val.items] == [
        "left/0.mp4[1:3]",
        "right/0.mp4[0.04:0.12]",
        "frames/x y[0:4]",
    ]
    assert [data.val[index][0].shape[1] for index in range(3)] == [2, 2, 4]
    first = data.val[0][0][:, 0].permute(1, 2, 0).numpy()
    assert number_of(first) == 1


def test_a_table_with_a_header_has_labels_of_other_kinds(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    table = root / "list.csv"
    rows = [f"{kind}/{number}.mp4,{kind};clip,train" for kind in ("left", "right") for number in range(4)]
    table.write_text("\n".join(["video,labels,split", *rows]) + "\n")
    config = DataConfig(source=str(table), target="labels", val_fraction=0.25, test_fraction=0)
    data = open_data(config)
    assert sorted(data.labels) == ["clip", "left", "right"] and data.train[0][1].shape == (3,)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a.mp4", "line 2: it has 1 word"),
        ("a.mp4,x,y,z,0", "columns"),
        ("a.mp4,first,last,0", "the middle ones numbers"),
    ],
)
def test_a_line_that_means_nothing_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{'b.mp4,0' if ',' in line else 'b.mp4 0'}\n{line}\n")
    with pytest.raises(DataError, match=sentence):
        open_data(DataConfig(source=str(path)))


def test_clips_that_are_not_there_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(DataError, match="2 of 2 images"):
        open_data(DataConfig(source=str(path)))


def test_uneven_rates_are_said_once_and_used(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    write_video(root / "left" / "uneven.mp4", counted(8), times=[0, 1, 2, 3, 20, 21, 22, 23])
    with pytest.warns(DataWarning, match="1 videos change their frame rate"):
        data = open_data(DataConfig(source=str(root), strict=True))
    assert sum(len(split) for split in data.splits.values()) == 9


def test_data_sets_of_hugging_face_with_videos(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    paths = [write_video(tmp_path / f"{number}.mp4", counted(5 + number)) for number in range(6)]
    features = library.Features({"video": library.Video(decode=False), "label": library.ClassLabel(names=["a", "b"])})
    videos = [
        {"bytes": path.read_bytes(), "path": None} if number < 3 else {"bytes": None, "path": str(path)}
        for number, path in enumerate(paths)
    ]
    table = library.Dataset.from_dict({"video": videos, "label": [0, 1] * 3}, features=features)
    table.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="holds videos"):
        open_data(DataConfig(source=str(tmp_path / "set")))
    config = DataConfig(source=str(tmp_path / "set"), clip=ClipConfig(frames=4), val_fraction=0.34, test_fraction=0)
    data = open_data(config)
    seen = {
        item.name: split[index][0].shape[1] for split in data.splits.values() for index, item in enumerate(split.items)
    }
    assert seen == {f"{number:06d}": 5 + number for number in range(6)}
    assert data.labels == ["a", "b"]


def test_parts_of_one_video_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    lines = [
        f"{kind}/{number}.mp4 {start} {start + 1} {kind}"
        for kind in ("left", "right")
        for number in range(4)
        for start in range(3)
    ]
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    data = open_data(DataConfig(source=str(root / "list.txt"), val_fraction=0.25, test_fraction=0.25))
    homes = [{item.name.split("[")[0] for item in split.items} for split in data.splits.values()]
    assert [len(home) for home in homes] == [4, 2, 2] and len(set.union(*homes)) == 8


def test_clips_are_exported_as_a_folder_that_is_read_again(tmp_path: Path) -> None:
    root = _folder(tmp_path / "clips")
    _frames(root / "frames", 6)
    lines = [f"{kind}/{number}.mp4 {kind}" for kind in ("left", "right") for number in range(4)]
    lines += ["left/3.mp4 2 5 left", "frames 1 4 right"]
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    config = DataConfig(source=str(root / "list.txt"), val_fraction=0, test_fraction=0)
    data = open_data(config)
    export_folder(data, tmp_path / "out")
    clip = ClipConfig(frames=2)
    again = open_data(DataConfig(source=str(tmp_path / "out"), val_fraction=0, test_fraction=0, clip=clip))
    assert again.manifest.layout == "clip_folder" and again.labels == ["left", "right"]

    def lengths(of: Datasets) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"left": [], "right": []}
        for index, item in enumerate(of.train.items):
            found[item.label].append(of.train[index][0].shape[1])
        return {label: sorted(some) for label, some in found.items()}

    assert lengths(again) == lengths(data)
    assert sorted(path.suffix for path in (tmp_path / "out" / "train" / "left").iterdir()) == ["", *[".mp4"] * 4]
