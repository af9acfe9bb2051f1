"""`fit_together`: train several tuned models on the same images, with what is frozen in all of them computed once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpeft.acceleration import batched_adapters, decoded_images
from vpeft.acceleration.batched_adapters import Batched, Joining
from vpeft.acceleration.idea import NotApplicable
from vpeft.acceleration.names import FOR_MEMORY, wanted
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.same_images import why_not_the_same
from vpeft.acceleration.shared_trunk import SharedRecords, Stream
from vpeft.injection.adapter_file import weights_digest
from vpeft.training.batches import LabelledImages
from vpeft.training.failures import TrainingFailed, is_out_of_memory
from vpeft.training.fit import UnsuitableSettings, checked_settings, checkpoint_facts, take_up, write_result
from vpeft.training.interrupts import StopRequest
from vpeft.training.loop import AfterEpoch, Steps, Training, batches_of
from vpeft.training.machine import accelerator, repeatable_kernels
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import Display, OneOf, display
from vpeft.training.randomness import OwnRandomness, untouched_randomness
from vpeft.training.result import Result
from vpeft.training.step import HasLoss

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel


@dataclass(frozen=True)
class Run:
    """One of several runs: what a call of `fit` would be given, but for the images.

    Attributes:
        tuned: a model of its own; what is trained in it belongs to no other run.
        optimisation: all settings; None takes the defaults.
        out: folder for its checkpoint and its result: all runs have one, or none.
        after_epoch, identity, task: as for `fit`.
        name: how its lines of progress begin.
    """

    tuned: TunedModel
    optimisation: Optimisation | None = None
    out: Path | str | None = None
    after_epoch: AfterEpoch | None = None
    identity: dict[str, Any] | None = None
    task: HasLoss | None = None
    name: str | None = None


def fit_together(
    runs: Sequence[Run],
    train: LabelledImages,
    val: LabelledImages | None = None,
    *,
    epochs: int | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    acceleration: str | None = None,
    shared: SharedRecords | None = None,
) -> list[Result]:
    """Train all `runs`, each with the numbers that `fit` alone would give it; results in their order.

    Every run has its own trained part, optimiser, schedule, seed, random numbers and order of images. What is frozen
    in several of them (the trunk of probes and side networks, the blocks before the first trained one) is computed
    once for these: once an image where images are the same in every epoch, then everything may differ between runs but
    the batch size and the precision; else once a batch, for runs that also agree in seed, `drop_last` and
    `accumulate`, as only those see the same batches. Runs that share nothing are trained all the same.

    Runs that name the acceleration "batched_adapters" take their steps in one pass through one backbone, where their
    edits act on each image by itself and their frozen weights are equal; everything else may differ between them. Their
    numbers are then those of single runs up to rounding.

    A run that fails does not end the others: its result has the state "failed" and the reason, its model the weights
    from before the step that failed.

    Args:
        runs: at least one; their models are on the same backbone or on different ones.
        train, val: as for `fit`, for all runs.
        epochs: in place of every run's own number.
        resume: go on from the checkpoints in the runs' folders.
        progress: one line for each epoch of each run, on standard error.
        workers: processes that load images; no influence on the results.
        acceleration: in place of every run's own.
        shared: outputs of frozen parts that earlier calls left, and in which this call leaves its own.

    Raises:
        UnsuitableSettings: no runs, two runs with one model or one folder, or folders for some of them only.
        VpeftError: what `fit` raises before the first step.
    """
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
        streams = _streams(settings, train, workers, shown)
        grounds = _Grounds()
        stop = stack.enter_context(StopRequest(active=folders[0] is not None))
        members = []
        for number, (run, its, folder) in enumerate(zip(runs, settings, folders, strict=True)):
            name = run.name or f"run {number + 1}/{len(runs)}"
            member = _Member(run, name, its, folder, OneOf(name, shown))
            stack.callback(member.close)
            grounds.prepare(member)
            member.begin(train, val, workers, shared, streams.get(_batches(its)))
            members.append(member)
        rounds = grounds.rounds()
        if resume:
            for member in members:
                member.take_up()
        _keep_what_is_read(members, streams, train, val, workers, shown)
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


class _Member:
    """One run among others."""

    def __init__(self, run: Run, name: str, settings: Optimisation, folder: Path | None, shown: Display) -> None:
        self.run, self.name, self.settings, self.folder, self.shown = run, name, settings, folder, shown
        self.result: Result | None = None
        self._training: Training | None = None
        self._steps: Steps | None = None
        self._waits_since: float | None = None
        self._randomness = OwnRandomness()

    @contextmanager
    def as_if_alone(self) -> Iterator[None]:
        """Inside: its own random numbers, and the kernels that it asks for."""
        with self._randomness(), repeatable_kernels(self.settings.deterministic):
            yield

    def begin(
        self,
        train: LabelledImages,
        val: LabelledImages | None,
        workers: int,
        shared: SharedRecords | None,
        stream: Stream | None,
    ) -> None:
        """Set everything up."""
        with self.as_if_alone():
            self._training = Training(
                self.run.tuned,
                train,
                val,
                self.settings,
                out=self.folder,
                workers=workers,
                shown=self.shown,
                after_epoch=self.run.after_epoch,
                identity=checkpoint_facts(self.run.tuned, self.folder, self.run.identity),
                task=self.run.task,
                shared=shared,
                stream=stream,
            )

    def join(self, bit_equal: bool) -> None:
        """Let others run the model in its steps, from the first one on."""
        self.training.joins = True
        if not bit_equal:
            self.training.identity.setdefault("acceleration", []).append(batched_adapters.NAME)

    def take_up(self) -> None:
        """Go on from what an interrupted call left."""
        with self.as_if_alone():
            take_up(self.training)

    @property
    def training(self) -> Training:
        """What `begin` set up."""
        assert self._training is not None
        return self._training

    @property
    def in_step(self) -> bool:
        """Whether others see the same batches."""
        return self._training is not None and self._training.in_step

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and batch."""
        assert self._training is not None
        return self._training.at.epoch, self._training.at.batch

    def reads_val_from(self, images: LabelledImages) -> bool:
        """Whether its validation reads these very images, and no records or kept pixels of them."""
        return self._training is not None and self._training.val is images

    def read_val_from(self, images: LabelledImages) -> None:
        """Validate on other images, which are the same."""
        assert self._training is not None
        self._training.val = images

    def go_on(self, stop: StopRequest, to_the_end: bool = False) -> None:
        """Take a step, or all that are left."""
        self.resume(stop)
        while to_the_end and self.result is None:
            self.resume(stop)

    def resume(
        self, stop: StopRequest, answer: Tensor | None = None, *, error: Exception | None = None, share: float = 0.0
    ) -> Tensor | None:
        """Go on to the end of the step, or to what a run that joins others asks for, which is returned.

        `answer` is what it asked for, `error` what happened instead, `share` its part of the seconds that this took.
        """
        training = self.training
        if self._steps is None:
            self._steps = training.steps(stop)
        if self._waits_since is not None:
            training.at.mark += time.perf_counter() - self._waits_since - share
            self._waits_since = None
        with self.as_if_alone():
            try:
                request = self._steps.send(answer) if error is None else self._steps.throw(error)
                self._waits_since = None if request is None else time.perf_counter()
                return request
            except StopIteration:
                self.result = training.ended
            except TrainingFailed as failure:
                self.result = training.result("failed", str(failure))
                self.shown.say(f"failed: {failure}")
        assert self.result is not None
        write_result(self.folder, self.result)
        return None

    def close(self) -> None:
        """Leave the model as `fit` leaves it."""
        if self._training is not None:
            self._training.close()
            self.run.tuned.eval()


