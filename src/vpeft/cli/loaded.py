"""A saved adapter, back on its backbone and ready for images: what `predict`, `evaluate` and `demo` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vpeft.backbones.create import create_backbone
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.injection.adapter_file import Manifest, load, read_manifest
from vpeft.injection.tuned_model import TunedModel

Device = Literal["auto", "cpu", "cuda", "mps"]


class NoSuchDevice(VpeftError):
    """The machine has no such device."""


@dataclass(frozen=True)
class Loaded:
    """An adapted model in evaluation mode on `device`, with the labels and preprocessing of its training."""

    model: TunedModel
    manifest: Manifest
    preprocessing: Preprocessing
    labels: list[str]
    device: torch.device

    def probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """Preprocessed images, each (3, H, W), -> probabilities (B, K) on the CPU."""
        with torch.inference_mode():
            logits: Tensor = self.model(torch.stack(list(images)).to(self.device))
            return logits.float().softmax(dim=-1).cpu()

    def best(self, probabilities: Tensor, count: int) -> Iterator[list[tuple[str, float]]]:
        """For each row of (B, K) the `count` most probable labels with their probabilities, best first."""
        values, places = probabilities.topk(min(count, probabilities.shape[1]), dim=1)
        for row, indices in zip(values.tolist(), places.tolist(), strict=True):
            yield [(self.labels[index], value) for index, value in zip(indices, row, strict=True)]


def open_adapter(path: Path, *, device: Device = "auto", backbone: nn.Module | None = None) -> Loaded:
    """Make the backbone that the file names, put the adapter on it, and get ready to predict.

    Raises:
        VpeftError: the file is no adapter, is damaged, or does not fit the backbone; the device does not exist.
    """
    manifest = read_manifest(path)
    chosen = pick_device(device)
    base = backbone if backbone is not None else create_backbone(manifest.backbone, pretrained=True)
    model = load(base, path).to(chosen).eval()
    if not manifest.labels:
        raise VpeftError(f"{path} has no labels, so its outputs cannot be named. Save it with labels=[...].")
    stated = manifest.preprocessing
    preprocessing = Preprocessing.model_validate(stated) if stated else Preprocessing.from_model(base)
    return Loaded(model, manifest, preprocessing, list(manifest.labels), chosen)


def pick_device(device: Device) -> torch.device:
    """The best device of this machine for `auto`, or the one that was asked for. Raises `NoSuchDevice`."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there[device]:
        have = ", ".join(name for name, exists in there.items() if exists)
        raise NoSuchDevice(f"This machine has no {device} that torch can use. It has: {have}.")
    return torch.device(device)
