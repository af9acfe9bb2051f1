"""Learn a stream of tasks with a learner; measure after each task on all of them; go on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from vpeft.acceleration.cached_query import KnownQueries, keeping
from vpeft.atomic import write_json
from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.origin import Origin, origin_of, remember
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.weights_digest import weights_digest
from vpeft.regimes.accuracy_matrix import AccuracyMatrix
from vpeft.regimes.learner import Learner, Learning, Setting, Tensors, make_learner, outputs_for
from vpeft.regimes.matrix_pictures import curves, heat_map
from vpeft.regimes.stream import ORDER_SEED, BadStream, Judge, Stream, class_stream, domain_stream
from vpeft.regimes.stream_protocols import stream_protocol
from vpeft.tasks.classification import Classification
from vpeft.training.checkpoint import Checkpoint, must_agree, read_checkpoint, write_checkpoint
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.training.run import USED
from vpeft.training.run_folder import own_folders
from vpeft.version import __version__

RECORD = "run.json"
STATE = "state.safetensors"
ADAPTER = "adapter.safetensors"
UNIT_CROP = 224 / 256  # images are resized to 256 and cropped to 224
MATRIX, CURVE = "matrix.png", "curve.png"


class ContinualRecipe(BaseModel):
    """A stream, a learner, and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str | None = Field(
        default=None,
        description="Id of a published stream, such as cifar100-b0-inc10@pilot: increment, order, preparation of images"
        " and backbone.",
    )
    backbone: str = Field(default="pocket_vit", description="Pre-trained model: a name from `vpeft backbones`.")
    pretrained: bool = Field(default=True, description="Load the backbone's weights; false: random weights.")
    weights: Path | None = Field(default=None, description="File of weights to load instead.")
    method: str = Field(
        description="A learner, such as `ranpac(projection=2000)`, or any method of `vpeft methods`, which is trained"
        " task after task."
    )
    data: DataConfig
    domains: tuple[str, ...] = Field(
        default=(), description="Further sources of the same classes: each is a task, and no classes are split."
    )
    increment: int = Field(default=10, ge=1, description="Classes of each task after the first.")
    first: int = Field(default=0, ge=0, description="Classes of the first task; 0: as many as in the others.")
    order_seed: int | None = Field(
        default=ORDER_SEED, description="Seed of the order of the classes; 1993 is PILOT's, -1 keeps that of the data."
    )
    inputs: Literal["own", "unit"] = Field(
        default="own",
        description="How images are given: as the weights expect them (own), or from 0 to 1 and cropped from 8/7 of "
        "the size (unit), as LAMDA-PILOT gives them.",
    )
    judge: Judge = Field(
        default="test", description="Split that accuracies are measured on; val to choose settings without the test."
    )
    out: Path | None = Field(default=None, description="Folder for the record, the state, the adapter, the pictures.")
    optimisation: Optimisation = Field(default_factory=Optimisation)

    @model_validator(mode="before")
    @classmethod
    def _of_protocol(cls, given: Any) -> Any:
        """Fill in what the protocol states and nobody else does."""
        if not isinstance(given, dict) or not given.get("protocol"):
            return given
        fields = dict(stream_protocol(given["protocol"]).fields)
        data, own = given.get("data"), fields.pop("data")
        if isinstance(data, dict):
            given = {**given, "data": {**own, **data}}
        return {**fields, **given}

    @model_validator(mode="after")
    def _as_protocol(self) -> Self:
        """A record may not name a protocol whose rules it has changed; another backbone is allowed."""
        if self.protocol is None:
            return self
        fields = dict(stream_protocol(self.protocol).fields)
        fields.pop("backbone")
        augmentation = fields.pop("data")["augmentation"]
        changed = [name for name, value in fields.items() if getattr(self, name) != value]
        changed += ["data.augmentation"] * (self.data.augmentation != augmentation)
        changed += ["domains"] * bool(self.domains)
        if changed:
            raise ValueError(f"the protocol {self.protocol} fixes {', '.join(changed)}; leave it out to change them")
        return self


@dataclass(frozen=True)
class Outcome:
    """What came of a stream.

    Attributes:
        matrix: accuracies over all classes so far.
        within: accuracies when the task of each image is told, over the classes of that task.
        learning: the learner after the last task.
        record: its figures, JSON, as `run.json` has them.
        adapter: the adapter file, where the learner's model is one adapter.
    """

    matrix: AccuracyMatrix
    within: AccuracyMatrix
    learning: Learning
    record: dict[str, Any]
    adapter: Path | None


