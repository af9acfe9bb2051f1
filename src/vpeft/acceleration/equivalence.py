"""Proof on two images: logits, penalties and gradients with an acceleration are those without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.saved_tensors import SavedForBackward
from vpeft.backbones.inputs import fitted_to
from vpeft.errors import VpeftError
from vpeft.injection.outputs import one_tensor
from vpeft.injection.routed import noise_for
from vpeft.injection.tuned_model import TunedModel

# Largest accepted difference, relative to the largest value of a tensor. In fp32 what is exact differs by 1e-6, more in
# deep models; what is wrong differs by far more than 1e-4, as the trained tensors are moved off zero first. In 16 bits
# one rounding is 4e-3, and the ways to a gradient are long.
TOLERANCE = 1e-4
TOLERANCE_16 = 0.1


@dataclass(frozen=True)
class Behaviour:
    """What a model did with two images: its numbers by name, and the bytes that it kept for the backward pass.

    `drawn` is where the random generators then stood: a layer that draws for fewer tokens gives other masks at the next
    step, which two images may not show.
    """

    numbers: dict[str, Tensor]
    kept: int
    drawn: bytes = b""


def behaviour(tuned: TunedModel, images: Tensor, model: Callable[[Tensor], Any] | None = None) -> Behaviour:
    """One forward and backward pass in the model's present mode, always with the same random numbers.

    `model` is `tuned` in another form, and `images` is what that takes.
    """
    parameters = dict(tuned.trainable())
    before = {name: p.grad for name, p in parameters.items()}
    with torch.random.fork_rng(devices=_devices(images)):
        torch.manual_seed(0)
        try:
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad():
                with SavedForBackward(tuned, [images]) as saved:
                    logits = one_tensor((model or tuned)(images))
                drawn, size = _generators(images), saved.bytes
                del saved
                generator = torch.Generator().manual_seed(1)
                direction = torch.randn(logits.shape, generator=generator).to(logits.device)
                loss = (logits.float() * direction).sum()
                penalty = tuned.penalty()
                if penalty is not None:
                    loss = loss + penalty
                if loss.requires_grad:
                    torch.autograd.backward(loss)
            numbers = {"the outputs": logits.detach().float()}
            if penalty is not None:
                numbers["the penalty"] = penalty.detach().float()
            for name, p in parameters.items():
                if p.grad is not None:
                    numbers[f"the gradient of {name}"] = p.grad.float()
        finally:
            for name, p in parameters.items():
                p.grad = before[name]
    return Behaviour(numbers, size, drawn)


def tried(tuned: TunedModel, images: Tensor, model: Callable[[Tensor], Any] | None = None) -> Behaviour:
    """`behaviour` of a model that may not run at all.

    Raises:
        NotApplicable: it does not; the message holds the first line of why.
    """
    try:
        return behaviour(tuned, images, model)
    except (RuntimeError, IndexError, ValueError, TypeError, VpeftError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotApplicable(f"the model does not run with it ({first})") from None


def _generators(images: Tensor) -> bytes:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices(images))]
    return b"".join(state.numpy().tobytes() for state in states)


def _devices(images: Tensor) -> list[torch.device]:
    return [images.device] if images.device.type == "cuda" else []


def difference(one: Behaviour, other: Behaviour) -> tuple[float, str]:
    """The largest relative difference, and of what. Tiny gradients are measured by a thousandth of the largest."""
    if one.numbers.keys() != other.numbers.keys():
        lacking = sorted(one.numbers.keys() ^ other.numbers.keys())
        return float("inf"), lacking[0]
    gradients = [float(value.abs().max()) for name, value in one.numbers.items() if "gradient" in name]
    floor = 1e-3 * max(gradients, default=0.0)
    worst, where = 0.0, ""
    for name, value in one.numbers.items():
        twin = other.numbers[name]
        if value.shape != twin.shape:
            return float("inf"), name
        if not value.numel():
            continue
        scale = max(float(value.abs().max()), floor if "gradient" in name else 0.0, 1e-12)
        found = float((value - twin).abs().max()) / scale
        if not found <= worst:  # NaN too
            worst, where = found, name
    return worst, where


class OffZero:
    """Inside: trained tensors are moved off zero, where equal and different layers would look the same, and norms that
    gather statistics may do so; afterwards everything is bit by bit as it was."""

    def __init__(self, tuned: TunedModel) -> None:
        self.tuned = tuned

    @torch.no_grad()
    def __enter__(self) -> None:
        self.parameters = [(p, p.detach().clone()) for _, p in self.tuned.trainable()]
        self.buffers = [(b, b.clone()) for b in self.tuned.buffers()]
        generator = torch.Generator().manual_seed(2)
        for p, _ in self.parameters:
            p.add_(noise_for(p, generator))

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for tensor, value in (*self.parameters, *self.buffers):
            tensor.copy_(value)


def two_images(tuned: TunedModel, count: int = 2) -> Tensor:
    """Fixed made-up inputs for two (or `count`) samples, images of the backbone's size or what it takes, on its device."""
    generator = torch.Generator().manual_seed(3)
    return fitted_to(tuned.description.inputs.example(count * tuned.rows_per_sample, generator), tuned.backbone)
