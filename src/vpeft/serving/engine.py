"""The thread that computes: images of many requests and adapters in common batches, each within its time.

Requests come from an event loop; the model belongs to one thread, which takes what waits, at most `batch` images, as
soon as that many are there or the oldest has waited `wait_ms`. Images of adapters whose edits act on each image alone
run in one pass; the others in a pass for each adapter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vpeft.batch import Batch, Sample
from vpeft.errors import VpeftError
from vpeft.serving.answers import Refused
from vpeft.serving.catalogue import UnknownAdapter
from vpeft.serving.metrics import Metrics
from vpeft.serving.pool import Loaded, Pool
from vpeft.task import Prediction
from vpeft.training.evaluate import on_processor

LOG = logging.getLogger("vpeft.serving")
Kind = Literal["predict", "embed"]


@dataclass(eq=False)
class Work:
    """Samples of one request for one adapter, and who waits for the answer.

    Attributes:
        kind: predictions, or pooled features.
        adapter: None for the frozen backbone, which gives features alone.
        samples: as the adapter's task prepares them.
        answer: predictions or features (D,), one for each sample.
        since: when it came, on the monotonic clock.
    """

    kind: Kind
    adapter: str | None
    samples: Sequence[Sample]
    answer: Future[list[Any]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(eq=False)
class Call:
    """Something else to do with the model, between two batches."""

    do: Callable[[Pool], Any]
    answer: Future[Any] = field(default_factory=Future)


class Engine:
    """Computes in a thread of its own, from `start` to `close`.

    Args:
        pool: the model and its adapters, which nobody else uses meanwhile.
        batch: images in one batch.
        wait_ms: how long an image waits for others.
        queue: images that may wait.
        timeout_s: what has waited longer is refused.
        metrics: counts.
    """

    def __init__(
        self, pool: Pool, batch: int, wait_ms: float, queue: int, timeout_s: float, metrics: Metrics | None = None
    ) -> None:
        self.pool, self.metrics = pool, metrics
        self._batch, self._wait, self._most, self._timeout = batch, wait_ms / 1000, queue, timeout_s
        self._calls: deque[Call] = deque()
        self._works: deque[Work] = deque()
        self._count = 0  # images in there
        self._changed = threading.Condition()
        self._closing = False
        self._device = next(pool.tuned.backbone.parameters()).device
        self._thread = threading.Thread(target=self._run, name="vpeft-engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._count

    def submit(self, kind: Kind, adapter: str | None, samples: Sequence[Sample]) -> Future[list[Any]]:
        """Put samples in the queue.

        Raises:
            Refused: 503, where the queue is full or the server is closing.
        """
        work = Work(kind, adapter, samples)
        with self._changed:
            self._require_open()
            if self.waiting + len(work) > self._most:
                raise Refused(503, f"{self.waiting} images wait already, of at most {self._most}. Try again.", 1)
            self._works.append(work)
            self._count += len(work)
            self._changed.notify_all()
        return work.answer

    def call(self, do: Callable[[Pool], Any]) -> Future[Any]:
        """Let the engine's thread call something with the pool, before the next batch.

        Raises:
            Refused: 503, where the server is closing.
        """
        call = Call(do)
        with self._changed:
            self._require_open()
            self._calls.append(call)
            self._changed.notify_all()
        return call.answer

    def close(self, patience_s: float = 30.0) -> None:
        """Take nothing more, compute what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def _require_open(self) -> None:
        if not self.alive:
            raise Refused(503, "The server is closing. Ask another one.", 5)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._works or self._closing)
                if not self._calls and not self._works:
                    return
                calls = list(self._calls)
                self._calls.clear()
            for call in calls:
                _settle(call.answer, partial(call.do, self.pool))
            works = self._taken()
            if works:
                self._compute(works)

    def _taken(self) -> list[Work]:
        """What is computed next; waits for company until the oldest has waited long enough."""
        with self._changed:
            if not self._works:
                return []
            end = self._works[0].since + self._wait
            while self.waiting < self._batch and not self._closing and not self._calls:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            taken, count = list[Work](), 0
            while self._works and (not taken or count + len(self._works[0]) <= self._batch):
                work = self._works.popleft()
                self._count -= len(work)
                if not work.answer.set_running_or_notify_cancel():
                    continue  # nobody waits for it any more
                if time.monotonic() - work.since > self._timeout:
                    work.answer.set_exception(Refused(503, "It waited too long. Try again.", 1))
                    continue
                taken.append(work)
                count += len(work)
            if self.metrics is not None:
                self.metrics.queue.set(self.waiting)
        return taken

    def _compute(self, works: list[Work]) -> None:
        start = time.monotonic()
        if self.metrics is not None:
            self.metrics.batches.observe(sum(map(len, works)))
            for work in works:
                self.metrics.waited.observe(start - work.since)
                self.metrics.images.labels(work.adapter or "").inc(len(work))
        held: dict[Work, Loaded | None] = {}
        names = {work.adapter for work in works if work.adapter is not None}
        for work in works:
            try:
                held[work] = None if work.adapter is None else self.pool.get(work.adapter, names)
            except Exception as error:
                work.answer.set_exception(_said(error))
        try:
            for together in _alike(held):
                self._answer(together, held)
        except Exception as error:  # nobody waits for ever, whatever happened
            LOG.exception("a batch failed")
            for work in held:
                if not work.answer.done():
                    work.answer.set_exception(_said(error))
        if self.metrics is not None:
            self.metrics.computed.observe(time.monotonic() - start)

    def _answer(self, works: list[Work], held: dict[Work, Loaded | None]) -> None:
        """Compute works of one kind and shape; if that fails, each by itself, so that one does not spoil the others."""
        try:
            with torch.inference_mode():
                answers = self._embedded(works) if works[0].kind == "embed" else self._predicted(works, held)
        except Exception as error:
            if len(works) == 1:
                LOG.exception("a request failed")
                works[0].answer.set_exception(_said(error))
                return
            for work in works:
                self._answer([work], held)
            return
        for work, answer in zip(works, answers, strict=True):
            work.answer.set_result(answer)

    def _embedded(self, works: list[Work]) -> list[list[Any]]:
        tuned, found = self.pool.tuned, dict[Work, list[Tensor]]()
        for adapter, own in _by_adapter(works).items():
            images = torch.stack([sample.input for work in own for sample in work.samples]).to(self._device)
            with tuned.disable() if adapter is None else tuned.enable(adapter):
                parts = [tuned.features(images[at : at + self._batch]) for at in range(0, len(images), self._batch)]
            found |= _handed_out(own, list(torch.cat(parts).float().cpu()))
        return [found[work] for work in works]

    def _predicted(self, works: list[Work], held: dict[Work, Loaded | None]) -> list[list[Any]]:
        found = dict[Work, list[Prediction]]()
        by_adapter = _by_adapter(works)
        joint = {name: own for name, own in by_adapter.items() if _shares(own[0], held[own[0]])}
        if len(joint) > 1:
            together = [work for own in joint.values() for work in own]
            names = [str(work.adapter) for work in together for _ in work.samples]
            images = torch.stack([sample.input for work in together for sample in work.samples])
            outputs, at = self.pool.tuned.each(images.to(self._device), names), 0
            for own in joint.values():
                samples, task = [sample for work in own for sample in work.samples], _loaded(held[own[0]]).card.task
                mine, at = torch.stack(outputs[at : at + len(samples)]), at + len(samples)
                found |= _handed_out(own, task.predictions(on_processor(mine), task.collate(samples)))
        for own in by_adapter.values():
            if own[0] not in found:
                samples = [sample for work in own for sample in work.samples]
                found |= _handed_out(own, self._alone(samples, _loaded(held[own[0]])))
        return [found[work] for work in works]

    def _alone(self, samples: Sequence[Sample], loaded: Loaded) -> list[Prediction]:
        """The predictions for samples of one adapter, as `vpeft predict` makes them."""
        tuned, task, found = self.pool.tuned, loaded.card.task, list[Prediction]()
        for at in range(0, len(samples), self._batch):
            batch: Batch = task.collate(samples[at : at + self._batch])
            with tuned.enable(loaded.card.name):
                outputs = task.run(tuned, batch.to(self._device))
            if loaded.shares is None:
                loaded.shares = isinstance(outputs, Tensor) and len(outputs) == len(batch)
            found += task.predictions(on_processor(outputs), batch)
        return found


