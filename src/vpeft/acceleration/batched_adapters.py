"""Several runs whose adapters stand on equal backbones: the steps of all are one pass through one backbone.

A small batch leaves a processor or an accelerator waiting for the next small product. Here the batches of several runs
lie one behind the other, the frozen layers work on all of them at once, and each adapter acts on its own run's rows.
What trains stays the very tensors of each run's own model: only the forward and the backward pass are common.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.class_token_only import ClassTokenOnly
from vpeft.acceleration.equivalence import TOLERANCE, TOLERANCE_16, OffZero, behaviour, difference, tried, two_images
from vpeft.acceleration.fused_low_rank import FusedLowRank
from vpeft.acceleration.patches import Patches
from vpeft.errors import VpeftError
from vpeft.injection.adapter import Adapter, require_equal_shapes
from vpeft.injection.forward_pass import Within
from vpeft.injection.routed import outputs_of
from vpeft.injection.switch import Shares
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method

NAME = "batched_adapters"
# What serves several adapters at once; the first is left off first where a pass with all is not exact.
ACCELERATIONS = (ClassTokenOnly(), FusedLowRank())


@dataclass(frozen=True, eq=False)
class Joining:
    """A run that wants to share passes.

    Attributes:
        tuned: its model.
        model: what it trains: the model, with whatever accelerations it has.
        name: how the run is called.
    """

    tuned: TunedModel
    model: Callable[[Tensor], Tensor]
    name: str


def why_not(tuned: TunedModel) -> str | None:
    """Why a model's adapter cannot stand on a backbone beside others, as far as that can be told without trying."""
    if tuned.active is None:
        return "no adapter is on"
    if tuned.quantised is not None:
        return f"the frozen weights are {tuned.quantised}"
    if tuned.adapter().unfrozen.targets or tuned.adapter().moving:
        return "tensors of the backbone itself are trained, of which each run has its own"
    for method in tuned.methods():
        if type(method).advance is not Method.advance:
            return f"{type(method).__name__} changes with the progress of its own model's training"
        if type(method).penalty is not Method.penalty:
            return f"{type(method).__name__} adds a penalty, which it takes from its own model"
    return None


def common_ground(tuned: TunedModel) -> TunedModel:
    """A copy to stand on, before any acceleration is on the model. Its frozen parameters are the model's own."""
    return copy.deepcopy(tuned, {id(parameter): parameter for parameter in tuned.backbone.parameters()})


class Draws:
    """torch's random numbers of one run: each block goes on where the block before ended, and leaves no trace."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self.take()

    def take(self) -> None:
        """Go on from where the process's generators are."""
        self._state = torch.get_rng_state()
        self._more = [torch.cuda.get_rng_state(device) for device in self._devices]

    def put(self) -> None:
        """Let the process's generators go on from here."""
        torch.set_rng_state(self._state)
        for device, state in zip(self._devices, self._more, strict=True):
            torch.cuda.set_rng_state(state, device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self._devices):
            self.put()
            try:
                yield
            finally:
                self.take()


class Batched:
    """Runs in one pass: called with images (B_k, 3, H, W) of some of the runs, it gives their logits.

    Attributes:
        joined: the runs.
        draws: of those that draw random numbers in a step, which are as alone: where they stand.
        accelerations: names of those that are on the pass.
        worst: the largest relative difference from the runs alone, on two images each.
    """

    def __init__(self, ground: TunedModel, names: Mapping[Joining, str]) -> None:
        self._ground, self._names = ground, names
        self.joined, self.worst = list(names), 0.0
        self.accelerations: list[str] = []
        self.draws: dict[Joining, Draws] = {}

    def __call__(self, images: Mapping[Joining, Tensor]) -> dict[Joining, Tensor]:
        shares = Shares(tuple((self._names[one], len(some)) for one, some in images.items()))
        within: Within = {self._names[one]: draws for one, draws in self.draws.items()}
        outputs = outputs_of(self._ground, torch.cat(list(images.values())), shares, within)
        return dict(zip(images, outputs, strict=True))

    def prove(self, autocast: Callable[[], AbstractContextManager[Any]], precision: str) -> None:
        """Compare logits and gradients of every run, beside the others, with those of the run alone.

        Raises:
            NotApplicable: they differ, or the backbone itself draws random numbers.
        """
        self.worst, self.draws = 0.0, {}
        tolerance = TOLERANCE if precision == "fp32" else TOLERANCE_16
        pictures = two_images(self._ground)
        with ExitStack() as stack:
            for one in self.joined:
                stack.enter_context(OffZero(one.tuned))
            stack.enter_context(autocast())
            untouched = behaviour(self.joined[0].tuned, pictures, lambda images: images.flatten(1)).drawn
            alone = {one: behaviour(one.tuned, pictures, one.model) for one in self.joined}
            self.draws = {one: Draws(pictures.device) for one in self.joined if alone[one].drawn != untouched}
            for one in self.joined:

                def beside(images: Tensor, one: Joining = one) -> Tensor:
                    for draws in self.draws.values():
                        draws.take()
                    return self(dict.fromkeys(self.joined, images))[one]

                joint = tried(one.tuned, pictures, beside)
                if joint.drawn != untouched:
                    raise NotApplicable("the backbone draws random numbers, others for a larger batch")
                apart, where = difference(alone[one], joint)
                if not apart <= tolerance:
                    raise NotApplicable(f"it would change {where} of {one.name} by {apart:.0e} of its size")
                self.worst = max(self.worst, apart)


