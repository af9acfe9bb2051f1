"""Compute the steps of several runs with equal backbones in one pass through one backbone.

The matrix products of small batches are too small to use a processor fully. Here the batches of several runs are
concatenated: the frozen layers process all of them at once, and each adapter acts on the rows of its own run. The
trained tensors stay those of each run's own model; only the forward and backward passes are shared.
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
from vpeft.acceleration.equivalence import (
    TOLERANCE,
    TOLERANCE_16,
    PerturbedParameters,
    behaviour,
    difference,
    tried,
    two_images,
)
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
# They support several adapters at once. If a pass with all is not exact, they are dropped in this order.
ACCELERATIONS = (ClassTokenOnly(), FusedLowRank())


@dataclass(frozen=True, eq=False)
class BatchedRun:
    """A run that can share passes with others.

    Attributes:
        tuned: its model.
        model: the function that it trains: the model, with its accelerations.
        name: the name of the run, for messages.
    """

    tuned: TunedModel
    model: Callable[[Tensor], Tensor]
    name: str


def why_not(tuned: TunedModel) -> str | None:
    """Return why a model's adapter cannot share a backbone with others, as far as is known before trying; or None."""
    if tuned.active is None:
        return "no adapter is enabled"
    if tuned.quantised is not None:
        return f"the frozen weights are {tuned.quantised}"
    if tuned.adapter().unfrozen.targets or tuned.adapter().moving:
        return "it trains tensors of the backbone itself, which differ between the runs"
    for method in tuned.methods():
        if type(method).advance is not Method.advance or method.follows_data:
            return f"{type(method).__name__} changes with the progress of its own model's training"
        if type(method).penalty is not Method.penalty:
            return f"{type(method).__name__} adds a penalty, which it takes from its own model"
    return None


def shared_backbone(tuned: TunedModel) -> TunedModel:
    """Return a copy of the model, with the same frozen parameters, on which the adapters of several runs are attached.

    Call it before any acceleration is applied to the model.
    """
    twin = copy.deepcopy(tuned, {id(parameter): parameter for parameter in tuned.backbone.parameters()})
    # The parameters are those of `tuned`, and stay frozen when the copy is gone.
    twin._flags[:] = [parameter.requires_grad for parameter in twin.backbone.parameters()]
    return twin


class RandomStream:
    """torch's random numbers of one run: each use as a context continues where the last one ended."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self.take()

    def take(self) -> None:
        """Take over the state of the process's generators."""
        self._state = torch.get_rng_state()
        self._more = [torch.cuda.get_rng_state(device) for device in self._devices]

    def put(self) -> None:
        """Set the process's generators to this state."""
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
    """Several runs in one pass: {run: images (B_k, C, H, W)} -> {run: outputs}.

    Attributes:
        joined: the runs.
        draws: for runs that draw random numbers in a step, their random state, which is as if they ran alone.
        accelerations: names of the accelerations of the pass.
        worst: the largest relative difference from the single runs, on two images each.
    """

    def __init__(self, ground: TunedModel, names: Mapping[BatchedRun, str]) -> None:
        self._ground, self._names = ground, names
        self.joined, self.worst = list(names), 0.0
        self.accelerations: list[str] = []
        self.draws: dict[BatchedRun, RandomStream] = {}

    def __call__(self, images: Mapping[BatchedRun, Tensor]) -> dict[BatchedRun, Tensor]:
        shares = Shares(tuple((self._names[one], len(some)) for one, some in images.items()))
        within: Within = {self._names[one]: draws for one, draws in self.draws.items()}
        outputs = outputs_of(self._ground, torch.cat(list(images.values())), shares, within)
        return dict(zip(images, outputs, strict=True))

    def prove(self, autocast: Callable[[], AbstractContextManager[Any]], precision: str) -> None:
        """Compare the outputs and gradients of every run in the shared pass with those of the run alone.

        Raises:
            NotApplicable: they differ, or the backbone itself draws random numbers.
        """
        self.worst, self.draws = 0.0, {}
        tolerance = TOLERANCE if precision == "fp32" else TOLERANCE_16
        pictures = two_images(self._ground)
        with ExitStack() as stack:
            for one in self.joined:
                stack.enter_context(PerturbedParameters(one.tuned))
            stack.enter_context(autocast())
            untouched = behaviour(self.joined[0].tuned, pictures, lambda images: images.flatten(1)).drawn
            alone = {one: behaviour(one.tuned, pictures, one.model) for one in self.joined}
            self.draws = {one: RandomStream(pictures.device) for one in self.joined if alone[one].drawn != untouched}
            for one in self.joined:

                def beside(images: Tensor, one: BatchedRun = one) -> Tensor:
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
    runs: Sequence[BatchedRun],
    choice: Container[str],
    autocast: Callable[[], AbstractContextManager[Any]],
    precision: str,
) -> tuple[list[Batched], dict[BatchedRun, str]]:
    """Combine runs into as few exact passes as possible.

    Args:
        ground: the result of `shared_backbone`; it has the adapter of the model that it was copied from.
        runs: the runs, in training mode, with their accelerations.
        choice: names of the accelerations that the shared pass may use.
        autocast, precision: of the forward pass.

    Returns:
        The shared passes; and for each run that is not in one, the reason.
    """
    alone, names = dict[BatchedRun, str](), dict[BatchedRun, str]()
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
            alone[joined[0]] = "no other run has edits that can act in a common batch with its own"
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
    """Apply accelerations that support several adapters and are exact for all of them to the shared backbone.

    Raises:
        NotApplicable: even the pass without accelerations is not exact.
    """
    wanted = [acceleration for acceleration in ACCELERATIONS if acceleration.name in choice]
    for first in range(len(wanted) + 1):
        patches = Patches(ground)
        for acceleration in wanted[first:]:
            before = len(patches)
            try:
                acceleration.install_for(ground, patches, adapters)
                one_pass.accelerations.append(acceleration.name)
            except NotApplicable:
                patches.undo(before)
        try:
            prove()
        except NotApplicable:
            patches.undo()
            one_pass.accelerations.clear()
            if first == len(wanted):
                raise
        else:
            return


def _stand(ground: TunedModel, run: BatchedRun) -> str:
    """Attach a run's adapter to the shared backbone; return its name there."""
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
    """Replace the tensors of the adapter on the shared backbone with the run's own parameters and buffers."""
    require_equal_shapes(here.tensors(), there.tensors())
    modules = dict(here.named_modules())
    copies: list[tuple[str, nn.Module]] = list(there.named_modules())
    if [key for key, _ in copies] != list(modules):
        raise NotApplicable("its layers changed since it was attached")
    for key, module in copies:
        module._parameters.update(modules[key]._parameters)
        module._buffers.update(modules[key]._buffers)
