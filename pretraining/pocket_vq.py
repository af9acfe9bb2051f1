"""Train `pocket_vq`, tokens for small pictures: `python pretraining/pocket_vq.py --work DIR [--scale tiny|small]`.

A picture of 32 x 32 pixels becomes 64 tokens out of 512: a convolution over patches of 4 x 4, residual convolutions,
and for each cell the nearest code by cosine (VQ-VAE, arXiv 1711.00937; codes of length 1 as in ViT-VQGAN, arXiv
2110.04627). The loss is the mean absolute and squared error of the picture, the squared error of its differences
between neighbours, and the distance of codes and cells, 1 for the codes and 0.25 for the cells. A code that no cell has
taken for a while is put where a cell of the present batch is.

Pictures are drawn from the training splits of pocket-dense and pocket: images, and for the scenes also their maps
painted as pictures, and images with noise and holes. Stages are kept in DIR; a killed training resumes from its last
checkpoint and ends with the same weights. Writes DIR/pocket_vq.safetensors in half precision.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from vpeft.backbones.picture_codec import SHAPE, PocketVq
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.pocket import pocket_tasks
from vpeft.data.visual_sentences import PictureMaps, kinds_of
from vpeft.data.visual_tasks import VISUAL_TASKS, resized

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Scale:
    steps: int
    batch: int = 64
    rate: float = 2e-3
    copies: int = 2  # of each image of pocket-dense: crops and mirror images
    pocket: int = 120  # images of each pocket task
    width: int = 64
    patience: int = 50  # steps after which a code that nothing takes is moved


SCALES = {
    "tiny": Scale(6, batch=8, copies=1, pocket=4, width=16, patience=2),  # only to see that every stage runs
    "small": Scale(4_000),
    "medium": Scale(20_000),
}


def pictures(work: Path, scale: Scale, side: int) -> NDArray[np.uint8]:
    """All pictures (N, 3, side, side), kept in DIR."""
    path = work / f"pictures-{side}-{scale.copies}-{scale.pocket}.npy"
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path)
        return kept
    found: list[Tensor] = []
    for source, tasks in (
        ("pocket-dense/scenes", list(VISUAL_TASKS.values())),
        ("pocket-dense/digits", [VISUAL_TASKS[name] for name in ("mask", "edges", "denoise")]),
        ("pocket-dense/land", [VISUAL_TASKS[name] for name in ("mask", "denoise", "inpaint")]),
    ):
        kinds = kinds_of(tasks)
        data = open_data(DataConfig(source=source, target=kinds))
        images = data.train.with_transform(PictureMaps(tuple(kinds.split("+"))))
        classes = len([name for name in data.labels if name.startswith("mask/")]) or len(data.labels)
        for index in range(len(images) if scale.copies > 1 else 8):
            sample = images[index]
            for copy in range(scale.copies):
                for number, task in enumerate(tasks):
                    shown, answer = task.pair(sample.input, sample.target, side, classes, sample.id, copy)
                    found.extend([shown, answer] if number == 0 or task.paint is None else [answer])
    for one in pocket_tasks().values():
        images_of_task, _ = one.load("train")
        for image in images_of_task[: scale.pocket]:
            found.append(resized(torch.from_numpy(image).permute(2, 0, 1).float() / 255, side))
    made = (torch.stack(found) * 255).round().byte().numpy()
    part = path.with_suffix(".part.npy")
    np.save(part, made)
    part.rename(path)
    return made


class Batches:
    """Draws pictures in [0, 1], mirrored, with other colours and lighter or darker; from torch's global generator."""

    def __init__(self, array: NDArray[np.uint8], scale: Scale) -> None:
        self.array, self.scale = array, scale

    def draw(self) -> Tensor:
        pick = torch.randint(len(self.array), (self.scale.batch,))
        x = torch.from_numpy(self.array[pick.numpy()]).float() / 255
        if torch.rand(()) < 0.5:
            x = x.flip(3)
        if torch.rand(()) < 0.5:
            x = x.flip(2)
        if torch.rand(()) < 0.3:
            x = x[:, torch.randperm(3)]
        gain = 1 + (torch.rand(len(x), 1, 1, 1) - 0.5) * 0.3
        return (x * gain).clamp(0, 1)


