"""timm's Swin Transformer: windows, shifts, patch merging; prompts travel beside the map, as in VPT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, SwinTransformerStage, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, Stage
from ..builders import Where, attention_core, norm, own_parameters, projection, site, token_rewrites
from ..describe import UnknownBackbone, family
from ..patch_merging import merging_places
from ..places import Place
from ..points import Layout, Point
from ..timm_isotropic import architecture, own_classifier, pooled_by_head
from ..window_tokens import BesideTokens as BesideTokens
from ..window_tokens import CellsInWindows, attend_beside, checkpointed
from .timm_vit import mlp_places


class EditedWindowAttention(WindowAttention):
    """timm's window attention with edits between q, k, v and their use, and with tokens before the window.

    Without either it is bit-equal to timm's. Tokens before the window, and further keys, have no relative position
    (bias 0) and no shift mask (0), as in VPT.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, count, _ = x.shape
        qkv = self.qkv(x).reshape(rows, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            q, k, v = core(q, k, v)
        tokens, extra = count - self.window_area, k.shape[2] - count
        bias = self._get_rel_pos_bias()
        if mask is not None:
            windows = mask.shape[0]
            area = self.window_area
            open_ = mask.view(1, windows, 1, area, area).expand(rows // windows, -1, self.num_heads, -1, -1)
            bias = bias + open_.reshape(-1, self.num_heads, area, area)
        if tokens or extra:
            bias = F.pad(bias, (tokens + extra, 0, tokens, 0))
        mapped = core is not None and core.needs_map
        if self.fused_attn and not mapped:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = self.softmax((core.scores(scores) if mapped else scores) + bias)
            x = self.attn_drop(core.weights(weights) if mapped else weights) @ v
        x = x.transpose(1, 2).reshape(rows, count, -1)
        out: Tensor = self.proj_drop(self.proj(x))
        return out


class PromptedSwinBlock(SwinTransformerBlock):
    """A Swin block that takes the carrier's tokens into every window and averages their outputs over the windows.

    The tokens pass the block's frozen norms and attention; edits act on what flows through the places, which in the
    windows and in the MLP branch includes the tokens, in front.
    """

    def forward(self, x: Tensor) -> Tensor:
        carrier = cast(BesideTokens, self.vpeft_carrier)
        tokens = carrier.tokens
        if tokens is None:
            plain: Tensor = super().forward(x)
            return plain
        batch, height, width, channels = x.shape
        count = tokens.shape[1]
        mapped, own = attend_beside(self, self.norm1(x), self.norm1.forward(tokens))
        x = x + self.drop_path1(mapped)
        tokens = tokens + self.drop_path1.forward(own)
        sequence = torch.cat([tokens, x.reshape(batch, -1, channels)], dim=1)
        sequence = sequence + self.drop_path2(self.mlp(self.norm2(sequence)))
        carrier.tokens = sequence[:, :count]
        mapped_again: Tensor = sequence[:, count:].reshape(batch, height, width, channels)
        return mapped_again


class PromptedPatchMerging(PatchMerging):
    """Patch merging that also widens the carrier's tokens: four copies through the same frozen norm and reduction."""

    def forward(self, x: Tensor) -> Tensor:
        carrier = cast(BesideTokens, self.vpeft_carrier)
        if carrier.tokens is not None:
            fourfold = torch.cat([carrier.tokens] * 4, dim=-1)
            carrier.tokens = self.reduction.forward(self.norm.forward(fourfold))
        out: Tensor = super().forward(x)
        return out


class PromptedSwinStage(SwinTransformerStage):
    """A stage whose activation checkpoints take the carrier's tokens in and out with the map."""

    def forward(self, x: Tensor) -> Tensor:
        carrier = cast(BesideTokens, self.vpeft_carrier)
        out: Tensor = checkpointed(self, carrier, x) if self.grad_checkpointing else super().forward(x)
        return out


@dataclass(frozen=True)
class Kinds:
    """What tells one version of Swin from another.

    Attributes:
        block: describes a block, given its index, stage, module, stride and carrier.
        stage: the class of a stage that carries tokens.
        merging: the class of patch merging, and the one that carries tokens.
    """

    block: Callable[[int, int, Any, int, BesideTokens], Block]
    stage: type[nn.Module]
    merging: tuple[type[nn.Module], type[nn.Module]]


@family("timm_swin", "timm.models.swin_transformer.SwinTransformer")
def describe_timm_swin(model: nn.Module) -> Backbone:
    """timm SwinTransformer (version 1): shifted windows, relative-position bias, four (or fewer) stages."""
    kinds = Kinds(_block, PromptedSwinStage, (PatchMerging, PromptedPatchMerging))
    return windowed("timm_swin", model, kinds)


def windowed(family: str, model: nn.Module, kinds: Kinds) -> Backbone:
    """The description of a timm Swin, of either version."""
    swin: Any = model
    carrier = BesideTokens(swin.norm)
    mean = Point(swin.norm, "output") if swin.global_pool == "avg" else None
    patch_stride = int(swin.patch_embed.patch_size[0])
    grid = tuple(swin.patch_embed.grid_size)
    merging = [
        (layer.downsample, kinds.merging[1]) for layer in swin.layers if isinstance(layer.downsample, kinds.merging[0])
    ]
    stages: list[Stage] = []
    for number, layer in enumerate(swin.layers):
        stages.append(
            _stage(number, layer, sum(len(s.blocks) for s in stages), patch_stride * 2**number, carrier, kinds)
        )
    depth = sum(len(stage.blocks) for stage in stages)
    stages[-1].pooled = stages[-1].blocks[-1].pooled = mean
    width0, last = int(swin.patch_embed.proj.weight.shape[0]), stages[-1]
    mapped = Where(-1, Layout.MAP, grid, 0, patch_stride)
    others: list[Place] = [projection("patch", swin.patch_embed.proj, mapped.but(Layout.CHANNELS_FIRST))]
    if not isinstance(swin.patch_embed.norm, nn.Identity):
        others.append(norm("patch_norm", swin.patch_embed.norm, mapped, width0))
    others.append(outline.embedding(Point(swin.patch_embed, "output"), mapped, width0))
    trunk = outline.trunk(
        stages,
        width0,
        enter=Point(swin.layers[0], "input"),
        exit=Point(swin.layers[-1], "output"),
        pooled=mean,
        between=tuple(merging),
    )
    return Backbone(
        module=swin,
        facts=Facts(
            family=family,
            library="timm",
            architecture=architecture(swin),
            image_size=tuple(swin.patch_embed.img_size),
            depth=depth,
            width=swin.num_features,
            prefix_tokens=0,
            pooling=swin.global_pool,
            dynamic_size=bool(getattr(swin, "dynamic_img_size", False)),
            rounding=("floor", "ceil"),
        ),
        pixels=outline.pixels(Point(swin.patch_embed, "input"), int(swin.patch_embed.proj.weight.shape[1])),
        trunk=trunk,
        stages=stages,
        norm=norm("norm", swin.norm, Where(depth, Layout.MAP, last.grid, 0, last.stride), swin.num_features),
        others=others,
        pooled=pooled_by_head,
        classifier=own_classifier,
    )


def _stage(number: int, layer: Any, start: int, stride: int, carrier: BesideTokens, kinds: Kinds) -> Stage:
    """One stage; the merging of patches before it belongs to it."""
    blocks = [kinds.block(start + at, number, module, stride, carrier) for at, module in enumerate(layer.blocks)]
    where, merging = Where(start, Layout.MAP, blocks[0].grid, 0, stride), layer.downsample
    merges = isinstance(merging, kinds.merging[0])
    parts = merging_places(number, merging, where) if merges else {}
    carried = (layer, kinds.stage)
    for block in blocks:
        block.rewrites = token_rewrites((*block.rewrites["insert_tokens"], carried))
    return outline.stage(number, blocks, where, parts, downsample=merging if merges else None)


def _block(index: int, stage: int, module: Any, stride: int, carrier: BesideTokens) -> Block:
    kind: type = type(module)
    if kind is not SwinTransformerBlock and kind is not PromptedSwinBlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_swin describes SwinTransformerBlock.")
    where = inside(index, module, stride)
    attn = _attention(f"blocks.{index}.attn", module.attn, where, module.dim)
    attn.core.cells_in_windows = CellsInWindows(module)
    pairs = ((module, PromptedSwinBlock), (module.attn, EditedWindowAttention))
    return swin_block(index, stage, module, stride, carrier, attn, pairs)


def inside(index: int, module: Any, stride: int) -> Where:
    """The tokens of one window of a block."""
    return Where(index, Layout.TOKENS, None, 0, stride).within((int(module.window_size[0]), int(module.window_size[1])))


def swin_block(
    index: int,
    stage: int,
    module: Any,
    stride: int,
    carrier: BesideTokens,
    attn: AttentionSite,
    pairs: tuple[tuple[nn.Module, type[nn.Module]], ...],
    opening: Point | None = None,
) -> Block:
    """A block of a timm Swin.

    Args:
        attn: the places inside the window attention.
        pairs: what carrying tokens needs.
        opening: where the attention branch begins, in a block whose norms close its branches.
    """
    name, width, post = f"blocks.{index}", module.dim, opening is not None
    grid = (int(module.input_resolution[0]), int(module.input_resolution[1]))
    mapped, sequence = (Where(index, layout, grid, 0, stride) for layout in (Layout.MAP, Layout.TOKENS))
    mlp = mlp_places(f"{name}.mlp", module.mlp, sequence, width)
    # padded windows carry zeros that the norm's edits never see, so then nothing merges into qkv
    padded = any(size % window for size, window in zip(grid, module.window_size, strict=True))
    reads_attn, reads_mlp = () if padded or post else attn.consumers, () if post else mlp.consumers
    enters = (opening or Point(module.norm1, "input"), Point(module.mlp if post else module.norm2, "input"))
    writes = (None, None) if post else (attn.proj, mlp.fc2)
    leaves = Point(module.drop_path1, "output"), Point(module.drop_path2, "output")
    return outline.residual_pair(
        index,
        module,
        (
            outline.Residual(attn, enters[0], leaves[0], module.norm1, reads_attn, writes[0]),
            outline.Residual(mlp, enters[1], leaves[1], module.norm2, reads_mlp, writes[1], where=sequence),
        ),
        mapped,
        width,
        carrier=carrier,
        rewrites=token_rewrites(pairs),
        drop_path=float(getattr(module.drop_path1, "drop_prob", 0.0) or 0.0),
        stage=stage,
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    qkv = projection(f"{name}.qkv", module.qkv, where)
    third = qkv.width // 3
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        parts[letter] = projection(f"{name}.{letter}", module.qkv, where, (offset * third, (offset + 1) * third))
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    parts["core"] = attention_core(
        f"{name}.core", module, EditedWindowAttention, where, third, module.num_heads, per_window=True
    )
    return site(
        name,
        AttentionSite,
        Point(module, "input"),
        Point(module, "output"),
        where,
        width,
        parts,
        own_parameters(module),
        (qkv,),
    )
