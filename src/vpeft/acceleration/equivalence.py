"""Test on two images whether outputs, penalties and gradients are equal with and without an acceleration."""

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
from vpeft.head import raw_outputs
from vpeft.injection.outputs import one_tensor
from vpeft.injection.routed import noise_for
from vpeft.injection.tuned_model import TunedModel

# Largest accepted difference, relative to the largest value of a tensor. In fp32, exact accelerations differ by about
# 1e-6, more in deep models; wrong ones differ by far more than 1e-4, because trained tensors are moved away from zero
# first. In 16 bits one rounding is 4e-3, and a gradient is the result of many.
TOLERANCE = 1e-4
TOLERANCE_16 = 0.1


@dataclass(frozen=True)
class Behaviour:
    """The results of one forward and backward pass.

    Attributes:
        numbers: outputs, penalty and gradients by name.
        kept: bytes saved for the backward pass.
        drawn: state of the random generators afterwards. A layer that draws numbers for fewer tokens would draw other
            masks at the next step, which two images may not show.
    """

    numbers: dict[str, Tensor]
    kept: int
    drawn: bytes = b""


def behaviour(tuned: TunedModel, images: Tensor, model: Callable[[Tensor], Any] | None = None) -> Behaviour:
    """Run one forward and backward pass in the model's present mode, always with the same random numbers.

    Args:
        tuned: whose trained tensors are looked at.
        images: the inputs of `model`.
        model: another form of `tuned`, such as the model on cached outputs; `tuned` by default.
    """
    parameters = dict(tuned.trainable())
    before = {name: p.grad for name, p in parameters.items()}
    with torch.random.fork_rng(devices=_devices(images)):
        torch.manual_seed(0)
        try:
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad():
                with raw_outputs(), SavedForBackward(tuned, [images]) as saved:
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
    """Run `behaviour` on a model that may fail.

    Raises:
        NotApplicable: the model raises an error; the message holds the first line of it.
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
    """Return the largest relative difference and its name. A gradient's scale is at least 1e-3 of the largest one."""
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


class PerturbedParameters:
    """A context in which trained tensors are moved away from zero, so that a layer that starts at zero cannot hide a
    difference. Parameters and buffers are restored exactly at its end."""

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
    """Return fixed example inputs for two (or `count`) samples, on the backbone's device."""
    generator = torch.Generator().manual_seed(3)
    return fitted_to(tuned.description.inputs.example(count * tuned.rows_per_sample, generator), tuned.backbone)
