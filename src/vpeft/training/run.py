"""Run one recipe: from images to an adapter file and a record of the run."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from vpeft.arguments import one_of, require
from vpeft.atomic import write_bytes, write_json, write_text
from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.host_create import host_name
from vpeft.backbones.origin import Origin, origin_of, remember
from vpeft.backbones.own_code import OWN_CODE
from vpeft.backbones.trust import Trust
from vpeft.data.clips.clip_config import FRAMES, ClipConfig
from vpeft.data.clips.views import in_views
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.sources.registry import holds_clips
from vpeft.host_formats.host_format import format_of
from vpeft.injection.adapter_file import read_manifest, require_labels
from vpeft.injection.load_adapter import start_from
from vpeft.injection.quantise import quantise
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.weights_digest import weights_digest
from vpeft.method import Method
from vpeft.method_spec import MethodSpec, text_of
from vpeft.safe_text import visible
from vpeft.task import Task, usual_task
from vpeft.training.batches import Samples
from vpeft.training.evaluate import evaluate
from vpeft.training.failures import TrainingFailed
from vpeft.training.fit import fit
from vpeft.training.loop import AfterEpoch
from vpeft.training.processes import explained, join, present_processes
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.training.recipe import Recipe, TaskChoice
from vpeft.training.result import Result, Scores
from vpeft.training.run_folder import own_folders
from vpeft.training.validation_panel import validation_pictures
from vpeft.version import __version__

ADAPTER = "adapter.safetensors"
RECIPE = "recipe.toml"
RECORD = "run.json"
USED = "used_images"  # the field of the adapter file that marks the images of the training
_FORMAT = 1


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a recipe. `adapter` and `record` are files; None without an output folder or before the end."""

    recipe: Recipe
    result: Result
    test: Scores | None
    tuned: TunedModel
    data: Datasets
    preprocessing: Preprocessing
    adapter: Path | None
    record: Path | None

    @property
    def task(self) -> Task:
        """The task with the values that training chose for it."""
        task: Task = self.tuned.task
        return task

    @property
    def state(self) -> Literal["done", "stopped", "failed"]:
        """The state of the run. A run that a signal has stopped continues with the same call.

        `run_recipe` never returns "failed"; it raises.
        """
        return self.result.state


