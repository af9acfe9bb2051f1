"""An exponential moving average of what is trained, which stands in for it where a model is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """a <- d a + (1 - d) w after each step, for every trained tensor w, beginning at its first value.

    In the first steps the decay is (1 + n) / (10 + n) where that is less, so that the start is soon forgotten (as
    TensorFlow's and timm's averages do).
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.parameters = dict(named)
        self.decay, self.steps = decay, 0
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside: the model has the averages; afterwards the trained values again, to the bit."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.put(self.values)
        try:
            yield
        finally:
            self.put(trained)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Write values into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def restore(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Go on with averages that were saved after `steps` updates."""
        self.steps = steps
        for name, value in values.items():
            self.values[name].copy_(value)
