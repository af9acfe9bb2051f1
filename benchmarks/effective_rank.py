"""The rank of what full fine-tuning changes: segmentation beside classification, on one backbone.

    python benchmarks/effective_rank.py --out benchmarks/results/effective_rank.json

Each run trains all of pocket_vit with the same number of pictures, steps, batch and learning rate. For each weight
matrix of the blocks it takes the change dW and its singular values s. The effective rank is exp(H(p)), where p = s /
sum(s) and H is the entropy (Roy and Vetterli, EUSIPCO 2007); beside it stand the number of singular values that hold
90 % of the energy sum(s^2), and the share of the energy in the 8 largest, which is what LoRA of rank 8 could hold.

Two tasks have the same pictures at the same size: `land` as segmentation, and `land-halves`, whose one class for each
picture says whether sea covers more than half. What differs between these is the task alone. The tasks of pocket have
pictures of 64 x 64 pixels; one of them runs at 128 x 128 too, for the number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import vpeft
from vpeft.backbones.create import create_backbone
from vpeft.backbones.positions import ResizedPositions
from vpeft.bench.splits import SplitArrays
from vpeft.bench.suites import open_task
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.task import Task, get_task
from vpeft.training.evaluate import evaluate
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

BACKBONE, PICTURES, BATCH, EPOCHS, LR = "pocket_vit", 400, 8, 8, 2e-4
# The rank of LoRA that is common for a ViT.
LORA_RANK = 8
SEA = "sea"


class Material(NamedTuple):
    """A task, its training pictures and those of validation, and the size (H, W) that they are brought to."""

    task: Task
    train: Any
    val: Any
    size: tuple[int, int]


def prepared(size: tuple[int, int]) -> tuple[nn.Module, Preprocessing]:
    """The pre-trained backbone for images of a size, with its preprocessing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResizedPositions)
        model = create_backbone(BACKBONE, pretrained=True, image_size=size)
    return model, Preprocessing.from_model(model).resized(size)


def of_suite(suite: str, name: str, size: tuple[int, int]) -> Material:
    """The first pictures of a task of a suite, without augmentation."""
    opened = open_task(suite, name)
    task = type(opened.learns)(**{**opened.learns.model_dump(exclude_unset=True), "labels": opened.labels})
    transform = task.transforms(prepared(size)[1], "none", False)
    train, val = (split.dataset(opened.labels, transform, 0) for split in (opened.train, opened.val))
    return Material(task.bind(train), Subset(train, range(PICTURES)), val, size)


def of_set(name: str, size: tuple[int, int]) -> Material:
    """A set of pocket-dense as semantic segmentation, with the head and loss of `land`."""
    learns = open_task("pocket-dense", "land").learns
    found = vpeft.open_data(vpeft.DataConfig(source=f"pocket-dense/{name}", target=learns.target_kind))
    task = type(learns)(**{**learns.model_dump(exclude_unset=True), "labels": tuple(found.labels)})
    transform = task.transforms(prepared(size)[1], "none", False)
    assert found.val is not None
    train, val = found.train.with_transform(transform), found.val.with_transform(transform)
    return Material(task.bind(train), Subset(train, range(PICTURES)), val, size)


def halves(size: tuple[int, int]) -> Material:
    """The pictures of `land` with one class each: whether sea covers more than half of the known pixels."""
    opened = open_task("pocket-dense", "land")
    sea, labels = opened.labels.index(SEA), ("less than half sea", "more than half sea")
    task = get_task("classification")(labels=labels)
    masks = opened.learns.transforms(prepared(size)[1], "none", False)
    sets = []
    for split in (opened.train, opened.val):
        pixels, numbers = [], []
        for picture, mask, *_ in split.dataset(opened.labels, masks, 0):
            known = mask != 255
            pixels.append(as_pixels(picture))
            numbers.append(int((mask[known] == sea).float().mean() > 0.5))
        one = SplitArrays(np.stack(pixels), np.array(numbers, dtype=np.int64))
        sets.append(one.dataset(labels, task.transforms(prepared(size)[1], "none", False), 0))
    return Material(task.bind(sets[0]), Subset(sets[0], range(PICTURES)), sets[1], size)


