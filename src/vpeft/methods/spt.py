"""SPT: the most sensitive weights train, and matrices with many of them get a low-rank update or an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..errors import VpeftError
from ..layers.class_labels import class_labels
from ..layers.dropped import DroppedLowRank, OnOutput, SparseShift
from ..layers.scale_shift import Shift
from ..layers.sensitivity import Candidate, Share, allocate, candidates, sensitivity, spread
from ..method import Method, register
from .shira import SparseEntries

FEW = 16  # fewer trained entries of a matrix than this may all be without a gradient

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("spt", category="partial", family="specification", paper="2303.08566", year=2023, venue="ICCV")
class SPT(Method):
    """Under a budget the most sensitive weights train one by one; matrices with many of them get a module instead.

    `prepare` sums the squared gradients of the task's loss over up to 16 batches, marks the tau largest numbers of
    all q, k, v, proj, fc1, fc2, their biases and the norms, and for each matrix compares the marks with the module's
    parameters (`layers.sensitivity`); tau is such that the count is next to the budget. Then the edits are attached:
    sparse: y = (W + S) x, S zero but at the marks. lora: y = W x + b + DP(B A drop(x)), A (R, D_in), B (D_out, R).
    adapter: y + DP(U GELU(D drop(y) + b_1) + b_2) on the matrix's output y; on proj it reads proj's input, without
    drop. Vectors train whole, biases also by entries. The class token trains. S, B, U start at zero, so step 0 is the
    frozen model. Sparse and lora fold into the weights.

    Until `prepare` the budget lies evenly on the matrices, so that a plan can be shown. start="released": the code's
    modules, drawn anew at N(0, 0.02). Departures: the budget is a share of the backbone (the paper's 0.05 to 1 M are
    0.0006 to 0.0117 of ViT-B/16); a vector's change is added and starts at zero; partly marked norms are not counted.
    """

    module: Literal["lora", "adapter"] = "lora"
    """SPT-LoRA or SPT-Adapter"""
    budget: float = Field(default=0.005, gt=0.0, lt=1.0)
    """trained numbers without the head, as a share of the backbone's; the tables' averages are 0.43 M of 86 M"""
    rank: int = Field(default=8, gt=0)
    """R, also the adapter's bottleneck"""
    alpha: float = Field(default=10.0, gt=0.0)
    """a matrix gets a module where it has at least this part of the module's parameters in marks"""
    beta: float = Field(default=5.0, gt=0.0)
    """a vector trains whole where at least this part of it is marked"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """in front of a module"""
    batches: int = Field(default=16, gt=0)
    """how many batches `prepare` looks at"""
    start: Literal["paper", "released"] = "paper"
    """first values of modules"""
    allocation: Mapping[str, Share] | None = None
    """what trains, by the names of tensors: a number of entries, or "whole"; None until `prepare` has decided"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "paper"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        found = candidates(backbone)
        chosen = spread(found, self._budget(backbone)) if self.allocation is None else self.allocation
        for one in sorted(found, key=lambda one: one.kind == "matrix"):  # biases first: an adapter reads behind them
            share = chosen.get(one.name)
            if share is not None:
                yield self._edit(one, share, backbone)
        if "cls_token" in backbone.embedding.own:
            yield backbone.embedding.unfreeze("cls_token")

    def _edit(self, one: Candidate, share: Share, backbone: Backbone) -> Edit:
        place = one.place
        if not isinstance(place, Projection):
            return place.unfreeze(one.name.rpartition(".")[2])
        if one.kind == "bias":
            return place.after(Shift(one.size) if share == "whole" else SparseShift(one.size, share))
        if share != "whole":
            entries = SparseEntries(torch.arange(share) * one.size // share)
            if share < FEW:
                entries.dormant = {"values": "so few entries may all lie in channels that an activation holds at zero"}
            return place.reparametrize(entries)
        path = backbone.blocks[place.depth].drop_path
        if self.module == "lora":
            layer: nn.Module = DroppedLowRank(place.width_in, place.width, self.rank, self.dropout, path)
        else:
            at_input = place.name.endswith("proj")
            layer = OnOutput(place.width, self.rank, 0.0 if at_input else self.dropout, path, at_input)
        if self.start == "released":
            for weight in (tensor for tensor in layer.parameters() if tensor.dim() == 2):
                nn.init.trunc_normal_(weight, std=0.02)
        beside = self.module == "lora" or place.name.endswith("proj")
        return place.parallel(layer) if beside else place.after(layer)

    def _budget(self, backbone: Backbone) -> int:
        return max(1, round(self.budget * sum(p.numel() for p in backbone.module.parameters())))

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        if self.allocation is not None:
            return  # a loaded or resumed adapter keeps what was decided
        backbone = tuned.description
        found = candidates(backbone)

        values = sensitivity(partial(_loss, tuned), found, islice(batches, self.batches))
        token = backbone.embedding.own.get("cls_token")
        spent = 0 if token is None else getattr(*token).numel()
        decided = allocate(
            found, values, self._cost, self._budget(backbone), spent=spent, alpha=self.alpha, beta=self.beta
        )
        shares: dict[str, Share] = {key: "whole" if at is None else len(at) for key, at in decided.items()}
        tuned.replace_method(self, self.model_copy(update={"allocation": shares}))
        for edit in tuned.adapter().edits:
            for kind, layer in (("weight", SparseEntries), ("bias", SparseShift)):
                if isinstance(edit.layer, layer) and (at := decided.get(f"{edit.place.name}.{kind}")) is not None:
                    edit.layer.index.copy_(torch.tensor(at))

    def _cost(self, one: Candidate) -> int:
        """Parameters of a module at a matrix (out, in)."""
        width, width_in = one.shape
        lora = self.module == "lora"
        return self.rank * (width + width_in) if lora else 2 * self.rank * width + self.rank + width

    def advance(self, tuned: TunedModel, progress: float) -> None:
        if progress == 0.0 and self.allocation is None:
            raise VpeftError("SPT has not selected its weights yet. Call tuned.prepare(batches) before training.")


def _loss(tuned: TunedModel, batch: Any) -> Tensor:
    """The task's loss of a batch; the cross-entropy of a pair of images and labels, or where there is no task."""
    if tuned.task is not None and not isinstance(batch, tuple):
        parts: dict[str, Tensor] = tuned.task.loss(tuned.task.run(tuned, batch), batch)
        return torch.stack(list(parts.values())).sum()
    images, labels = batch
    images = images.to(next(tuned.parameters()).device)
    return F.cross_entropy(tuned(images), class_labels(labels, len(images), "SPT").to(images.device))
