"""What accelerations save: step time and bytes kept for the backward pass against the plain model and against peft.

    python benchmarks/speed.py --out benchmarks/results/speed.json --page docs/speed.md

All variants of a case are made in one process from the same weights, and their steps alternate, so that a change of the
machine's speed meets all. A figure is the median over rounds of the ratio to the reference's step of the same round;
the smallest and largest ratio are its noise. One thread; processor time, which neighbours on the machine disturb less
than wall time. Bytes are exact. Random weights, random images, AdamW.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from peft import LoraConfig, get_peft_model
from speed_page import page
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from whole_runs import CLASSES, together, whole_run

import vpeft
from vpeft.acceleration.apply import Accelerated, accelerate
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.errors import VpeftError
from vpeft.method import all_methods
from vpeft.methods import LoRA, Method, get
from vpeft.task import Task
from vpeft.training.memory import SavedForBackward, saved_bytes

TINY, SMALL = "vit_tiny_patch16_224", "vit_small_patch16_224"
# the dense rows
DENSE, DENSE_SIDE, DENSE_CLASSES = "swin_tiny_patch4_window7_224", 256, 19
# UPerNet is the benchmark's head and most of its step; under SegFormer's the backbone is most of it
DENSE_HEADS = ("segformer_map", "upernet")
# what is measured on the second model too
CORE = ("lora", "vpt_deep", "ssf")


@dataclass
class Variant:
    """A model with its optimiser, and what was done to it."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    made: Accelerated | None = None
    kernel: Callable[[], AbstractContextManager[Any]] = nullcontext
    task: Task | None = None


# model, precision, how each variant is made
Case = tuple[str, str, dict[str, Callable[[], Variant]]]


def precisions() -> tuple[str, ...]:
    """fp32, and bf16 where the processor has instructions for it; emulated, it takes many times as long."""
    return ("fp32", "bf16") if torch.cpu._is_avx512_bf16_supported() else ("fp32",)


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def plain_products() -> AbstractContextManager[Any]:
    return sdpa_kernel(SDPBackend.MATH)


PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {"fp32": nullcontext, "bf16": bf16}


def ours(architecture: str, method: Method, choice: str, precision: str) -> Variant:
    """A method of vpeft on fresh weights, with the accelerations of `choice`."""
    torch.manual_seed(0)
    tuned = vpeft.tune(timm.create_model(architecture), method, num_classes=CLASSES, show=False, verify=False).train()
    made = accelerate(tuned, choice, autocast=PRECISIONS[precision], precision=precision)
    return Variant(tuned, torch.optim.AdamW([p for _, p in tuned.trainable()], lr=1e-3), made)


def peers(architecture: str, rank: int, kernel: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Variant:
    """peft's LoRA of the fused projection, with a head; `kernel` chooses its attention kernel."""
    torch.manual_seed(0)
    base = timm.create_model(architecture, num_classes=CLASSES)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"], modules_to_save=["head"])
    model = get_peft_model(base, config).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    return Variant(model, optimiser, kernel=kernel)


class LastBlocksLoRA(LoRA):
    """LoRA in the last four blocks."""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for edit in super().edits(backbone):
            if edit.place.depth >= len(backbone.blocks) - 4:
                yield edit


def step(variant: Variant, images: Tensor, labels: Tensor, precision: str) -> float:
    """Processor seconds of one training step."""
    start = time.process_time()
    with PRECISIONS[precision](), variant.kernel():
        logits = variant.model(images)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    variant.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    variant.optimiser.step()
    return time.process_time() - start


def kept(variant: Variant, images: Tensor, precision: str) -> int:
    """Bytes of distinct storages that autograd holds after a forward pass."""
    with SavedForBackward(variant.model, [images]) as saved, PRECISIONS[precision](), variant.kernel():
        logits = variant.model(images)
    del logits
    return saved.bytes


def against(
    makers: dict[str, Callable[[], Variant]], options: argparse.Namespace, precision: str, model: str
) -> dict[str, Any]:
    """Ratios of every variant to the first one."""
    variants = {name: make() for name, make in makers.items()}
    size = timm.create_model(model).patch_embed.img_size
    images = torch.randn(options.batch, 3, *size)
    labels = torch.randint(0, CLASSES, (options.batch,))
    for variant in variants.values():
        step(variant, images, labels, precision)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            seconds[name].append(step(variant, images, labels, precision))
    first = next(iter(variants))
    sizes = {name: kept(variant, images, precision) for name, variant in variants.items()}
    gc.collect()  # models of earlier cases, whose hooks hold them in circles
    found = {}
    for name, variant in variants.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[first], strict=True)]
        found[name] = {
            "seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "bytes": sizes[name],
            "bytes_ratio": sizes[name] / sizes[first],
            "in_use": [] if variant.made is None else [o.name for o in variant.made.outcomes if o.applied],
        }
    return {"model": model, "precision": precision, "reference": first, "variants": found}