def losses(model: PocketVq, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Every part of the loss; the cells' vectors (B, N, dim) and the numbers of their codes (B, N)."""
    cells = model.latents(x)
    tokens = model.nearest(cells.detach())
    codes = model.vectors(tokens)
    painted = model.painted(cells + (codes - cells).detach())
    error = painted - x
    slopes = sum(error.diff(dim=axis).square().mean() for axis in (2, 3))
    assert isinstance(slopes, Tensor)
    parts = {
        "absolute": error.abs().mean(),
        "squared": 4 * error.square().mean(),
        "slopes": 2 * slopes,
        "codes": (codes - cells.detach()).square().sum(-1).mean(),
        "cells": 0.25 * (cells - codes.detach()).square().sum(-1).mean(),
    }
    return parts, cells.detach(), tokens


@torch.no_grad()
def move_idle_codes(model: PocketVq, idle: Tensor, cells: Tensor, patience: int) -> int:
    """Put codes that were idle for `patience` steps where cells of this batch are; returns how many."""
    late = (idle >= patience).nonzero().flatten()
    if len(late):
        flat = cells.flatten(0, 1)
        model.codebook[late] = flat[torch.randint(len(flat), (len(late),))]
        idle[late] = 0
    return len(late)


def train(work: Path, scale: Scale, seed: int, limit_minutes: float | None) -> tuple[PocketVq, list[dict[str, float]]]:
    """Train from DIR/vq.pt, else from random weights; returns the model and the log."""
    torch.manual_seed(seed)
    model = PocketVq(width=scale.width)
    batches, checkpoint = Batches(pictures(work, scale, model.side), scale), work / "vq.pt"
    optimiser = torch.optim.AdamW(model.parameters(), lr=scale.rate, betas=(0.9, 0.95), weight_decay=0.0)
    idle = torch.zeros(model.codes, dtype=torch.int64)
    log: list[dict[str, float]] = []
    sums: dict[str, float] = {}
    step, spent, often = 0, 0.0, max(1, min(200, scale.steps // 3))
    torch.manual_seed(seed + 1)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        log, step, spent, idle = state["log"], state["step"], state["spent"], state["idle"]
        torch.set_rng_state(state["random"])
    began = time.perf_counter() - spent
    while step < scale.steps:
        progress = step / scale.steps
        if limit_minutes is not None:
            progress = max(progress, min((time.perf_counter() - began) / 60 / limit_minutes, 1.0))
        share = min(1.0, (step + 1) / 100, 2 * (1 - progress) + 1e-3)  # constant, then linear to zero
        for group in optimiser.param_groups:
            group["lr"] = scale.rate * share
        parts, cells, tokens = losses(model, batches.draw())
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        idle += 1
        idle[torch.unique(tokens)] = 0
        moved = move_idle_codes(model, idle, cells, scale.patience) if progress < 0.7 else 0
        step += 1
        for name, value in (*parts.items(), ("moved", torch.tensor(float(moved)))):
            sums[name] = sums.get(name, 0.0) + value.item()
        if step % often == 0 or step == scale.steps or progress >= 1:
            count = step - int(log[-1]["step"] if log else 0)
            entry = {"step": float(step), "seconds": round(time.perf_counter() - began, 1)}
            log.append(entry | {name: round(total / count, 5) for name, total in sums.items()})
            sums = {}
            print(json.dumps(log[-1]), flush=True)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "log": log, "step": step}
            state |= {"spent": time.perf_counter() - began, "random": torch.get_rng_state(), "idle": idle}
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            part.rename(checkpoint)
        if progress >= 1:
            break
    return model.eval(), log


@torch.inference_mode()
def judged(model: PocketVq, side: int) -> dict[str, float]:
    """PSNR in dB of decoded validation pictures that training did not see, and the share of codes that they use."""
    data = open_data(DataConfig(source="pocket-dense/scenes", target="mask"))
    assert data.val is not None  # pocket-dense states it
    images = data.val.with_transform(PictureMaps(("mask",)))
    shown, answers = [], []
    for index in range(0, len(images), 2):
        sample = images[index]
        pair = VISUAL_TASKS["mask"].pair(sample.input, sample.target, side, len(data.labels), sample.id)
        shown.append(pair[0])
        answers.append(pair[1])
    found: dict[str, float] = {}
    used: set[int] = set()
    for name, some in (("images", shown), ("masks", answers)):
        x = torch.stack(some)
        tokens = model.encoded(x)
        used |= set(torch.unique(tokens).tolist())
        error = (model.decoded(tokens) - x).square().mean(dim=(1, 2, 3))
        found[f"psnr_{name}"] = round(float((-10 * error.log10()).mean()), 2)
    return found | {"codes_used": len(used) / model.codes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and checkpoints")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-minutes", type=float, default=None, help="end after so many minutes of training")
    parser.add_argument("--ship", action="store_true", help="write the weights to src/vpeft/assets")
    chosen = parser.parse_args()
    work: Path = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    model, log = train(work, SCALES[chosen.scale], chosen.seed, chosen.limit_minutes)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    out = (ROOT / "src" / "vpeft" / "assets" if chosen.ship else work) / "pocket_vq.safetensors"
    save_file(state, str(out), metadata={SHAPE: json.dumps(model.shape)})
    facts = {"scale": chosen.scale, "seed": chosen.seed, **judged(PocketVq.read(out).eval(), model.side)}
    (work / "pocket_vq.log.json").write_text(json.dumps({**facts, "log": log}, indent=1) + "\n")
    print(f"{out}: {json.dumps(facts)}")


if __name__ == "__main__":
    main()
