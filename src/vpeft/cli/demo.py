"""`vpeft demo`: everything once, offline: train several methods, compare, save the best, load it, predict, report.

The demo uses the ordinary commands: the comparison is a `vpeft bench` on tasks that ship with the package, the page is
a `vpeft report`, and the pictures of test images are predicted from their files as `vpeft predict` does. The best
method is chosen on validation images. The final evaluator reads the test images once per method, and once more for the
reloaded adapter. What is compared stands in `demo_stories`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Console
from rich.text import Text

from vpeft.bench.config import BenchConfig
from vpeft.bench.engine import Assignment
from vpeft.bench.key import Identity
from vpeft.bench.ledger import Ledger
from vpeft.bench.protocol import protocol
from vpeft.bench.record import RecordedScores, RunRecord, State, title_of
from vpeft.bench.runner import run_bench
from vpeft.bench.sealed import FinalEvaluator, Trained
from vpeft.bench.splits import Split
from vpeft.bench.suites import open_task, suite
from vpeft.bench.trainer import TrainedModel, VpeftEngine
from vpeft.cli import show
from vpeft.cli.demo_picture import Shown, write_picture
from vpeft.cli.demo_stories import BACKBONE, STORIES, Compared, StoryName
from vpeft.cli.drawings import Drawings, write
from vpeft.cli.flags import Switch
from vpeft.cli.loaded import Loaded, open_adapter
from vpeft.cli.predict import predictions_for
from vpeft.cli.serve import serve
from vpeft.data.image_set import ImageSet
from vpeft.drawing import picture_of
from vpeft.errors import VpeftError
from vpeft.report import make_report
from vpeft.task import Prediction
from vpeft.training.validation_panel import validation_panel

# By how much of the leading score a reloaded adapter may differ: rounding may turn a toss-up the other way.
MAY_DIFFER = 0.01
# How many predictions the terminal shows, and how many samples stand beside their truth in the panel.
PRINTED, BESIDE_TRUTH = 8, 6
# Seconds that the page may take to be there.
PATIENCE = 120


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
    task: StoryName = "classification",
    out: Path | None = None,
    epochs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    workers: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    page: Switch = False,
) -> None:
    """Adapt the shipped backbone with several methods, compare them, and use the best one.

    It works offline and takes a few minutes on two cores. Called again, it continues where it stopped.

    Parameters
    ----------
    task:
        Classification of handwritten digits, or detection: things in drawn scenes with boxes and masks.
    out:
        Folder for the records, the adapters, the page and the pictures; by default runs/demo, for detection
        runs/demo-dense.
    epochs:
        Passes over the training images in each run, instead of the protocol's number.
    workers:
        Processes that train at the same time; by default one for each core, at most four.
    page:
        At the end, open a page in the browser where the adapters of the demo can be tried on images of your own. It
        is served from this machine for this machine, until Ctrl-C.
    """
    start = time.perf_counter()
    screen = show.console()
    story = STORIES[task]
    first, out = story.first, out or story.folder
    beside = workers or min(os.cpu_count() or 1, 4)
    engine = KeepingEngine(folder=out / "adapters")

    def compare(what: Compared) -> Ledger:
        config = BenchConfig(
            suite=what.suite,
            tier=what.tier,
            tasks=(what.task,),
            methods=what.methods,
            backbone=BACKBONE,
            seeds=1,
            out=out / "ledger",
            workers=beside,
            optimisation={} if epochs is None else {"epochs": epochs},
        )
        return run_bench(config, engine=engine, console=screen)

    _say(screen, f"1. Train {', '.join(first.methods)} with {BACKBONE}: {first.about}.")
    ledger = compare(first)
    if story.second is not None:
        _say(screen, f"   And {' and '.join(story.second.methods)}: {story.second.about}.")
        compare(story.second)

    _say(screen, "2. Compare.")
    report = make_report(out / "ledger", html=out / "report.html", png=out / "comparison.png")
    screen.print(report)

    _say(screen, "3. Save the best method on validation images, and load it again from its file.")
    best = best_on_validation(ledger, first, epochs or epochs_of_the_protocol(first))
    adapter = save_with_scores(best, out)
    assert best.chosen is not None and best.scores is not None
    screen.print(
        Text(
            f"{best.label}: {best.chosen.validation:.1%} on validation, {best.scores.value:.1%} on test"
            f" ({title_of(best.scores.leading)}); {adapter} is {adapter.stat().st_size / 1000:.0f} kB"
        )
    )

    _say(screen, "4. Predict the test images, which were not used for training or for any choice.")
    reloaded = ReloadedAdapter(open_adapter(adapter))
    scores = score_again(best, first, reloaded)
    screen.print(Text(f"the reloaded adapter has {scores.sentence()} on {scores.count} images, as before it was saved"))
    files = write_images(reloaded.images, out / "unseen", story.drawn)
    predictions = list(predictions_for(reloaded.loaded, files))
    screen.print(show.table(("image", "says"), [_row(one) for one in predictions[:PRINTED]]))
    pictures = draw(reloaded, predictions, out, f"{best.label}: the first {len(files)} of {scores.count} test images")

    _say(screen, f"Done in {show.duration(time.perf_counter() - start)}. Look at:")
    for file, what in (
        (out / "report.html", "the comparison as a page"),
        (out / "comparison.png", f"{title_of(best.scores.leading)} against trained parameters"),
        *pictures,
    ):
        screen.print(Text(f"  {file}   {what}"))
    screen.print(Text(f"Try: vpeft predict {adapter} {out / 'unseen'} --top 3"))
    if page:
        open_page(out / "adapters", screen)


def open_page(adapters: Path, screen: Console) -> None:
    """Serve the adapters on a free port of this machine, and open the page in the browser; returns at the end of it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
    address = f"http://127.0.0.1:{port}/"
    _say(screen, f"5. Try them on images of your own at {address} (Ctrl-C ends it).")
    opening = threading.Thread(target=_open_when_ready, args=(address,), daemon=True)
    opening.start()
    serve(adapters, backbone=BACKBONE, port=port)


