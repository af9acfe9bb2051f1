"""Autoregressive vision with little data (DeLVM): balance, distillation, and LoRA to a task that was held out.

    python benchmarks/delvm.py --out runs/delvm

Llamas over the tokens of `pocket_vq` learn three visual tasks on pocket-dense/scenes: image -> mask from all training
images, image -> edges and noisy -> clean from few. Rows: from scratch; with the rare tasks balanced by augmented
copies; a larger teacher; a student distilled from it. Then image -> depth, which was held out, from few images: without
training (examples in the sentence alone), from scratch, all weights, and LoRA. All rows of a group train for about as
many steps. The test images are read after training alone.

A row that is finished in the folder is not done again, and one that was killed goes on. Writes table.md, scores.json,
completions_base.png and completions_new.png: completions beside the truth. About 25 minutes on two cores; `--size tiny`
only sees that all runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vpeft
from vpeft.backbones.picture_codec import picture_codec
from vpeft.backbones.pocket_sequence import new_llama, save_llama
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.visual_sentences import VisualSentences
from vpeft.drawing import panel, picture_of
from vpeft.tasks.visual_sequences import VisualSequences
from vpeft.training.evaluate import evaluate
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

SOURCE = "pocket-dense/scenes"
BASE, HELD_OUT = ("mask", "edges", "denoise"), ("depth",)
SCORES = "scores.json"


@dataclass(frozen=True)
class Size:
    """How large everything is. Widths and depths are those of the Llamas, `rare` and `few` numbers of images."""

    student: tuple[int, int] = (128, 4)
    teacher: tuple[int, int] = (192, 6)
    steps: int = 330
    adapting: int = 130
    batch: int = 16
    rare: int = 40
    few: int = 60
    test: int = 100
    pairs: int = 2


SIZES = {
    "tiny": Size(student=(32, 1), teacher=(48, 2), steps=2, adapting=2, batch=4, rare=4, few=4, test=4),
    "default": Size(),
    "large": Size(student=(256, 8), teacher=(384, 12), steps=6_000, adapting=1_000, batch=32, test=400, pairs=4),
}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: in the table.
        tasks: the visual tasks that it learns and is judged by.
        start: the row whose model it starts from; "student" or "teacher" for a new one of that size.
        method: as `--method` takes it; "" for no training.
        balance: what is done for rare tasks.
        teacher: the row that it distils from.
        rate: the peak learning rate.
    """

    title: str
    tasks: tuple[str, ...]
    start: str
    method: str = "full_finetuning"
    balance: str = "none"
    teacher: str = ""
    rate: float = 2e-3


ROWS: Mapping[str, Row] = {
    "scratch": Row("from scratch", BASE, "student"),
    "balanced": Row("balanced by augmentation", BASE, "student", balance="augment"),
    "teacher": Row("teacher, balanced", BASE, "teacher", balance="augment", rate=1.5e-3),
    "distilled": Row("balanced and distilled", BASE, "student", balance="augment", teacher="teacher"),
    "in_context": Row("examples alone", HELD_OUT, "balanced", method=""),
    "new_scratch": Row("from scratch", HELD_OUT, "student"),
    "new_full": Row("all weights", HELD_OUT, "balanced", rate=5e-4),
    "new_lora": Row("LoRA, rank 8", HELD_OUT, "balanced", method="lora(rank=8, targets=[all])", rate=4e-3),
}


