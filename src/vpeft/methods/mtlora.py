"""MTLoRA: low-rank updates shared by all tasks, and in the last block of each stage further ones of each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block, Stage
from ..backbones.edits import Edit
from ..backbones.places import Place, Projection
from ..backbones.points import MissingPlace
from ..layers.low_rank import LowRank
from ..layers.task_low_rank import TaskLowRank
from ..layers.task_rows import FeaturesOfTasks, OwnRows, RepeatForTasks, SharedRows
from ..method import ONE_TASK, Method, register

BIAS_TABLE = "relative_position_bias_table"  # what timm, transformers and torchvision call Swin's


class TaskStreams(Method):
    """What MTLoRA, DiTASK and TADFormer share: streams of the tasks, and the backbone's own tensors that train."""

    tasks: tuple[str, ...] = ()
    """names of the tasks; filled in from the heads"""
    merging: Literal["full", "low_rank", "frozen"] = "full"
    """what trains of the linear map that merges patches between stages"""
    patch: bool = True
    """whether the patch embedding trains"""
    train_norms: bool = True
    """whether the norms of the backbone train"""
    bias_tables: bool = True
    """whether the tables of relative-position biases train"""

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, or the only one where none is named."""
        return self.tasks or (ONE_TASK,)

    def unfrozen(self, backbone: Backbone) -> Iterator[Edit]:
        """The backbone's own tensors that train."""
        if self.patch:
            yield backbone.patch.unfreeze()
        for norm in backbone.norms if self.train_norms else ():
            if norm.own:
                yield norm.unfreeze()
        for place in backbone.places() if self.bias_tables else ():
            tables = [name for name in place.own if name.endswith(BIAS_TABLE)]
            if tables and place is not backbone.whole:
                yield place.unfreeze(*tables)
        for place in mergings(backbone) if self.merging == "full" else ():
            yield place.unfreeze("weight")


def mergings(backbone: Backbone) -> list[Projection]:
    """The linear maps that merge patches between stages."""
    inside = {id(place) for block in backbone.blocks for place in block.walk()}
    found = [place for stage in backbone.stages for place in stage.walk() if id(place) not in inside]
    return [place for place in found if isinstance(place, Projection) and not place.is_conv]


def stages_with_blocks(backbone: Backbone, method: str) -> list[Stage]:
    """The stages that have blocks, of a model inside of which a batch can get further rows.

    Raises:
        MissingPlace: there are none, it reads no images, or it reshapes by the size of the batch that came in.
    """
    _ = backbone.blocks[0]
    name = backbone.facts.architecture
    if backbone.pixels.enter is None and backbone.frames_enter is None:
        raise MissingPlace(
            f"{method} lets each task have rows of its own in a batch of images, and {name} takes"
            f" {backbone.inputs.layout}. Put it on a tower that reads images."
        )
    if backbone.facts.keeps_batch:
        raise MissingPlace(
            f"{method} lets each task have rows of its own inside the model, and {name} reshapes by the size"
            " of the batch that came in. Swin, plain ViTs and most others take it; Polyhistor and Hyperformer run here."
        )
    return [stage for stage in backbone.stages if stage.blocks]


def linear_places(block: Block, method: str) -> list[tuple[Projection, ...]]:
    """q, k and v as the model stores them, then proj, fc1 and fc2 of a block.

    Raises:
        MissingPlace: the block lacks one, or it is a convolution.
    """
    _ = block.attn_branch, block.mlp_branch  # where both read the same input, no stream passes from one to the other
    found = [block.stored("qkv"), *((block.projection(name),) for name in ("proj", "fc1", "fc2"))]
    for place in (place for places in found for place in places):
        if place.is_conv:
            raise MissingPlace(f"{method} needs linear layers in attention and MLP, and {place.name} is a convolution.")
    return found


def begin_streams(block: Block) -> Iterator[Edit]:
    """Let the tasks have rows of their own from the input of this block on."""
    yield block.before(RepeatForTasks())


def end_streams(backbone: Backbone, stage: Stage, stages: list[Stage]) -> Iterator[Edit]:
    """Show the tasks' rows at the end of a stage to their heads, and take them away again where the next one begins.

    They pass the merging of patches before the next stage as well, whose output heads may read; behind the last stage
    they pass the final norm and the pooling.
    """
    yield stage.tap(FeaturesOfTasks())
    if stage is not stages[-1]:
        following = stages[stages.index(stage) + 1]
        merged = [place for place in following.parts.values() if not isinstance(place, Block)]
        if merged and merged[-1].offers("tap"):
            yield merged[-1].tap(FeaturesOfTasks())
        yield following.blocks[0].before(SharedRows())
        return
    places: list[Place] = [*([backbone.norm] if backbone.has_norm else []), backbone.outlet]
    for place in places:
        yield place.tap(FeaturesOfTasks())
    yield backbone.outlet.after(OwnRows())


