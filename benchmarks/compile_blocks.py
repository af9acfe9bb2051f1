"""What compiling every block saves: step time and bytes kept, with and without `compile_blocks`, and what it costs.

    python benchmarks/compile_blocks.py > benchmarks/results/compile_blocks.json

Prints JSON, and each row to stderr when it is done. For each method and precision the model with the accelerations of
`auto` and the one with `compile_blocks` besides are made in one process from the same weights, and their steps
alternate. A figure is the median over rounds of the ratio of processor times, with the smallest and the largest as its
noise. `setup_seconds` is the wall time of putting the accelerations on, less that of `auto` alone; as graphs that torch
finds on the disk make it shorter, they are kept in a folder that is new. `break_even_steps` is after how many steps
that time is won back. One thread, random weights, random images, AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vpeft
from vpeft.acceleration.apply import Accelerated, accelerate
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.training.memory import saved_bytes

CLASSES = 100
PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
}
SETTINGS: dict[str, dict[str, Any]] = {"lora": {"rank": 8}, "ssf": {}, "adaptformer": {}}


class Variant:
    """A model with its accelerations and its optimiser."""

    def __init__(self, model: str, method: str, choice: str, precision: str) -> None:
        torch.manual_seed(0)
        chosen = get(method)(**SETTINGS.get(method, {}))
        self.tuned: TunedModel = vpeft.tune(
            timm.create_model(model), chosen, num_classes=CLASSES, show=False, verify=False
        ).train()
        self.autocast = PRECISIONS[precision]
        wall, cpu = time.perf_counter(), time.process_time()
        self.made: Accelerated = accelerate(self.tuned, choice, autocast=self.autocast, precision=precision)
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.optimiser = torch.optim.AdamW([p for _, p in self.tuned.trainable()], lr=1e-3)

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Processor seconds of a training step, and its loss."""
        start = time.process_time()
        with self.autocast():
            logits = self.tuned(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return time.process_time() - start, float(loss.detach())


def measured(model: str, method: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    variants = {choice: Variant(model, method, choice, precision) for choice in ("auto", "auto,compile_blocks")}
    plain, fast = variants.values()
    size = plain.tuned.description.facts.image_size
    images, labels = torch.randn(options.batch, 3, *size), torch.randint(0, CLASSES, (options.batch,))
    rounds = [[variant.step(images, labels) for variant in (plain, fast)] for _ in range(options.rounds + 2)]
    apart = max(abs(a[1] - b[1]) / abs(a[1]) for a, b in rounds)
    ratios = sorted(b[0] / a[0] for a, b in rounds[2:])
    seconds = [statistics.median(pair[i][0] for pair in rounds[2:]) for i in range(2)]
    kept = []
    for variant in (plain, fast):
        with variant.autocast():
            kept.append(saved_bytes(variant.tuned, images))
    setup, won = fast.wall - plain.wall, seconds[0] - seconds[1]
    return {
        "model": model,
        "method": method,
        "precision": precision,
        "batch": options.batch,
        "ratio": round(statistics.median(ratios), 3),
        "noise": [round(ratios[0], 3), round(ratios[-1], 3)],
        "step_seconds": [round(value, 4) for value in seconds],
        "kept_ratio": round(kept[1] / kept[0], 3),
        "losses_apart": float(f"{apart:.1e}"),
        "setup_seconds": round(setup, 1),
        "setup_processor_seconds_here": round(fast.cpu - plain.cpu, 1),
        "break_even_steps": round(setup / won) if won > 0 and statistics.median(ratios) < 1 else None,
        "said": [line for line in fast.made.lines() if line.startswith("+")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", default=",".join(SETTINGS))
    # emulated, bf16 takes many times as long and tells nothing
    usual = ["fp32", *(["bf16"] if torch.cpu._is_avx512_bf16_supported() else [])]
    parser.add_argument("--precisions", default=",".join(usual))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rows = []
        for precision in options.precisions.split(","):
            for method in options.methods.split(","):
                rows.append(measured(options.model, method, precision, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    about = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "vpeft": vpeft.__version__,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