class Table:
    """The rows of one seed, each with a folder of its own.

    Args:
        out: the folder.
        size: see `Size`.
        seed: of models and training.
        codec: of the tokens.
        source: a data set with masks, edges and depths.
    """

    def __init__(self, out: Path, size: Size, seed: int, codec: str, source: str = SOURCE) -> None:
        self.out, self.size, self.seed, self.codec, self.source = out, size, seed, codec, source
        made = picture_codec(codec)
        self.codes, self.side = made.codes, made.side
        self.length = 2 * size.pairs * made.count
        self.images = 0  # of the training
        self._tests: dict[tuple[str, ...], tuple[VisualSequences, VisualSentences]] = {}

    def model(self, name: str) -> Path:
        """The folder of the model of a row, or of a new one; it is made where it is missing."""
        folder = self.out / name / "model"
        if not folder.is_dir() and name in ("student", "teacher_at_first"):
            shape = self.size.student if name == "student" else self.size.teacher
            folder.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(self.seed)
            save_llama(new_llama(self.codes, *shape, length=max(64, self.length)), folder, self.side)
        return folder

    def task(self, row: Row, training: bool) -> dict[str, Any]:
        """The options of the task of a row."""
        options: dict[str, Any] = {"visual_tasks": row.tasks, "codec": self.codec, "pairs": self.size.pairs}
        if training:
            rare = dict.fromkeys(row.tasks[1:], self.size.rare) if row.tasks == BASE else {}
            options |= {"limits": rare or {row.tasks[0]: self.size.few}, "balance": row.balance, "generate": False}
            options["learn"] = "all" if row.tasks == BASE else "answers"
            if row.teacher:
                options["teacher"] = f"hf:{self.model(row.teacher)}"
        return options

    def test(self, row: Row) -> tuple[VisualSequences, VisualSentences]:
        """The task as it is scored, and its first test images as sentences."""
        if row.tasks not in self._tests:
            task = VisualSequences(**self.task(row, False))
            data = open_data(DataConfig(source=self.source, target=task.target_kind))
            self.images, whole = len(data.train), data.test
            if whole is None:
                raise SystemExit(f"{self.source} has no test images.")
            images = ImageSet(
                whole.items[: self.size.test],
                whole.labels,
                transform=task.transforms(Preprocessing(), "none", False),
                target=whole.target,
                reading=whole.reading,
            )
            bound = task.model_copy(update={"labels": tuple(whole.labels)})
            self._tests[row.tasks] = bound, bound.dataset(images, False)
        return self._tests[row.tasks]

    def run(self, name: str) -> dict[str, Any]:
        """Train and score a row, unless it is there."""
        row, folder = ROWS[name], self.out / name
        path = folder / SCORES
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        began = time.perf_counter()
        start = self.model("teacher_at_first" if row.start == "teacher" else row.start)
        task, test = self.test(row)
        facts: dict[str, Any] = {}
        if row.method:
            tuned, facts = self.trained(row, folder, start)
            if row.method == "full_finetuning" and not (folder / "model").is_dir():
                save_llama(tuned.backbone, folder / "model", self.side)
        else:
            tuned = vpeft.create_backbone(f"host::hf:{start}")
        scores = evaluate(tuned, test, task=task, batch=self.size.batch * 2)
        facts |= {"scores": scores.values, "seconds": round(time.perf_counter() - began, 1)}
        torch.save(completions(tuned, task, test), folder_of(folder) / "completions.pt")
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts

    def trained(self, row: Row, folder: Path, start: Path) -> tuple[Any, dict[str, Any]]:
        """The trained model of a row, and how many parameters it trained, in how many steps."""
        fresh = row.start in ("student", "teacher")
        steps = self.size.steps if row.tasks == BASE else self.size.adapting
        if row.tasks == BASE:
            rare = self.images if row.balance != "none" else min(self.size.rare, self.images)
            pairs = self.images + rare * (len(BASE) - 1)
        else:
            pairs = min(self.size.few, self.images)
        epochs = max(1, round(steps * self.size.batch / pairs))
        recipe = Recipe.from_mapping(
            {
                "backbone": f"host::hf:{start}",
                "method": row.method,
                "train": ["lm_head"] if row.method == "full_finetuning" else [],
                "task": {"name": "visual_sequences", **self.task(row, True)},
                "data": {"source": self.source},
                "optimisation": {
                    "epochs": epochs,
                    "batch": self.size.batch,
                    "lr": row.rate,
                    "weight_decay": 0.1 if fresh else 0.0,
                    "clip": 1.0,
                    "min_lr": 0.1 * row.rate,
                    "validate_every": epochs,
                    "seed": self.seed,
                },
                "out": str(folder / "run"),
            }
        )
        outcome = run_recipe(recipe, show=False, test=False)
        if outcome.state != "done":
            raise SystemExit(f"{folder} stopped; give the same command again to go on.")
        plan = outcome.tuned.plan()
        return outcome.tuned, {
            "trained": plan.trainable_with_head,
            "steps": epochs * math.ceil(pairs / self.size.batch),
        }


