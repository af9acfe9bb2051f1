"""The offline sets of clips: what the files hold is what was drawn, and a class and its twin share their frames."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vpeft.data import DataConfig, DataError, open_data
from vpeft.data.pocket_video import FRAMES, SIZES, DrawnClips, gesture, motion, pocket_video_sets, video_set
from vpeft.data.pocket_video.video_set import SIDE, digest, stored_digests
from vpeft.data.sources.registry import find_source, sources

NAMES = tuple(pocket_video_sets())


@cache
def _few(name: str, split: str = "train", seed: int = 0) -> DrawnClips:
    return pocket_video_sets()[name].draw(split, 24, np.random.Generator(np.random.PCG64(seed)))


def test_two_sets_with_their_sizes_and_classes() -> None:
    assert NAMES == ("gesture", "motion") and SIZES == {"train": 480, "val": 240, "test": 480}
    assert len(motion.LABELS) == 12 and len(gesture.LABELS) == 10
    assert all(size % len(one.labels) == 0 for one in pocket_video_sets().values() for size in SIZES.values())


@pytest.mark.parametrize("name", NAMES)
def test_clips_depend_on_the_seed_alone(name: str) -> None:
    few = _few(name)
    assert few.frames.shape == (24, FRAMES, SIDE, SIDE, 3) and few.frames.dtype == np.uint8
    again = pocket_video_sets()[name].draw("train", 24, np.random.Generator(np.random.PCG64(0)))
    assert digest(again) == digest(few) != digest(_few(name, seed=1))
    moving = np.abs(np.diff(few.frames.astype(int), axis=1)).max(axis=(2, 3, 4))
    assert (moving.max(axis=1) > 20).all()  # something happens in every clip


@pytest.mark.parametrize("pair", range(6))
def test_a_twin_is_the_same_played_backwards(pair: int) -> None:
    one, other = (
        motion.clip(np.random.Generator(np.random.PCG64(7)), pair, backwards=backwards) for backwards in (False, True)
    )
    assert np.array_equal(one, other[::-1]) and not np.array_equal(one, other)


def test_motions_are_what_their_names_say() -> None:
    """Measured from the pixels: the centre and the area of what differs from the background."""
    for seed in range(5):
        for label, (across, down) in {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}.items():
            pair, backwards = divmod(motion.LABELS.index(label), 2)
            frames = motion.clip(np.random.Generator(np.random.PCG64(seed)), pair, bool(backwards)).astype(float)
            background = np.median(frames, axis=0)
            centres = []
            for frame in (frames[0], frames[-1]):
                there = np.abs(frame - background).sum(-1) > 24
                rows, columns = np.nonzero(there)
                centres.append((columns.mean(), rows.mean()))
            moved = np.subtract(centres[1], centres[0])
            assert moved @ (across, down) > 4 and abs(moved @ (down, across)) < abs(moved @ (across, down)), label


@pytest.mark.parametrize("name", NAMES)
def test_every_split_has_a_digest_of_its_own(name: str) -> None:
    stored = stored_digests()[name]
    assert set(stored) == set(SIZES) and len(set(stored.values())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_sets_are_what_their_digests_say(name: str) -> None:
    pocket_video_sets()[name].verify()


def test_a_difference_names_the_split() -> None:
    with pytest.raises(DataError, match="'train' of pocket-video/motion"):
        replace(motion.SET, draw=lambda split, count, rng: _few("motion")).verify()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets of 24, 12 and 12 clips in a cache of their own."""
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(video_set, "SIZES", {"train": 24, "val": 12, "test": 12})
    monkeypatch.setattr(video_set, "stored_digests", dict)
    return tmp_path


def test_files_hold_every_pixel_as_it_was_drawn(small: Path) -> None:
    one = motion.SET
    for split in ("train", "val", "test"):
        drawn, read = one.generate(split), one.read(split)
        assert digest(drawn) == digest(read)
    files = sorted(small.glob("pocket-video/motion-draft/train/*/*.mp4"))
    assert len(files) == 24 and {path.parent.name for path in files} == set(motion.LABELS)


def test_they_are_data_like_any_other(small: Path) -> None:
    config = DataConfig(source="pocket-video/motion")
    assert find_source(config).name == "pocket-video"
    assert sorted(sources()["pocket-video"].names()) == ["pocket-video/gesture", "pocket-video/motion"]
    data = open_data(config)
    assert data.labels == list(motion.LABELS) and data.config.clip is not None
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 12, "test": 12}
    assert data.train[0][0].shape == (3, FRAMES, SIDE, SIDE)
    with pytest.raises(DataError, match="motion"):
        open_data(DataConfig(source="pocket-video/motoin"))