@dataclass(frozen=True)
class ReadyRun:
    """A run with a tuned model and open data sets, before training.

    Attributes:
        recipe, tuned, data, preprocessing: as in `RunOutcome`.
        task: the task, bound to the training data.
        train, val: the training and validation samples.
        identity: the facts in which a checkpoint must agree with this run.
        facts: the contents of its record that are known before training.
    """

    recipe: Recipe
    tuned: TunedModel
    data: Datasets
    preprocessing: Preprocessing
    task: Task
    train: Samples
    val: Samples | None
    identity: dict[str, Any]
    facts: dict[str, Any]

    def write_recipe(self) -> None:
        """Write the recipe with all defaults into the run's folder."""
        if self.recipe.out is not None and present_processes().main:
            write_text(self.recipe.out / RECIPE, self.recipe.to_toml())

    def record(self, result: Result | None, test: Scores | None = None, error: str | None = None) -> Path | None:
        """Write the record with everything known so far, in the first process.

        Returns the file, or None without an output folder.
        """
        out, processes = self.recipe.out, present_processes()
        if out is None:
            return None
        if not processes.main:
            return out / RECORD
        record = {
            **self.facts,
            **({"processes": processes.count} if processes.several else {}),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": "failed" if result is None else result.state,
            "error": error,
            "result": None if result is None else result.model_dump(mode="json"),
            "test": None if test is None else test.model_dump(mode="json"),
        }
        write_json(out / RECORD, record)
        return out / RECORD

    def outcome(self, result: Result, *, test: bool = True) -> RunOutcome:
        """Return the outcome. If training is finished, evaluate the test split once and save the adapter."""
        if result.state != "done":
            record = self.record(result, error=result.reason if result.state == "failed" else None)
            return self.without_adapter(result, record)
        out, preprocessing = self.recipe.out, self.preprocessing
        scored = _test_once(self.recipe, self.tuned, self.data, preprocessing) if test else None
        adapter = None
        if out is not None:
            scores = {
                f"{split}_{name}": value
                for split, given in (("val", result.val), ("test", scored))
                if given is not None
                for name, value in given.values.items()
            }
            adapter = out / ADAPTER
            with _written_by_main(adapter) as path:
                self.tuned.save(
                    path,
                    preprocessing=preprocessing.model_dump(mode="json"),
                    scores=scores,
                    extra={} if self.data.used is None else {USED: self.data.used.model_dump(mode="json")},
                )
            self._draw_validation(out, {} if result.val is None else result.val.details)
        record = self.record(result, scored)
        return RunOutcome(self.recipe, result, scored, self.tuned, self.data, preprocessing, adapter, record)

    def _draw_validation(self, out: Path, details: Mapping[str, Any]) -> None:
        """Write the panel of validation predictions and the scores of each class, if the task's targets are drawn."""
        if self.val is None:
            return
        made = validation_pictures(self.tuned, self.val, self.tuned.task, self.preprocessing, details)
        for name, data in made.items() if present_processes().main else ():
            write_bytes(out / f"{name}.png", data)

    def without_adapter(self, result: Result, record: Path | None = None) -> RunOutcome:
        """Return the outcome of an unfinished run."""
        return RunOutcome(self.recipe, result, None, self.tuned, self.data, self.preprocessing, None, record)


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = True,
    progress: bool = True,
    show: bool = True,
    test: bool = True,
    trust_code: bool = False,
    allow_download: bool = False,
    after_epoch: AfterEpoch | None = None,
) -> RunOutcome:
    """Run a recipe: open the data, tune the backbone, train, evaluate the test split once, save.

    The folder `recipe.out` gets `adapter.safetensors` (with labels, preprocessing and scores), `run.json` (recipe,
    plan, data manifest, history, scores, versions), `recipe.toml` (with all defaults), `checkpoint.safetensors` and
    `result.json`. For several recipes use `vpeft.training.runs.run_recipes`. The processes of a launcher share one
    run: each computes its share of every batch, and the first one writes the files.

    Args:
        recipe: the run.
        resume: continue an interrupted run of the same recipe from its checkpoint.
        progress: show the training's progress.
        show: print the plan.
        test: evaluate the test split; False for a run that only prepares another one.
        trust_code: run the code of a backbone `py:...` that a recipe file names. Code that the user typed always runs.
        allow_download: download a backbone `hf:ID` that a recipe file names, if it is not on this machine.
        after_epoch: called with the model and the record of each epoch, as by `fit`.

    Raises:
        VpeftError: an error that the user can correct, in any of the steps. The record holds failures of the training.
    """
    require("run_recipe(recipe)", recipe=(recipe, one_of(Recipe, says="a Recipe")))
    processes = join(recipe.optimisation.device)
    with explained(), own_folders(recipe.out if processes.main else None):
        trust = recipe.trust(code=trust_code, download=allow_download)
        progress, show = progress and processes.main, show and processes.main
        with processes.main_first():  # it may download, unpack or convert
            ready = ready_run(recipe, progress=progress, show=show, trust=trust)
        outcome = _trained(ready, resume=resume, progress=progress, test=test, after_epoch=after_epoch)
        processes.wait()  # a process that returns finds all files
        return outcome


@contextmanager
def _written_by_main(path: Path) -> Iterator[Path]:
    """A context with the path to write a file to: in the first process `path`, in others one that is thrown away.

    Every process must take part in writing, because weights that are divided are gathered for it.
    """
    if present_processes().main:
        yield path
        return
    with TemporaryDirectory() as elsewhere:
        yield Path(elsewhere) / path.name


