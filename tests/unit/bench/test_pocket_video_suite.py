"""The suite pocket-video: its tasks learn from the clips that the digests name, read from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vpeft
from vpeft.bench.engine import Assignment
from vpeft.bench.key import Identity
from vpeft.bench.protocol import PROTOCOLS, Point
from vpeft.bench.sealed import TestSetSealed
from vpeft.bench.suites import pocket_video
from vpeft.bench.trainer import VpeftEngine
from vpeft.data.pocket_video import motion, video_set
from vpeft.method_spec import MethodSpec


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets of 24, 12 and 12 clips in a cache of their own."""
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(video_set, "SIZES", {"train": 24, "val": 12, "test": 12})
    monkeypatch.setattr(video_set, "stored_digests", dict)
    monkeypatch.setattr(pocket_video, "stored_digests", dict)
    return tmp_path


def test_the_suite_is_found_with_its_tasks_and_tiers() -> None:
    suite = vpeft.suites.pocket_video()
    assert suite.tasks == ("motion", "gesture") and suite.default_tier == "quick"
    assert all(tier.protocol in PROTOCOLS for tier in suite.tiers.values())


def test_a_task_holds_the_clips_of_its_files(small: Path) -> None:
    task = vpeft.suites.pocket_video().task("motion")
    assert task.labels == motion.LABELS and task.clip is not None and task.clip.frames == 16
    assert (task.train.size, task.val.size, task.train_and_val().size) == (24, 12, 36)
    with pytest.raises(TestSetSealed, match="pocket-video/motion is sealed"):
        _ = task.test[0]
    both = task.train_and_val().dataset(task.labels, None, 0)
    drawn = motion.SET.generate("val")
    clip, target = both[24]
    assert np.array_equal(clip.permute(1, 2, 3, 0).numpy(), drawn.frames[0]) and target == drawn.labels[0]
    assert task.train.content != task.val.content != task.train_and_val().content


def test_other_clips_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_video, "stored_digests", lambda: {"motion": {"val": "0" * 64}})
    with pytest.raises(pocket_video.OtherClips, match="'val' of pocket-video/motion"):
        vpeft.suites.pocket_video().task("motion")


@pytest.mark.slow
def test_the_engine_trains_on_clips(small: Path, tmp_path: Path) -> None:
    task = vpeft.suites.pocket_video().task("motion")
    identity = Identity(
        purpose="search",
        task=task.full_name,
        data=task.digest,
        protocol="pocket-video-smoke@1",
        methods=(MethodSpec(name="linear_probe"),),
        backbone="pocket_vit",
        weights="",
        optimisation={**PROTOCOLS["pocket-video-smoke@1"].optimisation, "epochs": 1},
        seed=0,
    )
    point = Point(lr=2e-3, weight_decay=1e-4)
    where = tmp_path / "run"
    assignment = Assignment(identity, point, task.labels, where, task.learns, task.image_size, task.clip)
    trained = VpeftEngine(accelerated=False).train(assignment, task.train, task.val, None)
    scores = trained.evaluate(task.val, "val")
    assert scores.count == 12 and 0 <= scores.values["top1"] <= 1
