"""What adapters that are off cost: a forward pass, a change of mode, a mixed batch, with 1 to 1,000 of them attached.

    python benchmarks/many_adapters.py --out benchmarks/results/many_adapters.json

ViT-Ti/16 at 224, one image, no gradients, one thread, random weights; eight methods in turn. Figures are medians of
processor time. Points are measured as the model grows, so each is compared with the bare backbone of the same minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import vpeft
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method, get

MODEL, CLASSES, MIXED = "vit_tiny_patch16_224", 10, 8
METHODS: tuple[Method, ...] = (
    get("lora")(rank=8, targets=("qkv",)),
    get("adaptformer")(bottleneck=8),
    get("ssf")(),
    get("vpt_deep")(tokens=10),
    get("bitfit")(),
    get("dora")(rank=4),
    get("convpass")(),
    get("adapter")(),
)


def median(do: Callable[[], Any], rounds: int) -> float:
    """Median processor time of a call."""
    do()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        do()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def grown(tuned: TunedModel | None, base: nn.Module, count: int) -> TunedModel:
    """The model with so many adapters."""
    number = 0 if tuned is None else len(tuned.adapters)
    while number < count:
        method, name = METHODS[number % len(METHODS)], f"a{number}"
        if tuned is None:
            tuned = vpeft.tune(base, method, num_classes=CLASSES, name=name, show=False, verify=False)
        else:
            tuned.attach(method, name=name, num_classes=CLASSES)
        number += 1
    assert tuned is not None
    return tuned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 512, 1000])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = timm.create_model(MODEL, num_classes=0).eval()
    bare, image, images = copy.deepcopy(base), torch.randn(1, 3, 224, 224), torch.randn(MIXED, 3, 224, 224)
    tuned: TunedModel | None = None
    rows: list[dict[str, Any]] = []
    for count in options.counts:
        before, already = time.process_time(), 0 if tuned is None else len(tuned.adapters)
        tuned = grown(tuned, base, count).eval()
        attach = (time.process_time() - before) / max(1, count - already)
        # the same eight adapters whatever the count
        names = [f"a{number % min(count, len(METHODS))}" for number in range(MIXED)]

        def on(name: str, tuned: TunedModel = tuned) -> Callable[[], Any]:
            def run() -> Any:
                with tuned.enable(name):
                    return tuned(image)

            return run

        with torch.inference_mode():
            plain = median(lambda: bare(image), options.rounds)
            passes = {
                type(METHODS[k]).__name__: median(on(f"a{k}"), options.rounds) for k in range(min(count, len(METHODS)))
            }
            mixed = median(lambda tuned=tuned, names=names: tuned.each(images, names), options.rounds)  # type: ignore[misc]
        rows.append(
            {
                "adapters": count,
                "attach": attach,
                "backbone": plain,
                "pass": passes,
                "mixed_batch": mixed,
                "train_false": median(lambda tuned=tuned: tuned.train(False), options.rounds),  # type: ignore[misc]
                "load": os.getloadavg()[0],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {"torch": torch.__version__, "model": MODEL, "rounds": options.rounds, "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
