"""Choose the runs that take their steps in one pass through one backbone, and take such steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpeft.acceleration import batched_adapters
from vpeft.acceleration.batched_adapters import Batched, BatchedRun
from vpeft.acceleration.names import FOR_MEMORY, wanted
from vpeft.injection.weights_digest import weights_digest
from vpeft.training.concurrent_run import ConcurrentRun
from vpeft.training.failures import is_out_of_memory
from vpeft.training.interrupts import StopRequest
from vpeft.training.loop import Training
from vpeft.training.machine import repeatable_kernels
from vpeft.training.randomness import untouched_randomness

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel


class JointStep:
    """Runs whose steps are one pass through one backbone."""

    def __init__(self, one_pass: Batched, members: Mapping[BatchedRun, ConcurrentRun]) -> None:
        self._pass, self._members = one_pass, members

    def step(self, stop: StopRequest) -> None:
        """Take one step of every run that has steps left."""
        asked = {one: member.resume(stop) for one, member in self._members.items() if member.result is None}
        asking = {one: images for one, images in asked.items() if images is not None}
        if len(asking) == 1:
            self._members[next(iter(asking))].resume(stop)  # the last one left goes by itself
        if len(asking) < 2:
            return
        start, first = time.perf_counter(), self._members[next(iter(asking))].training
        losses = dict[BatchedRun, Tensor | None]()
        try:
            with repeatable_kernels(first.settings.deterministic):
                with self._own_draws(asking), first.machine.autocast():
                    logits = self._pass(asking)
                losses |= {one: self._members[one].resume(stop, logits[one]) for one in asking}
                some = [loss for loss in losses.values() if loss is not None]
                if some:
                    torch.stack(some).sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = f"{error} (in one pass for {len(asking)} runs: leave out {batched_adapters.NAME})"
            for member in (self._members[one] for one in asking):
                if member.result is None:
                    member.resume(stop, error=MemoryError(said))
            return
        share = (time.perf_counter() - start) / len(asking)
        for one, loss in losses.items():
            if loss is not None:
                self._members[one].resume(stop, loss, share=share)

    @contextmanager
    def _own_draws(self, runs: Iterable[BatchedRun]) -> Iterator[None]:
        """A context in which each run draws its own random numbers."""
        drawing = [(self._members[one], self._pass.draws[one]) for one in runs if one in self._pass.draws]
        for member, draws in drawing:
            with member.as_if_alone():
                draws.take()
        yield
        for member, draws in drawing:
            with member.as_if_alone():
                draws.put()


class JointSteps:
    """Finds the runs that can share passes, and makes the backbones that they share."""

    def __init__(self) -> None:
        self._grounds: dict[tuple[Any, ...], TunedModel] = {}
        self._wanting: dict[tuple[Any, ...], list[ConcurrentRun]] = {}

    def prepare(self, member: ConcurrentRun) -> None:
        """Copy the run's model before it changes, if it is the first with its frozen weights."""
        tuned, its = member.run.tuned, member.settings
        if batched_adapters.NAME not in wanted(its.acceleration):
            return
        reason = batched_adapters.why_not(tuned)
        if reason is not None:
            member.shown.say(f"- {batched_adapters.NAME}: {reason}")
            return
        key = (weights_digest(tuned.description, tuned), its.precision, its.device, its.deterministic)
        if key not in self._grounds:
            self._grounds[key] = batched_adapters.shared_backbone(tuned)
        self._wanting.setdefault(key, []).append(member)

    def rounds(self) -> dict[ConcurrentRun, JointStep]:
        """Return the runs that share passes, once all have begun; print them, and the reasons of the others."""
        found = dict[ConcurrentRun, JointStep]()
        for key, ground in self._grounds.items():
            members, joining = list[ConcurrentRun](), dict[BatchedRun, ConcurrentRun]()
            for member in self._wanting[key]:
                reason = _goes_by_itself(member.training)
                if reason is None:
                    members.append(member)
                    joining[BatchedRun(member.run.tuned, member.training.take.model, member.name)] = member
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
                found |= dict.fromkeys(together.values(), JointStep(one_pass, together))
        return found


def _goes_by_itself(training: Training) -> str | None:
    """Return why a run should or must take its steps alone; None if it can share passes."""
    if training.accelerated.prefix is not None:
        return "the frozen part is not computed at each step"
    if training.settings.accumulate > 1:
        return "its batches are taken in parts"
    saving = sorted(FOR_MEMORY & set(wanted(training.settings.acceleration)))
    if saving or training.settings.fit_memory is not None:
        asked = ", ".join(saving) or "fit_memory"
        return f"{asked} saves memory, and a common pass would save the tensors of all runs"
    if training.machine.scaler is not None:
        return "fp16 scales the loss of each run by another number"
    return None
