"""LoRA of vpeft in anybody's loop, with and without `vpeft.accelerate`, against Hugging Face peft: time of a training
step and bytes kept for the backward pass.

    python benchmarks/lora_against_peft.py --model vit_tiny_patch16_224 --batch 8 --rounds 9

The models are made in one process from the same weights, and their steps alternate, so that a change of the machine's
speed meets both. The figure is the median of the ratios of neighbouring steps, with the smallest and largest beside
it. One thread; process CPU time, which a neighbour on the machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import vpeft
from vpeft.methods import LoRA
from vpeft.training.memory import SavedForBackward


def build(name: str, rank: int) -> dict[str, nn.Module]:
    """The same LoRA (one A for the fused qkv, as peft has it) on three copies of the same weights."""
    base = timm.create_model(name, num_classes=0)
    method = LoRA(rank=rank, targets=("qkv",))
    plain, fast = (vpeft.tune(copy.deepcopy(base), method).train() for _ in range(2))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"])
    return {"vpeft": plain, "accelerated": fast, "peft": get_peft_model(copy.deepcopy(base), config).train()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor) -> float:
    """CPU seconds of one training step."""
    start = time.process_time()
    loss = nn.functional.mse_loss(model(images), target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return time.process_time() - start


def saved(model: nn.Module, images: Tensor) -> int:
    """Bytes of distinct storages that autograd holds after a forward pass."""
    with SavedForBackward(model, [images]) as kept:
        model(images).sum()
    return kept.bytes


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The median of the ratios of neighbouring steps, with the smallest and the largest."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = build(options.model, options.rank)
    size = vpeft.describe(timm.create_model(options.model, num_classes=0)).facts.image_size
    images = torch.randn(options.batch, 3, *size)
    target = torch.randn_like(models["vpeft"](images).detach())
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for name, model in models.items()
    }
    used = vpeft.accelerate(models["accelerated"])
    for name, model in models.items():  # warm-up
        step(model, optimizers[name], images, target)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            seconds[name].append(step(model, optimizers[name], images, target))
    kept = {name: saved(model, images) for name, model in models.items()}
    used.close()
    result = {
        "model": options.model,
        "batch": options.batch,
        "rank": options.rank,
        "rounds": options.rounds,
        "step_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "step_ratio": {name: ratio(seconds[name], seconds["peft"]) for name in ("vpeft", "accelerated")},
        "saved_bytes": kept,
        "saved_ratio": {name: kept[name] / kept["peft"] for name in ("vpeft", "accelerated")},
        "used": used.lines(),
        "torch": str(torch.__version__),
    }
    print(json.dumps(result, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
