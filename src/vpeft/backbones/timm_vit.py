"""timm's VisionTransformer: class token or not, registers, LayerScale, qk-norm, any pooling, dynamic image size."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .anatomy import Where, branch, norm, own_parameters, projection, site, skip, span_verbs, stream
from .backbone import Backbone, Facts
from .blocks import AttentionSite, Block, MlpSite, Stage
from .describe import UnknownBackbone, family
from .places import Attention, Place, Site, Span
from .points import Layout, Point
from .tokens import TokenCarrier


class EditedAttention(TimmAttention):
    """timm's attention with edits between q, k, v and their use; bit-equal to it without edits."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, count, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        core: Any = self.vpeft_core
        q, k, v = core(q, k, v)
        extra = k.shape[2] - count
        if is_causal:
            ones = torch.ones(count, count, dtype=torch.bool, device=x.device)
            attn_mask = torch.zeros(count, count, dtype=q.dtype, device=x.device).masked_fill(ones.triu(1), -torch.inf)
        if extra and attn_mask is not None:  # further keys come first and are open to every query
            attn_mask = F.pad(attn_mask, (extra, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
        if self.fused_attn and not core.needs_map:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        else:
            scores = core.scores((q * self.scale) @ k.transpose(-2, -1))
            if attn_mask is not None:
                if attn_mask.dtype == torch.bool:
                    scores = scores.masked_fill(~attn_mask, -torch.inf)
                else:
                    scores = scores + attn_mask
            x = self.attn_drop(core.weights(scores.softmax(dim=-1))) @ v
        x = self.norm(x.transpose(1, 2).reshape(batch, count, self.attn_dim))
        if gate is not None:
            x = x * gate
        out: Tensor = self.proj_drop(self.proj(x))
        return out


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    vit: Any = model
    pooled: Tensor = vit.forward_head(vit.forward_features(images), pre_logits=True)
    return pooled


def _classifier(model: nn.Module) -> nn.Module:
    vit: Any = model
    classifier: nn.Module = vit.get_classifier()
    return classifier


@family("timm_vit", "timm.models.vision_transformer.VisionTransformer")
def describe_timm_vit(model: nn.Module) -> Backbone:
    """timm VisionTransformer and its relatives in that class (DeiT, MAE, CLIP, SigLIP, DINOv2 towers)."""
    vit: Any = model
    width, prefix = vit.embed_dim, vit.num_prefix_tokens
    grid = tuple(vit.patch_embed.grid_size)
    stride = int(vit.patch_embed.patch_size[0])
    carrier = TokenCarrier(prefix)
    blocks = [_block(index, module, grid, prefix, stride, carrier) for index, module in enumerate(vit.blocks)]
    depth, first, last = len(blocks), vit.blocks[0], vit.blocks[-1]
    stem = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)
    tokens = Where(-1, Layout.TOKENS, grid, prefix, stride)
    embedding = Site(
        name="embedding",
        width=width,
        enter=None,
        exit=Point(vit.norm_pre, "output"),
        verbs=frozenset({"after", "tap", "unfreeze"}),
        own={
            name: (vit, name)
            for name in ("cls_token", "reg_token", "pos_embed")
            if vit._parameters.get(name) is not None
        },
        **tokens.shared(),
    )
    others: list[Place] = [projection("patch", vit.patch_embed.proj, stem), embedding]
    if not isinstance(vit.patch_embed.norm, nn.Identity):
        others.insert(1, norm("patch_norm", vit.patch_embed.norm, tokens.but(Layout.TOKENS, prefix=0), width))
    if not isinstance(vit.norm_pre, nn.Identity):
        others.append(norm("norm_pre", vit.norm_pre, tokens, width))
    mean = Point(vit.norm, "output") if vit.global_pool == "avg" and vit.attn_pool is None else None
    blocks[-1].pooled = mean
    trunk = Span(
        name="trunk",
        width=width,
        enter=Point(first, "input"),
        exit=Point(last, "output"),
        verbs=span_verbs(carrier) - {"unfreeze"},
        nesting=0,
        carrier=carrier,
        pooled=mean,
        **Where(0, Layout.TOKENS, grid, prefix, stride).shared(),
    )
    stage = Stage(
        name="stages.0",
        width=width,
        enter=trunk.enter,
        exit=trunk.exit,
        verbs=span_verbs(carrier) - {"unfreeze"},
        nesting=1,
        carrier=carrier,
        pooled=mean,
        parts={block.name: block for block in blocks},
        blocks=blocks,
        **Where(0, Layout.TOKENS, grid, prefix, stride).shared(),
    )
    after = Where(depth, Layout.TOKENS, grid, prefix, stride)
    final = None
    if not isinstance(vit.norm, nn.Identity):
        final = norm("norm", vit.norm, after, width)
    elif not isinstance(vit.fc_norm, nn.Identity):
        final = norm("norm", vit.fc_norm, after.but(Layout.VECTOR), width)
    return Backbone(
        module=vit,
        facts=Facts(
            family="timm_vit",
            library="timm",
            architecture=architecture(vit),
            image_size=tuple(vit.patch_embed.img_size),
            depth=depth,
            width=width,
            prefix_tokens=prefix,
            pooling=vit.global_pool,
            dynamic_size=vit.dynamic_img_size,
        ),
        pixels=Site(
            name="pixels",
            width=int(vit.patch_embed.proj.weight.shape[1]),
            enter=Point(vit.patch_embed, "input"),
            exit=None,
            verbs=frozenset({"before", "tap"}),
            layout=Layout.CHANNELS_FIRST,
            depth=-1,
        ),
        trunk=trunk,
        stages=[stage],
        norm=final,
        others=others,
        pooled=_pooled,
        classifier=_classifier,
        end=Point(vit.norm, "input"),
    )


def architecture(model: nn.Module) -> str:
    """timm's name of the model with its pre-training tag, or the class name of a model made by hand."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or type(model).__name__
    tag = config.get("tag")
    return f"{name}.{tag}" if tag else str(name)


def _block(index: int, module: Any, grid: tuple[int, int], prefix: int, stride: int, carrier: TokenCarrier) -> Block:
    if type(module) not in (TimmBlock, ResPostBlock):
        raise UnknownBackbone(
            f"blocks.{index} is a {type(module).__name__}; timm_vit describes blocks of the classes Block and"
            " ResPostBlock."
        )
    post = isinstance(module, ResPostBlock)
    name, where = f"blocks.{index}", Where(index, Layout.TOKENS, grid, prefix, stride)
    width = int(module.norm1.weight.shape[0])
    attn = attention_places(f"{name}.attn", module.attn, where, width)
    mlp = mlp_places(f"{name}.mlp", module.mlp, where, width)
    # in a post-norm block the norm closes the branch, so nothing reads it alone
    reads_attn, reads_mlp = ((), ()) if post else (attn.consumers, mlp.consumers)
    attn_branch = branch(
        f"{name}.attn_branch",
        Point(module.attn if post else module.norm1, "input"),
        Point(module.drop_path1, "output"),
        where,
        width,
        (module.attn, module.norm1, module.drop_path1)
        if post
        else (module.norm1, module.attn, module.ls1, module.drop_path1),
    )
    mlp_branch = branch(
        f"{name}.mlp_branch",
        Point(module.mlp if post else module.norm2, "input"),
        Point(module.drop_path2, "output"),
        where,
        width,
        (module.mlp, module.norm2, module.drop_path2)
        if post
        else (module.norm2, module.mlp, module.ls2, module.drop_path2),
    )
    if not post:  # in a post-norm block the norm writes the branch
        for around, writer, scale in ((attn_branch, attn.proj, module.ls1), (mlp_branch, mlp.fc2, module.ls2)):
            around.writer, around.gain = writer, (scale, "gamma") if hasattr(scale, "gamma") else None
    scales = (
        {}
        if post
        else {
            f"{ls}.gamma": (getattr(module, ls), "gamma")
            for ls in ("ls1", "ls2")
            if hasattr(getattr(module, ls), "gamma")
        }
    )
    drop = module.drop_path1
    return Block(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(carrier),
        nesting=2,
        carrier=carrier,
        own=scales,
        parts={
            "norm1": norm(f"{name}.norm1", module.norm1, where, width, reads_attn),
            "attn": attn,
            "attn_branch": attn_branch,
            "skip1": skip(f"{name}.skip1", attn_branch, where),
            "stream1": stream(f"{name}.stream1", attn_branch, where),
            "norm2": norm(f"{name}.norm2", module.norm2, where, width, reads_mlp),
            "mlp": mlp,
            "mlp_branch": mlp_branch,
            "skip2": skip(f"{name}.skip2", mlp_branch, where),
            "stream2": stream(f"{name}.stream2", mlp_branch, where),
        },
        index=index,
        drop_path=float(getattr(drop, "drop_prob", 0.0) or 0.0),
        **where.shared(),
    )


def attention_places(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    """Places of a timm `Attention`: its fused qkv, the slices, the core and the output projection."""
    qkv = projection(f"{name}.qkv", module.qkv, where)
    third = qkv.width // 3
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        parts[letter] = projection(f"{name}.{letter}", module.qkv, where, (offset * third, (offset + 1) * third))
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    for inner in ("q_norm", "k_norm", "norm"):
        layer = getattr(module, inner)
        if not isinstance(layer, nn.Identity):
            parts[inner] = norm(f"{name}.{inner}", layer, where, int(layer.weight.shape[0]))
    if type(module) is TimmAttention:
        parts["core"] = Attention(
            name=f"{name}.core",
            width=third,
            enter=None,
            exit=None,
            verbs=frozenset({"extend"}),
            rewrites={"extend": ((module, EditedAttention),)},
            heads=module.num_heads,
            head_width=module.head_dim,
            **where.shared(),
        )
    gated = getattr(module, "gate", None) is not None
    if gated:
        parts["gate"] = projection(f"{name}.gate", module.gate, where)
    return cast(
        AttentionSite,
        site(
            name,
            AttentionSite,
            Point(module, "input"),
            Point(module, "output"),
            where,
            width,
            parts,
            own_parameters(module),
            () if gated else (qkv,),
        ),
    )


def mlp_places(name: str, module: Any, where: Where, width: int) -> MlpSite:
    """Places of a timm MLP: its two projections, and a third one where it is gated (SwiGLU)."""
    first = [key for key in ("fc1", "fc1_g", "fc1_x") if hasattr(module, key)]
    parts: dict[str, Place] = {key: projection(f"{name}.{key}", getattr(module, key), where) for key in first}
    inner = getattr(module, "norm", None)
    if inner is not None and not isinstance(inner, nn.Identity):
        parts["norm"] = norm(f"{name}.norm", inner, where, int(inner.weight.shape[0]))
    parts["fc2"] = projection(f"{name}.fc2", module.fc2, where)
    consumers = tuple(part for key, part in parts.items() if key in first)
    return cast(
        MlpSite,
        site(name, MlpSite, Point(module, "input"), Point(module, "output"), where, width, parts, None, consumers),  # type: ignore[arg-type]
    )
