"""Residual convolutional nets: what ResNet, RegNet, EfficientNet and their relatives have in common.

A unit is one module of a stage. One that adds its input to what it computes is a block, with one residual branch: the
`mlp_branch`, and inside it the `mlp`, whatever its convolutions are, as in ConvNeXt. A unit that changes the shape, or
that has no shortcut, belongs to the downsampling before the blocks that follow it; so every block keeps its shape.

Convolutions have canonical names by what they do, in the order of execution. Of the 1x1 convolutions of a branch, the
first is `fc1` and the last is `fc2` (a single one is `fc2` where it ends the branch); any other is `conv`, or `conv1`,
`conv2`, ... where there are several. Norms are `norm1`, `norm2`, ...; the convolutions of a squeeze-and-excitation are
`se.fc1` and `se.fc2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import outline
from .blocks import Block, MlpSite, Stage
from .builders import Where, branch, norm, projection, site, skip, stream
from .places import Norm, Place, stored_weight
from .points import Layout, Point

Size = tuple[int, int]
SQUEEZE = {"conv_reduce": "fc1", "conv_expand": "fc2"}


@dataclass
class Unit:
    """One module of a stage, before it is known where in the net it stands.

    Attributes:
        module: the unit.
        branch: what its branch runs, in order: modules whose convolutions and norms become places.
        enter: where the branch begins.
        inner: where the sub-layer ends: before a LayerScale and drop path.
        exit: where the branch ends, before the add.
        keeps: whether the unit adds its own input, unchanged, to the branch.
        gate: modules inside whose convolutions see a pooled map: squeeze-and-excitation and the like.
        shortcut: what the shortcut runs where it is no identity.
        drop_path: rate at which the branch is dropped.
        stride: of the whole unit.
        time_stride: the same in time, for clips.
    """

    module: nn.Module
    branch: Sequence[nn.Module]
    enter: Point
    inner: Point
    exit: Point
    keeps: bool
    gate: Sequence[nn.Module] = ()
    shortcut: nn.Module | None = None
    drop_path: float = 0.0
    stride: int = 1
    time_stride: int = 1


@dataclass
class Units:
    """Stages made of units, and what is left at the end.

    Attributes:
        stages: each with the units before its blocks as its downsampling.
        tail: places of the units behind the last block.
        behind: the first module behind the last block, if a unit follows it.
        first, last: the first and the last unit's module.
        stride: pixels per cell at the end.
        grid: of cells at the end.
        frames: steps of time at the end; None for images.
        width: channels at the end.
    """

    stages: list[Stage] = field(default_factory=list)
    tail: list[Place] = field(default_factory=list)
    behind: nn.Module | None = None
    first: nn.Module | None = None
    last: nn.Module | None = None
    stride: int = 1
    grid: Size = (1, 1)
    frames: int | None = None
    width: int = 0


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation with a scale for each channel."""
    if isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
        return True
    kind = type(module).__name__
    return "Norm" in kind and "Response" not in kind and "weight" in module._parameters


