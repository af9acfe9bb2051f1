"""DiTASK: monotone maps warp the singular values of every weight, one for all tasks and further ones of each task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.monotone_flow import MonotoneFlow, Spectrum, WarpedWeight
from ..layers.task_weights import DropShared, TaskWeights
from ..method import register
from .mtlora import UNREAD, UNREAD_HERE, TaskStreams, begin_streams, end_streams, linear_places, stages_with_blocks


@register("ditask", category="multi-task", family="reparameter", paper="2502.06029", year=2025, venue="CVPR")
class DiTASK(TaskStreams):
    """W = U diag(sigma) V^T becomes U diag(sigma') V^T; sigma' is sigma read at places that a monotone flow has moved.

    The K sorted singular values lie at i / (K - 1); a flow with `cells` - 1 parameters (CPAB, zero at both ends) moves
    these places, and sigma is interpolated linearly there, as the authors' code does. It acts on qkv (q, k and v each
    by itself, with one map), proj, fc1 and fc2 of every block. The last block of each stage makes a stream of each task
    besides, with a map of `task_cells` - 1 parameters of its own: y_t = W_t x_t + b at proj, fc1 and fc2. What else
    trains, how streams run and which head reads what is as in MTLoRA. One trunk pass serves all tasks.

    The maps start at the identity, so step 0 is the frozen model; start = "released" is the authors': uniform in
    +- 1 / sqrt(parameters). Departures: singular vectors are computed once; the authors' maps of qkv for each task,
    whose results they drop, are left out (48 of 1,604,298 parameters on Swin-T); the flow is computed in closed form,
    as theirs, in double precision.
    """

    variants = ({"bias_tables": False},)

    cells: int = Field(default=64, gt=1, le=1024)
    """cells of the velocity of the shared maps"""
    task_cells: int = Field(default=4, gt=1, le=1024)
    """of those of a task"""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """on the input of each linear layer, in the shared stream, in training"""
    start: Literal["identity", "released"] = "identity"
    """first values of the maps"""
    merging: Literal["full", "frozen"] = "full"
    """whether the linear map that merges patches between stages trains"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        stages = stages_with_blocks(backbone, "DiTASK")
        for stage in stages:
            for block in stage.blocks:
                last, ends = block is stage.blocks[-1], stage is stages[-1]
                qkv, *others = linear_places(block, "DiTASK")
                if last:
                    yield from begin_streams(block)
                shared = self._flow(self.cells)
                for place in qkv:
                    parts = 3 if len(qkv) == 1 and place.width % 3 == 0 else 1
                    if self.dropout:
                        yield place.before(nn.Dropout(self.dropout))
                    yield place.reparametrize(WarpedWeight(Spectrum(place.weight, parts), shared))
                for (place,) in others:
                    spectrum = Spectrum(place.weight)
                    layer = WarpedWeight(spectrum, self._flow(self.cells))
                    if self.dropout:
                        drop = DropShared(self.dropout, place is others[0][0]) if last else nn.Dropout(self.dropout)
                        yield place.before(drop)
                    yield place.reparametrize(layer)
                    if not last:
                        continue
                    if ends:
                        layer.dormant = {"flow.theta": "the shared stream ends here; the heads read those of the tasks"}
                    own = TaskWeights(
                        place, {task: WarpedWeight(spectrum, self._flow(self.task_cells)) for task in self.names}
                    )
                    if not ends or len(self.names) > 1:
                        why = UNREAD_HERE if ends else UNREAD
                        own.dormant = {f"own.{task}.flow.theta": why for task in self.names}
                    yield place.after(own, reads=(place.input,))
            yield from end_streams(backbone, stage, stages)
        yield from self.unfrozen(backbone)

    def _flow(self, cells: int) -> MonotoneFlow:
        return MonotoneFlow(cells, 0.0 if self.start == "identity" else 1.0 / math.sqrt(cells - 1))
