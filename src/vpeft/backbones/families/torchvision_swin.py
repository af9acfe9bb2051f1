"""torchvision's Swin Transformer, versions 1 and 2: one function takes the weights of a whole window attention.

`shifted_window_attention` is handed `qkv.weight` and `proj.weight`, so that no hook on either ever fires. While an edit
is there, a class of this file stands in for the attention and calls both. Version 2 hides the keys' rows of the bias;
its blocks close their branches with the norms. Inserted tokens travel beside the map, as in VPT.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock, SwinTransformerBlockV2

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite, Stage
from ..builders import Where, attention_core, norm, own_parameters, projection, site, token_rewrites
from ..describe import UnknownBackbone, family
from ..functional_qkv import BiasedLinear
from ..patch_merging import merging_places
from ..places import Place
from ..points import Layout, Point, StandIn
from ..torchvision_windows import (
    EditedCosineWindows,
    EditedShiftedWindows,
    PromptedBlock,
    PromptedBlockV2,
    PromptedMerging,
    PromptedMergingV2,
)
from ..window_tokens import BesideTokens
from .torchvision_resnet import stated_size


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    swin: Any = model
    pooled: Tensor = swin.flatten(swin.avgpool(swin.permute(swin.norm(swin.features(images)))))
    return pooled


def _head(model: nn.Module) -> nn.Module:
    swin: Any = model
    found: nn.Module = swin.head
    return found


@family("torchvision_swin", "torchvision.models.swin_transformer.SwinTransformer")
def describe_torchvision_swin(model: nn.Module) -> Backbone:
    """torchvision SwinTransformer, versions 1 (relative-position bias) and 2 (cosine attention)."""
    swin: Any = model
    size, stem = stated_size(model), swin.features[0]
    width0, stride = int(stem[0].out_channels), int(stem[0].stride[0])
    first = Where(-1, Layout.MAP, (size[0] // stride, size[1] // stride), 0, stride)
    grid, reach = (size[0] // stride, size[1] // stride), stride
    embedding = outline.embedding(Point(stem, "output"), first, width0)
    others: list[Place] = [
        projection("patch", stem[0], first.but(Layout.CHANNELS_FIRST)),
        norm("patch_norm", stem[2], first, width0),
        embedding,
    ]
    stages: list[Stage] = []
    carrier, merging, between = BesideTokens(swin.norm), [], cast(Any, None)
    for part in swin.features[1:]:
        if not isinstance(part, nn.Sequential):
            merging.append((part, PromptedMergingV2 if "V2" in type(part).__name__ else PromptedMerging))
            between, reach, grid = part, reach * 2, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            continue
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(len(stages), part, between, Where(start, Layout.MAP, grid, 0, reach), carrier))
        between = None
    depth, last, mean = sum(len(stage.blocks) for stage in stages), stages[-1], Point(swin.norm, "output")
    last.pooled = last.blocks[-1].pooled = mean
    return Backbone(
        module=model,
        facts=Facts(
            family="torchvision_swin",
            library="torchvision",
            architecture=type(model).__name__,
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
            rounding=("floor", "ceil"),
        ),
        pixels=outline.pixels(Point(stem, "input"), int(stem[0].in_channels)),
        trunk=outline.trunk(stages, width0, pooled=mean, between=tuple(merging)),
        stages=stages,
        norm=norm("norm", swin.norm, Where(depth, Layout.MAP, last.grid, 0, last.stride), last.width),
        others=others,
        pooled=_pooled,
        classifier=_head,
    )


def _stage(number: int, layer: Any, merging: Any, where: Where, carrier: BesideTokens) -> Stage:
    """One stage; the merging of patches before it belongs to it."""
    blocks = [_block(where.depth + at, number, module, where, carrier) for at, module in enumerate(layer)]
    parts = {} if merging is None else merging_places(number, merging, where)
    return outline.stage(number, blocks, where, parts, downsample=merging)


def _block(index: int, stage: int, module: Any, around: Where, carrier: BesideTokens) -> Block:
    name, width, kind = f"blocks.{index}", int(module.norm1.normalized_shape[0]), type(module)
    post = kind in (SwinTransformerBlockV2, PromptedBlockV2)
    if not post and kind not in (SwinTransformerBlock, PromptedBlock):
        raise UnknownBackbone(
            f"{name} is a {kind.__name__}; torchvision_swin describes SwinTransformerBlock and its version 2."
        )
    where = Where(index, Layout.MAP, around.grid, 0, around.stride)
    attn = _attention(f"{name}.attn", module.attn, where, width)
    fc1, fc2 = (
        projection(f"{name}.mlp.fc{number}", layer, where)
        for number, layer in enumerate((part for part in module.mlp if isinstance(part, nn.Linear)), start=1)
    )
    inside: dict[str, Place] = {"fc1": fc1, "fc2": fc2}
    ends = Point(module.mlp, "input"), Point(module.mlp, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, inside, None, (fc1,))
    # one module drops both branches: which call is meant, what ran before it tells
    calls = (module.norm1, module.norm2) if post else (module.attn, module.mlp)
    drops = [Point(module.stochastic_depth, "output", calls=calls, call=number) for number in (0, 1)]
    opens = (module.attn, module.mlp) if post else (module.norm1, module.norm2)
    assert around.grid is not None
    # padded windows carry zeros that the norm's edits never see, so then nothing merges into qkv
    padded = any(side % window for side, window in zip(around.grid, module.attn.window_size, strict=True))
    reads = (() if padded or post else attn.consumers, () if post else mlp.consumers)
    writes = (None, None) if post else (attn.proj, mlp.fc2)
    return outline.residual_pair(
        index,
        module,
        (
            outline.Residual(attn, Point(opens[0], "input"), drops[0], module.norm1, reads[0], writes[0]),
            outline.Residual(mlp, Point(opens[1], "input"), drops[1], module.norm2, reads[1], writes[1]),
        ),
        where,
        width,
        carrier=carrier,
        rewrites=token_rewrites(
            ((module, PromptedBlockV2 if post else PromptedBlock), (module.attn, _attention_class(module.attn)))
        ),
        drop_path=float(module.stochastic_depth.p),
        stage=stage,
    )


def _attention_class(module: Any) -> type[nn.Module]:
    return EditedCosineWindows if hasattr(module, "logit_scale") else EditedShiftedWindows


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    cosine, kind = hasattr(module, "logit_scale"), _attention_class(module)
    high, wide = module.window_size
    inside = where.within((int(high), int(wide)), Layout.TOKENS)
    made = {"qkv": projection(f"{name}.qkv", module.qkv, inside)}
    third = made["qkv"].width // 3
    for offset, letter in enumerate("qkv"):
        made[letter] = projection(f"{name}.{letter}", module.qkv, inside, (offset * third, (offset + 1) * third))
    hidden = cosine and module.qkv.bias is not None
    for part in made.values():
        needs: tuple[StandIn, ...] = (StandIn(module, kind),)
        if hidden:
            needs += (StandIn(module.qkv, BiasedLinear),)
            part.rewrites = {"reparametrize": ((module.qkv, BiasedLinear),)}
            part.bias_ignored = part.name.endswith(("qkv", ".k"))
        part.enter = Point(module.qkv, "input", needs=needs)
        part.exit = Point(module.qkv, "output", needs=needs)
    proj = projection(f"{name}.proj", module.proj, inside)
    proj.enter = Point(module.proj, "input", needs=(StandIn(module, kind),))
    proj.exit = Point(module.proj, "output", needs=(StandIn(module, kind),))
    parts: dict[str, Place] = {**made, "proj": proj}
    parts["core"] = attention_core(f"{name}.core", module, kind, inside, third, int(module.num_heads), per_window=True)
    own = own_parameters(module)
    for number, layer in enumerate(getattr(module, "cpb_mlp", ())):
        own |= {f"cpb_mlp.{number}.{key}": (layer, key) for key, _ in layer.named_parameters()}
    ends = Point(module, "input"), Point(module, "output")
    return site(name, AttentionSite, *ends, where, width, parts, own, () if hidden else (made["qkv"],))