@register("mtlora", category="multi-task", family="reparameter", paper="2403.20320", year=2024, venue="CVPR")
class MTLoRA(TaskStreams):
    """y = W x + b + s B A drop(x) at all linear layers; the last block of a stage makes a stream of each task besides.

    There, y_t = W x + b + s' B_t A_t x_t at proj, fc1 and fc2, with W x of the shared x (B, N, D); x_t is drop(x) at
    proj and the task's own stream behind it: x_t = x + proj_t, then x_t + MLP_t(LN x_t). Its head reads the task's
    stream at the end of the stage (or behind the merging of patches, which the stream passes too); the shared stream
    alone goes on. A, A_t start as in LoRA, B, B_t at zero: step 0 is the frozen model. One trunk pass serves all tasks.

    The patch embedding, all norms, tables of relative positions and (`merging` = "full") the patch merging train too;
    "low_rank" is MTLoRA+. Plain ViTs have one stage, whose last block has the streams.

    Departures: the streams are rows of the batch from the input of that block on, so its attention is computed for each
    of them, with equal results; the authors compute it once. Their mode "addition" and trained scales are left out.
    """

    variants = ({"bias_tables": False},)

    rank: int = Field(default=64, gt=0)
    """R of B A; 16, 32 or 64 in the paper"""
    task_rank: int = Field(default=4, gt=0)
    """of each B_t A_t"""
    scale: float = 4.0
    """s; it is not divided by the rank"""
    task_scale: float = 4.0
    """s'"""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """on x of the shared stream, in training"""
    mode: Literal["matrix", "matrixv2"] = "matrix"
    """matrixv2 adds s B A drop(x) to y_t"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        stages = stages_with_blocks(backbone, "MTLoRA")
        for place in mergings(backbone) if self.merging == "low_rank" else ():
            yield place.parallel(self._shared(place))
        for stage in stages:
            for block in stage.blocks:
                last = block is stage.blocks[-1]
                qkv, *others = linear_places(block, "MTLoRA")
                if last:
                    yield from begin_streams(block)
                for place in (*qkv, *(() if last else [place for (place,) in others])):
                    yield place.parallel(self._shared(place))
                for (place,) in others if last else ():
                    layer = TaskLowRank(
                        place.width_in,
                        place.width,
                        rank=self.rank,
                        task_rank=self.task_rank,
                        tasks=self.names,
                        scale=self.scale,
                        task_scale=self.task_scale,
                        dropout=self.dropout,
                        begins=place is others[0][0],
                        adds_shared=self.mode == "matrixv2",
                    )
                    layer.dormant = silent(layer, place is others[1][0], place is others[2][0], stage is stages[-1])
                    yield place.after(layer, reads=(place.input,))
            yield from end_streams(backbone, stage, stages)
        yield from self.unfrozen(backbone)

    def _shared(self, place: Projection) -> LowRank:
        return LowRank(place.width_in, place.width, self.rank, self.scale, self.dropout)


UNREAD = "it learns where the task's head reads the end of this stage"
UNREAD_HERE = "it learns where the task's head reads the last stage or what follows it"


def silent(layer: TaskLowRank, fc1: bool, fc2: bool, ends: bool) -> dict[str, str]:
    """Which tensors of a layer of the streams get no gradient at first, or with heads of the last stage alone.

    Args:
        layer: the layer.
        fc1, fc2: whether it is that of the MLP's first or second map.
        ends: whether this is the last stage.
    """
    own = [name for name, _ in layer.named_parameters() if name.startswith("own.")]
    if not ends:
        return dict.fromkeys(own, UNREAD)
    found = dict.fromkeys(own, UNREAD_HERE) if len(layer.own) > 1 else {}
    if fc1:  # what fc1 adds for a task is seen through that task's update of fc2 alone, which starts at zero
        late = "its product and that of fc2, through which it is seen, start at zero: it learns from the third step on"
        found |= {name: late for name in own if name.endswith("A")}
    if fc2 and not layer.adds_shared:
        why = "the shared stream ends here, and the heads read those of the tasks"
        found |= dict.fromkeys(("shared.A", "shared.B"), why)
    return found
