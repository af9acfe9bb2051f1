"""What timm's isotropic transformers share: equal residual blocks over one sequence, and everything around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from . import outline
from .backbone import Backbone, Facts
from .blocks import AttentionSite, Block, MlpSite
from .builders import Where, norm, projection
from .grids import Rounding
from .places import Norm, Place, Rewrites
from .points import Layout, Point
from .tokens import TokenCarrier

Gain = tuple[nn.Module, str] | None


def pooled_by_head(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the last layer of a timm model, (B, D)."""
    net: Any = model
    pooled: Tensor = net.forward_head(net.forward_features(images), pre_logits=True)
    return pooled


def own_classifier(model: nn.Module) -> nn.Module:
    """The last layer of a timm model."""
    net: Any = model
    classifier: nn.Module = net.get_classifier()
    return classifier


def architecture(model: nn.Module) -> str:
    """timm's name of the model with its pre-training tag, or the class name of a model made by hand."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or type(model).__name__
    tag = config.get("tag")
    return f"{name}.{tag}" if tag else str(name)


def residual_block(
    index: int,
    module: Any,
    attn: AttentionSite,
    mlp: MlpSite,
    where: Where,
    carrier: TokenCarrier | None,
    *,
    post: bool = False,
    gains: tuple[Gain, Gain] = (None, None),
    steps: bool = False,
    exits: tuple[Point, Point] | None = None,
    rewrites: Rewrites | None = None,
) -> Block:
    """A block of two branches whose norms and drop paths have timm's names.

    Args:
        post: whether the norm closes the branch, in place of opening it.
        gains: LayerScale of the two branches, where there is one.
        exits: where the branches end, if not at `drop_path1` and `drop_path2`.
        steps: whether both branches are plain chains: norm, attention or MLP, `ls1` or `ls2`, drop path.
        rewrites: what carrying tokens needs.
    """
    width = int(module.norm1.weight.shape[0])
    exits = exits or (Point(module.drop_path1, "output"), Point(module.drop_path2, "output"))
    enters = (module.attn, module.mlp) if post else (module.norm1, module.norm2)
    ends = [(Point(opens, "input"), closes) for opens, closes in zip(enters, exits, strict=True)]
    attn_steps: tuple[nn.Module, ...] = ()
    mlp_steps: tuple[nn.Module, ...] = ()
    if steps and post:
        attn_steps = (module.attn, module.norm1, module.drop_path1)
        mlp_steps = (module.mlp, module.norm2, module.drop_path2)
    elif steps:
        attn_steps = (module.norm1, module.attn, module.ls1, module.drop_path1)
        mlp_steps = (module.norm2, module.mlp, module.ls2, module.drop_path2)
    # in a post-norm block the norm closes the branch: nothing reads it alone, and it writes the branch
    halves = [
        outline.Residual(inner, *end, around, () if post else inner.consumers, None if post else writer, gain, chain)
        for inner, end, around, writer, gain, chain in (
            (attn, ends[0], module.norm1, attn.proj, gains[0], attn_steps),
            (mlp, ends[1], module.norm2, mlp.fc2, gains[1], mlp_steps),
        )
    ]
    return outline.residual_pair(
        index,
        module,
        halves,
        where,
        width,
        carrier=carrier,
        rewrites=rewrites,
        drop_path=float(getattr(exits[0].module, "drop_prob", 0.0) or 0.0),
    )


def layer_scales(module: Any) -> tuple[Gain, Gain]:
    """The gains of a block with timm's `LayerScale` modules."""
    first, second = getattr(module, "ls1", None), getattr(module, "ls2", None)
    return (
        (first, "gamma") if isinstance(first, nn.Module) and hasattr(first, "gamma") else None,
        (second, "gamma") if isinstance(second, nn.Module) and hasattr(second, "gamma") else None,
    )