def as_pixels(picture: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A normalised picture (3, H, W) of pocket_vit, whose mean and deviation are 0.5, as uint8 (H, W, 3)."""
    return ((picture * 0.5 + 0.5) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


TASKS: dict[str, tuple[str, Callable[[], Material]]] = {
    "land": ("segmentation", lambda: of_suite("pocket-dense", "land", (128, 128))),
    "scenes": ("segmentation", lambda: of_set("scenes", (128, 128))),
    "land-halves": ("classification", lambda: halves((128, 128))),
    "handwriting": ("classification", lambda: of_suite("pocket", "handwriting", (64, 64))),
    "orientation": ("classification", lambda: of_suite("pocket", "orientation", (64, 64))),
    "orientation, 128 x 128": ("classification", lambda: of_suite("pocket", "orientation", (128, 128))),
}


def matrices(tuned: TunedModel) -> Iterator[tuple[str, Tensor]]:
    """The weight matrices of the blocks by name; a fused q, k, v as its three parts."""
    for name, weight in tuned.backbone.named_parameters():
        if not name.startswith("blocks.") or weight.ndim != 2:
            continue
        short = name.removesuffix(".weight")
        if short.endswith(".qkv"):
            yield from ((f"{short[:-3]}{part}", one) for part, one in zip("qkv", weight.chunk(3), strict=True))
        else:
            yield short, weight


def ranks(change: Tensor, before: Tensor) -> dict[str, float | int]:
    """The numbers of one change (out, in) of a weight."""
    values = torch.linalg.svdvals(change.double())
    share = values / values.sum()
    share = share[share > 0]
    energy = (values**2).cumsum(0) / (values**2).sum()
    return {
        "full": min(change.shape),
        "effective": round(float(torch.exp(-(share * share.log()).sum())), 3),
        "of_90": int((energy < 0.9).sum()) + 1,
        "in_lora": round(float(energy[LORA_RANK - 1]), 5),
        "change": round(float(change.norm() / before.norm()), 5),
    }


def run(name: str, seed: int) -> dict[str, Any]:
    """Train one task once, and return the ranks of each matrix and the score on validation."""
    material = TASKS[name][1]()
    model, _ = prepared(material.size)
    torch.manual_seed(seed)
    tuned: TunedModel = vpeft.tune(model, get("full_finetuning")(), task=material.task, show=False, verify=False)
    before = {key: weight.detach().clone() for key, weight in matrices(tuned)}
    settings = Optimisation(
        epochs=EPOCHS, batch=BATCH, lr=LR, weight_decay=1e-4, warmup=0.1, clip=1.0, seed=seed, device="cpu"
    )
    fit(tuned, material.train, None, optimisation=settings, task=material.task, progress=False)
    scores = evaluate(tuned, material.val, task=material.task, batch=50)
    found = {key: ranks(weight.detach() - before[key], before[key]) for key, weight in matrices(tuned)}
    return {"seed": seed, "metric": scores.leading, "score": scores.values[scores.leading], "matrices": found}


def noise(seed: int = 0) -> dict[str, float]:
    """The effective rank as a share of the full rank for changes of independent normal numbers, by shape."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((160, 160), (640, 160))
    made = {f"{a} x {b}": torch.randn(a, b, generator=generator) for a, b in shapes}
    return {shape: ranks(one, one)["effective"] / min(one.shape) for shape, one in made.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over matrices and seeds: effective rank and rank of 90 % as shares of the full rank, and the rest."""
    every = [one for each in runs for one in each["matrices"].values()]
    return {
        "effective": statistics.mean(one["effective"] / one["full"] for one in every),
        "of_90": statistics.mean(one["of_90"] / one["full"] for one in every),
        "in_lora": statistics.mean(one["in_lora"] for one in every),
        "change": statistics.mean(one["change"] for one in every),
        "score": statistics.mean(each["score"] for each in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="written after each run; what it has is not run again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stated = {"backbone": BACKBONE, "pictures": PICTURES, "batch": BATCH, "epochs": EPOCHS, "lr": LR}
    result: dict[str, Any] = {"settings": stated, "noise": noise(), "tasks": {}}
    if options.out.is_file():
        there = json.loads(options.out.read_text())
        if there["settings"] != stated:
            parser.error(f"{options.out} was made with other settings, {there['settings']}; remove it first")
        result["tasks"] = there["tasks"]
    for seed in range(options.seeds):
        for name, (kind, _) in TASKS.items():
            entry = result["tasks"].setdefault(name, {"kind": kind, "runs": []})
            if any(one["seed"] == seed for one in entry["runs"]):
                continue
            entry["runs"].append(run(name, seed))
            entry["mean"] = summary(entry["runs"])
            entry["date"] = time.strftime("%Y-%m-%d")
            print(name, seed, {key: round(value, 3) for key, value in entry["mean"].items()}, flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
