"""Which accelerations a run gets: tried in order, proved, and listed with what they save or why they are not used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vpeft.acceleration import decoded_images, prefix_cache, shared_trunk
from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.attention_kernel import AttentionKernel
from vpeft.acceleration.class_token_only import ClassTokenOnly
from vpeft.acceleration.compile_blocks import CompileBlocks
from vpeft.acceleration.equivalence import (
    TOLERANCE,
    TOLERANCE_16,
    OffZero,
    behaviour,
    difference,
    tried,
    two_images,
)
from vpeft.acceleration.frozen_precision import FrozenPrecision
from vpeft.acceleration.fused_low_rank import FusedLowRank
from vpeft.acceleration.fused_scale_shift import FusedScaleShift
from vpeft.acceleration.key_value_prompts import KeyValuePrompts
from vpeft.acceleration.names import NAMES, wanted
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import CachedPrefix, Situation
from vpeft.acceleration.recompute import Recompute
from vpeft.acceleration.recompute_blocks import RecomputeBlocks
from vpeft.acceleration.shared_trunk import StreamedPrefix
from vpeft.data.image_set import ImageSet
from vpeft.injection.tuned_model import TunedModel

# In the order in which they are tried: what shortens the work before what makes the rest of it cheaper.
ACCELERATIONS: tuple[Acceleration, ...] = (
    ClassTokenOnly(),
    KeyValuePrompts(),
    FusedLowRank(),
    FusedScaleShift(),
    AttentionKernel(),
    FrozenPrecision(),
    Recompute(),
    RecomputeBlocks(),
)
# Tried when everything else is in place, records included.
BEHIND: tuple[Acceleration, ...] = (CompileBlocks(),)
# What only saves memory is not used for a smaller share than this.
LEAST = 0.01


@dataclass(frozen=True)
class AccelerationOutcome:
    """What became of one acceleration: `text` says what it saves, or why it is not used."""

    name: str
    applied: bool
    text: str
    bit_equal: bool


class Accelerated:
    """A tuned model with accelerations on it, until `close`.

    Attributes:
        outcomes: one for each acceleration that was asked for.
        prefix: the model on records, or on batches whose frozen part is computed once for several runs, if either is.
        train, val: image sets that stand for those of the situation, where pixels of them are kept.
        asked: names that were asked for one by one, and not by `auto`.
    """

    def __init__(
        self, changes: Patches, outcomes: list[AccelerationOutcome], prefix: CachedPrefix | StreamedPrefix | None
    ) -> None:
        self._changes, self.outcomes, self.prefix = changes, outcomes, prefix
        self.train: ImageSet | None = None
        self.val: ImageSet | None = None
        self.asked: frozenset[str] = frozenset()

    @property
    def rounding(self) -> list[str]:
        """Names of those in use that change the last bits of the numbers."""
        return [outcome.name for outcome in self.outcomes if outcome.applied and not outcome.bit_equal]

    def lines(self) -> list[str]:
        """One line for each that is in use and one for all that are not; the reason for those that were asked for."""
        asked = self.asked
        lines = [f"+ {one.name}: {one.text}" for one in self.outcomes if one.applied]
        lines += [f"- {one.name}: {one.text}" for one in self.outcomes if not one.applied and one.name in asked]
        idle = [one.name for one in self.outcomes if not one.applied and one.name not in asked]
        if idle:
            lines.append(f"- not used here: {', '.join(idle)} (`--acceleration NAME` says why)")
        return lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything off again."""
        self._changes.undo()
        self.prefix = None


def accelerate(
    tuned: TunedModel,
    choice: str = "auto",
    *,
    situation: Situation | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    precision: str = "fp32",
) -> Accelerated:
    """Put on `tuned` what `choice` names and what is exact for its active adapter, for anybody's training loop.

        with vpeft.accelerate(tuned.train()) as used:
            print("\\n".join(used.lines()))
            ...  # steps with any optimiser; afterwards everything is taken off again

    Args:
        tuned: in the mode in which it will be trained; weights, statistics and modes are as before afterwards.
        choice: `auto`, `off`, or names.
        situation: the run; without it nothing is recorded.
        autocast, precision: of the forward pass.

    Raises:
        UnknownAcceleration: a name does not exist.
    """
    names = wanted(choice)
    made = _on_the_model(tuned, names, situation, autocast, precision)
    made.asked = frozenset(part.strip() for part in choice.split(","))
    try:
        if decoded_images.NAME in names and situation is not None and situation.stream is None:
            _decode(made, situation)
    except BaseException:
        made.close()
        raise
    made.outcomes.sort(key=lambda outcome: list(NAMES).index(outcome.name))
    return made


def _on_the_model(
    tuned: TunedModel,
    names: list[str],
    situation: Situation | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
) -> Accelerated:
    changes, outcomes = Patches(tuned), list[AccelerationOutcome]()
    names = [name for name in names if name != decoded_images.NAME]
    if not names:
        return Accelerated(changes, outcomes, None)
    unfit = _unfit(tuned)
    if unfit is not None:
        return Accelerated(changes, [AccelerationOutcome(name, False, unfit, True) for name in names], None)
    prefix = None
    try:
        if prefix_cache.NAME in names and situation is not None:
            prefix = _record(tuned, changes, situation, outcomes, whole=True)
        if prefix is None:
            _rewrite(
                tuned, changes, [idea for idea in ACCELERATIONS if idea.name in names], autocast, precision, outcomes
            )
            tried = any(outcome.name == prefix_cache.NAME for outcome in outcomes)
            if prefix_cache.NAME in names and situation is not None and not tried:
                prefix = _record(tuned, changes, situation, outcomes, whole=False)
        last = [idea for idea in BEHIND if idea.name in names]
        if last:
            _behind(tuned, changes, last, prefix, autocast, precision, outcomes)
    except BaseException:
        changes.undo()
        raise
    return Accelerated(changes, outcomes, prefix)


