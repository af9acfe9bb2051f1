"""`fit_together`: train several tuned models on the same images, and compute their shared frozen parts once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from vpeft.acceleration import decoded_images
from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.names import wanted
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.same_images import why_not_the_same
from vpeft.acceleration.shared_trunk import BatchStream, SharedRecords
from vpeft.arguments import SAMPLES, list_of, require
from vpeft.task import Task
from vpeft.training.batches import Samples
from vpeft.training.concurrent_run import ConcurrentRun, Run
from vpeft.training.evaluate import task_of
from vpeft.training.fit import UnsuitableSettings, checked_settings
from vpeft.training.interrupts import StopRequest
from vpeft.training.joint_step import JointSteps
from vpeft.training.loop import batches_of
from vpeft.training.machine import accelerator
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import Display, OneOf, display
from vpeft.training.result import Result
from vpeft.training.run_folder import own_folders


def fit_together(
    runs: Sequence[Run],
    train: Samples,
    val: Samples | None = None,
    *,
    epochs: int | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    acceleration: str | None = None,
    shared: SharedRecords | None = None,
) -> list[Result]:
    """Train all `runs` with the numbers that `fit` alone would give; return the results in order.

    Every run has its own trained parameters, optimiser, schedule, seed, random numbers and order of images. A frozen
    part that several runs share (the trunk of probes and side networks, the blocks before the first trained one) is
    computed once for them. If images are the same in every epoch, it is computed once per image, and the runs must
    agree in batch size and precision only. Otherwise it is computed once per batch, for runs that also agree in seed,
    `drop_last`, `accumulate` and the samples of an epoch. Runs that share nothing are still trained.

    Runs with the acceleration "batched_adapters" take their steps in one pass through one backbone, if their edits act
    on each image separately and their frozen weights are equal; everything else may differ. Their numbers then equal
    those of single runs up to rounding.

    If a run fails, the others go on; its result has the state "failed" and the reason, and its model has the weights
    from before the failed step.

    Args:
        runs: at least one; their models are on the same backbone or on different ones.
        train, val: as for `fit`, for all runs.
        epochs: replaces the number of epochs of every run.
        resume: continue from the checkpoints in the runs' folders.
        progress: print one line for each epoch of each run on standard error.
        workers: number of loading processes; it does not change the results.
        acceleration: replaces the acceleration of every run.
        shared: caches of frozen parts that several calls share.

    Raises:
        UnsuitableSettings: no runs, two runs with the same model or folder, or folders for some of them only.
        VpeftError: an error of `fit` before the first step.
    """
    require(
        "fit_together(runs, train, val)",
        runs=(runs, list_of(Run, says="a list of vpeft.Run")),
        train=(train, SAMPLES),
        val=(val, SAMPLES.or_none()),
    )
    settings = [
        checked_settings(run.optimisation, train, val, epochs=epochs, acceleration=acceleration) for run in runs
    ]
    folders = [None if run.out is None else Path(run.out) for run in runs]
    _refuse_mixing(runs, folders)
    if shared is None and len(runs) > 1:
        shared = SharedRecords()
    shown = display(progress)
    with ExitStack() as stack:
        stack.callback(shown.close)
        stack.enter_context(own_folders(*folders))
        tasks = [task_of(run.tuned, train, run.task) for run in runs]
        streams = _streams(settings, tasks, train, workers, shown)
        grounds = JointSteps()
        stop = stack.enter_context(StopRequest(active=folders[0] is not None))
        members = []
        for number, (run, its, task, folder) in enumerate(zip(runs, settings, tasks, folders, strict=True)):
            name = run.name or f"run {number + 1}/{len(runs)}"
            member = ConcurrentRun(run, name, its, folder, OneOf(name, shown))
            stack.callback(member.close)
            grounds.prepare(member)
            member.begin(train, val, workers, shared, streams.get(_batches(its, task)))
            members.append(member)
        rounds = grounds.rounds()
        if resume:
            for member in members:
                member.take_up()
        _keep_what_is_read(members, tasks, streams, train, val, workers, shown)
        while live := [member for member in members if member.result is None]:
            alone = next((one for one in live if not one.in_step and one not in rounds), None)
            if alone is not None:
                alone.go_on(stop, to_the_end=True)
                continue
            # Who is behind comes first: after an interruption runs may stand at different steps.
            behind = min(live, key=lambda member: member.position)
            if behind in rounds:
                rounds[behind].step(stop)
            else:
                behind.go_on(stop)
    return [member.result for member in members if member.result is not None]


def _batches(settings: Optimisation, task: Task) -> tuple[Any, ...]:
    """Return the facts in which runs must agree to use the same batches, in the same parts, precision and device."""
    of_batches: tuple[Any, ...] = (settings.seed, settings.batch, settings.drop_last, settings.accumulate)
    if task.reorders or type(task).collate is not Task.collate:
        of_batches = (*of_batches, type(task), task.model_dump_json())
    return (*of_batches, settings.views, settings.precision, settings.device, settings.deterministic)


def _streams(
    settings: Sequence[Optimisation], tasks: Sequence[Task], train: Samples, workers: int, shown: Display
) -> dict[tuple[Any, ...], BatchStream]:
    """Return one stream for each kind of batches that several runs use."""
    kinds = [_batches(its, task) for its, task in zip(settings, tasks, strict=True)]
    made = dict[tuple[Any, ...], BatchStream]()
    for kind, its, task in zip(kinds, settings, tasks, strict=True):
        if kinds.count(kind) > 1 and kind not in made:
            device = accelerator(its.precision, its.device).device
            made[kind] = BatchStream(batches_of(_decoded(train, its, shown), its, workers, device, task))
    return made


def _decoded(train: Samples, settings: Optimisation, shown: Display) -> Samples:
    """Cache decoded images that change between epochs, if a single run would do so."""
    return train if why_not_the_same(train) is None else _kept(train, settings, shown)


def _keep_what_is_read(
    members: Sequence[ConcurrentRun],
    tasks: Sequence[Task],
    streams: Mapping[tuple[Any, ...], BatchStream],
    train: Samples,
    val: Samples | None,
    workers: int,
    shown: Display,
) -> None:
    """Cache decoded images for all runs that step side by side without cached outputs."""
    kept: dict[int, Samples] = {}

    def once(images: Samples, settings: Optimisation) -> Samples:
        if id(images) not in kept:
            kept[id(images)] = _kept(images, settings, shown)
        return kept[id(images)]

    sources = set[tuple[Any, ...]]()
    for member, task in zip(members, tasks, strict=True):
        its, kind = member.settings, _batches(member.settings, task)
        if not member.in_step or decoded_images.NAME not in wanted(its.acceleration):
            continue
        if kind not in sources and why_not_the_same(train) is None:
            device = accelerator(its.precision, its.device).device
            streams[kind].read_from(batches_of(once(train, its), its, workers, device, task))
            sources.add(kind)
        if val is not None and member.reads_val_from(val):
            member.read_val_from(once(val, its))


def _kept(images: Samples, settings: Optimisation, shown: Display) -> Samples:
    """Return the images with cached pixels, or unchanged if a single run would not cache them."""
    if decoded_images.NAME not in wanted(settings.acceleration):
        return images
    situation = Situation(
        images,
        None,
        settings.epochs,
        settings.batch,
        nullcontext,
        gib=settings.prefix_gib,
        folder=settings.prefix_folder,
    )
    try:
        kept, _, text = decoded_images.keep(situation)
    except NotApplicable:
        return images
    shown.say(f"+ {decoded_images.NAME}: {text}")
    return kept


def _refuse_mixing(runs: Sequence[Run], folders: Sequence[Path | None]) -> None:
    if not runs:
        raise UnsuitableSettings("There are no runs to train.")
    if len({id(run.tuned) for run in runs}) < len(runs):
        raise UnsuitableSettings("Two runs have the same model. Tune one model for each run, each on its own backbone.")
    named = [folder for folder in folders if folder is not None]
    if named and len(named) < len(runs):
        raise UnsuitableSettings("Some runs have a folder (`out`) and some have none. Name one for each, or for none.")
    if len({folder.resolve() for folder in named}) < len(named):
        raise UnsuitableSettings("Two runs have the same folder (`out`). Name one for each run.")
    owners: dict[int, int] = {}
    for number, run in enumerate(runs):
        for name, parameter in run.tuned.trainable():
            if owners.setdefault(id(parameter), number) != number:
                raise UnsuitableSettings(
                    f"Runs {owners[id(parameter)] + 1} and {number + 1} train the same tensor ({name}). "
                    "Tune each on its own backbone (`copy.deepcopy`)."
                )
