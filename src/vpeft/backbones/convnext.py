"""ConvNeXt as three libraries have it: blocks of a depthwise convolution, a norm and an MLP, and stages of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from . import outline
from .blocks import Block, MlpSite, Stage
from .builders import Where, branch, norm, projection, skip, span_verbs, stream
from .places import Place
from .points import Layout, Point


def whole_cells(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns that fill whole cells: no convolution of a ConvNeXt pads."""
    return size[0] // stride, size[1] // stride


def convnext_block(
    index: int,
    stage: int,
    module: nn.Module,
    conv: nn.Module,
    norm2: nn.Module,
    mlp: MlpSite,
    end: Point,
    where: Where,
    *,
    gain: tuple[nn.Module, str] | None,
    drop_path: float,
) -> Block:
    """A block with one residual branch.

    Args:
        module: the block.
        conv: its depthwise convolution, where the branch begins.
        norm2: its norm, which the MLP alone reads.
        mlp: its MLP; the norm is laid out as this.
        end: where the branch ends.
        gain: its LayerScale, where there is one.
        drop_path: the rate at which the branch is dropped in training.
    """
    name, width = f"blocks.{index}", mlp.width
    around = branch(f"{name}.mlp_branch", Point(conv, "input"), end, where, width)
    around.writer, around.gain = mlp.fc2, gain
    return Block(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(None),
        nesting=2,
        own={} if gain is None else {"gamma": gain},
        parts={
            "conv": projection(f"{name}.conv", conv, where),
            "norm2": norm(f"{name}.norm2", norm2, where.but(mlp.layout), width, mlp.consumers),
            "mlp": mlp,
            "mlp_branch": around,
            "skip2": skip(f"{name}.skip2", around, where),
            "stream2": stream(f"{name}.stream2", around, where),
        },
        index=index,
        stage=stage,
        drop_path=drop_path,
        **where.shared(),
    )


def convnext_stage(
    number: int,
    blocks: Sequence[Block],
    first: nn.Module | None = None,
    reduction: nn.Conv2d | None = None,
    downsample: nn.Module | None = None,
) -> Stage:
    """One stage; the downsampling before it belongs to it.

    Args:
        first: the norm before the reduction, where there is one.
        reduction: the strided convolution between the stages; None for the first stage.
        downsample: the whole downsampling.
    """
    start, grid, stride = blocks[0].index, blocks[0].grid, blocks[0].stride
    parts: dict[str, Place] = {}
    if reduction is not None and grid is not None:
        prefix, factor = f"stages.{number}.downsample", int(reduction.stride[0])
        wider = (grid[0] * factor, grid[1] * factor)
        before = Where(start - 1, Layout.CHANNELS_FIRST, wider, 0, stride // factor)
        after = Where(start - 1, Layout.CHANNELS_FIRST, grid, 0, stride)
        if first is not None:
            parts[f"{prefix}.norm"] = norm(f"{prefix}.norm", first, before, int(reduction.weight.shape[1]))
        parts[f"{prefix}.reduction"] = projection(f"{prefix}.reduction", reduction, after)
    where = Where(start, Layout.CHANNELS_FIRST, grid, 0, stride)
    return outline.stage(number, blocks, where, parts, downsample=downsample)
