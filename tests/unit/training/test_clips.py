"""Training on clips with augmentation: loading processes and an interruption change no bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.data.videos import counted, write_video
from vpeft import Optimisation, fit, tune
from vpeft.backbones.create import create_backbone
from vpeft.data import DataConfig, Datasets, Preprocessing, open_data
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.methods.linear_probe import LinearProbe
from vpeft.methods.lora import LoRA
from vpeft.task import get_task
from vpeft.training.result import EpochRecord, Result

SETTINGS = Optimisation(epochs=3, batch=4, lr=5e-3, acceleration="off", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for split, count in (("train", 4), ("val", 1)):
        for kind in ("forwards", "backwards"):
            for number in range(count):
                frames = counted(8 + number)
                ordered = frames if kind == "forwards" else frames[::-1]
                write_video(root / split / kind / f"{number}.mp4", ordered)
    return root


def _data(folder: Path, backbone: torch.nn.Module) -> Datasets:
    clip = ClipConfig(frames=2, stride=3)
    config = DataConfig(source=str(folder), test_fraction=0, augmentation="crop", clip=clip)
    return open_data(config).prepared(Preprocessing.from_model(backbone).resized(32).with_clip(clip))


def _train(folder: Path, out: Path | None = None, **more: Any) -> tuple[dict[str, Tensor], Result]:
    backbone = create_backbone("pocket_vit", image_size=32, frames=2)
    data = _data(folder, backbone)
    task = get_task("classification")().bind(data.train)
    torch.manual_seed(3)
    tuned = tune(backbone, LoRA(rank=2), task=task, show=False)
    result = fit(tuned, data.train, data.val, optimisation=SETTINGS, out=out, task=task, progress=False, **more)
    return {name: value.clone() for name, value in tuned.adapter_state().items()}, result


@pytest.mark.filterwarnings("ignore::vpeft.backbones.positions.ResizedPositions")
def test_workers_and_an_interruption_change_nothing(folder: Path, tmp_path: Path) -> None:
    whole, result = _train(folder)
    several, _ = _train(folder, workers=2)
    assert result.state == "done" and whole.keys() == several.keys()
    assert all(torch.equal(whole[name], several[name]) for name in whole)

    def stop(model: Any, record: EpochRecord) -> None:
        if record.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    _, half = _train(folder, tmp_path, after_epoch=stop)
    assert half.state == "stopped"
    again, rest = _train(folder, tmp_path)
    assert rest.state == "done" and rest.resumed_at
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [record.train_loss for record in rest.history] == [record.train_loss for record in result.history]


@pytest.mark.filterwarnings("ignore::vpeft.backbones.positions.ResizedPositions")
def test_the_frozen_part_of_clips_is_computed_once(folder: Path) -> None:
    """With the same clips in each epoch, records of the frozen part give the very losses of computing it anew."""
    losses = []
    for acceleration in ("off", "frozen_prefix"):
        backbone = create_backbone("pocket_vit", image_size=32, frames=2)
        clip = ClipConfig(frames=2, stride=3)
        config = DataConfig(source=str(folder), test_fraction=0, clip=clip)
        data = open_data(config).prepared(Preprocessing.from_model(backbone).resized(32).with_clip(clip))
        task = get_task("classification")().bind(data.train)
        torch.manual_seed(3)
        tuned = tune(backbone, LinearProbe(), task=task, show=False)
        settings = SETTINGS.model_copy(update={"acceleration": acceleration})
        result = fit(tuned, data.train, data.val, optimisation=settings, task=task, progress=False)
        losses.append([record.train_loss for record in result.history])
    assert losses[0] == losses[1]