class _Round:
    """Runs whose steps are one pass through one backbone."""

    def __init__(self, one_pass: Batched, members: Mapping[Joining, _Member]) -> None:
        self._pass, self._members = one_pass, members

    def step(self, stop: StopRequest) -> None:
        """A step of every run that has one left."""
        asked = {one: member.resume(stop) for one, member in self._members.items() if member.result is None}
        wanted = {one: images for one, images in asked.items() if images is not None}
        if len(wanted) == 1:
            self._members[next(iter(wanted))].resume(stop)  # the last one left goes by itself
        if len(wanted) < 2:
            return
        start, first = time.perf_counter(), self._members[next(iter(wanted))].training
        losses = dict[Joining, Tensor | None]()
        try:
            with repeatable_kernels(first.settings.deterministic):
                with self._own_draws(wanted), first.machine.autocast():
                    logits = self._pass(wanted)
                losses |= {one: self._members[one].resume(stop, logits[one]) for one in wanted}
                some = [loss for loss in losses.values() if loss is not None]
                if some:
                    torch.stack(some).sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = f"{error} (in one pass for {len(wanted)} runs: leave out {batched_adapters.NAME})"
            for member in (self._members[one] for one in wanted):
                if member.result is None:
                    member.resume(stop, error=MemoryError(said))
            return
        share = (time.perf_counter() - start) / len(wanted)
        for one, loss in losses.items():
            if loss is not None:
                self._members[one].resume(stop, loss, share=share)

    @contextmanager
    def _own_draws(self, runs: Iterable[Joining]) -> Iterator[None]:
        """Inside: who draws random numbers draws its own."""
        drawing = [(self._members[one], self._pass.draws[one]) for one in runs if one in self._pass.draws]
        for member, draws in drawing:
            with member.as_if_alone():
                draws.take()
        yield
        for member, draws in drawing:
            with member.as_if_alone():
                draws.put()


