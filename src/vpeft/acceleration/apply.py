"""`accelerate`: try accelerations in order, test each against the plain model, and list what they save."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vpeft.acceleration import cached_query, decoded_images, host_prefix, prefix_cache, shared_trunk
from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.attention_kernel import AttentionKernel
from vpeft.acceleration.class_token_only import ClassTokenOnly
from vpeft.acceleration.compile_blocks import CompileBlocks
from vpeft.acceleration.equivalence import (
    TOLERANCE,
    TOLERANCE_16,
    PerturbedParameters,
    behaviour,
    difference,
    tried,
    two_images,
)
from vpeft.acceleration.frozen_precision import FrozenPrecision
from vpeft.acceleration.fused_low_rank import FusedLowRank
from vpeft.acceleration.fused_scale_shift import FusedScaleShift
from vpeft.acceleration.host_prefix import CachedHost
from vpeft.acceleration.key_value_prompts import KeyValuePrompts
from vpeft.acceleration.names import NAMES, wanted
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import CachedPrefix, Situation
from vpeft.acceleration.recompute import Recompute
from vpeft.acceleration.recompute_blocks import RecomputeBlocks
from vpeft.acceleration.shared_trunk import StreamedPrefix
from vpeft.arguments import TEXT, one_of, require
from vpeft.data.image_set import ImageSet
from vpeft.injection.tuned_model import TunedModel

# In the order in which they are tried: those that skip work come before those that make the rest cheaper.
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
# Tried after all others, the cache included.
AFTER_RECORDS: tuple[Acceleration, ...] = (CompileBlocks(),)
# An acceleration that only saves memory must save at least this share of the bytes saved for the backward pass.
LEAST = 0.01


@dataclass(frozen=True)
class AccelerationOutcome:
    """The result for one acceleration.

    Attributes:
        name: its name.
        applied: whether it is in use.
        text: what it saves, or why it is not used.
        bit_equal: whether the numbers are the same bits.
    """

    name: str
    applied: bool
    text: str
    bit_equal: bool


class Accelerated:
    """A tuned model with accelerations, until `close` or the end of the `with`.

    Attributes:
        outcomes: the result for each acceleration of the choice.
        prefix: the model on cached outputs, or on batches whose frozen part is computed once for several runs; or None.
        train, val: image sets that read decoded pixels, in place of those of the situation; or None.
        asked: names that the choice gives one by one, without those of `auto`.
    """

    def __init__(
        self,
        patches: Patches,
        outcomes: list[AccelerationOutcome],
        prefix: CachedPrefix | CachedHost | StreamedPrefix | None,
    ) -> None:
        self._patches, self.outcomes, self.prefix = patches, outcomes, prefix
        self.train: ImageSet | None = None
        self.val: ImageSet | None = None
        self.asked: frozenset[str] = frozenset()

    @property
    def rounding(self) -> list[str]:
        """Names of the accelerations in use that change the last bits of the numbers."""
        return [outcome.name for outcome in self.outcomes if outcome.applied and not outcome.bit_equal]

    def lines(self) -> list[str]:
        """Return one line for each acceleration in use or asked for by name, and one line for all others."""
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
        """Remove all accelerations from the model."""
        self._patches.undo()
        self.prefix = None


def accelerate(
    tuned: TunedModel,
    choice: str = "auto",
    *,
    situation: Situation | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    precision: str = "fp32",
) -> Accelerated:
    """Apply the accelerations of `choice` that are exact for the active adapter, in any training loop.

        with vpeft.accelerate(tuned.train()) as used:
            print("\\n".join(used.lines()))
            ...  # steps with any optimiser; the end of the `with` removes all accelerations

    Args:
        tuned: the model, in the mode in which it will be trained. Weights, statistics and modes do not change.
        choice: `auto`, `off`, or names separated by commas.
        situation: the run, which caches need; without it, `frozen_prefix`, `decoded_images` and `cached_query` are not
            used.
        autocast, precision: of the forward pass.

    Returns:
        A context manager that lists what is in use and removes it at the end.

    Raises:
        UnknownAcceleration: a name does not exist.
    """
    tuned_model = one_of(TunedModel, says="a TunedModel, such as `tune` returns")
    require("accelerate(tuned, choice)", tuned=(tuned, tuned_model), choice=(choice, TEXT))
    names = wanted(choice)
    made = _on_the_model(tuned, names, situation, autocast, precision)
    made.asked = frozenset(part.strip() for part in choice.split(","))
    try:
        if decoded_images.NAME in names and situation is not None and situation.stream is None:
            _decode(made, situation)
        if cached_query.NAME in names and situation is not None:
            _keep_queries(made, tuned, situation)
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
    patches, outcomes = Patches(tuned), list[AccelerationOutcome]()
    names = [name for name in names if name not in (decoded_images.NAME, cached_query.NAME)]
    if not names:
        return Accelerated(patches, outcomes, None)
    unfit = _unfit(tuned)
    if unfit is not None:
        return Accelerated(patches, [AccelerationOutcome(name, False, unfit, True) for name in names], None)
    if (tuned.description.host is not None and tuned.head is None) or tuned.reads_towers:
        return _on_a_host(tuned, names, situation, patches)
    prefix = None
    try:
        if prefix_cache.NAME in names and situation is not None:
            prefix = _record(tuned, patches, situation, outcomes, whole=True)
        if prefix is None:
            _rewrite(
                tuned,
                patches,
                [acceleration for acceleration in ACCELERATIONS if acceleration.name in names],
                autocast,
                precision,
                outcomes,
            )
            tried = any(outcome.name == prefix_cache.NAME for outcome in outcomes)
            if prefix_cache.NAME in names and situation is not None and not tried:
                prefix = _record(tuned, patches, situation, outcomes, whole=False)
        last = [acceleration for acceleration in AFTER_RECORDS if acceleration.name in names]
        if last:
            _behind(tuned, patches, last, prefix, autocast, precision, outcomes)
    except BaseException:
        patches.undo()
        raise
    return Accelerated(patches, outcomes, prefix)


def _decode(made: Accelerated, situation: Situation) -> None:
    """Cache decoded pixels, if the images are read more than once."""
    try:
        if made.prefix is not None:
            raise NotApplicable("the images are not read, because the frozen part is cached")
        made.train, made.val, text = decoded_images.keep(situation)
    except NotApplicable as reason:
        made.outcomes.append(AccelerationOutcome(decoded_images.NAME, False, str(reason), True))
    else:
        made.outcomes.append(AccelerationOutcome(decoded_images.NAME, True, text, True))


def _keep_queries(made: Accelerated, tuned: TunedModel, situation: Situation) -> None:
    """Cache the frozen model's own features, where the method reads them."""
    try:
        unfit = _unfit(tuned)
        if unfit is not None:
            raise NotApplicable(unfit)
        text, equal = cached_query.remember(tuned, made._patches, situation)
    except NotApplicable as reason:
        made.outcomes.append(AccelerationOutcome(cached_query.NAME, False, str(reason), True))
    else:
        made.outcomes.append(AccelerationOutcome(cached_query.NAME, True, text, equal))


