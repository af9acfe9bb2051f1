"""Clips through transforms, views, caches and loading processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.data.videos import counted, number_of, write_video
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Video

from vpeft.batch import Batch
from vpeft.data import DataConfig, DataError, Datasets, Preprocessing, open_data
from vpeft.data.augmentation import CornerCrop, policies
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.clips.views import ClipViews, in_views
from vpeft.task import NoViews, get_task
from vpeft.training.batches import Batches
from vpeft.training.evaluate import evaluate

GREY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("left", "right"):
            for number in range(count):
                write_video(root / split / kind / f"{number}.mp4", counted(20, 24 + 8 * number, 40))
    return root


def _open(folder: Path, **more: Any) -> Datasets:
    clip = ClipConfig.model_validate({"frames": 4, "stride": 2, **more.pop("clip", {})})
    return open_data(DataConfig(source=str(folder), val_fraction=0, clip=clip, **more))


def _seen(clip: Tensor) -> list[int]:
    """The numbers of the frames of a clip (3, T, H, W) that nothing but the size has changed."""
    return [number_of((frame * 255).permute(1, 2, 0).numpy()) for frame in clip.transpose(0, 1)]


def _preprocessing(size: int = 16, **more: Any) -> Preprocessing:
    return Preprocessing(size=(size, size), resize="squash", interpolation="bilinear", crop_pct=1.0, **GREY, **more)


def _prepared(data: Datasets, size: int = 16, **more: Any) -> Datasets:
    return data.prepared(_preprocessing(size, **more))


def test_clips_come_as_channels_then_time(folder: Path) -> None:
    data = _prepared(_open(folder))
    clip, target = data.train[0]
    assert clip.shape == (3, 4, 16, 16) and clip.dtype == torch.float32 and target == 0
    assert data.preprocessing_of(Preprocessing()).clip == ClipConfig(frames=4, stride=2)
    turned = _prepared(_open(folder), time_axis=1)
    assert torch.equal(turned.train[0][0].transpose(0, 1), clip)


def test_each_frame_is_normalised_by_channel(folder: Path) -> None:
    plain = _prepared(_open(folder)).train[0][0]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)
    other = _preprocessing().model_copy(update={"mean": mean, "std": std})
    found = _open(folder).prepared(other).train[0][0]
    wanted = (plain - torch.tensor(mean)[:, None, None, None]) / torch.tensor(std)[:, None, None, None]
    assert torch.allclose(found, wanted, atol=1e-6)


def test_without_augmentation_training_sees_the_middle_and_is_the_same_each_time(folder: Path) -> None:
    train = _prepared(_open(folder)).train
    first = train[2][0]
    train.set_epoch(5)
    assert torch.equal(train[2][0], first) and _seen(first) == [6, 8, 10, 12]


def test_with_augmentation_the_start_is_random_and_all_frames_are_changed_alike(folder: Path) -> None:
    train = _prepared(_open(folder, augmentation="flip")).train
    starts, mirrored = set(), set()
    for epoch in range(24):
        train.set_epoch(epoch)
        clip = train[0][0]
        numbers = _seen(clip)
        assert numbers == [numbers[0] + 2 * number for number in range(4)]
        starts.add(numbers[0])
        corner = {bool(frame[0, 1, 1] < 0.95) for frame in clip.transpose(0, 1)}  # the white corner is at the right
        assert len(corner) == 1
        mirrored |= corner
    assert len(starts) > 6 and mirrored == {True, False}


def test_classes_that_are_never_mirrored(folder: Path) -> None:
    train = _prepared(_open(folder, augmentation="flip", clip={"no_flip": ["left"]})).train
    seen: dict[int, set[bool]] = {0: set(), 1: set()}
    for epoch in range(12):
        train.set_epoch(epoch)
        for index in range(len(train)):
            clip, target = train[index]
            seen[target].add(bool(clip[0, 0, 1, 1] > 0.95))
    assert seen == {0: {True}, 1: {True, False}}
    with pytest.raises(DataError, match="names 'lefty', which is no class of .* 'left'"):
        _open(folder, clip={"no_flip": ["left", "lefty"]})


def test_one_video_and_videos_of_no_class(folder: Path) -> None:
    with pytest.raises(DataError, match=r"0\.mp4 is one video\. .* sub-folder of videos.* `vpeft predict"):
        _open(folder / "train" / "left" / "0.mp4")
    for clip in (None, ClipConfig()):
        with pytest.raises(DataError, match="left holds videos but no class folders"):
            open_data(DataConfig(source=str(folder / "train" / "left"), clip=clip))


@pytest.mark.parametrize("policy", sorted(policies()))
def test_every_policy_draws_once_for_all_frames(folder: Path, policy: str) -> None:
    train = _prepared(_open(folder, augmentation=policy, clip={"short": "hold"})).train
    still = np.repeat(counted(1, 24, 40), 20, axis=0)
    image = train.image(0)
    import dataclasses

    frozen = dataclasses.replace(image, kept=np.ascontiguousarray(still))
    for seed in range(3):
        torch.manual_seed(seed)
        assert train.transform is not None
        clip = train.transform(frozen)
        assert clip.shape == (3, 4, 16, 16)
        assert all(torch.equal(clip[:, 0], clip[:, number]) for number in range(4)), policy


def test_views_are_parts_in_time_and_crops_in_space(folder: Path) -> None:
    data = _prepared(_open(folder, clip={"views": "3x3"}))
    assert data.test is not None
    preprocessing = data.preprocessing_of(_preprocessing())
    views = in_views(data.test, preprocessing)
    assert isinstance(views, ClipViews) and len(views) == 9 * 4 and views.views == 9
    made = [views[number] for number in range(9)]
    assert {sample.id for sample in made} == {data.test.items[0].name} and {sample.target for sample in made} == {0}
    assert [_seen(made[3 * part][0])[0] for part in range(3)] == [0, 6, 13]
    left, middle, right = (made[crop][0] for crop in range(3))
    assert not torch.equal(left, middle) and not torch.equal(middle, right)
    # a video of 24 x 40, its shorter side brought to 16: 26 wide, of which the crops begin at 0, 5 and 10
    frames = data.test.image(0).frames(range(8)[::2][:4])
    small = v2.functional.resize(frames, [16, 26], antialias=True)
    for crop, start in ((0, 0), (1, 5), (2, 10)):
        wanted = small[0][..., start : start + 16].float() / 255
        assert torch.allclose(made[crop][0][:, 0], wanted, atol=1e-6)
    assert in_views(data.test, preprocessing.with_clip(ClipConfig(views="1x1"))) is data.test


class _Brightness(torch.nn.Module):
    """Logits out of the brightness of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(8.0))

    def forward(self, clips: Tensor) -> Tensor:
        level = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack([self.scale * level, self.scale * (0.6 - level)], dim=1)


