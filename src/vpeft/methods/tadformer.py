"""TADFormer: a prompt of each task gates the features of its task, and filters sit inside a shared low-rank update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from ..backbones.activations import activations
from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.low_rank import LowRank
from ..layers.task_prompts import (
    FOR_ALL,
    DynamicFilter,
    FilteredForTasks,
    GatedForTasks,
    PromptBlock,
    PromptGates,
    PromptKeys,
    PromptStep,
    RaisePrompts,
    StageGate,
    StartPrompts,
    StaticFilter,
)
from ..method import register
from .mtlora import UNREAD, UNREAD_HERE, TaskStreams, begin_streams, end_streams, linear_places, stages_with_blocks


@register("tadformer", category="multi-task", family="reparameter", paper="2501.04293", year=2025, venue="CVPR")
class TADFormer(TaskStreams):
    """y = W x + b + s B A drop(x) at all linear layers; prompts of the tasks attend with the tokens and gate streams.

    One prompt per task joins every window as a key and a value, and attends itself: p <- p + MLP(LN a), with a the
    projected result for the prompt, averaged over windows; p <- U p where patches are merged. In the last block of a
    stage the streams begin at proj: with f (B, N, D) behind the attention and a_t = GELU(q_t k) of each head, g_t = a_t
    f and x_t = LN(f + g_t). At proj, fc1 and fc2, y_t = W x + b + s B F(A x_t), with the same A and B as the shared
    stream and F a depthwise 3 x 3 filter of the map of A x_t, at proj within a window. The head reads u g_t + (1 - u)
    h_t, with h_t the end of the stream and u the sigmoid of a number of the stage that starts at 0. One trunk pass
    serves all tasks.

    `filter` = "dynamic" makes the kernels from the mean of A x_t, one network for all tasks (the paper's formula, and
    its parameter counts); "static" is a convolution of each task, which the published code runs. `gated` = "released"
    lays the numbers of g_t at the end of a stage as that code does, which reads (D, N) of a window as (N, D). Step 0 is
    not the frozen model. As prompts of all tasks are keys, a further task changes the others; those that are off in a
    pass get no gradient.

    Departures: the norm behind f + g_t is made where it is used alone (the authors' other blocks hold unused ones,
        5,952
    numbers on Swin-T); no drop path on prompts; tokens in front of the map, such as a class token, are not filtered. On
    a plain ViT the sequence is the one window.
    """

    variants = ({"bias_tables": False},)

    rank: int = Field(default=64, gt=0)
    """R of B A; 16, 32 or 64 in the paper"""
    scale: float = 4.0
    """s; it is not divided by the rank"""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """on x of the shared stream, in training"""
    filter: Literal["dynamic", "static"] = "dynamic"
    """kernels made of each sample, or a convolution of each task"""
    gated: Literal["aligned", "released"] = "aligned"
    """how g_t lies where the end of a stage mixes it in: with its tokens, or as the authors' code lays it"""
    merging: Literal["full", "low_rank", "frozen"] = "frozen"
    """what trains of the linear map that merges patches between stages"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_images("TADFormer")
        stages = stages_with_blocks(backbone, "TADFormer")
        acts = {place.name.rpartition(".")[0]: place for _, place in reversed(activations(backbone))}
        prompts: Edit = backbone.embedding.tap(StartPrompts(self.names, backbone.blocks[0].dim))
        yield prompts
        for stage in stages:
            before = [place for place in stage.parts.values() if not isinstance(place, Block)]
            if stage is not stages[0] and before:
                raising = RaisePrompts(stages[stages.index(stage) - 1].width, stage.width)
                prompts = before[-1].tap(raising, reads=(prompts,))
                yield prompts
            for block in stage.blocks:
                last, ends = block is stage.blocks[-1], block is stages[-1].blocks[-1]
                _require_plain(block)
                act = acts.get(block.name)
                if act is None or act.enter is None:
                    raise MissingPlace(
                        f"TADFormer runs prompts through the MLP, and the activation of {block.name} is no module that"
                        " it knows (GELU or SiLU)."
                    )
                qkv, (proj,), (fc1,), (fc2,) = linear_places(block, "TADFormer")
                made = {place.name: self._update(place) for place in (*qkv, proj, fc1, fc2)}
                fused = len(qkv) == 1
                updates = {
                    letter: (made[place.name], block.projection(letter).rows if fused else None)
                    for letter, place in zip("qkv", qkv * 3 if fused else qkv, strict=True)
                }
                updates |= {n: (made[place.name], None) for n, place in (("proj", proj), ("fc1", fc1), ("fc2", fc2))}
                passing = PromptBlock(block, updates, act.enter.module)
                if last:
                    yield from begin_streams(block)
                for place in qkv:
                    yield place.parallel(made[place.name])
                keys, values = block.attn.k, block.attn.v
                yield block.attn.core.extend(PromptKeys(passing, last), reads=(prompts,))
                given = prompts
                if not ends:
                    prompts = proj.input.tap(PromptStep(passing, last), reads=(keys, values, given))
                    yield prompts
                if not last:
                    for place in (proj, fc1, fc2):
                        yield place.parallel(made[place.name])
                    continue
                gates = proj.input.tap(PromptGates(passing, self.names, self.dropout), reads=(keys, given))
                yield gates
                gated = GatedForTasks(made[proj.name], self._filters(), block.dim)
                layers = [FilteredForTasks(made[place.name], self._filters()) for place in (fc1, fc2)]
                closing = StageGate(block.attn.core.cells_in_windows, self.gated == "released")
                with_own: list[FilteredForTasks | StageGate] = [gated, *layers, closing]
                for one in with_own:
                    own = [name for name, _ in one.named_parameters() if not name.startswith("update.")]
                    if stage is not stages[-1]:
                        one.dormant = dict.fromkeys(own, UNREAD)
                    elif block.prefix:  # nothing behind the last block brings the map to a class token
                        why = "a filter acts on the map, and a head that reads the class token does not see it"
                        one.dormant = dict.fromkeys((name for name in own if name.startswith("filters.")), why)
                    elif len(self.names) > 1:
                        of_tasks = tuple(f"filters.{task}." for task in self.names)
                        one.dormant = {name: UNREAD_HERE for name in own if name.startswith(of_tasks)}
                yield proj.after(gated, reads=(gates,))
                for place, layer in zip((fc1, fc2), layers, strict=True):
                    yield place.after(layer, reads=(place.input,))
                yield block.after(closing, reads=(gates,))
            yield from end_streams(backbone, stage, stages)
        yield from self.unfrozen(backbone)

    def _update(self, place: Projection) -> LowRank:
        return LowRank(place.width_in, place.width, self.rank, self.scale, self.dropout)

    def _filters(self) -> dict[str, nn.Module]:
        if self.filter == "dynamic":
            return {FOR_ALL: DynamicFilter(self.rank)}
        return {task: StaticFilter(self.rank) for task in self.names}


def _require_plain(block: Block) -> None:
    """Raise `MissingPlace` unless prompts can pass the attention and the MLP of a block."""
    core = block.attn.core
    if core.reduced or (core.per_window and core.cells_in_windows is None):
        raise MissingPlace(
            f"TADFormer lays what prompts single out in the attention of {block.name} on its map, and there the tokens"
            " are pooled or in windows whose order is not told. The first version of Swin and plain ViTs work."
        )
    if block.mlp.fc2.width_in != block.mlp.fc1.width:
        raise MissingPlace(f"TADFormer runs prompts through fc1 and fc2, and the MLP of {block.name} is gated.")
