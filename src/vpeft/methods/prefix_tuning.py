"""Prefix-tuning: learnable keys and values in front of those of every attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.prefix import MadePrefix, Prefix, Start
from ..layers.prompt import xavier_bound
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("prefix_tuning", category="addition", family="prefix", paper="2101.00190", year=2021, venue="ACL")
class PrefixTuning(Method):
    """n keys and values join each attention; queries and the sequence stay as they are.

    out = softmax(q [K_p; k]^T / sqrt(d)) [V_p; v] in each of h heads, K_p, V_p (h, n, d) from (n, D). In form "mlp"
    [K_p, V_p] = W_2 tanh(W_1 T + b_1) + b_2 with T (n, D), W_1 (m, D), W_2 (2D, m); `collapse` keeps the result and
    drops the network. In windows the same prefix serves all, without position bias and shift mask.

    The order of the keys does not matter, so that prefixes at the end are the same. V-PETL's released file softmaxes
    only the N own columns where a window is masked; this is the equation above everywhere.
    """

    length: int = Field(default=20, gt=0)
    """n"""
    form: Literal["direct", "mlp"] = "direct"
    """whether K_p and V_p are the parameters, or a network makes them"""
    hidden: int = Field(default=128, gt=0)
    """m, for "mlp\""""
    init: Start = "vpt"
    """for "direct": uniform in VPT's bound, in (-1, 1) (DualPrompt), or in (0, 0.01) times two learned factors (LAE)"""
    compensate: bool = False
    """whether the prefix columns of the attention map are divided by their sum (LAE)"""
    blocks: tuple[int, ...] | None = None
    """which blocks have a prefix; None means all, LAE takes the first five"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        for block in backbone.blocks:
            if self.blocks is not None and block.index not in self.blocks:
                continue
            core, n = block.attn.core, self.length
            layer: Prefix
            if self.form == "mlp":
                layer = MadePrefix(core.heads, core.head_width, n, self.hidden, compensate=self.compensate)
            else:
                bound = xavier_bound(backbone, core.width)
                layer = Prefix(core.heads, core.head_width, n, bound=bound, start=self.init, compensate=self.compensate)
            yield core.extend(layer)

    @torch.no_grad()
    def collapse(self, tuned: TunedModel, name: str | None = None) -> tuple[PrefixTuning, dict[str, Tensor]]:
        """The direct method and the tensors (its own and the head's) that give the same outputs as `tuned` does."""
        state = {key: value for key, value in tuned.adapter_state(name).items() if key.startswith("head.")}
        for key, layer in tuned.adapter(name).named_modules():
            if isinstance(layer, Prefix):
                keys, values = layer.rows()
                state |= {f"{key}.keys": keys.clone(), f"{key}.values": values.clone()}
        return self.model_copy(update={"form": "direct", "init": "vpt"}), state