def _unfit(tuned: TunedModel) -> str | None:
    if tuned._compiled:
        return "the model is compiled, and the compiled code would not see the change"
    if tuned.active is None or tuned.active in tuned._merged:
        return "the adapter is disabled or merged"
    if any(p.is_meta for p in tuned.parameters()):
        return "the model has no weights"
    return None


def _on_a_host(tuned: TunedModel, names: list[str], situation: Situation | None, patches: Patches) -> Accelerated:
    """Cache what the frozen part of a host gives; nothing else is known to be exact in a forward pass of its own."""
    outcomes: list[AccelerationOutcome] = []
    prefix: CachedHost | None = None
    for name in names:
        reason = "the tower runs inside a host, whose forward pass cannot be tested here"
        if tuned.reads_towers:
            reason = "it is made for one tower, and the head compares two"
        if name == prefix_cache.NAME and situation is not None:
            try:
                prefix, text = host_prefix.build(tuned, patches, situation)
            except NotApplicable as why:
                patches.undo()
                reason = str(why)
            else:
                outcomes.append(AccelerationOutcome(name, True, text, text.endswith("the same bits on a sample")))
                continue
        outcomes.append(AccelerationOutcome(name, False, reason, True))
    return Accelerated(patches, outcomes, prefix)


def _record(
    tuned: TunedModel, patches: Patches, situation: Situation, outcomes: list[AccelerationOutcome], whole: bool
) -> CachedPrefix | StreamedPrefix | None:
    """Cache the frozen part if the cut is of the requested kind. A cache of the whole trunk needs no other rewrite."""
    before = len(patches)
    prefix: CachedPrefix | StreamedPrefix
    try:
        try:
            cut = prefix_cache.useful_cut(tuned, situation)
            if cut.trunk != whole:
                return None
            prefix, text = prefix_cache.build(tuned, patches, situation, cut)
        except NotApplicable:
            if situation.stream is None:
                raise
            patches.undo(before)
            cut = prefix_cache.frozen_part(tuned)
            if cut.trunk != whole:
                return None
            prefix, text = shared_trunk.join(tuned, patches, situation, cut)
    except NotApplicable as reason:
        patches.undo(before)
        outcomes.append(AccelerationOutcome(prefix_cache.NAME, False, str(reason), True))
        return None
    outcomes.append(AccelerationOutcome(prefix_cache.NAME, True, text, text.endswith("the same bits on a sample")))
    return prefix


