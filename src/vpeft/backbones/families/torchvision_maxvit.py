"""torchvision's MaxVit: MBConv units, and attention and MLP in windows, then over a dilated grid.

The blocks are the attention layers. Each cuts the map before its norms and puts it together behind its MLP, so that no
module begins or ends where the branches do on the map: while an edit needs that, a class of this file stands in, which
cuts the map for each branch, behind its norm. The places within a window see (B, windows, positions, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.maxvit import PartitionAttentionLayer, RelativePositionalMultiHeadAttention

from vpeft.backbones import outline

from ..attention_bias import widened
from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, own_parameters, projection, site
from ..convolutional import Unit, conv_stride, norm_width
from ..convolutional_net import stem_places
from ..describe import family
from ..places import Place, Projection
from ..points import Layout, Point, StandIn
from ..staged import BlockMaker, Passage, convolutions, lay_out
from .torchvision_efficientnet import last_of_classifier


class EditedRelativeAttention(RelativePositionalMultiHeadAttention):  # type: ignore[misc]
    """torchvision's attention with edits between q, k, v and their use; bit-equal without.

    Further keys come first and have no position (bias 0).
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, windows, count, width = x.shape
        parts = (
            part.reshape(batch, windows, count, self.n_heads, self.head_dim).permute(0, 1, 3, 2, 4)
            for part in torch.chunk(self.to_qkv(x), 3, dim=-1)
        )
        core: Any = self.vpeft_core
        q, k, v = (part.unflatten(0, (batch, windows)) for part in core(*(part.flatten(0, 1) for part in parts)))
        scores = torch.einsum("BGHID,BGHJD->BGHIJ", q, k * self.scale_factor)
        scores = core.scores(scores.flatten(0, 1)).unflatten(0, (batch, windows))
        bias = widened(self.get_relative_positional_bias(), q.shape[3], k.shape[3], 0)
        weights = core.weights(F.softmax(scores + bias, dim=-1).flatten(0, 1)).unflatten(0, (batch, windows))
        mixed = torch.einsum("BGHIJ,BGHJD->BGHID", weights, v)
        out: Tensor = self.merge(mixed.permute(0, 1, 3, 2, 4).reshape(batch, windows, count, width))
        return out