def _trained(
    ready: ReadyRun, *, resume: bool, progress: bool, test: bool, after_epoch: AfterEpoch | None = None
) -> RunOutcome:
    """Train, evaluate and save."""
    recipe = ready.recipe
    ready.write_recipe()
    try:
        result = fit(
            ready.tuned,
            ready.train,
            ready.val,
            optimisation=recipe.optimisation,
            out=recipe.out,
            resume=resume,
            progress=progress,
            workers=recipe.data.workers,
            after_epoch=after_epoch,
            identity=ready.identity,
            task=ready.task,
        )
    except TrainingFailed as failure:
        ready.record(failure.result, error=str(failure))
        raise
    return ready.outcome(result, test=test)


Opener = Callable[[DataConfig, Preprocessing, Task], Datasets]


def opened(config: DataConfig, preprocessing: Preprocessing, task: Task) -> Datasets:
    """Return the data set of a run, prepared for its backbone and its task."""
    return open_data(config).prepared(preprocessing, task)


def ready_run(
    recipe: Recipe, *, progress: bool = True, show: bool = True, images: Opener = opened, trust: Trust | None = None
) -> ReadyRun:
    """Create the backbone, open the data and tune; it neither trains nor writes.

    Args:
        recipe, progress, show: as for `run_recipe`.
        images: (config, preprocessing, task) -> open data set; `opened` by default.
        trust: which code and downloads the backbone's name may cause; by default none that only a recipe file names.

    Raises:
        VpeftError: an error that the user can correct.
    """
    started = datetime.now(UTC)
    # For a backbone without pre-trained weights; the same recipe must find the same one again.
    seed = derived_seed(recipe.seed, "backbone")
    trust = recipe.trust(code=False, download=False) if trust is None else trust
    unbound = recipe.task.build()
    shown = unbound.shown_size
    clips = (recipe.data.clip or ClipConfig()) if holds_clips(recipe.data) else None
    frames = None if clips is None else clips.frames
    model = _backbone(recipe, seed, None, trust, any_size=shown == "any", frames=frames)
    described = describe(model, recipe.anatomy)
    several = len(described.towers) > 1
    if recipe.host is not None and recipe.task == TaskChoice() and not several:
        unbound = usual_task(model)()
    if clips is not None and described.inputs.takes_images:  # it reads each frame as an image
        frames = FRAMES
        model = _backbone(recipe, seed, None, trust, any_size=shown == "any", frames=frames)
        described = describe(model, recipe.anatomy)
    size = None if recipe.data.image_size is None else (recipe.data.image_size,) * 2
    size = shown if isinstance(shown, tuple) else size
    own_size = recipe.anatomy is None and recipe.host is None and not recipe.backbone.startswith(OWN_CODE)
    if size is not None and own_size and not described.facts.dynamic_size and size != described.facts.image_size:
        model = _backbone(recipe, seed, size, trust, frames=frames)  # its positions are resized, and it is said
        described = describe(model)
    stated = Preprocessing.from_model(model)
    if recipe.anatomy is not None:
        stated = stated.resized(described.facts.image_size)
    if described.inputs.layout == "clips":
        stated = stated.with_clip(ClipConfig(frames=described.inputs.frames), described.inputs.time_axis)
    preprocessing = stated.for_data(recipe.data)
    asked: dict[str, Any] = {"target": unbound.target_kind}
    if recipe.data.split_by is None and unbound.split_by != "images":
        asked["split_by"] = unbound.split_by
    data = images(recipe.data.model_copy(update=asked), preprocessing, unbound)
    preprocessing = data.preprocessing_of(preprocessing)  # a window that was found out is stated
    train = unbound.dataset(data.train, True)
    val = None if data.val is None else unbound.dataset(data.val, False)
    task = unbound.bind(train)
    require_labels(task.labels)
    if recipe.host is not None and not several and type(task).run is Task.run:  # others need no convention
        classes = format_of(model, task.target_kind).classes
        if classes is not None and classes != len(task.labels):
            # before its layers are named as places: another model, with outputs for these classes
            named = recipe.model_copy(update={"backbone": host_name(recipe.host, len(task.labels))})
            model = _backbone(named, seed, None, trust, frames=frames)
            described = describe(model)
    origin = origin_of(model) or Origin(name=recipe.backbone, pretrained=recipe.pretrained)
    # random tensors, or some where the file lacks them: the seed brings them back
    if not origin.pretrained or (recipe.host is not None and origin.fresh):
        origin = origin.model_copy(update={"seed": seed})
        remember(model, origin)
    with untouched_randomness():
        seed_everything(derived_seed(recipe.seed, "tune"))
        statistics = recipe.optimisation.batch_norm
        own = recipe.host is not None and not several  # a host keeps its own heads
        made, placed = None if own else task, recipe.placed(several)
        tuned = tune(described, *placed, task=made, statistics=statistics, train=recipe.train, show=show)
        tuned.task = task
    if progress:
        what = " + ".join(text_of(MethodSpec(name=one.name, fields=_stated(one))) for one in recipe.methods)
        outputs = f" ({len(task.labels)} labels)" if task.labels else ""
        held = "" if val is None else f", {len(val)} for validation"
        said = (
            f"{what} on {recipe.backbone} learns {task.name}{outputs} from {len(train)} samples of"
            f" {recipe.data.source}{held}"
        )
        print(visible(said), file=sys.stderr)
    if recipe.start is not None:
        said = start_from(tuned, recipe.start)
        if progress:
            print(visible(said), file=sys.stderr)
    if recipe.quantise is not None:
        said = quantise(tuned, recipe.quantise)
        if progress:
            print(visible(said), file=sys.stderr)
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "backbone": {
            "origin": origin.model_dump(mode="json"),
            "architecture": tuned.description.facts.architecture,
            "digest": weights_digest(tuned.description, tuned),
        },
        "plan": tuned.plan().as_dict(),
        "data": data.manifest.model_dump(mode="json"),
        "versions": _versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        "started": started.isoformat(timespec="seconds"),
    }
    identity = {
        "backbone": recipe.backbone,
        "pretrained": recipe.pretrained,
        "weights": origin.weights_sha256,
        "methods": [choice.model_dump() for choice in (recipe.method, *recipe.also)],
        **({} if described.anatomy is None else {"anatomy": described.anatomy}),
        **({} if recipe.quantise is None else {"quantise": recipe.quantise}),
        **({} if origin.frames is None else {"frames": [origin.frames, origin.frames_rule]}),
        "data": data.manifest.digest,
        **({} if recipe.start is None else {"start": read_manifest(recipe.start).tensors_digest}),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "augmentation": recipe.data.augmentation,
    }
    return ReadyRun(recipe, tuned, data, preprocessing, task, train, val, identity, facts)