class _Grounds:
    """Finds which runs can take their steps in one pass, and what they stand on."""

    def __init__(self) -> None:
        self._grounds: dict[tuple[Any, ...], TunedModel] = {}
        self._wanting: dict[tuple[Any, ...], list[_Member]] = {}

    def prepare(self, member: _Member) -> None:
        """Before anything is done to its model: copy that, if it is the first on its frozen weights."""
        tuned, its = member.run.tuned, member.settings
        if batched_adapters.NAME not in wanted(its.acceleration):
            return
        reason = batched_adapters.why_not(tuned)
        if reason is not None:
            member.shown.say(f"- {batched_adapters.NAME}: {reason}")
            return
        key = (weights_digest(tuned.description, tuned), its.precision, its.device, its.deterministic)
        if key not in self._grounds:
            self._grounds[key] = batched_adapters.common_ground(tuned)
        self._wanting.setdefault(key, []).append(member)

    def rounds(self) -> dict[_Member, _Round]:
        """The runs that go together, once all have begun; says so, and why others do not."""
        found = dict[_Member, _Round]()
        for key, ground in self._grounds.items():
            members, joining = list[_Member](), dict[Joining, _Member]()
            for member in self._wanting[key]:
                reason = _goes_by_itself(member.training)
                if reason is None:
                    members.append(member)
                    joining[Joining(member.run.tuned, member.training.take.model, member.name)] = member
                else:
                    member.shown.say(f"- {batched_adapters.NAME}: {reason}")
            if not members:
                continue
            first = members[0].training
            choice = set.intersection(*(set(wanted(member.settings.acceleration)) for member in members))
            with untouched_randomness(), repeatable_kernels(first.settings.deterministic):
                made, alone = batched_adapters.batched(
                    ground, list(joining), choice, first.machine.autocast, first.settings.precision
                )
            for one, reason in alone.items():
                joining[one].shown.say(f"- {batched_adapters.NAME}: {reason}")
            for one_pass in made:
                together = {one: joining[one] for one in one_pass.joined}
                equal = "the same bits" if one_pass.worst == 0 else f"equal to {one_pass.worst:.0e}"
                using = f", with {' and '.join(one_pass.accelerations)}" if one_pass.accelerations else ""
                for member in together.values():
                    member.join(one_pass.worst == 0)
                    member.shown.say(
                        f"+ {batched_adapters.NAME}: {len(together)} runs take their steps in one pass through the"
                        f" backbone{using}; {equal} on two images"
                    )
                found |= dict.fromkeys(together.values(), _Round(one_pass, together))
        return found