def isotropic(
    family: str,
    model: nn.Module,
    blocks: list[Block],
    carrier: TokenCarrier | None,
    embedded: Point,
    *,
    layout: Layout = Layout.TOKENS,
    dynamic: bool = False,
    more: tuple[Place, ...] = (),
    final: Norm | None = None,
    end: Point | None = None,
    classifier: Callable[[nn.Module], nn.Module] = own_classifier,
    patches: Sequence[Place] = (),
    rounding: tuple[Rounding, Rounding] | None = None,
) -> Backbone:
    """The description of a model whose equal `blocks` run one after the other.

    Args:
        family: its name.
        model: with timm's `patch_embed`, `norm`, `fc_norm`, `global_pool`, `num_prefix_tokens`, `embed_dim`.
        carrier: how inserted tokens travel.
        embedded: where the sequence can be reached before the first block; the input of that block, if nowhere before.
        layout: of the residual stream.
        dynamic: whether other image sizes are accepted.
        more: further places outside the blocks.
        final: the last norm of a model that does not have it as `norm` or `fc_norm`.
        end: where the sequence leaves the blocks, if the last norm does not see it as it is then.
        classifier: gives the model's last layer.
        patches: places of what makes the patches, where `patch_embed.proj` is no single convolution.
        rounding: see `Facts`; as `patch_embed` pads, if not given.
    """
    net: Any = model
    width, first, depth = int(net.embed_dim), blocks[0], len(blocks)
    prefix, grid, stride = first.prefix, first.grid, first.stride
    stem = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)
    start = Where(-1, layout, grid, prefix, stride)
    embedding = outline.embedding(
        embedded,
        start,
        width,
        own={
            name: (model, name)
            for name in ("cls_token", "dist_token", "reg_token", "pos_embed")
            if model._parameters.get(name) is not None
        },
        nesting=-1 if embedded.side == "input" else 4,
    )
    first_places = list(patches) or [projection("patch", net.patch_embed.proj, stem)]
    opening = next(module for module in net.patch_embed.modules() if isinstance(module, nn.Conv2d))  # of pixels
    others: list[Place] = [*first_places, embedding]
    patch_norm, norm_pre = getattr(net.patch_embed, "norm", None), getattr(net, "norm_pre", None)
    if patch_norm is not None and not isinstance(patch_norm, nn.Identity):
        others.insert(len(first_places), norm("patch_norm", patch_norm, start.but(layout, prefix=0), width))
    if norm_pre is not None and not isinstance(norm_pre, nn.Identity):
        others.append(norm("norm_pre", norm_pre, start, width))
    pool = getattr(net, "attn_pool", None)
    averaged = net.global_pool == "avg" and pool is None and carrier is not None and end is None
    mean = Point(net.norm, "output") if averaged else None
    trunk, stage = outline.tower(blocks, Where(0, layout, grid, prefix, stride), mean)
    after = Where(depth, layout, grid, prefix, stride)
    last, pooled_norm = getattr(net, "norm", None), getattr(net, "fc_norm", None)
    if final is None and last is not None and not isinstance(last, nn.Identity):
        final = norm("norm", last, after, width)
    elif final is None and pooled_norm is not None and not isinstance(pooled_norm, nn.Identity):
        final = norm("norm", pooled_norm, after.but(Layout.VECTOR), width)
    return Backbone(
        module=model,
        facts=Facts(
            family=family,
            library="timm",
            architecture=architecture(model),
            image_size=tuple(net.patch_embed.img_size),
            depth=depth,
            width=int(getattr(net, "head_hidden_size", net.num_features)),
            prefix_tokens=prefix,
            pooling=net.global_pool,
            dynamic_size=dynamic,
            rounding=rounding or ("ceil" if getattr(net.patch_embed, "dynamic_img_pad", False) else "floor", "floor"),
        ),
        pixels=outline.pixels(Point(net.patch_embed, "input"), int(opening.in_channels)),
        trunk=trunk,
        stages=[stage],
        norm=final,
        others=[*others, *more],
        pooled=pooled_by_head,
        classifier=classifier,
        end=Point(last, "input") if end is None and last is not None else end,
    )
