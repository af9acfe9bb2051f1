"""How the cost of a step grows with batch, tokens, depth, rank, prompts, and with the adapters that share a batch.

    python benchmarks/growth.py --out benchmarks/results/growth.json --picture docs/images/growth.png

ViT-Ti/16; one thread; processor time, the median of rounds in which all points of a panel alternate. Bytes are what
autograd holds after a forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from speed import Variant, kept, step
from torch import Tensor, nn

import vpeft
from vpeft.acceleration.apply import accelerate
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method, get

CLASSES, SERVED = 100, 16
LORA, VPT, FULL = get("lora")(rank=8, targets=("qkv",)), get("vpt_deep")(tokens=10), get("full_finetuning")()

# What a point measures: seconds of one round, and bytes kept (None where nothing is trained).
Point = tuple[Callable[[], float], int | None]


def backbone(size: int = 224, depth: int = 12) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=size, depth=depth)
    return model


def trained(method: Method, choice: str = "auto", *, batch: int = 4, size: int = 224, depth: int = 12) -> Point:
    """A training step."""
    tuned = vpeft.tune(backbone(size, depth), method, num_classes=CLASSES, show=False, verify=False).train()
    made = accelerate(tuned, choice)
    variant = Variant(tuned, torch.optim.AdamW([p for _, p in tuned.trainable()], lr=1e-3), made)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, CLASSES, (batch,))
    step(variant, images, labels, "fp32")
    return lambda: step(variant, images, labels, "fp32"), kept(variant, images, "fp32")


def served(model: Callable[[Tensor], Tensor]) -> Point:
    """A batch through a frozen model."""
    images = torch.randn(SERVED, 3, 224, 224)

    def once() -> float:
        start = time.process_time()
        with torch.inference_mode():
            model(images)
        return time.process_time() - start

    once()
    return once, None


def bare() -> Point:
    return served(backbone().eval())


def sharing(count: int) -> Point:
    """One batch whose images go in turn through `count` adapters on one backbone."""
    tuned: TunedModel = vpeft.tune(backbone(), LORA, num_classes=CLASSES, name="a0", show=False, verify=False).eval()
    for number in range(1, count):
        tuned.attach(LORA, name=f"a{number}", num_classes=CLASSES)
    tuned.eval()
    names = [f"a{i % count}" for i in range(SERVED)]

    def mixed(images: Tensor) -> Tensor:
        with tuned.enable(*names):
            out: Tensor = tuned(images)
            return out

    return served(mixed)


Panel = dict[str, dict[int, Callable[[], Point]]]


def panels() -> Iterator[tuple[str, Panel]]:
    """What varies -> line -> value -> how that point is made."""
    three = {"full_finetuning": FULL, "lora": LORA, "vpt_deep": VPT}
    ways = ("auto", "off")
    yield "batch", {name: {b: partial(trained, m, batch=b) for b in (1, 2, 4, 8, 16)} for name, m in three.items()}
    sizes = {(size // 16) ** 2: size for size in (96, 160, 224, 320)}
    yield "patches", {name: {n: partial(trained, m, size=s) for n, s in sizes.items()} for name, m in three.items()}
    yield "blocks", {name: {d: partial(trained, m, depth=d) for d in (3, 6, 12, 24)} for name, m in three.items()}
    ranks = {rank: get("lora")(rank=rank, targets=("qkv",)) for rank in (1, 4, 16, 64, 192)}
    yield "rank", {f"lora, {way}": {r: partial(trained, m, way) for r, m in ranks.items()} for way in ways}
    prompts = {count: get("vpt_deep")(tokens=count) for count in (1, 10, 50, 100, 200)}
    yield "prompts", {f"vpt_deep, {way}": {n: partial(trained, m, way) for n, m in prompts.items()} for way in ways}
    mixed: dict[int, Callable[[], Point]] = {0: bare}
    yield "adapters", {"lora, mixed in a batch": mixed | {k: partial(sharing, k) for k in (1, 2, 4, 8, 16)}}


def measured(lines: Panel, rounds: int) -> dict[str, list[dict[str, Any]]]:
    points = {(name, at): make() for name, line in lines.items() for at, make in line.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in points}
    for _ in range(rounds):
        for key, (once, _) in points.items():
            seconds[key].append(once())
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, at), (_, size) in points.items():
        taken = seconds[name, at]
        found.setdefault(name, []).append(
            {"at": at, "seconds": statistics.median(taken), "least": min(taken), "most": max(taken), "bytes": size}
        )
    return found


def draw(panels_: dict[str, Any], path: Path) -> None:
    """Two rows of panels: time, and bytes kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.5), layout="constrained")
    axes = figure.subplots(2, len(panels_))
    for column, (panel, one) in enumerate(panels_.items()):
        unit = next(iter(one["lines"].values()))[0]["seconds"]
        for name, points in one["lines"].items():
            at = [point["at"] for point in points]
            over = axes[0, column]
            over.plot(at, [point["seconds"] / unit for point in points], marker="o", markersize=3, label=name)
            over.fill_between(
                at, [p["least"] / unit for p in points], [p["most"] / unit for p in points], alpha=0.15, linewidth=0
            )
            if points[0]["bytes"]:
                axes[1, column].plot(at, [p["bytes"] / 2**20 for p in points], marker="o", markersize=3, label=name)
        axes[0, column].set_title(panel)
        for row in (0, 1):
            axes[row, column].set_ylim(bottom=0)
        axes[0, column].legend(fontsize=7)
        if not axes[1, column].lines:
            axes[1, column].set_axis_off()
    axes[0, 0].set_ylabel("time, first point = 1")
    axes[1, 0].set_ylabel("kept for backward, MiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", default="", help="the panel of this name; the rest stays as it is in --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"panels": {}}
    if options.only:
        result = json.loads(options.out.read_text())
    for panel, lines in panels():
        if options.only not in ("", panel):
            continue
        found = measured(lines, options.rounds)
        result["panels"][panel] = {"lines": found, "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
        for name, points in found.items():
            shown = "  ".join(f"{point['at']}: {1000 * point['seconds']:.0f} ms" for point in points)
            print(f"{panel:10} {name:24} {shown}", flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.picture is not None:
        draw(result["panels"], options.picture)


if __name__ == "__main__":
    main()