def _decode(made: Accelerated, situation: Situation) -> None:
    """Keep pixels, where the images are read more than once."""
    try:
        if made.prefix is not None:
            raise NotApplicable("the records of the frozen part stand for the images")
        made.train, made.val, text = decoded_images.keep(situation)
    except NotApplicable as reason:
        made.outcomes.append(AccelerationOutcome(decoded_images.NAME, False, str(reason), True))
    else:
        made.outcomes.append(AccelerationOutcome(decoded_images.NAME, True, text, True))


def _unfit(tuned: TunedModel) -> str | None:
    if tuned._compiled:
        return "the model is compiled, and would not see the change"
    if tuned.active is None or tuned.active in tuned._merged:
        return "the adapter is off or merged"
    if any(p.is_meta for p in tuned.parameters()):
        return "the model has no weights"
    if tuned.description.host is not None and tuned.head is None:
        return "the tower runs inside of a larger model, whose forward pass is not proved equal"
    return None


def _record(
    tuned: TunedModel, changes: Patches, situation: Situation, outcomes: list[AccelerationOutcome], whole: bool
) -> CachedPrefix | StreamedPrefix | None:
    """Records, if the cut is of the kind asked for: of the whole trunk first, as nothing else is then needed."""
    before = len(changes)
    prefix: CachedPrefix | StreamedPrefix
    try:
        try:
            cut = prefix_cache.worth_it(tuned, situation)
            if cut.trunk != whole:
                return None
            prefix, text = prefix_cache.build(tuned, changes, situation, cut)
        except NotApplicable:
            if situation.stream is None:
                raise
            changes.undo(before)
            cut = prefix_cache.frozen_part(tuned)
            if cut.trunk != whole:
                return None
            prefix, text = shared_trunk.join(tuned, changes, situation, cut)
    except NotApplicable as reason:
        changes.undo(before)
        outcomes.append(AccelerationOutcome(prefix_cache.NAME, False, str(reason), True))
        return None
    outcomes.append(AccelerationOutcome(prefix_cache.NAME, True, text, text.endswith("the same bits on a sample")))
    return prefix


def _behind(
    tuned: TunedModel,
    changes: Patches,
    ideas: list[Acceleration],
    prefix: CachedPrefix | StreamedPrefix | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
    outcomes: list[AccelerationOutcome],
) -> None:
    """`_rewrite`, proved on records where the model trains on records."""
    reason, given = None, None
    if isinstance(prefix, StreamedPrefix):
        reason = "the frozen part is computed for several runs at once"
    elif prefix is not None and prefix.prefix.cut.trunk:
        reason = "the whole trunk is recorded, and no block is run"
    elif prefix is not None:
        given = prefix
    if reason is None:
        _rewrite(tuned, changes, ideas, autocast, precision, outcomes, given)
    else:
        outcomes.extend(AccelerationOutcome(idea.name, False, reason, True) for idea in ideas)


def _rewrite(
    tuned: TunedModel,
    changes: Patches,
    ideas: list[Acceleration],
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
    outcomes: list[AccelerationOutcome],
    records: CachedPrefix | None = None,
) -> None:
    images, plain, now = None, None, None
    tolerance = TOLERANCE if precision == "fp32" else TOLERANCE_16
    for idea in ideas:
        before = len(changes)
        try:
            with autocast():
                idea.install(tuned, changes)
            changes.undo(before)
            images = _given(tuned, records, 2) if images is None else images
            with OffZero(tuned), autocast():
                if plain is None:
                    now = plain = behaviour(tuned, images, records)
                said = idea.install(tuned, changes)
                said += idea.warm(lambda count: tried(tuned, _given(tuned, records, count), records))
                after = tried(tuned, images, records)
            assert plain is not None and now is not None
            if after.drawn != plain.drawn:
                raise NotApplicable("it would draw other random numbers: dropout acts on what it leaves out")
            worst, where = difference(plain, after)
            step, _ = difference(now, after)
            if not worst <= tolerance:
                raise NotApplicable(
                    f"it would change {where} by {worst:.0e} of its size: something here needs what it leaves out"
                )
            saved = 1 - after.kept / max(1, now.kept)
            if idea.for_memory and saved < LEAST:
                raise NotApplicable("nothing that is kept for the backward pass would become less")
        except NotApplicable as reason:
            changes.undo(before)
            outcomes.append(AccelerationOutcome(idea.name, False, str(reason), True))
            continue
        now = after
        share = f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} kept for the backward pass"
        equal = "the same bits" if step == 0 else f"equal to {step:.0e}"
        outcomes.append(AccelerationOutcome(idea.name, True, f"{said}; {share}; {equal} on two images", step == 0))


def _given(tuned: TunedModel, records: CachedPrefix | None, count: int) -> Tensor:
    """Images to try the model on, or the numbers of records."""
    return two_images(tuned, count) if records is None else torch.arange(count) % len(records.train)
