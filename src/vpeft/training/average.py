"""An exponential moving average of the trained tensors, used for validation and for the final weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """a <- d a + (1 - d) w after each step, for every trained tensor w; a starts at the first w.

    In the first steps the decay is min(d, (1 + n) / (10 + n)), so that the start is soon forgotten (as in TensorFlow
    and timm).
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.parameters = dict(named)
        self.decay, self.steps = decay, 0
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the present values."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model has the averages; the trained values are restored exactly at its end."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.put(self.values)
        try:
            yield
        finally:
            self.put(trained)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def restore(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Continue with averages that were saved after `steps` updates."""
        self.steps = steps
        for name, value in values.items():
            self.values[name].copy_(value)
