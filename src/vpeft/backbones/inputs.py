"""The inputs of a backbone: images, clips or tokens, their size, and example batches for checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..errors import VpeftError

InputLayout = Literal["images", "clips", "tokens"]


class BadInputSpec(VpeftError):
    """An `InputSpec` lacks a field that its layout needs."""


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a backbone.

    Attributes:
        size: height and width in pixels; for tokens (1, L), a row of L.
        channels: of an image or a frame; 1 for tokens.
        layout: "images" (B, C, H, W), "clips" (B, C, T, H, W), or "tokens" (B, L), integers. A family whose library
            wants (B, T, C, H, W) turns the clips where it calls the model.
        names: the names of the model's inputs, in order.
        frames: number of frames T of a clip; None for other layouts.
        time_axis: of a batch of clips: 2 for (B, C, T, H, W), as vpeft's readers make it; 1 for (B, T, C, H, W), for a
            model of your own that is handed such.
        make: n -> an example batch of n inputs, the same at every call; required for tokens, because only the model
            knows the valid ones.
    """

    size: tuple[int, int]
    channels: int = 3
    layout: InputLayout = "images"
    names: tuple[str, ...] = ("images",)
    frames: int | None = None
    time_axis: Literal[1, 2] = 2
    make: Callable[[int], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.layout == "tokens" and self.make is None:
            raise BadInputSpec("Inputs of the layout 'tokens' need `make`, because only the model knows valid tokens.")
        if (self.layout == "clips") != (self.frames is not None):
            raise BadInputSpec(
                f"The layout {self.layout!r} does not go with frames={self.frames}: clips need a number, others None."
            )

    @property
    def takes_images(self) -> bool:
        """Whether each input is one image (C, H, W)."""
        return self.layout == "images"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input: (C, H, W), (C, T, H, W), (T, C, H, W) or (L,)."""
        if self.layout == "tokens":
            return (self.size[1],)
        if self.frames is None:
            return (self.channels, *self.size)
        front = (self.frames, self.channels) if self.time_axis == 1 else (self.channels, self.frames)
        return (*front, *self.size)

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return an example batch of `count` inputs on the CPU: normal random numbers, or the result of `make`.

        Args:
            count: number of inputs.
            generator: of the random numbers; torch's default one if None.
        """
        if self.make is not None:
            return self.make(count)
        return torch.randn(count, *self.shape, generator=generator)

    def blank(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """Return a batch of `count` inputs that are all zero, for checks that depend on shapes only."""
        kind = torch.int64 if self.layout == "tokens" else torch.float32
        return torch.zeros(count, *self.shape, dtype=kind, device=device)

    def probe(self) -> Tensor:
        """Return one fixed input (1, C, H, W) of waves with values in [-1, 1], the same on every machine.

        In the frames of a clip, the waves move to the side. If `make` is given, return its first input.
        """
        if self.make is not None:
            return self.make(1)
        if self.frames is None:
            return self._waves(0.0)[None].float()
        frames = [self._waves(frame / self.frames) for frame in range(self.frames)]
        return torch.stack(frames, dim=self.time_axis - 1)[None].float()

    def _waves(self, shift: float) -> Tensor:
        height, width = self.size
        rows = torch.arange(height, dtype=torch.float64)[:, None] / height
        columns = torch.arange(width, dtype=torch.float64)[None, :] / width + shift
        return torch.stack(
            [
                torch.sin(6.0 * (c + 1) * rows + 4.0 * columns) * torch.cos(9.0 * columns - c)
                for c in range(self.channels)
            ]
        )


class MadeUpTexts:
    """Example texts, the same on every machine: n -> integers (n, L), with the end token last."""

    def __init__(self, vocabulary: int, length: int, end: int) -> None:
        self.vocabulary, self.length, self.end = vocabulary, length, end

    def __call__(self, count: int) -> Tensor:
        rows, columns = torch.arange(count)[:, None], torch.arange(self.length)[None, :]
        texts = 1 + (7 * columns + 5 * rows + columns * columns) % (self.vocabulary - 2)
        texts[:, -1] = self.end
        return texts


@overload
def fitted_to(inputs: Tensor, model: nn.Module) -> Tensor: ...


@overload
def fitted_to(inputs: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]: ...


def fitted_to(inputs: Tensor | dict[str, Tensor], model: nn.Module) -> Tensor | dict[str, Tensor]:
    """Move inputs to the model's device, and floating-point inputs to its floating-point type.

    Args:
        inputs: a tensor, or {tower: tensor} for a host with several towers.
        model: its first floating-point parameter decides.
    """
    if isinstance(inputs, dict):
        return {name: fitted_to(value, model) for name, value in inputs.items()}
    like = next(p for p in model.parameters() if p.is_floating_point())
    return inputs.to(device=like.device, dtype=like.dtype if inputs.is_floating_point() else None)
