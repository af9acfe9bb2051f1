"""`vpeft demo`: everything once, offline: train several methods, compare, save the best, load it, predict, report.

The demo uses the ordinary commands: the comparison is a `vpeft bench` on the digits of scikit-learn and one task of the
suite pocket, the page is a `vpeft report`, and the predictions use the adapter file as `vpeft predict` does. The best
method is chosen on validation images. The final evaluator reads the test images once per method, and once more for the
reloaded adapter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter, validators
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.text import Text

from vpeft.batch import Sample
from vpeft.bench.config import BenchConfig
from vpeft.bench.engine import Assignment
from vpeft.bench.key import Identity
from vpeft.bench.ledger import Ledger
from vpeft.bench.protocol import protocol
from vpeft.bench.record import RecordedScores, RunRecord, State
from vpeft.bench.runner import run_bench
from vpeft.bench.sealed import FinalEvaluator, Trained
from vpeft.bench.splits import Split, SplitArrays
from vpeft.bench.suites import open_task, suite
from vpeft.bench.trainer import TrainedModel, VpeftEngine
from vpeft.cli import show
from vpeft.cli.demo_picture import Shown, write_picture
from vpeft.cli.loaded import Loaded, open_adapter
from vpeft.errors import VpeftError
from vpeft.report import make_report
from vpeft.task import Prediction

METHODS = ("linear_probe", "lora", "adaptformer", "ssf")
TASK = ("digits", "classes")
# What frozen features say little of: which way a thing points. Two methods are enough to show it.
SECOND_TASK = ("pocket", "orientation")
SECOND_METHODS = ("linear_probe", "lora")
TIER = "demo"
BACKBONE = "pocket_vit"
# How many of the test images are written out and drawn: the first ones, not picked ones.
DRAWN = 24
# Rounding differs with the number of images in a batch, and may turn a toss-up the other way.
MAY_DIFFER = 2
# Images per pass when the reloaded adapter is scored.
_BATCH = 128


class DemoCannotGoOn(VpeftError):
    """The demo found a file in its folder that it cannot use, or no method could be trained."""


@dataclass(frozen=True)
class KeepingEngine(VpeftEngine):
    """vpeft's engine, which also saves the adapter of every final run in `folder`."""

    folder: Path = Path("adapters")

    def train(
        self,
        assignment: Assignment,
        train: Split,
        val: Split | None,
        after_epoch: Callable[[Trained], None] | None,
    ) -> TrainedModel:
        trained = super().train(assignment, train, val, after_epoch)
        if assignment.identity.purpose == "final":
            trained.tuned.save(
                adapter_of(self.folder, assignment.identity),
                preprocessing=trained.preprocessing.model_dump(mode="json"),
            )
        return trained


def adapter_of(folder: Path, identity: Identity) -> Path:
    """Return the path of the adapter of a final run."""
    return folder / f"{'+'.join(method.name for method in identity.methods)}-{identity.key()[:12]}.safetensors"


def demo(
    *,
    out: Path = Path("runs/demo"),
    epochs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    workers: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
) -> None:
    """Adapt the shipped backbone to handwritten digits with several methods, compare them, and use the best one.

    It works offline and takes a few minutes on two cores. Called again, it continues where it stopped.

    Parameters
    ----------
    out:
        Folder for the records, the adapters, the page and the pictures.
    epochs:
        Passes over the training images in each run, instead of the protocol's number.
    workers:
        Processes that train at the same time; by default one for each core, at most four.
    """
    start = time.perf_counter()
    screen = show.console()
    beside = workers or min(os.cpu_count() or 1, 4)
    _say(screen, f"1. Train {', '.join(METHODS)} on digits with {BACKBONE}; learning rates are chosen on validation.")
    config = BenchConfig(
        suite=TASK[0],
        tier=TIER,
        tasks=(TASK[1],),
        methods=METHODS,
        backbone=BACKBONE,
        seeds=1,
        out=out / "ledger",
        workers=beside,
        optimisation={} if epochs is None else {"epochs": epochs},
    )
    engine = KeepingEngine(folder=out / "adapters")
    ledger = run_bench(config, engine=engine, console=screen)
    _say(screen, f"   And {' and '.join(SECOND_METHODS)} on {'/'.join(SECOND_TASK)}: which way things point.")
    second = {"suite": SECOND_TASK[0], "tasks": SECOND_TASK[1:], "methods": SECOND_METHODS}
    run_bench(config.model_copy(update=second), engine=engine, console=screen)

    _say(screen, "2. Compare.")
    report = make_report(out / "ledger", html=out / "report.html", png=out / "comparison.png")
    screen.print(report)

    _say(screen, "3. Save the best method on validation images, and load it again from its file.")
    best = best_on_validation(ledger, epochs or epochs_of_the_protocol())
    adapter = save_with_scores(best, out)
    assert best.chosen is not None and best.scores is not None
    screen.print(
        Text(
            f"{best.label}: {best.chosen.validation:.1%} on validation, {best.scores.value:.1%} on test; "
            f"{adapter} is {adapter.stat().st_size / 1000:.0f} kB"
        )
    )

    _say(screen, "4. Predict the test images, which were not used for training or for any choice.")
    shown, right, count = predict_unseen(best, adapter, out / "unseen")
    screen.print(Text(f"the reloaded adapter names {right} of {count} images right ({right / count:.1%})"))
    screen.print(show.table(("image", "says", "sure", "is"), [_row(one) for one in shown[:8]]))
    picture = write_picture(
        shown, out / "predictions.png", f"{best.label}: the first {len(shown)} of {count} test images"
    )

    _say(screen, f"Done in {show.duration(time.perf_counter() - start)}. Look at:")
    for file, what in (
        (out / "report.html", "the comparison as a page"),
        (out / "comparison.png", "accuracy against trained parameters"),
        (picture, "test images with the adapter's predictions"),
    ):
        screen.print(Text(f"  {file}   {what}"))
    screen.print(Text(f"Try: vpeft predict {adapter} {out / 'unseen'} --top 3"))


