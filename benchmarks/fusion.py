"""Ways to fuse on the offline tasks: pocket_vit tuned on each task alone, then fused; accuracy, size and cost.

    python benchmarks/fusion.py --out runs/fusion

A cell is a way and how the tasks were tuned: in full, by LoRA, or by other methods in turn (mixed). A part whose record
is in the folder is not done again, so a killed table goes on with the same command. `table.md` has the accuracy of each
task, the share of the single-task accuracy, the size of the file and the time of an image; `routing.png` shows where
SMILE sends the tokens of each task.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import vpeft
from vpeft.atomic import write_json
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ImageSet
from vpeft.regimes.fusion.fuse import fuse
from vpeft.regimes.fusion.routing import routing_shares
from vpeft.regimes.one_task import OneTask
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

BACKBONE = "pocket_vit"
TASKS = ("glyphs", "handwriting", "photographs", "coast", "defects", "count", "distance", "orientation")
# Rates at which this small backbone learns in a few epochs; full fine-tuning needs a smaller one.
TUNED: dict[str, tuple[tuple[str, float], ...]] = {
    "full": (("full_finetuning", 1e-4),),
    "lora": (("lora(rank=8, targets=[q, k, v, proj, fc1, fc2])", 2e-3),),
    "mixed": (("lora(rank=8, targets=[q, k, v, proj, fc1, fc2])", 2e-3), ("ssf", 5e-3), ("repadapter", 2e-3)),
}
WAYS = (
    "averaging",
    "task_arithmetic",
    "ties",
    "dare",
    "fisher",
    "regmean",
    "regmean_plus_plus",
    "adamerging(per=task, steps=200)",
    "adamerging(steps=200)",
    "wemoe(steps=200)",
    "smile",
    "smile(rank=None, gate_rank=16)",
)


def main() -> None:
    """Make the parts that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapters, the records and table.md")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--tuned", default=",".join(TUNED))
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by ;")
    parser.add_argument("--epochs", type=int, default=20, help="of each task's own training")
    parser.add_argument("--images", type=int, default=0, help="at most so many test images of a task; 0: all")
    options = parser.parse_args()
    tasks = tuple(options.tasks.split(","))
    cells: list[dict[str, Any]] = []
    for tuned in options.tuned.split(","):
        alone = [single(options.out, task, tuned, number, options) for number, task in enumerate(tasks)]
        cells.append({"tuned": tuned, "way": "each alone", **_sums(alone), "seconds": 0.0})
        for way in filter(None, options.ways.split(";")):
            cells.append(fused(options.out, tasks, tuned, way.strip(), alone, options))
        picture(options.out, tasks, tuned, options)
    lines = table(cells, tasks)
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def adapter(out: Path, task: str, tuned: str, options: argparse.Namespace) -> Path:
    """Where the adapter of one task lies."""
    return out / "alone" / f"{tuned}_{options.epochs}_epochs" / task / "adapter.safetensors"