def leaves(modules: Iterable[nn.Module], without: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
    """Convolutions, linears and norms inside `modules`, in the order in which they are registered, which is that of
    execution in plain chains; nothing inside `without`."""
    skipped = {id(inner) for top in without for inner in top.modules()}
    for top in modules:
        for inner in top.modules():
            if id(inner) not in skipped and (isinstance(inner, (nn.Conv2d, nn.Conv3d, nn.Linear)) or is_norm(inner)):
                yield inner


def norm_width(module: nn.Module) -> int:
    """Channels that a normalisation sees."""
    for name in ("num_features", "num_channels"):
        if hasattr(module, name):
            return int(getattr(module, name))
    weight = module._parameters.get("weight")
    assert weight is not None
    return int(weight.shape[0])


def norm_place(name: str, module: nn.Module, where: Where, *, overwritten: bool = False) -> Norm:
    """A norm, or one with its activation inside (timm's BatchNormAct2d), whose place ends before that activation.

    `overwritten`: what follows writes into the norm's output.
    """
    place = norm(name, module, where, norm_width(module))
    act = getattr(module, "act", None)
    ends = (
        module.drop if isinstance(act, nn.Module) and isinstance(getattr(module, "drop", None), nn.Module) else module
    )
    spoilt = overwritten or (ends is not module and bool(getattr(act, "inplace", False)))
    place.exit = Point(cast(nn.Module, ends), "output", overwritten=spoilt)
    return place


def named(found: Sequence[nn.Module]) -> list[str]:
    """Canonical names of the convolutions, linears and norms of one branch, in order."""
    mixing = [m for m in found if not is_norm(m)]
    narrow = [m for m in mixing if _pointwise(m)]
    names: dict[int, str] = {}
    if len(narrow) >= 2:
        names[id(narrow[0])], names[id(narrow[-1])] = "fc1", "fc2"
    elif narrow and len(mixing) > 1:
        names[id(narrow[0])] = "fc2" if narrow[0] is mixing[-1] else "fc1"
    others = [m for m in mixing if id(m) not in names]
    names |= {id(m): "conv" if len(others) == 1 else f"conv{i}" for i, m in enumerate(others, start=1)}
    norms = [m for m in found if is_norm(m)]
    names |= {id(m): f"norm{i}" for i, m in enumerate(norms, start=1)}
    return [names[id(m)] for m in found]


def _pointwise(module: nn.Module) -> bool:
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def chain_places(
    name: str, modules: Sequence[nn.Module], gates: Sequence[nn.Module], where: Where, *, overwritten: bool = False
) -> dict[str, Place]:
    """Places of a chain of convolutions and norms, and of the gates within; `overwritten` speaks of the last one."""
    found = list(leaves(modules, gates))
    parts: dict[str, Place] = {}
    follows = [*found[1:], None][: len(found)]
    for module, key, after in zip(found, named(found), follows, strict=True):
        last = overwritten and after is None
        if is_norm(module):
            # a norm without an activation of its own is followed by one that writes in place
            bare = not hasattr(module, "act")
            parts[key] = norm_place(f"{name}.{key}", module, where, overwritten=last or (bare and after is not None))
        else:
            parts[key] = projection(f"{name}.{key}", module, where)
            spoilt = last or (after is not None and not is_norm(after))
            parts[key].exit = Point(module, "output", overwritten=spoilt)
    for gate in gates:
        pooled = where.within((1, 1))
        for key, module in gate.named_modules():
            if isinstance(module, nn.Conv2d):
                last_name = SQUEEZE.get(key, key.replace(".", "_") or "conv")
                parts[f"se.{last_name}"] = projection(f"{name}.se.{last_name}", module, pooled)
                parts[f"se.{last_name}"].exit = Point(module, "output", overwritten=True)
    return parts


def make_stages(units: Sequence[Unit], size: Size, stride: int, frames: int | None = None) -> Units:
    """Stages of blocks that keep their shape, from units in the order of execution.

    Args:
        units: of the whole trunk.
        size: of the images, in pixels.
        stride: pixels per cell where the first unit begins.
        frames: steps of time there, for clips.
    """
    runs: list[tuple[list[Unit], list[Unit]]] = [([], [])]
    for unit in units:
        if not unit.keeps and runs[-1][1]:
            runs.append(([], []))
        runs[-1][1 if unit.keeps else 0].append(unit)
    made = Units(stride=stride, frames=frames, first=units[0].module, last=units[-1].module)
    depth = 0
    for number, (changes, kept) in enumerate(runs):
        parts: dict[str, Place] = {}
        for step, unit in enumerate(changes):
            made.stride *= unit.stride
            made.frames = None if made.frames is None else -(-made.frames // unit.time_stride)
            prefix = f"stages.{number}.downsample" + (f"_{step}" if step else "")
            parts.update(change_places(prefix, unit, _where(made, size, depth)))
            made.width = _width(unit)
        if not kept:
            made.tail, made.behind = list(parts.values()), changes[0].module
            break
        where = _where(made, size, depth)
        blocks = [_block(unit, depth + i, number, replace(where, depth=depth + i)) for i, unit in enumerate(kept)]
        depth, made.width = depth + len(blocks), blocks[-1].width
        made.stages.append(outline.stage(number, blocks, where, parts, downsample=_one(changes)))
    return made


def _where(made: Units, size: Size, depth: int) -> Where:
    made.grid = (-(-size[0] // made.stride), -(-size[1] // made.stride))
    return Where(depth, Layout.CHANNELS_FIRST, made.grid, 0, made.stride, frames=made.frames)


def _width(unit: Unit) -> int:
    """Channels that leave a unit: those of its branch's last convolution or norm."""
    *_, last = leaves(unit.branch, unit.gate)
    return norm_width(last) if is_norm(last) else int(stored_weight(last).shape[0])


def _one(changes: Sequence[Unit]) -> nn.Module | None:
    """The downsampling as one module that takes the previous stage's output to this one's input."""
    if not changes:
        return None
    return changes[0].module if len(changes) == 1 else nn.Sequential(*(unit.module for unit in changes))


def change_places(prefix: str, unit: Unit, where: Where) -> dict[str, Place]:
    """Places of a unit that changes the shape: its branch's and its shortcut's."""
    parts = chain_places(prefix, unit.branch, unit.gate, where)
    if unit.shortcut is not None:
        parts |= {f"skip.{k}": p for k, p in chain_places(f"{prefix}.skip", [unit.shortcut], (), where).items()}
    return {place.name: place for place in parts.values()}


def _block(unit: Unit, index: int, stage: int, where: Where) -> Block:
    name, width = f"blocks.{index}", _width(unit)
    spoilt = unit.exit.overwritten or unit.inner.overwritten
    parts = chain_places(f"{name}.mlp", unit.branch, unit.gate, where, overwritten=spoilt)
    mlp_branch = branch(f"{name}.mlp_branch", unit.enter, unit.exit, where, width)
    inside: dict[str, Place] = {
        "mlp": site(f"{name}.mlp", MlpSite, unit.enter, unit.inner, where, width, parts),
        "mlp_branch": mlp_branch,
        "skip2": skip(f"{name}.skip2", mlp_branch, where),
        "stream2": stream(f"{name}.stream2", mlp_branch, where),
    }
    return outline.block(index, unit.module, inside, where, width, drop_path=unit.drop_path, stage=stage)


def drop_rate(module: object) -> float:
    """The rate of a drop path, 0 for an identity or None."""
    return float(getattr(module, "drop_prob", 0.0) or 0.0)


def conv_stride(modules: Iterable[nn.Module]) -> int:
    """The product of the strides in height of a chain of convolutions, poolings and anti-aliasing layers."""
    stride = 1
    for top in modules:
        for inner in top.modules():
            own = getattr(inner, "stride", 1)
            if isinstance(inner, (nn.Conv2d, nn.Conv3d)) or not list(inner.children()):
                stride *= int(own[len(own) == 3] if isinstance(own, tuple) else own)  # behind that in time
    return stride


def time_stride(modules: Iterable[nn.Module]) -> int:
    """The product of the strides in time of the convolutions of a chain."""
    stride = 1
    for top in modules:
        for inner in top.modules():
            stride *= int(inner.stride[0]) if isinstance(inner, nn.Conv3d) else 1
    return stride
