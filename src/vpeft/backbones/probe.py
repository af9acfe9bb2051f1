"""What one forward pass shows of a model that no family knows: which layers run, once or more often, and how wide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import VpeftError, nearest
from .convolutional import is_norm


class BadAnatomy(VpeftError):
    """An anatomy names what the model does not have, or what does not run as it says."""


@dataclass
class Pooling:
    """How the pooled feature of a model is reached: what its classifier receives, a method's result, or its output.

    Attributes:
        features: name of a method of the model that takes the images.
        classifier: dotted name of the last layer, whose input is the feature.
        pool: what is left to do with what comes: "none", the first "token", or the mean over positions ("avg").
        prefix: tokens before the grid, which the mean leaves out.
        channels_first: whether a map comes as (B, D, H, W).
    """

    features: str | None = None
    classifier: str | None = None
    pool: str = "none"
    prefix: int = 0
    channels_first: bool = False

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, D)."""
        came = self._named(self._reach(model, images))
        if not isinstance(came, Tensor):
            raise BadAnatomy(
                f"{type(model).__name__} gives a {type(came).__name__}, not a tensor of features. Name a method that"
                " does as `features`, or its last layer as `classifier`."
            )
        if self.pool != "none" and came.dim() < 3:
            raise BadAnatomy(
                f"What {type(model).__name__} gives has the shape {tuple(came.shape)}, where there is nothing left to"
                f" pool. Leave out pool={self.pool!r}."
            )
        if self.pool == "token":
            came = came[:, 0]
        elif self.pool == "avg":
            came = came.mean(dim=(2, 3)) if self.channels_first else came[:, self.prefix :].flatten(1, -2).mean(dim=1)
        if came.dim() != 2:
            raise BadAnatomy(
                f"The features of {type(model).__name__} have the shape {tuple(came.shape)}; one vector for each image"
                ' is needed. Say how they are pooled: pool="token" or pool="avg".'
            )
        return came

    def _named(self, came: Any) -> Any:
        """Of an output with named parts, as transformers' models give: what is pooled, or what is to be pooled."""
        if isinstance(came, Tensor) or not isinstance(came, Mapping):
            return came
        if self.pool == "none" and isinstance(came.get("pooler_output"), Tensor):
            return came["pooler_output"].flatten(1)
        return came.get("last_hidden_state", came)

    def _reach(self, model: nn.Module, images: Tensor) -> Any:
        if self.features is not None:
            method = getattr(model, self.features, None)
            if not callable(method):
                raise BadAnatomy(f"{type(model).__name__} has no method {self.features!r} that gives features.")
            return method(images)
        if self.classifier is None:
            return model(images)
        caught: list[Tensor] = []
        handle = model.get_submodule(self.classifier).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            model(images)
        finally:
            handle.remove()
        if len(caught) != 1:
            raise BadAnatomy(
                f"The classifier {self.classifier!r} ran {len(caught)} times in one forward pass, not once."
            )
        return caught[0]


@dataclass
class Classifier:
    """The last layer by its name; an identity where there is none."""

    name: str | None

    def __call__(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.name) if self.name is not None else nn.Identity()


@dataclass
class ProbedLayer:
    """One layer that ran: its name, how often, and the shape of what it gave."""

    name: str
    module: nn.Module
    times: int = 0
    shape: tuple[int, ...] = ()


def stated_size(model: nn.Module) -> tuple[int, int]:
    """Height and width that a model states: timm's `pretrained_cfg`, transformers' `config`, an attribute; or 224."""
    timm: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in timm:
        return int(timm["input_size"][1]), int(timm["input_size"][2])
    side = getattr(getattr(model, "config", model), "image_size", None) or 224
    return (int(side), int(side)) if isinstance(side, int) else (int(side[-2]), int(side[-1]))


def find(model: nn.Module, name: str) -> nn.Module:
    """The submodule of this dotted name; `BadAnatomy` names the nearest."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [key for key, _ in model.named_modules() if key]
        raise BadAnatomy(f"{type(model).__name__} has no module {name!r}. {nearest(name, known)}") from None


@torch.no_grad()
def watch(model: nn.Module, pooling: Pooling, size: tuple[int, int]) -> tuple[dict[str, ProbedLayer], int, int]:
    """Run the model once in eval mode on zeros, on its own device (meta too).

    Returns:
        The linears, convolutions and norms that ran, in the order in which they ran; the width of the pooled feature;
        and the channels of the images.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) or is_norm(module)
    }
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        raise BadAnatomy(f"{type(model).__name__} has no parameters.")
    channels = _channels(model, layers.values())
    seen: dict[str, ProbedLayer] = {}
    handles, modes = [], [(module, module.training) for module in model.modules()]
    for name, module in layers.items():
        handles.append(module.register_forward_hook(_Note(seen, name)))
    try:
        model.eval()
        out = pooling(model, torch.zeros(1, channels, *size, device=like.device, dtype=like.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return seen, int(out.shape[-1]), channels


def _channels(model: nn.Module, layers: Iterable[nn.Module]) -> int:
    """Of the images: what the model states, as for their size; or what its first convolution takes."""
    timm: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in timm:
        return int(timm["input_size"][0])
    stated = getattr(getattr(model, "config", None), "num_channels", None)
    first = next((m for m in layers if isinstance(m, nn.Conv2d)), None)
    return int(stated or (3 if first is None else first.in_channels))


class _Note:
    """A forward hook that writes down what ran."""

    def __init__(self, seen: dict[str, ProbedLayer], name: str) -> None:
        self.seen, self.name = seen, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        entry = self.seen.setdefault(self.name, ProbedLayer(self.name, module))
        entry.times += 1
        if isinstance(output, Tensor):
            entry.shape = tuple(output.shape)