def run_continual(
    recipe: ContinualRecipe, *, resume: bool = True, progress: bool = False, say: Callable[[str], None] = print
) -> Outcome:
    """Open the data and the backbone of a recipe, and learn its stream; see `learn_stream`.

    Raises:
        VpeftError: an error that the user can correct.
    """
    learner = make_learner(recipe.method)
    seed = recipe.optimisation.seed
    model = _backbone(recipe)
    preprocessing = Preprocessing.from_model(model).for_data(recipe.data)
    if recipe.inputs == "unit":
        zeros, ones = (0.0,) * len(preprocessing.mean), (1.0,) * len(preprocessing.std)
        preprocessing = preprocessing.model_copy(update={"mean": zeros, "std": ones, "crop_pct": UNIT_CROP})
    sources = [recipe.data, *(recipe.data.model_copy(update={"source": one}) for one in recipe.domains)]
    within = () if recipe.protocol is None else stream_protocol(recipe.protocol).domains
    if within:
        root = Path(recipe.data.source)
        sources = [recipe.data.model_copy(update={"source": str(root / one)}) for one in within]
    opened = [open_data(one.model_copy(update={"target": "label"})) for one in sources]
    if recipe.protocol is not None and len(opened[0].labels) != stream_protocol(recipe.protocol).classes:
        raise BadStream(
            f"The protocol {recipe.protocol} has {stream_protocol(recipe.protocol).classes} classes, and"
            f" {recipe.data.source} has {len(opened[0].labels)}."
        )
    if len(opened) > 1:
        stream = domain_stream(opened, preprocessing, judge=recipe.judge)
    else:
        order = None if recipe.order_seed is None or recipe.order_seed < 0 else recipe.order_seed
        stream = class_stream(
            opened[0],
            preprocessing,
            increment=recipe.increment,
            first=recipe.first,
            order_seed=order,
            judge=recipe.judge,
        )
    setting = Setting(
        make=lambda: _backbone(recipe),
        optimisation=recipe.optimisation,
        seed=seed,
        tasks=len(stream.tasks),
        workers=recipe.data.workers,
        progress=progress,
    )
    facts = {"recipe": recipe.model_dump(mode="json"), "preprocessing": preprocessing.model_dump(mode="json")}
    return learn_stream(learner, stream, setting, out=recipe.out, resume=resume, facts=facts, say=say)