class ReloadedAdapter:
    """A loaded adapter in the role of a trained model for the final evaluator; it stores its predictions.

    Attributes:
        said: pixels uint8 (H, W, 3), label and prediction of each image of the evaluation, in order.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.said: list[tuple[NDArray[np.uint8], str, Prediction]] = []

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        """Return the leading score on one split: the share of images whose best label is right."""
        assert isinstance(images, SplitArrays), "the demo learns one class for each image"
        transform, task = self._loaded.preprocessing.transform(), self._loaded.task
        self.said = []
        for start in range(0, len(images.pixels), _BATCH):
            pixels = images.pixels[start : start + _BATCH]
            samples = [Sample(transform(Image.fromarray(one))) for one in pixels]
            truth = [task.labels[int(number)] for number in images.labels[start : start + _BATCH]]
            self.said += zip(pixels, truth, self._loaded.predictions(samples), strict=True)
        right = sum(prediction.rows[0]["label"] == label for _, label, prediction in self.said)
        name = task.leading.name
        return RecordedScores(split=split, values={name: right / len(self.said)}, leading=name, count=len(self.said))


def epochs_of_the_protocol() -> int:
    """Return the number of epochs of the demo's protocol."""
    stated = protocol(suite(TASK[0]).tiers[TIER].protocol).optimisation["epochs"]
    assert isinstance(stated, int)
    return stated


def best_on_validation(ledger: Ledger, epochs: int) -> RunRecord:
    """Return the final run with the best validation score; of equal ones that with fewer parameters."""
    finals = [
        record
        for record in ledger
        if record.suite == TASK[0]
        and record.identity.purpose == "final"
        and record.identity.optimisation.get("epochs") == epochs
    ]
    done = [record for record in finals if record.state is State.done and record.chosen and record.costs]
    if not done:
        errors = "; ".join(f"{record.label}: {record.error.message}" for record in finals if record.error)
        raise DemoCannotGoOn(f"No method could be trained. {errors}")

    def rank(record: RunRecord) -> tuple[float, int]:
        assert record.chosen is not None and record.costs is not None
        return record.chosen.validation or 0.0, -(record.costs.trainable or 0)

    return max(done, key=rank)


def save_with_scores(record: RunRecord, out: Path) -> Path:
    """Copy the adapter of a final run to `adapter.safetensors` in `out`, with its scores in the manifest."""
    kept = adapter_of(out / "adapters", record.identity)
    if not kept.is_file():
        raise DemoCannotGoOn(
            f"{out / 'ledger'} has the records of an earlier demo, but its adapter {kept} is gone. "
            f"Remove {out}, or name another folder with --out."
        )
    loaded = open_adapter(kept, device="cpu")
    scores: dict[str, float] = {}
    if record.chosen is not None and record.chosen.validation is not None:
        scores["val_top1"] = record.chosen.validation
    if record.scores is not None:
        scores["test_top1"] = record.scores.value
    path: Path = loaded.model.save(
        out / "adapter.safetensors",
        preprocessing=loaded.preprocessing.model_dump(mode="json"),
        scores=scores,
    )
    return path


def predict_unseen(record: RunRecord, adapter: Path, folder: Path) -> tuple[list[Shown], int, int]:
    """Evaluate the reloaded adapter on the sealed test images; write the first few with their predictions.

    Raises RuntimeError if the score differs from the recorded one.
    """
    scorer = ReloadedAdapter(open_adapter(adapter))
    scores = FinalEvaluator(record.identity, open_task(*TASK).test).score(scorer)
    assert record.scores is not None and scores.count is not None
    right, before = round(scores.value * scores.count), round(record.scores.value * scores.count)
    if abs(right - before) > MAY_DIFFER:
        raise RuntimeError(f"the reloaded adapter is right on {right} of {scores.count} images, but was on {before}")
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for index, (pixels, label, prediction) in enumerate(scorer.said[:DRAWN]):
        file = folder / f"{index:02d}_is_{label}.png"
        Image.fromarray(pixels).save(file)
        best = prediction.rows[0]
        shown.append(Shown(file, pixels, label, str(best["label"]), float(best["probability"])))
    return shown, right, scores.count


def _row(one: Shown) -> tuple[str, str, str, str]:
    return one.file.name, one.said, f"{one.probability:.1%}", one.label


def _say(screen: Console, text: str) -> None:
    screen.print()
    screen.print(Text(text, style="bold"))
