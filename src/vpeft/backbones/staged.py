"""Nets of several resolutions in which attention blocks and what lies between them alternate.

Between the blocks lie convolutions, poolings, attention that changes the shape: passages. A passage that opens a stage
is its downsampling, `stages.N.downsample`; one among the blocks of a stage is `stages.N.between`, then `between_1`, ...
So every block keeps its shape, and in a net that mixes kinds every block has attention and an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import outline
from .blocks import Block, Stage
from .builders import Where
from .convolutional import Size, Unit, change_places
from .places import Place
from .points import Layout


@dataclass
class Passage:
    """What leads from blocks to blocks.

    Attributes:
        module: takes a map or sequence and gives one.
        places: its places, given its name and where it stands behind its stride.
        stride: by which it divides the grid.
        opens: whether blocks behind it belong to another stage than those before it.
    """

    module: nn.Module
    places: Callable[[str, Where], dict[str, Place]]
    stride: int = 1
    opens: bool = True


BlockMaker = Callable[[int, int, Where], Block]
"""A block, given its index, its stage, and where it stands."""


@dataclass
class Staged:
    """Stages, and what is left at the end.

    Attributes:
        stages: each with the passages before its blocks as its downsampling.
        tail: places of the passages behind the last block that would have opened a stage.
        behind: the first module of these, if there is one.
        where: at the end.
    """

    stages: list[Stage] = field(default_factory=list)
    tail: list[Place] = field(default_factory=list)
    behind: nn.Module | None = None
    where: Where = field(default_factory=lambda: Where(0, Layout.TOKENS))


class Through(nn.Module):
    """Passages as one function, on the layout of the blocks.

    It holds the backbone's live modules without being their parent, so that they are no part of what holds it.

    Args:
        modules: in the order of execution.
        came: layout of the blocks, where the modules take (B, C, H, W); None where both are laid out alike.
        grid: of what enters.
    """

    def __init__(self, modules: Sequence[nn.Module], came: Layout | None, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.inner, self.came, self.grid = tuple(modules), came, grid

    def forward(self, x: Tensor) -> Tensor:
        if self.came is Layout.TOKENS:
            assert self.grid is not None
            x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        x = x if self.came is None else x.permute(0, 3, 1, 2)
        for module in self.inner:
            x = module.forward(x)
        x = x if self.came is None else x.permute(0, 2, 3, 1)
        return x.flatten(1, 2) if self.came is Layout.TOKENS else x


def lay_out(
    steps: Sequence[Passage | BlockMaker],
    size: Size,
    stride: int,
    layout: Layout,
    *,
    passing: Layout | None = None,
    prefix: int = 0,
    ordered: bool = True,
    frames: int | None = None,
) -> Staged:
    """Stages from passages and blocks in the order of execution.

    Args:
        steps: of the whole trunk.
        size: of the images, in pixels.
        stride: pixels per cell where the first step begins.
        layout: of the blocks.
        passing: of the passages, if they are laid out differently.
        prefix: tokens before the grid.
        ordered: whether the tokens lie in rows and columns.
        frames: steps of time of the grid, for clips.
    """
    runs: list[tuple[list[Passage], list[Passage | BlockMaker]]] = [([], [])]
    for step in steps:
        leads = isinstance(step, Passage) and (step.opens or not runs[-1][1])
        if leads and runs[-1][1]:
            runs.append(([], []))
        (runs[-1][0] if leads else runs[-1][1]).append(step)  # type: ignore[arg-type]
    made, depth = Staged(), 0
    passing = passing or layout

    def stands(at: int, kind: Layout) -> Where:
        grid = (-(-size[0] // stride), -(-size[1] // stride)) if ordered else None
        return Where(at, kind, grid, prefix, stride, frames=frames)

    for number, (before, inside) in enumerate(runs):
        parts: dict[str, Place] = {}
        came = stands(depth, layout).grid
        for step_number, passage in enumerate(before):
            stride *= passage.stride
            name = f"stages.{number}.downsample" + (f"_{step_number}" if step_number else "")
            parts |= _named(passage.places(name, stands(depth - 1, passing)))
        if not inside:
            made.tail, made.behind = list(parts.values()), before[0].module if before else None
            break
        blocks: list[Block] = []
        among: dict[str, Place] = {}
        count = 0
        for step in inside:
            if isinstance(step, Passage):
                name = f"stages.{number}.between" + (f"_{count}" if count else "")
                among |= _named(step.places(name, stands(depth - 1, passing)))
                count += 1
                continue
            block = step(depth, number, stands(depth, layout))
            block.stage = number
            blocks.append(block)
            among[block.name] = block
            depth += 1
        modules = [passage.module for passage in before]
        way = Through(modules, layout if passing is not layout else None, came) if modules else None
        stage = outline.stage(number, blocks, stands(blocks[0].index, layout), parts, downsample=way)
        stage.parts = {**parts, **among}
        made.stages.append(stage)
    made.where = stands(depth, layout)
    return made


def _named(places: dict[str, Place]) -> dict[str, Place]:
    return {place.name: place for place in places.values()}


def convolutions(unit: Unit, opens: bool) -> Passage:
    """A unit of convolutions, residual or not, as a passage."""

    def places(name: str, where: Where) -> dict[str, Place]:
        return change_places(name, unit, where)

    return Passage(unit.module, places, unit.stride, opens)
