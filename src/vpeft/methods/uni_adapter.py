"""UniAdapter: adapters whose norm and down projection serve the image tower, the text tower and what joins them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..method import BadField, Method, register


@register("uni_adapter", category="addition", family="adapter", paper="2302.06605", year=2024, venue="ICLR")
class UniAdapter(Method):
    """A scaled bottleneck with its own norm beside each MLP, the first half of which serves all towers of a model.

    d(x) = ReLU(W_down LN'(x) + b_down), x (B, N, D) the stream behind the attention, W_down (R, D), LN' trained.
    Images: out = x + MLP(LN(x)) + s (W_v d(x) + b_v). Texts: the same with W_t. Layers with cross-attention: what the
    layer gives + s LN_c(W_m d(c) + b_m + W_t d(a) + b_t), a and c (B, N, D) what self- and cross-attention give behind
    their norms. Put on several towers together ("*", or "image+text_encoder"), block i of each has one LN' and one
    W_down; they need one width. On one tower it equals AdaptFormer with a norm in front and the start below.

    W_down starts Kaiming-uniform, W_t at zero, W_v and W_m at N(0, 0.02), since the authors' own zeros are drawn anew,
    so step 0 is not the frozen model; start="identity" keeps those at zero too. LN_c trains, as the paper counts it;
    the code freezes it by accident. Left out: the offsets of keys and values for video.
    """

    bottleneck: int = Field(default=128, gt=0)
    """R; 128 or 512 in the paper"""
    scale: float = 0.1
    """s, multiplies the bias too"""
    start: Literal["published", "identity"] = "published"
    """W_v and W_m at N(0, 0.02), or zero"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            yield self._edit(backbone, block)

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """One norm and one W_down for the blocks of one number.

        Raises:
            BadField: the towers have different widths.
        """
        halves: dict[int, tuple[nn.Module, nn.Module]] = {}
        widths = {block.dim for tower in towers.values() for block in tower.blocks}
        if len(widths) > 1:
            each = ", ".join(f"{name} {tower.blocks[0].dim}" for name, tower in towers.items())
            raise BadField(
                f"UniAdapter shares a norm and a down projection between towers, which need one width; here they have"
                f" {each}. Put one on each tower: {{{', '.join(f'{name!r}: UniAdapter()' for name in towers)}}}."
            )
        for tower in towers.values():
            for number, block in enumerate(tower.blocks):
                edit = self._edit(tower, block)
                layer = edit.layer
                assert isinstance(layer, (Bottleneck, CrossModal))
                layer.norm, layer.down = halves.setdefault(number, (layer.norm, layer.down))
                yield edit

    def _edit(self, tower: Backbone, block: Block) -> Edit:
        if block.has("cross"):
            joint = CrossModal(block.dim, self.bottleneck, self.scale)
            if self.start == "published":
                nn.init.trunc_normal_(joint.up.weight, std=0.02)
            return block.after(joint, reads=(block.attn, block.parts["cross"]))
        layer = Bottleneck(block.dim, self.bottleneck, scale=self.scale, layer_norm="in")
        if self.start == "published" and tower.inputs.layout != "tokens":
            nn.init.trunc_normal_(layer.up.weight, std=0.02)
        return block.mlp_branch.parallel(layer)


class CrossModal(nn.Module):
    """h, a and c (B, N, D) -> h + s LN_c(W_m d(c) + b_m + W_t d(a) + b_t), d(x) = ReLU(W_down LN(x) + b_down).

    In a pass without an image there is no c: h -> h + s (W_t d(a) + b_t).

    Args:
        width: D.
        bottleneck: R.
        scale: s.
    """

    optional_reads = (1,)

    def __init__(self, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        text = Bottleneck(width, bottleneck, layer_norm="in")
        self.norm: nn.Module = text.norm
        self.down: nn.Module = text.down
        self.up_text, self.up = text.up, nn.Linear(bottleneck, width)
        self.last_norm = nn.LayerNorm(width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = scale

    def forward(self, hidden: Tensor, own: Tensor, crossed: Tensor | None) -> Tensor:
        texts: Tensor = self.up_text(F.relu(self.down(self.norm(own))))
        if crossed is None:
            return hidden + self.scale * texts
        joint: Tensor = self.last_norm(self.up(F.relu(self.down(self.norm(crossed)))) + texts)
        return hidden + self.scale * joint
