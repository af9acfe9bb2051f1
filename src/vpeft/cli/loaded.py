"""A saved adapter, back on its backbone and ready for images: what `predict`, `evaluate` and `demo` share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from vpeft.backbones.create import create_backbone
from vpeft.backbones.own_code import OWN_CODE
from vpeft.backbones.positions import ResizedPositions
from vpeft.batch import Sample, run_model
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.injection.adapter_file import Manifest, load, read_manifest
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Prediction, Task, all_tasks
from vpeft.training.evaluate import on_processor
from vpeft.training.randomness import seed_everything, untouched_randomness

Device = Literal["auto", "cpu", "cuda", "mps"]


class NoSuchDevice(VpeftError):
    """The machine has no such device."""


@dataclass(frozen=True)
class Loaded:
    """An adapted model in evaluation mode on `device`, with the task and the preprocessing of its training."""

    model: TunedModel
    manifest: Manifest
    preprocessing: Preprocessing
    task: Task
    device: torch.device

    @property
    def labels(self) -> list[str]:
        """The names of the task's outputs."""
        return list(self.task.labels)

    def predictions(self, samples: Sequence[Sample]) -> list[Prediction]:
        """What the model says of preprocessed samples, such as images (C, H, W), in their order."""
        batch = self.task.collate(samples)
        with torch.inference_mode():
            outputs = on_processor(run_model(self.model, batch.to(self.device)))
        return self.task.predictions(outputs, batch)


def open_adapter(
    path: Path, *, device: Device = "auto", backbone: nn.Module | str | None = None, weights: Path | None = None
) -> Loaded:
    """Make the backbone that the file names, put the adapter on it, and get ready to predict.

    Args:
        path: the adapter file.
        device: where to compute.
        backbone: the backbone, if it is at hand, or its name, where the file cannot make it: code of one's own is run
            only when it is named here, never because a file names it.
        weights: the backbone's file of weights, if it is no longer where it was when the adapter was trained.

    Raises:
        VpeftError: the file is no adapter, is damaged, or does not fit the backbone; the device does not exist.
    """
    manifest = read_manifest(path)
    chosen = pick_device(device)
    base = backbone if isinstance(backbone, nn.Module) else _made_again(manifest, path, weights, backbone)
    model = load(base, path).to(chosen).eval()
    task = model.task
    if task is None:
        raise VpeftError(
            f"{path} does not say what its outputs mean: {_unknown_task(manifest)}."
            " Save it with task=... or labels=[...]."
        )
    stated = manifest.preprocessing
    preprocessing = Preprocessing.model_validate(stated) if stated else Preprocessing.from_model(base)
    return Loaded(model, manifest, preprocessing, task, chosen)


def _unknown_task(manifest: Manifest) -> str:
    name = manifest.task.name
    return "it has no labels" if name in all_tasks() else f"the task {name!r} is not known here"


def _made_again(manifest: Manifest, path: Path, weights: Path | None, named: str | None) -> nn.Module:
    """The backbone as it was when the adapter was made on it."""
    origin, described = manifest.origin, manifest.anatomy is None
    stated = manifest.backbone if origin is None else origin.name
    if named is None and stated.startswith(OWN_CODE):
        raise VpeftError(
            f"{path} was made on {stated}, and code is not run because a file names it. If you trust that code, say"
            f" --backbone {stated}."
        )
    if origin is None:
        if named is None and not described:
            raise VpeftError(
                f"{path} was made on {stated}, a model of one's own, and does not say what makes it. Say it with"
                f" --backbone {OWN_CODE}FILE.py:NAME."
            )
        return create_backbone(named or stated, pretrained=weights is None, weights=weights, described=described)
    file = weights if weights is not None else None if origin.weights is None else Path(origin.weights)
    if weights is None and file is not None and not file.is_file():
        raise VpeftError(
            f"{path} was made on {origin.name} with the weights of {origin.weights} (sha256"
            f" {(origin.weights_sha256 or '')[:12]}), and that file is not there. Give it with --weights FILE."
        )
    with untouched_randomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResizedPositions)  # it was said when the adapter was trained
        if origin.seed is not None:
            seed_everything(origin.seed)
        return create_backbone(
            named or origin.name,
            pretrained=origin.pretrained,
            weights=file,
            prefix=origin.prefix,
            allow=origin.allow,
            image_size=origin.image_size,
            channels=origin.channels,
            channels_rule=origin.channels_rule,
            described=described,
        )


def pick_device(device: Device) -> torch.device:
    """The best device of this machine for `auto`, or the one that was asked for. Raises `NoSuchDevice`."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there[device]:
        have = ", ".join(name for name, exists in there.items() if exists)
        raise NoSuchDevice(f"This machine has no {device} that torch can use. It has: {have}.")
    return torch.device(device)
