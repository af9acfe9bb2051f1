"""One of several concurrent runs: it is set up as in `fit`, and its caller decides when it takes a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vpeft.acceleration import batched_adapters
from vpeft.acceleration.shared_trunk import BatchStream, SharedRecords
from vpeft.task import Task
from vpeft.training.batches import Samples
from vpeft.training.failures import TrainingFailed
from vpeft.training.fit import checkpoint_facts, take_up, write_result
from vpeft.training.interrupts import StopRequest
from vpeft.training.loop import AfterEpoch, Steps, Training
from vpeft.training.machine import repeatable_kernels
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import Display
from vpeft.training.randomness import OwnRandomness
from vpeft.training.result import Result

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel


@dataclass(frozen=True)
class Run:
    """One of several runs: the arguments of `fit`, without the data sets.

    Attributes:
        tuned: the run's own model; no other run trains its tensors.
        optimisation: all settings; None uses the defaults.
        out: folder for its checkpoint and its result; either all runs have one, or none.
        after_epoch, identity, task: as for `fit`.
        name: the prefix of its lines of progress.
    """

    tuned: TunedModel
    optimisation: Optimisation | None = None
    out: Path | str | None = None
    after_epoch: AfterEpoch | None = None
    identity: dict[str, Any] | None = None
    task: Task | None = None
    name: str | None = None


class ConcurrentRun:
    """One of several concurrent runs."""

    def __init__(self, run: Run, name: str, settings: Optimisation, folder: Path | None, shown: Display) -> None:
        self.run, self.name, self.settings, self.folder, self.shown = run, name, settings, folder, shown
        self.result: Result | None = None
        self._training: Training | None = None
        self._steps: Steps | None = None
        self._waits_since: float | None = None
        self._randomness = OwnRandomness()

    @contextmanager
    def as_if_alone(self) -> Iterator[None]:
        """A context with the run's own random numbers and its choice of kernels."""
        with self._randomness(), repeatable_kernels(self.settings.deterministic):
            yield

    def begin(
        self,
        train: Samples,
        val: Samples | None,
        workers: int,
        shared: SharedRecords | None,
        stream: BatchStream | None,
    ) -> None:
        """Set up the run."""
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
        """Let other runs share the forward passes of its steps, from the first one on."""
        self.training.joins = True
        if not bit_equal:
            self.training.identity.setdefault("acceleration", []).append(batched_adapters.NAME)

    def take_up(self) -> None:
        """Continue from the checkpoint of an interrupted call."""
        with self.as_if_alone():
            take_up(self.training)

    @property
    def training(self) -> Training:
        """The training that `begin` set up."""
        assert self._training is not None
        return self._training

    @property
    def in_step(self) -> bool:
        """Whether other runs use the same batches."""
        return self.training.in_step

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and batch."""
        return self.training.at.epoch, self.training.at.batch

    def reads_val_from(self, images: Samples) -> bool:
        """Whether its validation reads these images, without a cache."""
        return self.training.val is images

    def read_val_from(self, images: Samples) -> None:
        """Validate on another data set with the same images."""
        self.training.val = images

    def go_on(self, stop: StopRequest, to_the_end: bool = False) -> None:
        """Take one step, or all remaining steps."""
        self.resume(stop)
        while to_the_end and self.result is None:
            self.resume(stop)

    def resume(
        self, stop: StopRequest, answer: Tensor | None = None, *, error: Exception | None = None, share: float = 0.0
    ) -> Tensor | None:
        """Continue to the end of the step, or to the next request of a run that joins others; return the request.

        Args:
            answer: the answer to the last request.
            error: the error that occurred instead.
            share: this run's share of the seconds that the answer took.
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
                self.run.tuned.task = training.task
            except TrainingFailed as failure:
                self.result = training.result("failed", str(failure))
                self.shown.say(f"failed: {failure}")
        assert self.result is not None
        write_result(self.folder, self.result)
        return None

    def close(self) -> None:
        """Remove accelerations from the model, as `fit` does."""
        if self._training is not None:
            self._training.close()
            self.run.tuned.eval()
