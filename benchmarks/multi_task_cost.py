"""What a forward pass for T tasks costs: operations on Swin-T at 224 x 224, parameters, and seconds of a tiny Swin.

    python benchmarks/multi_task_cost.py                        # all methods, T = 1, 2, 4, 8: about two minutes
    python benchmarks/multi_task_cost.py --methods mtlora --tasks 1 4

Operations are counted by torch's flop counter on the meta device, without the heads (one linear map of the pooled
feature for each task); the frozen Swin-T takes 9.0 G of them (two for each multiplication with addition). `passes` is
what the method states: one trunk pass for all tasks, or one for each. Seconds are the median of five passes of a batch
of eight through the tiny Swin of the tests, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vpeft
from vpeft.method import Method, all_methods, get_method

ROWS = (
    "lora",
    *(n for n, kind in all_methods().items() if kind.category == "multi-task" and "tasks" in kind.model_fields),
)


def heads(count: int, width: int) -> dict[str, nn.Module]:
    """One linear head for each task."""
    return {f"task{number}": nn.Linear(width, 4) for number in range(count)}


def operations(method: Method, count: int) -> tuple[int, int]:
    """Operations of one image for `count` tasks, and trained parameters without the heads."""
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
        tuned = vpeft.tune(model, method, head=heads(count, 768), verify=False, show=False).eval()
        images = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            tuned(images)
    return counted.get_total_flops(), tuned.plan().trainable


def seconds(method: Method, count: int) -> float:
    """Median time of a pass for `count` tasks."""
    torch.manual_seed(0)
    model = SwinTransformer(32, 2, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0)
    tuned = vpeft.tune(model, method, head=heads(count, 48), verify=False, show=False).eval()
    images, taken = torch.randn(8, 3, 32, 32), []
    with torch.no_grad():
        tuned(images)
        for _ in range(5):
            began = time.perf_counter()
            tuned(images)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=ROWS)
    parser.add_argument("--tasks", nargs="+", type=int, default=[1, 2, 4, 8])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | passes | T | operations | of one task | trained | seconds |\n|---|---|---|---|---|---|---|")
    for name in asked.methods:
        method, first = get_method(name)(), None
        for count in asked.tasks:
            flops, parameters = operations(method, count)
            first = first or flops
            passes = count if method.runs_per_task else 1
            print(
                f"| {name} | {passes} | {count} | {flops / 1e9:.2f} G | {flops / first:.2f} |"
                f" {parameters / 1e6:.2f} M | {seconds(method, count):.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