def _stated(method: Method) -> dict[str, Any]:
    """Return the settings of a method that differ from its defaults."""
    return method.model_dump(mode="json", exclude_defaults=True)


def _backbone(
    recipe: Recipe,
    seed: int,
    size: tuple[int, int] | None,
    trust: Trust,
    any_size: bool = False,
    frames: int | None = None,
) -> nn.Module:
    with untouched_randomness():
        seed_everything(seed)
        return create_backbone(
            recipe.backbone,
            pretrained=recipe.pretrained,
            weights=recipe.weights,
            prefix=recipe.weights_prefix,
            allow=recipe.weights_allow,
            image_size=size,
            any_size=any_size,
            described=recipe.anatomy is None,
            trust=trust,
            channels=recipe.data.channels,
            channels_rule=recipe.channels_rule,
            frames=frames,
            frames_rule=recipe.frames_rule,
        )


def _test_once(recipe: Recipe, tuned: TunedModel, data: Datasets, preprocessing: Preprocessing) -> Scores | None:
    """Return the scores of the final weights on the test split, which nothing has read before."""
    if data.test is None:
        return None
    task: Task = tuned.task.compared_on(data.test)
    samples = in_views(task.dataset(data.test, False), preprocessing)
    return evaluate(tuned, samples, task=task, batch=recipe.optimisation.batch, workers=recipe.data.workers)


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors")
    return {"vpeft": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