class EditedPartition(PartitionAttentionLayer):  # type: ignore[misc]
    """A layer that cuts the map for each branch, so that both begin and end on the map; bit-equal to torchvision's."""

    def forward(self, x: Tensor) -> Tensor:
        for part, layers in (("attn", self.attn_layer), ("mlp", self.mlp_layer)):
            opening, closing = (self.__dict__[f"vpeft_{part}_{end}"] for end in ("opens", "closes"))
            normed = layers[0](opening(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            cut = self.partition_swap(self.partition_op(normed, self.p))
            for layer in layers[1:]:
                cut = layer(cut)
            cut = self.departition_swap(self.stochastic_dropout(cut))
            x = x + closing(self.departition_op(cut, self.p, self.grid_size[0] // self.p, self.grid_size[1] // self.p))
        return x


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    x = net.stem(images)
    for block in net.blocks:
        x = block(x)
    for layer in list(net.classifier)[:-1]:
        x = layer(x)
    pooled: Tensor = x
    return pooled


@family("torchvision_maxvit", "torchvision.models.maxvit.MaxVit")
def describe_torchvision_maxvit(model: nn.Module) -> Backbone:
    """torchvision MaxVit: each unit of convolutions is followed by attention in windows and over a grid."""
    net: Any = model
    grid = net.blocks[0].grid_size  # behind the stem and the first unit, each of stride 2
    size = (int(grid[0]) * 4, int(grid[1]) * 4)
    stem, stride = stem_places((net.stem,), size)
    steps = [step for block in net.blocks for layer in block.layers for step in _steps(layer)]
    made = lay_out(steps, size, stride, Layout.CHANNELS_FIRST)
    end, width = made.where, made.stages[-1].width
    start = Where(-1, Layout.CHANNELS_FIRST, (size[0] // stride, size[1] // stride), 0, stride)
    final, hidden = net.classifier[2], net.classifier[3]
    return Backbone(
        module=model,
        facts=Facts(
            family="torchvision_maxvit",
            library="torchvision",
            architecture=type(model).__name__,
            image_size=size,
            depth=end.depth,
            width=int(hidden.out_features),
            prefix_tokens=0,
            pooling="avg",
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(net.stem, "input"), stem[0].width_in),
        trunk=outline.trunk(
            made.stages,
            stem[-1].width,
            where=Where(0, Layout.CHANNELS_FIRST, end.grid, 0, end.stride),
            enter=Point(net.blocks[0], "input"),
        ),
        stages=made.stages,
        norm=norm("norm", final, Where(end.depth, Layout.VECTOR), width),
        others=[
            *stem,
            outline.embedding(Point(net.stem, "output"), start, stem[-1].width),
            projection("pre_logits", hidden, Where(end.depth, Layout.VECTOR)),
        ],
        pooled=_pooled,
        classifier=last_of_classifier,
        end=Point(net.classifier[0], "input"),
    )


def _steps(layer: Any) -> Iterator[Passage | BlockMaker]:
    unit, window, grid = layer.layers
    inner, keeps = unit.layers, isinstance(unit.proj, nn.Identity)
    made = Unit(
        module=unit,
        branch=(inner,),
        enter=Point(unit, "input"),
        inner=Point(unit, "output"),
        exit=Point(unit, "output"),
        keeps=keeps,
        gate=(inner.squeeze_excitation,),
        shortcut=None if keeps else unit.proj,
        stride=1 if keeps else conv_stride([unit.proj]),
    )
    yield convolutions(made, opens=not keeps)
    for module in (window, grid):
        yield _maker(module)


def _maker(module: Any) -> BlockMaker:
    def make(index: int, stage: int, where: Where) -> Block:
        return _block(index, module, where)

    return make


def _block(index: int, module: Any, where: Where) -> Block:
    name, opens1, opens2 = f"blocks.{index}", module.attn_layer[0], module.mlp_layer[0]
    width = norm_width(opens1)
    inside = Where(index, Layout.MAP, None, 0, where.stride)
    attn = _attention(f"{name}.attn", module.attn_layer[1], inside, width)
    fc1, fc2 = (
        projection(f"{name}.mlp.fc{number}", layer, inside)
        for number, layer in enumerate((part for part in module.mlp_layer if isinstance(part, nn.Linear)), start=1)
    )
    ends = Point(module.mlp_layer[1], "input"), Point(module.mlp_layer[-1], "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, inside, width, {"fc1": fc1, "fc2": fc2}, None, (fc1,))
    anchors = {f"vpeft_{part}_{end}": nn.Identity() for part in ("attn", "mlp") for end in ("opens", "closes")}
    needs = (StandIn(module, EditedPartition, anchors),)

    def half(
        number: int, part: str, inner: AttentionSite | MlpSite, first: nn.Module, writer: Projection
    ) -> outline.Residual:
        opens = norm(f"{name}.norm{number}", first, where.but(Layout.MAP), width, inner.consumers)
        opens.enter, opens.exit = Point(first, "input", needs=needs), Point(first, "output", needs=needs)
        begins = Point(anchors[f"vpeft_{part}_opens"], "input", needs=needs)
        closes = Point(anchors[f"vpeft_{part}_closes"], "output", needs=needs)
        return outline.Residual(inner, begins, closes, opens, writer=writer)

    return outline.residual_pair(
        index,
        module,
        (half(1, "attn", attn, opens1, attn.proj), half(2, "mlp", mlp, opens2, fc2)),
        where,
        width,
        drop_path=float(module.stochastic_dropout.p),
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    qkv, side = projection(f"{name}.qkv", module.to_qkv, where), int(module.size)
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        rows = (offset * width, (offset + 1) * width)
        parts[letter] = projection(f"{name}.{letter}", module.to_qkv, where, rows)
    parts["proj"] = projection(f"{name}.proj", module.merge, where)
    parts["core"] = attention_core(
        f"{name}.core",
        module,
        EditedRelativeAttention,
        where.within((side, side), Layout.TOKENS),
        width,
        int(module.n_heads),
        per_window=True,
    )
    ends = Point(module, "input"), Point(module, "output")
    return site(name, AttentionSite, *ends, where, width, parts, own_parameters(module), (qkv,))