def folder_of(path: Path) -> Path:
    """The folder, which is made where it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def completions(model: nn.Module, task: VisualSequences, test: VisualSentences, each: int = 2) -> dict[str, Any]:
    """For some sentences of each visual task the picture, the truth and the completion, uint8 (3, S, S) each."""
    codec = picture_codec(task.codec)
    found: dict[str, Any] = {}
    for number, one in enumerate(test.tasks):
        rows = [index for index, row in enumerate(test.rows) if row[0] == number]
        for index in rows[3 :: max(1, len(rows) // each)][:each]:
            batch = task.collate([test[index]])
            with torch.inference_mode():
                said = task.predictions(task.run(model.eval(), batch), batch)[0]
            shown = codec.decoded(batch.inputs[:, -2 * codec.count : -codec.count])[0]
            pictures = (shown, batch.targets["answer"][0])
            found[said.id] = [*((one_of * 255).round().byte() for one_of in pictures), said.pictures[one.name]]
    return found


def cell(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the 95 % interval of Student's t where there are several seeds."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Both groups as Markdown, from the facts of each row by seed."""
    lines = []
    for tasks, title in ((BASE, "the three tasks"), (HELD_OUT, "the task that was held out")):
        columns = ["perplexity", "answer_perplexity"]
        columns += [f"{one}/{what}" for one in tasks for what in ("perplexity", "miou" if one == "mask" else "psnr")]
        lines += [f"| {title} | trained | {' | '.join(columns)} | seconds |", "|---" * (len(columns) + 3) + "|"]
        for name, row in ROWS.items():
            if row.tasks != tasks or not found.get(name):
                continue
            facts = found[name]
            cells = [cell([one["scores"][column] for one in facts], 3 if "miou" in column else 2) for column in columns]
            trained = f"{facts[0].get('trained', 0):,}"
            spent = cell([one["seconds"] for one in facts], 0)
            lines.append(f"| {row.title} | {trained} | {' | '.join(cells)} | {spent} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows_of_seed: Path, names: Sequence[str], out: Path) -> None:
    """The files completions_*.png: for each sentence the picture, the truth, and what each row completed."""
    sheets: list[tuple[tuple[str, ...], list[str]]] = []
    for tasks in (BASE, HELD_OUT):
        sheets.append((tasks, [one for one in names if ROWS[one].tasks == tasks]))
    for tasks, rows in sheets:
        if not rows:
            continue
        kept: dict[str, dict[str, list[Tensor]]] = {
            name: torch.load(rows_of_seed / name / "completions.pt", weights_only=True) for name in rows
        }
        lines = []
        for said, (shown, truth, _) in kept[rows[0]].items():
            pictures = [shown, truth, *(kept[name][said][2] for name in rows)]
            lines.append((said, [picture_of(one) for one in pictures]))
        titles = ["picture", "truth", *rows]
        panel(lines, titles).save(out / f"completions_{'new' if tasks == HELD_OUT else 'base'}.png")


def main() -> None:
    """Make the rows that are missing, and write the table and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/delvm"))
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--source", default=SOURCE, help="another data set with masks, edges and depths")
    parser.add_argument("--codec", default="pocket_vq", help="pocket_vq, or a file that pretraining/pocket_vq.py wrote")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731 - progress is seen at once
    for seed in range(asked.seeds):
        one = Table(asked.out / f"seed{seed}", SIZES[asked.size], seed, asked.codec, asked.source)
        for name in ROWS:
            found[name].append(one.run(name))
            say(f"seed {seed}, {name}: {found[name][-1]}")
    text = table(found)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "table.md").write_text(text, encoding="utf-8")
    (asked.out / SCORES).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(asked.out / "seed0", list(ROWS), asked.out)
    print(text)


if __name__ == "__main__":
    main()
