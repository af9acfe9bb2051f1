"""VMT-Adapter: one adapter per block for all tasks, whose output each task scales and shifts for its own head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..layers.bottleneck import Bottleneck
from ..layers.task_affine import TaskAffine, TaskFeatureRows, TaskFeatures, Times
from ..layers.task_rows import FeaturesOfTasks, OwnRows
from ..method import ONE_TASK, Method, register
from .mtlora import UNREAD, UNREAD_HERE, stages_with_blocks


class SharedAdapters(Method):
    """What VMT-Adapter and its light form share: adapters of all tasks, and what each task makes of their outputs."""

    tasks: tuple[str, ...] = ()
    """names of the tasks; filled in from the heads"""
    bottleneck: int = Field(default=64, gt=0)
    """rows of W_down"""
    scale: float = 1.0
    """s"""

    @abstractmethod
    def adapter(self, width: int) -> nn.Module:
        """x (B, ..., D) -> a of the same shape."""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        stages = stages_with_blocks(backbone, type(self).__name__)
        backbone.require("mlp_branch")
        names = self.tasks or (ONE_TASK,)
        for stage in stages:
            parts, made = list[TaskAffine](), list[Edit]()
            for block in stage.blocks:
                if block.dim != stage.width:
                    raise MissingPlace(
                        f"{type(self).__name__} adds what the blocks of a stage make to its output, and {block.name}"
                        f" has {block.dim} channels where {stage.name} has {stage.width}."
                    )
                made.append(block.mlp_branch.input.tap(self.adapter(block.dim)))
                yield made[-1]
                yield block.mlp_branch.parallel(Times(self.scale), reads=(made[-1],))
                parts.append(TaskAffine(block.dim, names))
            ends = stage is stages[-1]
            for part in parts if not ends or len(names) > 1 else ():
                part.dormant = {name: UNREAD_HERE if ends else UNREAD for name, _ in part.named_parameters()}
            if not ends:
                yield stage.tap(TaskFeatures(parts), reads=tuple(made))
                continue
            yield stage.after(TaskFeatureRows(parts), reads=tuple(made))
            places: list[Place] = [stage, *([backbone.norm] if backbone.has_norm else []), backbone.outlet]
            for place in places:
                yield place.tap(FeaturesOfTasks())
            yield backbone.outlet.after(OwnRows())


@register("vmt_adapter", category="multi-task", family="adapter", paper="2312.08733", year=2024, venue="AAAI")
class VMTAdapter(SharedAdapters):
    """x' = x + MLP(LN x) + s a in every block; a task's head reads h + sum_l (gain_tl * a_l + shift_tl), h of a stage.

    a = W_up ReLU(W_down x + b_down) + b_up is one adapter for all tasks, x (B, ..., D); the sum goes over the blocks l
    of the stage, and the last stage's passes the final norm and the pooling. W_up and shifts start at zero, gains at
    one: step 0 is the frozen model. One trunk pass serves all tasks.

    A reconstruction: no code was published, and the paper's form of what a task makes of a is not verified (a gain and
    a shift of each channel, 2 D numbers per block and task; added to the stage, and not joined). No parity is claimed.
    """

    def adapter(self, width: int) -> nn.Module:
        return Bottleneck(width, self.bottleneck)