def test_evaluation_averages_the_probabilities_of_a_clip(folder: Path) -> None:
    data = _prepared(_open(folder, clip={"views": "4x3"}))
    assert data.test is not None
    preprocessing = data.preprocessing_of(_preprocessing())
    views = in_views(data.test, preprocessing)
    model, task = _Brightness(), get_task("classification")(labels=tuple(data.labels))
    inputs = torch.stack([views[number][0] for number in range(len(views))])
    with torch.no_grad():
        mean = model(inputs).double().softmax(1).reshape(4, 12, 2).mean(1)
    wanted = torch.nn.functional.nll_loss(mean.log(), torch.tensor(data.test.targets)).item()
    for batch in (1, 5, 12, 30, 64):
        scores = evaluate(model, views, task=task, batch=batch)
        assert scores.count == 4 and scores.values["loss"] == pytest.approx(wanted, abs=1e-6)


def test_the_mean_of_views_is_one_of_probabilities() -> None:
    logits = torch.randn(6, 3)
    one = get_task("classification")(labels=("a", "b", "c"), temperature=2.0)
    mean = one.averaged(logits, 3)
    assert torch.allclose((mean / 2).softmax(1), (logits / 2).softmax(1).reshape(2, 3, 3).mean(1), atol=1e-6)
    several = get_task("multilabel")(labels=("a", "b", "c"))
    mean = several.averaged(20 * logits, 3)
    assert torch.allclose(mean.sigmoid(), (20 * logits).sigmoid().reshape(2, 3, 3).mean(1), atol=1e-6)
    with pytest.raises(NoViews, match="regression"):
        get_task("regression")().averaged(logits, 3)