def _open_when_ready(address: str) -> None:
    for _ in range(PATIENCE):
        with suppress(OSError), urllib.request.urlopen(f"{address}health", timeout=1):
            webbrowser.open(address)
            return
        time.sleep(1)


class ReloadedAdapter:
    """A loaded adapter in the role of a trained model for the final evaluator.

    Attributes:
        loaded: the adapter.
        images: those of the last evaluation, in their own size; none before it.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._images: ImageSet | None = None

    @property
    def images(self) -> ImageSet:
        assert self._images is not None, "nothing has been evaluated"
        return self._images

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        """Return the scores on one split, computed as those of a model that was just trained."""
        one = self.loaded
        self._images = images.dataset(one.task.labels, None, 0)
        return TrainedModel(one.model, one.task, one.preprocessing, "fp32").evaluate(images, split)


def epochs_of_the_protocol(compared: Compared) -> int:
    """Return the number of epochs of a comparison's protocol."""
    stated = protocol(suite(compared.suite).tiers[compared.tier].protocol).optimisation["epochs"]
    assert isinstance(stated, int)
    return stated


def best_on_validation(ledger: Ledger, compared: Compared, epochs: int) -> RunRecord:
    """Return the final run with the best validation score; of equal ones that with fewer parameters."""
    finals = [
        record
        for record in ledger
        if record.suite == compared.suite
        and record.identity.purpose == "final"
        and record.identity.optimisation.get("epochs") == epochs
    ]
    done = [record for record in finals if record.state is State.done and record.chosen and record.costs]
    if not done:
        errors = "; ".join(f"{record.label}: {record.error.message}" for record in finals if record.error)
        raise DemoCannotGoOn(f"No method could be trained. {errors}")

    def rank(record: RunRecord) -> tuple[float, int]:
        assert record.chosen is not None and record.costs is not None and record.scores is not None
        return record.scores.sign * (record.chosen.validation or 0.0), -(record.costs.trainable or 0)

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
    if record.scores is not None:
        scores[f"test_{record.scores.leading}"] = record.scores.value
        if record.chosen is not None and record.chosen.validation is not None:
            scores[f"val_{record.scores.leading}"] = record.chosen.validation
    path: Path = loaded.model.save(
        out / "adapter.safetensors",
        preprocessing=loaded.preprocessing.model_dump(mode="json"),
        scores=scores,
    )
    return path


def score_again(record: RunRecord, compared: Compared, reloaded: ReloadedAdapter) -> RecordedScores:
    """Evaluate the reloaded adapter on the sealed test images.

    Raises RuntimeError if the score differs from the recorded one.
    """
    scores = FinalEvaluator(record.identity, open_task(compared.suite, compared.task).test).score(reloaded)
    assert record.scores is not None
    if abs(scores.value - record.scores.value) > MAY_DIFFER:
        raise RuntimeError(f"the reloaded adapter has {scores.sentence()}, but had {record.scores.sentence()}")
    return scores


def write_images(images: ImageSet, folder: Path, count: int) -> list[Path]:
    """Write the first images as files in `folder`, with the label in the name where an image has one."""
    files = []
    for index in range(min(count, len(images))):
        pixels, target = images[index]
        label = f"_is_{images.labels[target]}" if isinstance(target, int) else ""
        files.append(folder / f"{index:02d}{label}.png")
        write(picture_of(pixels), files[-1])
    return files


def draw(reloaded: ReloadedAdapter, predictions: Sequence[Prediction], out: Path, title: str) -> list[tuple[Path, str]]:
    """Draw the predictions of the first images, and return the files with what each shows.

    Maps and objects are drawn on their images, each in a file, and some of them beside the truth in one picture;
    labels are written below the images.
    """
    loaded, file = reloaded.loaded, out / "predictions.png"
    prepared = reloaded.images.prepared(loaded.preprocessing, loaded.task)
    beside = validation_panel(loaded.model, prepared, loaded.task, loaded.preprocessing, BESIDE_TRUTH)
    if beside is not None:
        write(beside, file)
        drawings = Drawings(out / "drawn", loaded)
        for one in predictions:
            drawings.add(one)
        return [(file, "test images, predictions and truth"), (drawings.folder, "predictions drawn, a file for each")]
    shown = []
    for index, one in enumerate(predictions):
        pixels, target = reloaded.images[index]
        best = one.rows[0]
        said, sure = str(best["label"]), float(best["probability"])
        shown.append(Shown(Path(one.id), pixels.permute(1, 2, 0).numpy(), loaded.labels[target], said, sure))
    return [(write_picture(shown, file, title), "test images with the adapter's predictions")]


def _row(one: Prediction) -> tuple[str, str]:
    """The file, and what is said of it: all objects that are found, or the best answer."""
    rows = one.rows[:1] if one.objects is None else one.rows
    said = ("{} {:.0%}".format(*row.values()) for row in rows)
    return Path(one.id).name, ", ".join(said) or "nothing"


def _say(screen: Console, text: str) -> None:
    screen.print()
    screen.print(Text(text, style="bold"))
