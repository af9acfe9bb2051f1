"""What several small runs cost in one pass through one backbone, against the same runs one after the other.

    python benchmarks/batched_adapters.py --out benchmarks/results/batched_adapters.json

An epoch of all runs together (`fit_together` with `auto,batched_adapters`) against the sum of an epoch of each (`fit`
with `auto`, and with `off`), alternating in one process; processor time from the end of the first epoch to that of the
last. The median of the rounds' ratios, with the smallest and the largest. One thread, random images and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from whole_runs import Pictures, note_end

import vpeft
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.together import fit_together

CLASSES, EPOCHS = 4, 4
# backbone, method, images in a batch, runs
ROWS = (
    ("pocket_vit", "lora", 1, 4),
    ("pocket_vit", "lora", 4, 4),
    ("pocket_vit", "lora", 16, 4),
    ("pocket_vit", "lora", 64, 4),
    ("pocket_vit", "lora", 4, 2),
    ("pocket_vit", "lora", 4, 8),
    ("pocket_vit", "adaptformer", 4, 4),
    ("pocket_vit", "ssf", 4, 4),
    ("pocket_vit", "vpt_deep", 4, 4),
    ("vit_tiny_patch16_224", "lora", 1, 4),
    ("vit_tiny_patch16_224", "lora", 4, 4),
)


def backbone(name: str) -> nn.Module:
    """With the same weights each time."""
    torch.manual_seed(0)
    model: nn.Module = vpeft.create_backbone(name) if name == "pocket_vit" else timm.create_model(name)
    return model


def models(name: str, method: str, runs: int) -> list[TunedModel]:
    return [
        vpeft.tune(backbone(name), get(method)(), num_classes=CLASSES, show=False, verify=False) for _ in range(runs)
    ]


def epoch(name: str, method: str, batch: int, runs: int, choice: str, together: bool) -> float:
    """Processor seconds of an epoch of all runs."""
    every = models(name, method, runs)
    pictures = Pictures(max(8, 4 * batch), vpeft.describe(every[0].backbone).facts.image_size, CLASSES)
    settings = [
        Optimisation(batch=batch, epochs=EPOCHS, lr=1e-3 * 2**number, seed=number, warmup=0, acceleration=choice)
        for number in range(runs)
    ]
    ends = [list[float]() for _ in range(runs)]
    notes: list[Callable[..., None]] = [partial(note_end, one) for one in ends]
    if together:
        several = [Run(*pair, after_epoch=note) for *pair, note in zip(every, settings, notes, strict=True)]
        fit_together(several, pictures, progress=False)
        return (max(one[-1] for one in ends) - max(one[0] for one in ends)) / (EPOCHS - 1)
    for tuned, its, note in zip(every, settings, notes, strict=True):
        fit(tuned, pictures, optimisation=its, progress=False, after_epoch=note)
    return sum(one[-1] - one[0] for one in ends) / (EPOCHS - 1)


def spread(values: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"torch": torch.__version__, "rows": []}
    for row in ROWS:
        against: dict[str, list[float]] = {"auto": [], "off": []}
        alone = list[float]()
        for _ in range(options.rounds):
            joint = epoch(*row, "auto,batched_adapters", together=True)
            for choice, found in against.items():
                single = epoch(*row, choice, together=False)
                found.append(joint / single)
                if choice == "auto":
                    alone.append(single)
        facts = dict(zip(("backbone", "method", "batch", "runs"), row, strict=True))
        measured = {choice: spread(found) for choice, found in against.items()}
        result["rows"].append(
            {
                **facts,
                "against": measured,
                "single_seconds": statistics.median(alone),
                "rounds": options.rounds,
                "load": os.getloadavg()[0],
            }
        )
        print(json.dumps(result["rows"][-1]), flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
