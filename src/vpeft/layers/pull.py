"""A part of the loss that a layer finds in its forward pass, kept until the method's penalty asks for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Pull:
    """The last value that a layer noted, a scalar with its graph; `take` gives it up. Copies start empty."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def note(self, value: Tensor) -> None:
        """Keep a value where a backward pass may follow."""
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self.value = value

    def take(self) -> Tensor | None:
        """The value, once; None where no forward pass noted one since."""
        value, self.value = self.value, None
        return value

    def __getstate__(self) -> dict[str, object]:
        return {"value": None}
