"""Swin and Swin V2 of transformers: windows over a row-major sequence; the merging that ends a stage is the next's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite, Stage
from ..builders import Where, attention_core, norm, own_parameters, projection, site, token_rewrites
from ..describe import family
from ..hf_attention import edited_class
from ..hf_model import (
    HfPooling,
    architecture,
    as_pixels,
    classifier,
    for_maps,
    mean_of_map,
    pixels,
    pooler_output,
    tower,
)
from ..hf_windows import windowed_class
from ..patch_merging import merging_places
from ..places import Place
from ..points import Layout, Point, StandIn
from ..window_tokens import BesideTokens

MODELING = "transformers.models"
Pairs = tuple[tuple[nn.Module, type[nn.Module]], ...]


class Merging(nn.Module):
    """A patch merging for a grid that is known: (B, H * W, D) -> (B, H * W / 4, 2 D)."""

    def __init__(self, merging: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.merging, self.grid = merging, grid

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.merging(x, self.grid)
        return out


@family(
    "hf_swin",
    f"{MODELING}.swin.modeling_swin.SwinModel",
    f"{MODELING}.swin.modeling_swin.SwinForImageClassification",
    f"{MODELING}.swin.modeling_swin.SwinBackbone",
    f"{MODELING}.swinv2.modeling_swinv2.Swinv2Model",
    f"{MODELING}.swinv2.modeling_swinv2.Swinv2ForImageClassification",
    f"{MODELING}.swinv2.modeling_swinv2.Swinv2Backbone",
)
def describe_hf_swin(model: nn.Module) -> Backbone:
    """transformers Swin and Swin V2, alone, for classification or as a detector's backbone."""
    inner, maps = tower(model), for_maps(model)
    final = _last_norm(model) if maps else inner.layernorm
    stem, layers, carrier = inner.embeddings, inner.encoder.layers, BesideTokens(final or nn.Identity())
    patch = stem.patch_embeddings.projection
    grid = (int(stem.patch_grid[0]), int(stem.patch_grid[1]))
    stride, width0 = int(patch.stride[0]), int(patch.weight.shape[0])
    stages: list[Stage] = []
    merging, here = None, grid
    for number, layer in enumerate(layers):
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(number, layer, merging, start, here, stride * 2**number, carrier))
        merging = layer.downsample and Merging(layer.downsample, here)
        here = ((here[0] + 1) // 2, (here[1] + 1) // 2)
    mean = stages[-1].exit if final is None else Point(final, "output")
    stages[-1].pooled = stages[-1].blocks[-1].pooled = mean
    merging = tuple((layer.downsample, windowed_class(layer.downsample)) for layer in layers if layer.downsample)
    depth, last, width = sum(len(stage.blocks) for stage in stages), stages[-1], stages[-1].width
    tokens = Where(-1, Layout.TOKENS, grid, 0, stride)
    own = {} if stem.position_embeddings is None else {"pos_embed": (stem, "position_embeddings")}
    others: list[Place] = [
        projection("patch", patch, tokens.but(Layout.CHANNELS_FIRST)),
        norm("patch_norm", stem.norm, tokens, width0),
        outline.embedding(Point(stem, "output"), tokens, width0, own=own),
    ]
    pooling = HfPooling(as_pixels, mean_of_map if maps else pooler_output)
    behind = Where(depth, Layout.TOKENS, last.grid, 0, last.stride)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_swin",
            library="transformers",
            architecture=architecture(model),
            image_size=(grid[0] * stride, grid[1] * stride),
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="avg",
            rounding=("ceil", "ceil"),
        ),
        pixels=pixels(inner.config.num_channels, pooling),
        trunk=outline.trunk(stages, width0, pooled=mean, between=merging),
        stages=stages,
        norm=None if final is None else norm("norm", final, behind, width),
        others=others,
        pooled=pooling,
        classifier=classifier,
        unused=_unused(model, inner, final),
    )


def _last_norm(model: Any) -> nn.Module | None:
    """Of a detector's backbone: the norm of its last map; version 2 has none."""
    norms = model._modules.get("hidden_states_norms")
    found: nn.Module | None = None if norms is None else norms[model.out_features[-1]]
    return found


def _unused(model: Any, inner: Any, final: nn.Module | None) -> list[nn.Parameter]:
    """The mask token, and norms that do not lead to the feature: of other maps, or of a sequence that is not read."""
    idle = [value for key, value in inner.embeddings._parameters.items() if key == "mask_token" and value is not None]
    norms = [inner._modules.get("layernorm"), *model._modules.get("hidden_states_norms", {}).values()]
    return idle + [p for layer in norms if layer is not None and layer is not final for p in layer.parameters()]