def _behind(
    tuned: TunedModel,
    patches: Patches,
    accelerations: list[Acceleration],
    prefix: CachedPrefix | StreamedPrefix | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
    outcomes: list[AccelerationOutcome],
) -> None:
    """Apply the last accelerations, tested on cached outputs if the model trains on them."""
    reason, given = None, None
    if isinstance(prefix, StreamedPrefix):
        reason = "the frozen part is computed for several runs at once"
    elif prefix is not None and prefix.prefix.cut.trunk:
        reason = "the whole trunk is cached, and no block runs"
    elif prefix is not None:
        given = prefix
    if reason is None:
        _rewrite(tuned, patches, accelerations, autocast, precision, outcomes, given)
    else:
        outcomes.extend(AccelerationOutcome(acceleration.name, False, reason, True) for acceleration in accelerations)


def _rewrite(
    tuned: TunedModel,
    patches: Patches,
    accelerations: list[Acceleration],
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
    outcomes: list[AccelerationOutcome],
    records: CachedPrefix | None = None,
) -> None:
    images, plain, now = None, None, None
    tolerance = TOLERANCE if precision == "fp32" else TOLERANCE_16
    for acceleration in accelerations:
        before = len(patches)
        try:
            with autocast():
                acceleration.install(tuned, patches)
            patches.undo(before)
            images = _given(tuned, records, 2) if images is None else images
            with PerturbedParameters(tuned), autocast():
                if plain is None:
                    now = plain = behaviour(tuned, images, records)
                said = acceleration.install(tuned, patches)
                said += acceleration.warm(lambda count: tried(tuned, _given(tuned, records, count), records))
                after = tried(tuned, images, records)
            assert plain is not None and now is not None
            if after.drawn != plain.drawn:
                raise NotApplicable("it would draw other random numbers: dropout acts on what it skips")
            worst, where = difference(plain, after)
            step, _ = difference(now, after)
            if not worst <= tolerance:
                raise NotApplicable(
                    f"it would change {where} by {worst:.0e} of its size: something here needs what it skips"
                )
            saved = 1 - after.kept / max(1, now.kept)
            if acceleration.for_memory and saved < LEAST:
                raise NotApplicable("it would not reduce the bytes that are saved for the backward pass")
        except NotApplicable as reason:
            patches.undo(before)
            outcomes.append(AccelerationOutcome(acceleration.name, False, str(reason), True))
            continue
        now = after
        share = f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} kept for the backward pass"
        equal = "the same bits" if step == 0 else f"equal to {step:.0e}"
        outcomes.append(
            AccelerationOutcome(acceleration.name, True, f"{said}; {share}; {equal} on two images", step == 0)
        )


def _given(tuned: TunedModel, records: CachedPrefix | None, count: int) -> Tensor:
    """Return images for the test, or row numbers of the cache."""
    return two_images(tuned, count) if records is None else torch.arange(count) % len(records.train)