def test_two_loading_processes_give_the_clips_of_none(folder: Path) -> None:
    def epochs(workers: int) -> list[Batch]:
        train = _prepared(_open(folder, augmentation="crop")).train
        batches = Batches(train, 2, seed=3, workers=workers)
        return [batch for epoch in (0, 1) for batch in batches.epoch(epoch)]

    alone, several = epochs(0), epochs(2)
    assert len(alone) == 6
    for one, other in zip(alone, several, strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    assert not torch.equal(alone[0].inputs, alone[3].inputs)


def test_decoded_clips_are_kept_within_a_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _prepared(_open(folder, augmentation="crop")).train
    kept = _prepared(_open(folder, augmentation="crop", cache="ram")).train
    assert kept.cache is not None
    for index in range(len(plain)):
        assert torch.equal(plain[index][0], kept[index][0])
    assert len(kept.cache) == len(kept) and kept.cache.used == sum(20 * (24 + 8 * k) * 40 * 3 for k in range(3)) * 2
    small = _prepared(_open(folder, cache="ram", cache_gib=100_000 / 2**30)).train
    for index in range(len(small)):
        _ = small[index]
    assert small.cache is not None and len(small.cache) == 1 and small.cache.used <= 100_000
    for item in kept.items:
        monkeypatch.setattr(type(item.picture), "pixels", None)  # nothing is decoded again
    kept.set_epoch(3)
    assert kept[0][0].shape == (3, 4, 16, 16)


def test_a_clip_that_has_changed_since_is_refused(folder: Path, tmp_path: Path) -> None:
    for kind in ("a", "b"):
        write_video(tmp_path / "clips" / kind / "0.mp4", counted(8))
    data = _prepared(_open(tmp_path / "clips", test_fraction=0))
    write_video(tmp_path / "clips" / "a" / "0.mp4", counted(9))
    with pytest.raises(DataError, match="has changed"):
        _ = data.train[0]


def test_images_for_a_model_of_clips_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for number, kind in enumerate("ab"):
        (tmp_path / kind).mkdir()
        Image.fromarray(counted(2)[number]).save(tmp_path / kind / "0.png")
    data = open_data(DataConfig(source=str(tmp_path), val_fraction=0, test_fraction=0))
    with pytest.raises(DataError, match="takes clips, and the data are images"):
        _ = data.prepared(Preprocessing(clip=ClipConfig(frames=4))).train[0]


def test_settings_of_clips_are_written_only_where_there_are_clips() -> None:
    assert "clip" not in Preprocessing().model_dump() and "time_axis" not in Preprocessing().model_dump()
    assert "clip" not in DataConfig(source="x").model_dump()
    stated = Preprocessing(clip=ClipConfig(frames=4, views="4x3"), time_axis=1)
    assert Preprocessing.model_validate(stated.model_dump(mode="json")) == stated


def test_crops_at_corners_have_four_scales_and_five_places() -> None:
    step = CornerCrop((8, 8), v2.InterpolationMode.BILINEAR)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    frames = Video(torch.stack([rows, columns, rows])[None].repeat(2, 1, 1, 1).to(torch.uint8))
    torch.manual_seed(0)
    sizes, places = set(), set()
    for _ in range(200):
        params = step.make_params([frames])
        height, width = params["height"], params["width"]
        sizes |= {height, width}
        places.add((params["top"] / max(1, 40 - height), params["left"] / (60 - width)))
        assert params["top"] + height <= 40 and params["left"] + width <= 60
    assert sizes == {40, 35, 30, 26} and len(places) >= 5
    made = step(frames)
    assert made.shape == (2, 3, 8, 8) and torch.equal(made[0], made[1])
