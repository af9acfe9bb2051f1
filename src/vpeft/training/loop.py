"""The training loop. It can be killed after any optimiser step and resumed from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpeft.acceleration.apply import Accelerated, accelerate
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.shared_trunk import BatchStream, SharedRecords, StreamedBatches, StreamedPrefix
from vpeft.acceleration.views import ViewByView, Views, views_of
from vpeft.batch import Batch
from vpeft.data.image_set import matched
from vpeft.injection.adapter_file import differing_outputs, head_entry
from vpeft.injection.enabled import begin_training
from vpeft.task import Task, UnsuitableTargets
from vpeft.training import checkpoint as disk
from vpeft.training.batches import WHOLE, Batches, Samples, Share, told_epoch
from vpeft.training.evaluate import evaluate, outputs_of, task_of
from vpeft.training.failures import NonFinite
from vpeft.training.fit_memory import within
from vpeft.training.interrupts import StopRequest
from vpeft.training.machine import accelerator, remarks
from vpeft.training.memory import peak_memory, reset_peak
from vpeft.training.modes import to_training_mode
from vpeft.training.optimisation import Optimisation
from vpeft.training.processes import CannotShard, present_processes
from vpeft.training.progress import Display
from vpeft.training.randomness import (
    derived_seed,
    random_state,
    seed_everything,
    set_random_state,
    untouched_randomness,
)
from vpeft.training.result import EpochRecord, Result, Scores
from vpeft.training.shard import shard_frozen
from vpeft.training.step import Stepper
from vpeft.training.train_state import TrainState

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

AfterEpoch = Callable[["TunedModel", EpochRecord], None]
AfterStep = Callable[["TunedModel"], None]
# Gives None behind each step, or what the step asks for (see `Stepper.asking`), and is sent the answer.
Steps = Generator[Tensor | None, Any, None]


CHECKPOINT = "checkpoint.safetensors"
LAST_GOOD = "last_good.safetensors"


class Training:
    """One run of `fit`: its settings, its state, and its checkpoints."""

    def __init__(
        self,
        tuned: TunedModel,
        train: Samples,
        val: Samples | None,
        settings: Optimisation,
        *,
        out: Path | None,
        workers: int,
        shown: Display,
        after_epoch: AfterEpoch | None,
        identity: dict[str, Any],
        task: Task | None,
        shared: SharedRecords | None = None,
        stream: BatchStream | None = None,
        after_step: AfterStep | None = None,
    ) -> None:
        self.after_step = after_step
        self.tuned, self.train, self.val, self.settings = tuned, train, val, settings
        self.task = task_of(tuned, train, task)
        self.task.check(train)
        self._require_as_many_outputs()
        if val is not None:
            names = getattr(train, "labels", None) or getattr(train, "classes", None)  # as torchvision has them
            self.val = val = matched(val, names) if isinstance(names, (list, tuple)) and names else val
            self.task.check(val)
        self.out, self.workers, self.shown, self.after_epoch = out, workers, shown, after_epoch
        self.machine = accelerator(settings.precision, settings.device)
        self.device: torch.device = self.machine.device
        for line in remarks(settings.precision, self.device):
            shown.say(line)
        self.processes = present_processes()
        begin_training(tuned)
        if settings.shard:
            shown.say(shard_frozen(tuned, self.device, self.processes))
        tuned.to(self.device)
        reset_peak(self.device)
        self.batches: Batches | StreamedBatches = (
            StreamedBatches(stream) if stream else self._batches(train, workers, self.device)
        )
        self.total = self.batches.per_epoch * settings.epochs
        seed_everything(derived_seed(settings.seed, "training"))
        with untouched_randomness():
            seed_everything(derived_seed(settings.seed, "prepare"))
            self._prepare()
        begin_training(tuned)
        measured = within(tuned, train, settings, self.machine, self.task)
        self.settings, said = self.processes.gathered(measured)[0]
        settings = self.settings
        for line in said:
            shown.say(line)
        self.accelerated = self._accelerate(identity, shared, stream)
        records = self.accelerated.prefix
        if isinstance(records, StreamedPrefix):
            self.batches = records.batches()
        elif records is not None:
            # In the same order, as that depends on the seed and on the number of images alone.
            recorded: Any = records.train
            if isinstance(recorded.images, Views):  # records of a host have one view
                recorded = ViewByView(recorded, recorded.images)
            self.batches = self._batches(recorded, 0, torch.device("cpu"))
        if records is not None:
            self.val = val if records.val is None else records.val
        elif self.accelerated.train is not None:
            self.batches = self._batches(self.accelerated.train, workers, self.device)
            self.val = val if self.accelerated.val is None else self.accelerated.val
        try:
            self.take = Stepper(
                tuned, settings, self.machine, self.batches.per_epoch, self.task, records, self.processes
            )
        except BaseException:
            self.close()
            raise
        rounding = self.accelerated.rounding
        self.identity = {
            **identity,
            # What changes the last bits must be the same when a run is taken up again.
            **({"acceleration": rounding} if rounding else {}),
            "task": {"name": self.task.name, **self.task.model_dump(mode="json")},
            "optimisation": settings.numerics(),
            "images": len(train),
            "validation_images": None if val is None else len(val),
            "parameters": {name: list(parameter.shape) for name, parameter in self.take.named},
        }
        self.joins = False  # whether its steps ask for what others compute
        self.at = TrainState()
        self.best: dict[str, Tensor] = {}
        self.val_scores: Scores | None = None
        self.resumed_at: int | None = None
        self.stop: StopRequest | None = None
        self.ended: Result | None = None

    def _require_as_many_outputs(self) -> None:
        """Refuse a head whose outputs are not those that the labels ask for: its adapter could not be saved."""
        head = self.tuned.head
        if head is None:
            return
        size = sum(parameter.numel() for parameter in head.parameters())
        differing = differing_outputs(head_entry(head), self.task, self.tuned.description, size)
        if differing is not None:
            wanted, has = differing
            names = list(getattr(self.task, "labels", ()))
            raise UnsuitableTargets(
                f"The data name {len(names)} labels, {', '.join(names[:10])}, for which the task {self.task.name} wants"
                f" a head with {wanted} outputs, and the model's has {has}. Attach the method with as many outputs,"
                f" num_classes={len(names)}, or give a task with a label for each output, task=Task(labels=[...])."
            )

    def _batches(self, samples: Samples, workers: int, device: torch.device) -> Batches:
        share = Share(self.processes.number, self.processes.count)
        return batches_of(samples, self.settings, workers, device, self.task, share)

    def _prepare(self) -> None:
        """Let methods look at the data.

        Raises:
            CannotShard: one of them needs whole frozen weights for it.
        """
        try:
            self.tuned.prepare(_OnDevice(self._whole(), self.device))
        except RuntimeError as error:
            if not self.settings.shard:
                raise
            raise CannotShard(
                "A method of this run looks at the data before training, and needs whole frozen weights for it"
                f" ({str(error).splitlines()[0][:200]}). Train it without shard."
            ) from error

    def _whole(self) -> Batches | StreamedBatches:
        """The training batches as one process alone reads them, for methods that look at the data."""
        if not self.processes.several or not isinstance(self.batches, Batches):
            return self.batches
        return batches_of(self.batches.images, self.settings, 0, self.device, self.task)

    def _accelerate(
        self, identity: dict[str, Any], shared: SharedRecords | None, stream: BatchStream | None
    ) -> Accelerated:
        """Apply accelerations to the model and print them."""
        settings, tuned = self.settings, self.tuned
        train, views = self.train, settings.views
        if views is not None:
            train = views_of(train, [told_epoch(settings.seed, v, views) for v in range(min(views, settings.epochs))])
        known = ("data", "preprocessing", "augmentation")
        identified: dict[str, Any] = {key: identity[key] for key in known if key in identity}
        drawn = train.identity if isinstance(train, Views) else {}
        situation = Situation(
            train,
            self.val,
            settings.epochs,
            settings.batch,
            self.machine.autocast,
            settings.precision,
            self.task.augments,
            settings.prefix_gib,
            settings.prefix_folder,
            {**identified, **drawn} if identified else {},
            shared,
            stream,
            self.task,
        )
        with untouched_randomness():
            to_training_mode(tuned)
            made = accelerate(
                tuned,
                "off" if settings.shard else settings.acceleration,  # they read weights that would be divided
                situation=situation,
                autocast=self.machine.autocast,
                precision=settings.precision,
            )
        for line in made.lines():
            self.shown.say(line)
        return made

    def close(self) -> None:
        """Remove accelerations from the model."""
        self.accelerated.close()

    # -- running ----------------------------------------------------------------------------------------------------

    @property
    def in_step(self) -> bool:
        """Whether it shares its batches with other runs, so that the runs should step side by side."""
        return isinstance(self.batches, StreamedBatches)

    @property
    def asked_to_stop(self) -> bool:
        """Whether to stop after the present step; several processes agree on it in each step."""
        assert self.stop is not None
        return self.take.asked_to_stop if self.processes.several else self.stop.requested is not None

    def run(self, stop: StopRequest) -> Result:
        """Train to the end or to a requested stop. An error is raised after the last good weights are saved."""
        for _ in self.steps(stop):
            pass
        assert self.ended is not None
        return self.ended

    def steps(self, stop: StopRequest) -> Steps:
        """Run as a generator that yields None after each step; afterwards `ended` holds the result.

        A run that `joins` others also yields the requests of `Stepper.asking`.
        """
        self.stop = stop
        if not self.at.finished:
            self.shown.start(self.settings.epochs, self.batches.per_epoch, self.at.step)
            while self.at.epoch < self.settings.epochs and not self.at.reason and not self.asked_to_stop:
                yield from self.epoch_steps()
            if self.asked_to_stop:
                self.ended = self.stopped()
                return
            self.finish()
        self.ended = self.result("done")

    def epoch_steps(self) -> Steps:
        """Take the remaining steps of the present epoch, or stop on request."""
        assert self.stop is not None
        self.at.mark = time.perf_counter()
        to_training_mode(self.tuned)
        if self.at.batch == 0 and any(method.follows_data for method in self.tuned.methods()):
            with untouched_randomness():
                seed_everything(derived_seed(self.settings.seed, "begin_epoch", self.at.epoch))
                self.tuned.begin_epoch(_OnDevice(self._whole(), self.device, self.at.epoch))
            to_training_mode(self.tuned)
        for batch in self.batches.epoch(self.at.epoch, self.at.batch):
            yield from self.step(batch)
            if self.after_step is not None:
                self.after_step(self.tuned)
            self.at.count_time()
            self.show()
            if self.asked_to_stop:
                return
            every = self.settings.checkpoint_steps
            if every is not None and self.at.step % every == 0:
                self.save()
            left = time.perf_counter()
            yield None
            self.at.mark += time.perf_counter() - left  # what others did meanwhile is not this run's time
        self.end_epoch()

    def step(self, batch: Batch) -> Steps:
        """Take one optimiser step; if numbers are not finite, save the weights from before it."""
        try:
            images = self.batches.samples_read(self.at.batch) if isinstance(self.batches, Batches) else None
            stop = self.stop is not None and self.stop.requested is not None
            yield from self.take.asking(batch, self.at, alone=not self.joins, images=images, stop=stop)
        except NonFinite as error:
            kept = "The model still holds the weights from before this step."
            if self.out is not None:
                self.save(LAST_GOOD)
                kept = f"The weights from before this step are in {self.out / LAST_GOOD}."
            raise NonFinite(f"{error} {kept}") from None

    # -- ends of epochs ---------------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """End an epoch: validate if due, write the record, check early stopping, write a checkpoint."""
        at, settings = self.at, self.settings
        number = at.epoch + 1
        # What a layer counts in a buffer of its own is counted in the first process.
        self.processes.broadcast(self._buffers())
        scores: Scores | None = None
        if number == settings.epochs:
            # What a method settles at the end is settled before it is scored.
            self.tuned.advance(1.0)
        if self.val is not None and (number % settings.validate_every == 0 or number == settings.epochs):
            with nullcontext() if self.take.average is None else self.take.average.applied():
                scores = self.score_kept()
                self.val_scores = scores
                if at.is_best(number, scores.value, self.task.leading.better) and settings.keep == "best":
                    self.best = {name: tensor.clone() for name, tensor in self.tuned.adapter_state().items()}
        at.count_time(training=False)
        record = at.record(number, self.take.rate(at.step - 1), scores)
        self.shown.epoch(record)
        patience = settings.early_stopping
        if patience is not None and at.without_gain >= patience:
            at.reason = (
                f"validation {self.task.leading.name} has not improved in {patience} validations after epoch"
                f" {at.best_epoch}"
            )
        at.next_epoch(record)
        if self.after_epoch is not None:
            with untouched_randomness():
                self.after_epoch(self.tuned, record)
        last = at.epoch == settings.epochs or at.reason is not None
        if not last and settings.checkpoint_every and at.epoch % settings.checkpoint_every == 0:
            self.save()

    def finish(self) -> None:
        """Load the weights to keep into the model and write the last checkpoint, without the optimiser."""
        at = self.at
        at.kept_epoch = at.epoch
        if self.take.average is not None:
            self.take.average.put(self.take.average.values)
        if self.best:
            self.tuned.load_adapter_state(self.best)
            at.kept_epoch = at.best_epoch
        if self.val is not None and (self.val_scores is None or at.kept_epoch != at.validated_epoch):
            self.val_scores = self.score_kept()
        at.finished = True
        self.task = self.calibrated()
        self.save()

    def score_kept(self) -> Scores:
        """Return the validation scores of the model's present weights."""
        assert self.val is not None
        records = self.accelerated.prefix
        recorded = records is not None and self.val is records.val
        return evaluate(
            self.tuned,
            self.val,
            task=self.task,
            batch=self.settings.batch,
            workers=0 if recorded else self.workers,
            precision=self.settings.precision,
            records=records.scoring if records is not None and recorded else None,
        )

    def calibrated(self) -> Task:
        """Return the task with the values that it chooses on validation samples for the present weights."""
        if self.val is None or type(self.task).calibrated is Task.calibrated:
            return self.task
        val = self.val
        records = self.accelerated.prefix
        scoring = records.scoring if records is not None and val is records.val else None
        return self.task.calibrated(
            lambda: outputs_of(self.tuned, val, self.task, self.settings.batch, 0, self.settings.precision, scoring)
        )

    def stopped(self) -> Result:
        """Save, and say how to continue."""
        assert self.stop is not None
        self.save()
        asked = self.stop.requested or "another process was asked to stop"
        self.shown.say(f"{asked}: stopped after step {self.at.step} of {self.total}; saved in {self.out}.")
        return self.result("stopped", f"{asked}; the same call continues from step {self.at.step}")

    # -- writing down -----------------------------------------------------------------------------------------------

    def save(self, name: str = CHECKPOINT) -> None:
        """Write everything that the next step depends on, in the first process. Without `out`, nothing is written."""
        if self.out is None or not self.processes.main:
            return
        random_tensors, random_plain = random_state()
        tensors: dict[str, dict[str, Tensor]] = {"model": dict(self.tuned.adapter_state())}
        if not self.at.finished:
            tensors["optimiser"] = disk.optimiser_tensors(self.take.optimiser)
            tensors["random"] = random_tensors
            tensors["best"] = self.best
            if self.take.average is not None:
                tensors["average"] = dict(self.take.average.values)
        scaler = self.machine.scaler
        facts = {
            "identity": self.identity,
            "state": self.at.as_dict(),
            "task": self.task.model_dump(mode="json"),
            "random": random_plain,
            "scaler": None if scaler is None else scaler.state_dict(),
            "val": None if self.val_scores is None else self.val_scores.model_dump(mode="json"),
        }
        disk.write_checkpoint(self.out / name, disk.Checkpoint(tensors, facts))

    def restore(self, saved: disk.Checkpoint) -> None:
        """Continue from the checkpoint `saved`.

        Raises:
            BadCheckpoint: it belongs to another run; the message lists the differences.
        """
        disk.must_agree(saved.facts["identity"], self.identity, self.out)
        self.tuned.load_adapter_state(saved.tensors["model"])
        self.at = TrainState.from_dict(saved.facts["state"])
        self.task = type(self.task)(**saved.facts["task"])
        self.val_scores = None if saved.facts["val"] is None else Scores.model_validate(saved.facts["val"])
        self.resumed_at = self.at.step
        if self.at.finished:
            return
        disk.load_optimiser(self.take.optimiser, saved.tensors.get("optimiser", {}))
        self.best = {name: tensor.to(self.device) for name, tensor in saved.tensors.get("best", {}).items()}
        if self.take.average is not None:
            self.take.average.restore(saved.tensors["average"], self.at.step)
        if self.machine.scaler is not None and saved.facts["scaler"]:
            self.machine.scaler.load_state_dict(saved.facts["scaler"])
        set_random_state(saved.tensors["random"], saved.facts["random"])
        self.shown.say(f"Continuing from step {self.at.step} of {self.total}.")

    def _buffers(self) -> list[Tensor]:
        """The tensors of the adapter that are no parameters."""
        trained = {name for name, _ in self.take.named}
        return [tensor for name, tensor in self.tuned.adapter_state().items() if name not in trained]

    def begin_alike(self) -> None:
        """Compare the run with those of the other processes, and start from the first process's adapter.

        Raises:
            ProcessesDiffer: models, data or settings differ.
        """
        if self.processes.several:
            # A kernel that is chosen by measuring it may be another one elsewhere, which changes the rounding alone.
            self.processes.require_equal({key: fact for key, fact in self.identity.items() if key != "acceleration"})
            self.processes.broadcast([*self.tuned.adapter_state().values()])

    def show(self) -> None:
        """Update the display."""
        at = self.at
        rate = at.images_per_second
        left = (self.total - at.step) * at.train_seconds / max(1, at.step)
        self.shown.step(at.step, at.mean_loss, at.means, rate, left)

    def result(self, state: str, reason: str | None = None) -> Result:
        """Return the result so far."""
        at = self.at
        return Result.model_validate(
            {
                "state": state,
                "reason": reason or at.reason,
                "history": at.history,
                "steps": at.step,
                "best_epoch": at.best_epoch,
                "kept_epoch": at.kept_epoch,
                "val": self.val_scores,
                "seconds": at.seconds,
                "images_per_second": at.images_per_second,
                "peak_memory": peak_memory(self.device),
                "device": str(self.device),
                "resumed_at": self.resumed_at,
                "optimisation": self.settings,
            }
        )


def batches_of(
    train: Samples,
    settings: Optimisation,
    workers: int,
    device: torch.device,
    task: Task | None = None,
    share: Share = WHOLE,
) -> Batches:
    """Return the batches of a run with these settings."""
    return Batches(
        train,
        settings.batch,
        seed=settings.seed,
        drop_last=settings.drop_last,
        workers=workers,
        pin=device.type == "cuda",
        views=settings.views,
        reading=task,
        share=share,
    )


class _OnDevice:
    """An iterable over the training batches of one epoch on the device."""

    def __init__(self, batches: Batches | StreamedBatches, device: torch.device, number: int = 0) -> None:
        self.batches, self.device, self.number = batches, device, number

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches.epoch(self.number):
            yield batch.to(self.device)