def _stage(
    number: int,
    layer: Any,
    merging: Merging | None,
    start: int,
    grid: tuple[int, int],
    stride: int,
    carrier: BesideTokens,
) -> Stage:
    """One stage; the merging before it belongs to it."""
    where = Where(start, Layout.TOKENS, grid, 0, stride)
    blocks = [_block(start + offset, number, block, grid, stride, carrier) for offset, block in enumerate(layer.blocks)]
    parts = {} if merging is None else merging_places(number, merging.merging, where)
    carried: Pairs = ((layer, windowed_class(layer)),)
    for block in blocks:
        block.rewrites = token_rewrites((*block.rewrites["insert_tokens"], *carried))
    return outline.stage(number, blocks, where, parts, downsample=merging)


def _block(index: int, stage: int, layer: Any, grid: tuple[int, int], stride: int, carrier: BesideTokens) -> Block:
    second = "intermediate" in layer._modules  # version 2: norms close the branches
    name, width = f"blocks.{index}", int(layer.layernorm_before.weight.shape[0])
    where = Where(index, Layout.TOKENS, grid, 0, stride)
    side = min(int(layer.window_size), *grid)
    core = layer.attention.self if second else layer.attention
    attn = _attention(f"{name}.attn", layer.attention, core, where.within((side, side)), width)
    first_fc, last_fc = (layer.intermediate.dense, layer.output.dense) if second else (layer.mlp.fc1, layer.mlp.fc2)
    fcs = {key: projection(f"{name}.mlp.{key}", fc, where) for key, fc in (("fc1", first_fc), ("fc2", last_fc))}
    opens, closes = (layer.intermediate, layer.output) if second else (layer.mlp, layer.mlp)
    ends = Point(opens, "input"), Point(closes, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, fcs, None, (fcs["fc1"],))
    calls = (layer.attention, opens)
    pairs: Pairs = ((layer, windowed_class(layer)),)
    if second:
        opening = nn.Identity()
        begins = Point(opening, "input", needs=(StandIn(layer, pairs[0][1], {"vpeft_opening": opening}),))
        leaves = [Point(layer.drop_path, "output", calls=calls, call=call) for call in (0, 1)]
        pairs += ((core, windowed_class(core)),)
    else:
        begins, bias = Point(layer.layernorm_before, "input"), core.relative_position_bias
        leaves = [Point(layer.drop_path, "output"), Point(layer.dropout, "output", calls=calls, call=1)]
        attention = edited_class(type(core))
        assert attention is not None
        pairs += ((core, attention), (bias, windowed_class(bias)))
    enters = Point(opens if second else layer.layernorm_after, "input")
    # padded windows carry zeros that the norm's edits never see, so then nothing merges into q, k and v
    padded = any(size % side for size in grid)
    reads = () if padded or second else attn.consumers, () if second else mlp.consumers
    writes = (None, None) if second else (attn.proj, mlp.fc2)
    return outline.residual_pair(
        index,
        layer,
        (
            outline.Residual(attn, begins, leaves[0], layer.layernorm_before, reads[0], writes[0]),
            outline.Residual(mlp, enters, leaves[1], layer.layernorm_after, reads[1], writes[1]),
        ),
        where,
        width,
        carrier=carrier,
        rewrites=token_rewrites(pairs),
        drop_path=float(getattr(layer.drop_path, "drop_prob", 0.0) or 0.0),
        stage=stage,
    )


def _attention(name: str, module: Any, core: Any, where: Where, width: int) -> AttentionSite:
    if module is core:
        inner, proj, kind = (module.q_proj, module.k_proj, module.v_proj), module.o_proj, edited_class(type(core))
        own = own_parameters(core.relative_position_bias)
    else:
        inner, proj, kind = (core.query, core.key, core.value), module.output.dense, windowed_class(core)
        own = own_parameters(core)
        for number, layer in enumerate(core.continuous_position_bias_mlp):
            own |= {f"cpb_mlp.{number}.{key}": value for key, value in own_parameters(layer).items()}
    assert kind is not None
    inputs = tuple(projection(f"{name}.{letter}", layer, where) for letter, layer in zip("qkv", inner, strict=True))
    parts: dict[str, Place] = {place.name[-1]: place for place in inputs}
    parts["proj"] = projection(f"{name}.proj", proj, where)
    heads = int(core.num_attention_heads)
    parts["core"] = attention_core(f"{name}.core", core, kind, where, width, heads, per_window=True)
    entering = Point(module, "input", "hidden_states")
    return site(name, AttentionSite, entering, Point(module, "output"), where, width, parts, own, inputs)
