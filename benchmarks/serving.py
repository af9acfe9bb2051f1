"""What a batch costs whose images go through different adapters: in one pass, adapter after adapter, and with peft.

    python benchmarks/serving.py --out benchmarks/results/serving.json

ViT-Ti/16 at 224, 16 images, no gradients, one thread, random weights. All variants of a row are in one process and
alternate; a figure is the median over rounds of the ratio to the bare backbone's processor time in the same round, with
the smallest and the largest. Heads are linear and as many as the adapters (peft: none, it adapts the backbone only).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import vpeft
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method, get

MODEL, IMAGES, CLASSES, RANK = "vit_tiny_patch16_224", 16, 10, 8
METHODS: dict[str, Method] = {
    "lora": get("lora")(rank=RANK, targets=("qkv",)),
    "adaptformer": get("adaptformer")(),
    "vpt_deep": get("vpt_deep")(tokens=10),
}
Serve = Callable[[Tensor], Tensor]


def adapted(base: nn.Module, method: Method, count: int) -> tuple[TunedModel, list[str]]:
    """A model with so many adapters, none of them at its start, and the adapter of each image."""
    names = [f"a{number}" for number in range(count)]
    tuned = vpeft.tune(copy.deepcopy(base), method, num_classes=CLASSES, name=names[0], show=False, verify=False)
    for name in names[1:]:
        tuned.attach(method, name=name, num_classes=CLASSES)
    for name in names:
        for _, parameter in tuned.trainable(name):
            nn.init.normal_(parameter, std=0.05)
    return tuned.eval(), [names[image % count] for image in range(IMAGES)]


def variants(base: nn.Module, name: str, count: int) -> dict[str, Serve]:
    """Ways to serve one batch; the first is the backbone without adapters."""
    tuned, route = adapted(base, METHODS[name], count)

    def one_pass(images: Tensor) -> Tensor:
        with tuned.enable(*route):
            out: Tensor = tuned(images)
        return out

    def one_by_one(images: Tensor) -> Tensor:
        out = torch.empty(len(images), CLASSES)
        for adapter in dict.fromkeys(route):
            rows = torch.tensor([row for row, wanted in enumerate(route) if wanted == adapter])
            with tuned.enable(adapter):
                out[rows] = tuned(images[rows])
        return out

    found: dict[str, Serve] = {"backbone": base, "one pass": one_pass, "one after the other": one_by_one}
    if name == "lora":
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], init_lora_weights=False)
        peft = get_peft_model(copy.deepcopy(base), config, adapter_name="a0")
        for number in range(1, count):
            peft.add_adapter(f"a{number}", config)
        peft.eval()
        found["peft, adapter_names"] = lambda images: peft(images, adapter_names=route)
    return found


def row(base: nn.Module, name: str, count: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    ways, images = variants(base, name, count), torch.randn(IMAGES, 3, 224, 224)
    with torch.inference_mode():
        apart = float((ways["one pass"](images) - ways["one after the other"](images)).abs().max())
        for way in ways.values():
            way(images)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, serve in ways.items():
                start = time.process_time()
                serve(images)
                seconds[way].append(time.process_time() - start)
    plain = seconds["backbone"]
    ratios = {way: [a / b for a, b in zip(taken, plain, strict=True)] for way, taken in seconds.items()}
    return {
        "method": name,
        "adapters": count,
        "apart": apart,
        "backbone_seconds": statistics.median(plain),
        "ways": {
            way: {"ratio": statistics.median(found), "least": min(found), "most": max(found)}
            for way, found in ratios.items()
            if way != "backbone"
        },
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = timm.create_model(MODEL, num_classes=0).eval().requires_grad_(False)
    result: dict[str, Any] = {"torch": torch.__version__, "processor": platform.machine(), "rows": []}
    for name in METHODS:
        for count in options.adapters:
            result["rows"].append(row(base, name, count, options.rounds))
            print(json.dumps(result["rows"][-1]), flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