def cases(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case of the table, one after the other."""
    for title, (name, precision, makers) in (chosen(TINY) | chosen(SMALL, "ViT-S, ", CORE)).items():
        if options.case in title:
            case = against(makers, options, precision, name)
            for variant, value in case["variants"].items():
                print(
                    f"{title:40} {variant:24} {value['ratio']:.2f} [{value['least']:.2f}, {value['most']:.2f}]"
                    f"  bytes {value['bytes_ratio']:.2f}  {','.join(value['in_use'])}",
                    flush=True,
                )
            yield title, case


def chosen(name: str, prefix: str = "", only: tuple[str, ...] = ("",)) -> dict[str, Case]:
    """Title -> model, precision and how its variants are made; only titles that begin with one of `only`."""

    def mine(method: Method, choice: str, precision: str) -> Callable[[], Variant]:
        return partial(ours, name, method, choice, precision)

    lora = get("lora")(rank=8, targets=("qkv",))
    made: dict[str, Case] = {}
    for precision in precisions():
        makers = {
            "peft": partial(peers, name, 8),
            "vpeft, off": mine(lora, "off", precision),
            "vpeft, auto": mine(lora, "auto", precision),
            "vpeft, auto,low_memory": mine(lora, "auto,low_memory", precision),
        }
        if precision == "bf16":
            makers["peft, plain products"] = partial(peers, name, 8, plain_products)
        made[f"lora, rank 8, qkv, {precision}"] = name, precision, makers
    others = {
        "vpt_deep, 10 prompts": get("vpt_deep")(tokens=10),
        "vpt_deep, 100 prompts": get("vpt_deep")(tokens=100),
        "ssf": get("ssf")(),
    }
    for title, method in others.items():
        for precision in precisions():
            pair = {"plain": mine(method, "off", precision), "auto": mine(method, "auto", precision)}
            made[f"{title}, {precision}"] = name, precision, pair
    return {f"{prefix}{title}": case for title, case in made.items() if title.startswith(only)}


def every(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method at its defaults, plain and with `auto`."""
    for title, kind in all_methods().items():
        if options.case in title and _asked(title, options):
            makers: dict[str, Callable[[], Variant]] = {
                choice: partial(ours, TINY, kind(), choice, "fp32") for choice in ("off", "auto")
            }
            try:
                case = against(makers, options, "fp32", TINY)
            except VpeftError as reason:
                yield title, {"refused": str(reason)}
                continue
            value = case["variants"]["auto"]
            print(
                f"{title:28} {value['ratio']:.2f} [{value['least']:.2f}, {value['most']:.2f}]"
                f"  bytes {value['bytes_ratio']:.2f}  {','.join(value['in_use'])}",
                flush=True,
            )
            yield title, case


def _asked(method: str, options: argparse.Namespace) -> bool:
    return not options.methods or method in options.methods.split(",")


def segmenting(method: Method, head: str) -> Variant:
    """Swin-T at 256 x 256 under a head for maps, with `auto` accelerations."""
    torch.manual_seed(0)
    task = vpeft.get_task("semantic_segmentation")(head=head, labels=tuple(map(str, range(DENSE_CLASSES))))
    backbone = timm.create_model(DENSE, img_size=DENSE_SIDE, num_classes=0)
    tuned = vpeft.tune(backbone, method, task=task, show=False, verify=False).train()
    made = accelerate(tuned, "auto", autocast=nullcontext, precision="fp32")
    return Variant(tuned, torch.optim.AdamW([p for _, p in tuned.trainable()], lr=1e-3), made, task=task)


def dense(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods on segmentation models against full tuning of the same model, in turns."""
    for head in options.heads.split(","):
        for method, found in _dense_under(head, options):
            yield f"{method} under {head}", {"method": method, "decoder": head, **found}


def _dense_under(head: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    count = options.dense_batch
    images = torch.randn(count, 3, DENSE_SIDE, DENSE_SIDE)
    batch = vpeft.Batch(images, torch.randint(0, DENSE_CLASSES, (count, DENSE_SIDE, DENSE_SIDE)))

    def one(variant: Variant) -> float:
        assert variant.task is not None
        start = time.process_time()
        loss = sum(variant.task.loss(variant.task.run(variant.model, batch), batch).values())
        variant.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        variant.optimiser.step()
        return time.process_time() - start

    full = segmenting(get("full_finetuning")(), head)
    plan = full.model.plan()
    reference = saved_bytes(full.model, batch)
    one(full)
    for title, kind in all_methods().items():
        if options.case not in title or not _asked(title, options):
            continue
        try:
            mine = segmenting(kind(), head)
            one(mine)
        except VpeftError as reason:
            yield title, {"refused": str(reason)}
            continue
        pairs = [(one(full), one(mine)) for _ in range(options.rounds)]
        ratios = [ours_now / theirs for theirs, ours_now in pairs]
        found = {
            "seconds_of_full": statistics.median(theirs for theirs, _ in pairs),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "bytes": saved_bytes(mine.model, batch),
            "bytes_of_full": reference,
            "images": count,
            "trainable": mine.model.plan().trainable,
            "head": plan.trainable_with_head - plan.trainable,
            "in_use": [] if mine.made is None else [o.name for o in mine.made.outcomes if o.applied],
        }
        print(
            f"{title:28} {head:14} {found['ratio']:.2f} [{found['least']:.2f}, {found['most']:.2f}]"
            f"  bytes {found['bytes'] / found['bytes_of_full']:.2f}",
            flush=True,
        )
        yield title, found


def imports(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `import vpeft` costs beside what its backbones cost anyhow; processor seconds of fresh interpreters."""
    lines = {"torch, timm": "import torch, timm", "vpeft": "import vpeft; vpeft.tune", "bare": "import vpeft"}
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(options.rounds):
        for name, line in lines.items():
            code = f"import time; a = time.process_time(); {line}; print(time.process_time() - a)"
            out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
            seconds[name].append(float(out))
    ratios = [a / b for a, b in zip(seconds["vpeft"], seconds["torch, timm"], strict=True)]
    yield (
        "import",
        {
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        },
    )


# With the epochs on records that are timed.
METHODS: dict[str, tuple[Method, int]] = {
    "linear_probe": (get("linear_probe")(), 30),
    "partial_k, k = 1": (get("partial_k")(k=1), 6),
    "lora in the last four blocks": (LastBlocksLoRA(rank=8), 3),
    "lst": (get("lst")(), 4),
    "lst, heads = 1": (get("lst")(heads=1), 4),
}


def runs(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole run of the table, one after the other."""
    for title, (method, epochs) in METHODS.items():
        if options.case in title:
            one = whole_run(method, options, epochs)
            print(
                f"{title:32} {one['times_faster']:.1f}x [{one['least']:.1f}, {one['most']:.1f}]"
                f"  step {one['step_ratio']:.0f}x",
                flush=True,
            )
            yield title, one


def passes(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Several runs in one pass: as in the other tables, and with the defaults of `fit`."""
    method, timed = METHODS["linear_probe"]
    for epochs, batch in ((100, 16), (30, 64)):
        title = f"4 x linear_probe, {epochs} epochs, batch {batch}"
        if options.case in title:
            yield title, together(method, options, timed, batch, epochs)


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="of the whole runs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, default=32, help="images of the whole runs, which are also made on three times as many"
    )
    parser.add_argument("--runs", type=int, default=3, help="repetitions of the whole runs")
    parts = ["steps", "every", "dense", "runs", "together", "imports", "page"]
    parser.add_argument("--only", choices=parts, help="leave the rest as it is in --out")
    parser.add_argument("--case", default="", help="only those with this in their name")
    parser.add_argument("--methods", default="", help="names of methods by commas, of `every` and `dense`; else all")
    parser.add_argument("--heads", default=",".join(DENSE_HEADS), help="of `dense`")
    parser.add_argument("--dense-batch", type=int, default=2, help="images in a batch of `dense`")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part, makes in (
        ("steps", cases),
        ("every", every),
        ("dense", dense),
        ("runs", runs),
        ("together", passes),
        ("imports", imports),
    ):
        if options.only in (None, part):
            for title, found in makes(options):
                write(options, part, title, found)
    if options.page is not None and options.out is not None:
        others = (file for file in options.out.parent.glob("*.json") if file != options.out)
        beside = {file.stem: json.loads(file.read_text()) for file in others}
        options.page.write_text(page(json.loads(options.out.read_text()), beside))


def write(options: argparse.Namespace, part: str, title: str, found: dict[str, Any]) -> None:
    """Put one result into the file, beside those that it has already."""
    if options.out is None:
        return
    result: dict[str, Any] = {"steps": {}, "every": {}, "dense": {}, "runs": {}, "together": {}, "imports": {}}
    if options.out.exists():
        result |= json.loads(options.out.read_text())
    conditions = {
        "batch": options.batch,
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    result[part][title] = found | conditions
    result |= {
        "images": options.images,
        "torch": str(torch.__version__),
        "processor": processor(),
        "cores": os.cpu_count(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