def _by_adapter(works: Iterable[Work]) -> dict[str | None, list[Work]]:
    found: dict[str | None, list[Work]] = {}
    for work in works:
        found.setdefault(work.adapter, []).append(work)
    return found


def _handed_out(works: Iterable[Work], answers: Sequence[Any]) -> dict[Work, list[Any]]:
    """The answers for the samples of works, one after the other, by work."""
    found, at = dict[Work, list[Any]](), 0
    for work in works:
        found[work], at = list(answers[at : at + len(work)]), at + len(work)
    return found


def _shares(work: Work, loaded: Loaded | None) -> bool:
    """Whether the images of a work may be in one pass with those of other adapters."""
    first = work.samples[0].input
    return loaded is not None and bool(loaded.shares) and isinstance(first, Tensor) and first.dim() == 3


def _alike(works: Iterable[Work]) -> Iterable[list[Work]]:
    """Works of one kind whose inputs have one shape, without those that have failed."""
    groups: dict[Any, list[Work]] = {}
    for work in works:
        first = work.samples[0].input
        shape = tuple(first.shape) if isinstance(first, Tensor) else work
        groups.setdefault((work.kind, shape), []).append(work)
    return groups.values()


def _loaded(found: Loaded | None) -> Loaded:
    assert found is not None  # predictions are of an adapter
    return found


def _settle(answer: Future[Any], compute: Callable[[], Any]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(compute())
    except Exception as error:
        answer.set_exception(error)


def _said(error: Exception) -> Exception:
    """An error as it is answered."""
    if isinstance(error, (Refused, UnknownAdapter)):
        return error
    if isinstance(error, VpeftError):
        return Refused(422, str(error))
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return Refused(503, "There is no memory for this batch now. Try again with fewer images.", 1)
    return Refused(500, "The server could not compute this. Its log says why.")
