"""Images of other than three channels: the convolution that sees the pixels is adapted by a stated rule."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import VpeftError, nearest
from .describe import UnknownBackbone, describe
from .places import Projection

ChannelsRule = Literal["repeat", "mean", "new"]
"""How filters for N channels come from pre-trained ones for C (three, mostly).

repeat: the filters of the C channels over and over, times C / N, so that the response keeps its size.
mean: the mean filter for every channel, times C / N.
new: fresh filters, drawn as torch draws them for a convolution and always the same; they train beside the adapter.
"""
RULES: tuple[ChannelsRule, ...] = get_args(ChannelsRule)
MOST = 16
SEED = 0  # of fresh filters, so that an adapter file finds the same ones again
COUNTS = ("num_channels", "in_chans", "in_channels")  # where models note how many channels they take
Convolution = nn.Conv2d | nn.Conv3d


class BadChannels(VpeftError):
    """The model cannot be made for so many channels."""


def adapt_channels(model: nn.Module, channels: int, rule: ChannelsRule = "repeat") -> tuple[str, ...]:
    """Make the model take images of `channels` channels, in place.

    Args:
        model: of a family that is described; its first convolutions get other weights, all else stays.
        channels: 1 to 16.
        rule: see `ChannelsRule`.

    Returns:
        The names of the modules whose weights are fresh, so that they must train: none but under the rule "new".

    Raises:
        BadChannels: no such rule, a number out of range, or a model whose pixels enter no plain convolution.
    """
    if rule not in RULES:
        raise BadChannels(f"There is no rule {rule!r} for channels. {nearest(str(rule), RULES)}")
    if not 1 <= channels <= MOST:
        raise BadChannels(f"A backbone was asked for with {channels} channels; 1 to {MOST} are possible.")
    first = _first_convolutions(model)
    old = next(iter(first.values())).in_channels
    if channels == old:
        return ()
    for convolution in first.values():
        made = filters(convolution.weight.detach(), channels, rule)
        convolution.weight = nn.Parameter(made, requires_grad=convolution.weight.requires_grad)
    _note(model, first, old, channels)
    return tuple(first) if rule == "new" else ()


def filters(weight: Tensor, channels: int, rule: ChannelsRule) -> Tensor:
    """Filters (D, N, ...) for `channels` channels from the pre-trained `weight` (D, C, ...)."""
    old = weight.shape[1]
    if rule == "repeat":
        return weight[:, torch.arange(channels, device=weight.device) % old] * (old / channels)
    if rule == "mean":
        mean = weight.mean(dim=1, keepdim=True) * (old / channels)
        return mean.repeat_interleave(channels, dim=1)
    shape = (weight.shape[0], channels, *weight.shape[2:])
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))  # torch's own for nn.Conv2d: Kaiming uniform with a = sqrt(5)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(SEED))
    return ((2.0 * drawn - 1.0) * bound).to(weight)


def _first_convolutions(model: nn.Module) -> dict[str, Convolution]:
    """The convolutions that see the pixels, by their names in the model: one, or several side by side."""
    try:
        backbone = describe(model)
    except UnknownBackbone as error:
        raise BadChannels(
            f"Which convolution of {type(model).__name__} sees the pixels is not known, so its channels cannot be"
            f" changed; make it for as many channels as you want. {error}"
        ) from None
    names = {id(module): name for name, module in model.named_modules()}
    found = {
        names[id(place.module)]: place.module
        for place in backbone.places()
        if isinstance(place, Projection)
        and isinstance(place.module, Convolution)
        and place.module.in_channels == backbone.inputs.channels
        and (place.name == "patch" or place.name.startswith("patch_"))
    }
    if not found or any(module.groups != 1 for module in found.values()):
        raise BadChannels(
            f"{backbone.facts.architecture} has no plain convolution of the pixels, so it takes"
            f" {backbone.inputs.channels} channels only."
        )
    return found


def _note(model: nn.Module, first: dict[str, Convolution], old: int, new: int) -> None:
    """Change the number wherever the model keeps it: on convolutions, modules around them and the configuration."""
    for name in first:
        path = name.split(".")
        for end in range(len(path) + 1):
            module: Any = model.get_submodule(".".join(path[:end]))
            for count in COUNTS:
                if module.__dict__.get(count) == old:
                    setattr(module, count, new)
    config: Any = getattr(model, "config", None)
    if getattr(config, "num_channels", None) == old:
        config.num_channels = new
    stated = getattr(model, "pretrained_cfg", None)
    if isinstance(stated, dict) and stated.get("input_size"):
        changed = {**stated, "input_size": (new, *stated["input_size"][1:])}
        setattr(model, "pretrained_cfg", changed)  # noqa: B010 - no attribute that a module declares