def learn_stream(
    learner: Learner,
    stream: Stream,
    setting: Setting,
    *,
    out: Path | None = None,
    resume: bool = True,
    facts: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Let a learner learn the tasks of a stream one by one, and measure after each.

    The folder `out` gets, after each task, `state.safetensors`, from which a killed run goes on bit by bit as it would
    have, `run.json` with the accuracy matrix, two pictures, and the adapter file where one adapter is the whole model.

    Args:
        learner, stream, setting: what learns what, and how.
        out: folder; None keeps everything in memory.
        resume: go on from the state in `out`; False starts again.
        facts: for the record, and compared with those of a state that is there.
        say: told a line after each task.

    Raises:
        BadCheckpoint: the state in `out` is damaged or belongs to another run.
    """
    with own_folders(out):
        return _learn(learner, stream, setting, out, resume, dict(facts or {}), say)


def _learn(
    learner: Learner,
    stream: Stream,
    setting: Setting,
    out: Path | None,
    resume: bool,
    facts: dict[str, Any],
    say: Callable[[str], None],
) -> Outcome:
    identity = {
        "learner": learner.name,
        "options": learner.model_dump(mode="json"),
        "stream": stream.facts,
        "optimisation": setting.optimisation.numerics(),
        "seed": setting.seed,
        "backbone": weights_digest(describe(setting.make())),
        **({"preprocessing": facts["preprocessing"]} if "preprocessing" in facts else {}),
    }
    counts = tuple(len(task.judged) for task in stream.tasks)
    chances = tuple(1 / (task.seen if stream.kind == "class" else task.classes) for task in stream.tasks)
    matrix = AccuracyMatrix(counts=counts, chances=chances)
    within = AccuracyMatrix(counts=counts, chances=tuple(1 / task.classes for task in stream.tasks))
    learning, seconds = learner.start(setting), list[float]()
    if out is not None and resume and (out / STATE).exists():
        saved = read_checkpoint(out / STATE)
        must_agree(saved.facts["identity"], identity, out)
        matrix = AccuracyMatrix.model_validate(saved.facts["matrix"])
        within = AccuracyMatrix.model_validate(saved.facts["within"])
        seconds = list(saved.facts["seconds"])
        done = stream.tasks[: len(matrix.values)]
        learning.restore(done, stream.labels_at(len(done) - 1), saved.tensors)
        say(f"Continuing after task {len(done)} of {len(stream.tasks)}.")
    record: dict[str, Any] = {}
    adapter = None
    queries = [KnownQueries([item.name for item in task.judged.items]) for task in stream.tasks]
    for task in stream.tasks[len(matrix.values) :]:
        labels = stream.labels_at(task.number)
        began = time.perf_counter()
        learning.learn(task, labels, stream.tasks[: task.number] if learner.keeps == "images" else ())
        seconds.append(time.perf_counter() - began)
        row, told = _measured(learning, stream, task.number, setting, queries)
        matrix, within = matrix.with_row(row), within.with_row(told)
        state = learning.state()
        if out is not None:
            kept = {"identity": identity, "matrix": matrix.model_dump(mode="json"), "seconds": seconds}
            write_checkpoint(out / STATE, Checkpoint(state, {**kept, "within": within.model_dump(mode="json")}))
        shown = 100 * matrix.pooled(task.number), 100 * (row[task.number] or 0.0), seconds[-1]
        say(
            f"task {task.number + 1} of {len(stream.tasks)}: {shown[0]:.2f} % of all classes so far,"
            f" {shown[1]:.2f} % of its own ({shown[2]:.1f} s)"
        )
    record = _record(learner, stream, setting, learning, matrix, within, seconds, identity, facts)
    if out is not None:
        adapter = _save(learning, stream, matrix, facts, out)
        record["adapter"] = None if adapter is None else adapter.name
        write_json(out / RECORD, record)
        title = f"{learner.name}: {stream.facts.get('notation', stream.kind)}"
        heat_map(matrix, title).savefig(out / MATRIX, dpi=150)
        curves({learner.name: [matrix.curve]}, title).savefig(out / CURVE, dpi=150)
    return Outcome(matrix, within, learning, record, adapter)


@torch.no_grad()
def _measured(
    learning: Learning, stream: Stream, number: int, setting: Setting, queries: Sequence[KnownQueries]
) -> tuple[list[float | None], list[float | None]]:
    """The accuracies on each task: over all classes so far, and within the task's classes.

    What the frozen model sees in the images of each task is kept in `queries`, for the next measurement.
    """
    row: list[float | None] = []
    told: list[float | None] = []
    model = learning.model
    for task in stream.tasks:
        if stream.kind == "class" and task.number > number:
            row.append(None)
            told.append(None)
            continue
        right = inside = 0
        with keeping(model, queries[task.number]):
            for outputs, targets in outputs_for(model, task.judged, setting):
                right += int((outputs.argmax(1) == targets).sum())
                inside += int((outputs[:, task.first : task.end].argmax(1) + task.first == targets).sum())
        row.append(right / len(task.judged))
        told.append(inside / len(task.judged))
    return row, told


def _record(
    learner: Learner,
    stream: Stream,
    setting: Setting,
    learning: Learning,
    matrix: AccuracyMatrix,
    within: AccuracyMatrix,
    seconds: list[float],
    identity: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    state: Tensors = learning.state()
    one = learning.for_file()
    return {
        "format": 1,
        "vpeft": __version__,
        **facts,
        "identity": identity,
        "learner": {"name": learner.name, "paper": learner.paper, "keeps": learner.keeps, **identity["options"]},
        "stream": {**stream.facts, "tasks": [task.name for task in stream.tasks]},
        "optimisation": setting.optimisation.model_dump(mode="json"),
        "accuracy": matrix.as_dict(),
        "accuracy_within_tasks": within.as_dict(),
        "trained_in_one_task": None if one is None else sum(p.numel() for _, p in one.trainable()),
        "stored_numbers": sum(tensor.numel() for group in state.values() for tensor in group.values()),
        "seconds": [round(one, 3) for one in seconds],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _save(learning: Learning, stream: Stream, matrix: AccuracyMatrix, facts: dict[str, Any], out: Path) -> Path | None:
    """The adapter file, for `vpeft predict`, `evaluate` and `extend`; None where one adapter is not the model."""
    tuned = learning.for_file()
    if tuned is None:
        return None
    last = len(matrix.values) - 1
    return tuned.save(
        out / ADAPTER,
        task=Classification(stream.labels_at(last)),
        preprocessing=facts.get("preprocessing"),
        scores={f"{stream.judge}_top1": matrix.pooled(last)},
        extra={} if stream.used is None else {USED: stream.used.model_dump(mode="json")},
    )


def _backbone(recipe: ContinualRecipe) -> nn.Module:
    seed = derived_seed(recipe.optimisation.seed, "backbone")
    with untouched_randomness():
        seed_everything(seed)
        model = create_backbone(
            recipe.backbone,
            recipe.pretrained,
            weights=recipe.weights,
            image_size=recipe.data.image_size,
            channels=recipe.data.channels,
        )
    origin = origin_of(model) or Origin(name=recipe.backbone, pretrained=recipe.pretrained)
    if not origin.pretrained:
        remember(model, origin.model_copy(update={"seed": seed}))
    return model