def single(out: Path, task: str, tuned: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a model of one task, trained now where it is not there."""
    file = adapter(out, task, tuned, options)
    record = file.with_name(f"fusion_{options.images}.json")
    if not record.exists():
        method, rate = TUNED[tuned][number % len(TUNED[tuned])]
        recipe = {
            "backbone": BACKBONE,
            "method": method,
            "data": {"source": f"pocket/{task}"},
            "optimisation": {"epochs": options.epochs, "lr": rate, "device": "auto"},
            "out": file.parent,
        }
        began = time.perf_counter()
        if not file.exists():
            run_recipe(Recipe.model_validate(recipe), progress=False, show=False, test=False)
        model = vpeft.load(vpeft.create_backbone(BACKBONE), file)
        found = score(model, model, task, options)
        write_json(
            record, {"task": task, "seconds": time.perf_counter() - began, "bytes": file.stat().st_size, **found}
        )
    return _read(record)


def fused(
    out: Path, tasks: tuple[str, ...], tuned: str, way: str, alone: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """The record of one way, made now where it is not there."""
    word = "".join(letter if letter.isalnum() else "_" for letter in way).strip("_")
    folder = out / "fused" / f"{tuned}_{len(tasks)}_tasks_{options.epochs}_epochs_{options.images}" / word
    if not (folder / "run.json").exists():
        files = {task: adapter(out, task, tuned, options) for task in tasks}
        began = time.perf_counter()
        data = {task: prepared(task)[0] for task in tasks}
        file = folder / "fused.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        model = fuse(vpeft.create_backbone(BACKBONE), files, way, data=data, out=file)
        seconds = time.perf_counter() - began
        scores = [score(model, OneTask(model, task), task, options) for task in tasks]
        record = {
            "tuned": tuned,
            "way": way,
            "accuracy": {task: one["accuracy"] for task, one in zip(tasks, scores, strict=True)},
            "share": statistics.mean(
                one["accuracy"] / single["accuracy"] for one, single in zip(scores, alone, strict=True)
            ),
            "bytes": file.stat().st_size,
            "milliseconds": statistics.mean(one["milliseconds"] for one in scores),
            "seconds": seconds,
        }
        write_json(folder / "run.json", record)
        print(f"{tuned}, {way}: {100 * record['share']:.1f} % of the single-task accuracy, {seconds:.0f} s", flush=True)
    return _read(folder / "run.json")


def prepared(task: str) -> tuple[ImageSet, ImageSet]:
    """The training and test images of a task, as the backbone wants them."""
    data = open_data(vpeft.DataConfig(source=f"pocket/{task}"))
    stated = vpeft.Preprocessing.from_model(vpeft.create_backbone(BACKBONE))
    assert data.test is not None
    return data.train.prepared(stated), data.test.prepared(stated)


def score(model: vpeft.TunedModel, answering: Any, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on the test split, and milliseconds of an image in batches of 64."""
    test = prepared(task)[1]
    images: Any = torch.utils.data.Subset(test, range(options.images)) if options.images else test
    found = vpeft.evaluate(answering, images, task=answering.task)
    batch = torch.stack([test[number][0] for number in range(64)])
    times = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            model.features(batch)
            times.append(time.perf_counter() - began)
    return {"accuracy": found.values["top1"], "milliseconds": 1000 * min(times) / len(batch)}


def picture(out: Path, tasks: tuple[str, ...], tuned: str, options: argparse.Namespace) -> None:
    """Where SMILE sends the tokens of each task."""
    folder = out / "fused" / f"{tuned}_{len(tasks)}_tasks_{options.epochs}_epochs_{options.images}" / "smile"
    file = folder / "fused.safetensors"
    if file.exists() and not (folder / "routing.png").exists():
        model = vpeft.load(vpeft.create_backbone(BACKBONE), file)
        experts = vpeft.read_manifest(file).extra["fusion"]["experts"]
        found = routing_shares(model, {task: prepared(task)[1] for task in tasks}, experts)
        found.picture(f"SMILE, tuned by {tuned}").savefig(folder / "routing.png", dpi=150)


def table(cells: list[dict[str, Any]], tasks: tuple[str, ...]) -> list[str]:
    """The table in Markdown."""
    lines = [
        f"| tuned | way | {' | '.join(tasks)} | mean | share | MiB | ms an image |",
        "|---" * (len(tasks) + 6) + "|",
    ]
    for cell in cells:
        each = [100 * cell["accuracy"][task] for task in tasks]
        numbers = " | ".join(f"{value:.1f}" for value in (*each, statistics.mean(each), 100 * cell["share"]))
        lines.append(
            f"| {cell['tuned']} | {cell['way']} | {numbers} | {cell['bytes'] / 2**20:.2f} |"
            f" {cell['milliseconds']:.2f} |"
        )
    return lines


def _sums(alone: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "accuracy": {one["task"]: one["accuracy"] for one in alone},
        "share": 1.0,
        "bytes": sum(one["bytes"] for one in alone),
        "milliseconds": statistics.mean(one["milliseconds"] for one in alone),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