def _goes_by_itself(training: Training) -> str | None:
    """Why a run's steps are better taken by themselves, or must be; None where they can be taken with others'."""
    if training.accelerated.prefix is not None:
        return "the frozen part is not computed at each step"
    if training.settings.accumulate > 1:
        return "its batches are taken in parts"
    saving = sorted(FOR_MEMORY & set(wanted(training.settings.acceleration)))
    if saving or training.settings.fit_memory is not None:
        asked = ", ".join(saving) or "fit_memory"
        return f"{asked} is to save memory, and a common pass keeps what all runs keep"
    if training.machine.scaler is not None:
        return "fp16 scales the loss of each run by a number of its own"
    return None


def _batches(settings: Optimisation) -> tuple[Any, ...]:
    """What runs must agree in to see the same batches, in the same parts and precision on the same device."""
    of_batches = (settings.seed, settings.batch, settings.drop_last, settings.accumulate)
    return (*of_batches, settings.views, settings.precision, settings.device, settings.deterministic)


def _streams(
    settings: Sequence[Optimisation], train: LabelledImages, workers: int, shown: Display
) -> dict[tuple[Any, ...], Stream]:
    """One stream for each kind of batches that several runs see."""
    kinds, made = [_batches(its) for its in settings], dict[tuple[Any, ...], Stream]()
    for kind, its in zip(kinds, settings, strict=True):
        if kinds.count(kind) > 1 and kind not in made:
            device = accelerator(its.precision, its.device).device
            made[kind] = Stream(batches_of(_decoded(train, its, shown), its, workers, device))
    return made


def _decoded(train: LabelledImages, settings: Optimisation, shown: Display) -> LabelledImages:
    """Images that change are decoded once at least, where a run alone would do so."""
    return train if why_not_the_same(train) is None else _kept(train, settings, shown)


def _keep_what_is_read(
    members: Sequence[_Member],
    streams: Mapping[tuple[Any, ...], Stream],
    train: LabelledImages,
    val: LabelledImages | None,
    workers: int,
    shown: Display,
) -> None:
    """What runs side by side read as images, since they have no records of it, is decoded once for all of them."""
    kept: dict[int, LabelledImages] = {}

    def once(images: LabelledImages, settings: Optimisation) -> LabelledImages:
        if id(images) not in kept:
            kept[id(images)] = _kept(images, settings, shown)
        return kept[id(images)]

    sources = set[tuple[Any, ...]]()
    for member in members:
        its, kind = member.settings, _batches(member.settings)
        if not member.in_step or decoded_images.NAME not in wanted(its.acceleration):
            continue
        if kind not in sources and why_not_the_same(train) is None:
            device = accelerator(its.precision, its.device).device
            streams[kind].read_from(batches_of(once(train, its), its, workers, device))
            sources.add(kind)
        if val is not None and member.reads_val_from(val):
            member.read_val_from(once(val, its))


def _kept(images: LabelledImages, settings: Optimisation, shown: Display) -> LabelledImages:
    """The images from kept pixels, or as they are where a run alone would not keep them."""
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
        raise UnsuitableSettings("Two runs have the same model. Tune one for each run, on a backbone of its own.")
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
                    "Tune each on a backbone of its own (`copy.deepcopy`)."
                )