def batched(
    ground: TunedModel,
    runs: Sequence[Joining],
    choice: Container[str],
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
) -> tuple[list[Batched], dict[Joining, str]]:
    """The runs in as few passes as is exact; and for each run that goes by itself, why.

    Args:
        ground: the copy that stands for all backbones; it has the adapter of the model it was copied from.
        runs: in training mode, with whatever accelerations they have.
        choice: the names of the accelerations that may be on the common pass.
        autocast, precision: of the forward pass.
    """
    alone, names = dict[Joining, str](), dict[Joining, str]()
    device = next(ground.backbone.parameters()).device
    ground.to(device)
    for one in runs:
        try:
            names[one] = _stand(ground, one)
        except VpeftError as reason:
            alone[one] = str(reason)
    ground.train()
    by_name = {name: one for one, name in names.items()}
    made = []
    for together in ground._routing.passes(ground, two_images(ground), list(by_name)):
        joined = [by_name[name] for name in together]
        if len(joined) < 2:
            alone[joined[0]] = "there is no other run whose edits can act beside its own in a common batch"
            continue
        one_pass = Batched(ground, {one: names[one] for one in joined})
        try:
            _accelerated(ground, one_pass, together, choice, partial(one_pass.prove, autocast, precision))
        except NotApplicable as reason:
            alone |= dict.fromkeys(joined, str(reason))
        else:
            made.append(one_pass)
    return made, alone


def _accelerated(
    ground: TunedModel, one_pass: Batched, adapters: Sequence[str], choice: Container[str], prove: Callable[[], None]
) -> None:
    """Put on the common ground what can serve several adapters at once and is exact for all of them.

    Raises:
        NotApplicable: not even the plain pass is exact.
    """
    wanted = [idea for idea in ACCELERATIONS if idea.name in choice]
    for first in range(len(wanted) + 1):
        changes = Patches(ground)
        for idea in wanted[first:]:
            before = len(changes)
            try:
                idea.install_for(ground, changes, adapters)
                one_pass.accelerations.append(idea.name)
            except NotApplicable:
                changes.undo(before)
        try:
            prove()
        except NotApplicable:
            changes.undo()
            one_pass.accelerations.clear()
            if first == len(wanted):
                raise
        else:
            return


def _stand(ground: TunedModel, run: Joining) -> str:
    """Put a run's adapter on the common ground; returns its name there."""
    name = f"run-{len(ground.adapters)}"
    tuned = run.tuned
    with torch.random.fork_rng(devices=[]):
        ground.attach(*tuned.methods(), name=name, head=copy.deepcopy(tuned.head))
    try:
        _same_tensors(ground.adapter(name), tuned.adapter())
    except VpeftError:
        ground.detach(name)
        raise
    return name


def _same_tensors(there: Adapter, here: Adapter) -> None:
    """Let the adapter on the common ground hold the very parameters and buffers of the run's own."""
    require_equal_shapes(here.tensors(), there.tensors())
    modules = dict(here.named_modules())
    copies: list[tuple[str, nn.Module]] = list(there.named_modules())
    if [key for key, _ in copies] != list(modules):
        raise NotApplicable("its layers changed since it was attached")
    for key, module in copies:
        module._parameters.update(modules[key]._parameters)
        module._buffers.update(modules[key]._buffers)
