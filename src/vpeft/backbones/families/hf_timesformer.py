"""transformers' TimeSformer: in each block attention over time, then over space, then an MLP.

The library's clips are (B, T, C, H, W). The sequence of a block is a class token and the cells of the grid, each with
all its steps of time, so it lies on no grid of rows and columns. The attention over space, `attn`, sees the frames one
by one, (B * T, 1 + H * W, D), with a copy of the class token for each; that over time, `attn_time`, sees (B * H * W, T,
D). Models with space alone, or both together, have one attention over the whole sequence.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, projection, site
from ..clip_frames import fitted_in_time
from ..describe import FramesRule, family
from ..hf_attention import PREFIX, made_class
from ..hf_model import HfPooling, architecture, classifier, first_token, pair, pixels, size_of
from ..hf_model import tower as tower_of
from ..inputs import InputSpec
from ..places import Place
from ..points import Layout, Point
from .hf_videomae import frames_first

PLAIN = "TimesformerSelfAttention"
EDITED = f"{PREFIX}{PLAIN}"
MODELING = "transformers.models.timesformer.modeling_timesformer"
NO_TOKENS = "its blocks lay the tokens out by steps of time and by frames, and inserted ones would be none of either"


class EditedTimesformer(nn.Module):
    """Mixed into the library's attention: edits between q, k, v and their use; bit-equal to it without."""

    plain: type[nn.Module]

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        own: Any = self
        batch, count, channels = hidden_states.shape
        qkv = own.qkv(hidden_states).reshape(batch, count, 3, own.num_heads, channels // own.num_heads)
        core = own.vpeft_core
        q, k, v = core(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        weights = core.weights(core.scores((q @ k.transpose(-2, -1)) * own.scale).softmax(dim=-1))
        weights = own.attn_drop(weights)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, count, channels)
        return (mixed, weights) if output_attentions else (mixed,)


def __getattr__(name: str) -> type[nn.Module]:
    """The class that stands in, made when first asked for: a pickled model finds it here too."""
    if name != EDITED:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return made_class(__name__, PLAIN, "timesformer", EditedTimesformer)


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Fit the table of positions in time to clips of `frames` frames."""
    inner: Any = tower_of(model)
    config, stem = inner.config, inner.embeddings
    old, table = int(config.num_frames), stem._parameters.get("time_embeddings")
    config.num_frames = frames
    if table is None or old == frames:
        return []
    made, said = fitted_in_time(architecture(model), table.data, (old, frames), rule)
    stem.time_embeddings = nn.Parameter(made, requires_grad=table.requires_grad)
    return [said]


@family(
    "hf_timesformer",
    f"{MODELING}.TimesformerModel",
    f"{MODELING}.TimesformerForVideoClassification",
    fit_frames=fit_frames,
)
def describe_hf_timesformer(model: nn.Module) -> Backbone:
    """transformers TimeSformer, alone or for classes."""
    inner: Any = tower_of(model)
    config, stem, layers = inner.config, inner.embeddings, inner.encoder.layer
    width, depth, size, side = int(config.hidden_size), len(layers), size_of(config), pair(config.patch_size)
    grid, frames, stride = (size[0] // side[0], size[1] // side[1]), int(config.num_frames), side[0]
    pooling = HfPooling(frames_first, first_token)

    def where(index: int) -> Where:
        return Where(index, Layout.TOKENS, None, 1, stride, frames=frames)

    blocks = [_block(index, layer, where(index), grid, width) for index, layer in enumerate(layers)]
    trunk, stage = outline.tower(blocks, where(0))
    patch = projection("patch", stem.patch_embeddings.projection, Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride))
    patch.per_frame, patch.frames = True, frames
    names = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "time_embed": "time_embeddings"}
    own = {ours: (stem, theirs) for ours, theirs in names.items() if stem._parameters.get(theirs) is not None}
    channels = int(stem.patch_embeddings.projection.in_channels)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_timesformer",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=1,
            pooling="token",
        ),
        pixels=pixels(channels, pooling),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", inner.layernorm, where(depth), width),
        others=[patch, outline.embedding(Point(stem, "output"), where(-1), width, own=own)],
        pooled=pooling,
        classifier=classifier,
        inputs=InputSpec(size, channels, layout="clips", names=("pixel_values",), frames=frames),
        no_tokens=NO_TOKENS,
    )


def _block(index: int, layer: Any, where: Where, grid: tuple[int, int], width: int) -> Block:
    name = f"blocks.{index}"
    divided = "temporal_attention" in layer._modules
    # over space alone the frames come one by one
    over_space = Where(index, Layout.TOKENS, grid, 1, where.stride, frames=where.frames) if divided else where
    attn = _attention(f"{name}.attn", layer.attention, over_space, width)
    fc1 = projection(f"{name}.mlp.fc1", layer.intermediate.dense, where)
    fc2 = projection(f"{name}.mlp.fc2", layer.output.dense, where)
    ends = Point(layer.intermediate, "input"), Point(layer.output, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, {"fc1": fc1, "fc2": fc2}, None, (fc1,))
    # one module drops all branches: which call is meant, what ran before it tells
    calls = (*((layer.temporal_attention,) if divided else ()), layer.attention, layer.output)
    drops = [Point(layer.drop_path, "output", calls=calls, call=number) for number in range(len(calls))]
    first, second = layer.layernorm_before, layer.layernorm_after
    block = outline.residual_pair(
        index,
        layer,
        (
            outline.Residual(
                attn, Point(first, "input"), drops[-2], first, attn.consumers, attn.proj, where=over_space
            ),
            outline.Residual(mlp, Point(second, "input"), drops[-1], second, mlp.consumers, fc2),
        ),
        where,
        width,
        drop_path=float(getattr(layer.drop_path, "drop_prob", 0.0)),
    )
    if divided:
        for part in (block.norm1, block.attn, block.attn_branch, block.skip1, block.stream1):
            for place in part.walk():
                place.per_frame = True
        over_time = Where(index, Layout.TOKENS, stride=where.stride)
        attn_time = _attention(f"{name}.attn_time", layer.temporal_attention, over_time, width)
        normed = norm(f"{name}.norm_time", layer.temporal_layernorm, over_time, width, attn_time.consumers)
        parts: dict[str, Place] = {"norm_time": normed, "attn_time": attn_time}
        parts["proj_time"] = projection(f"{name}.proj_time", layer.temporal_dense, where)
        parts["proj_time"].prefix = 0
        block.parts = {**parts, **block.parts}
    return block


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    inner = module.attention
    qkv = projection(f"{name}.qkv", inner.qkv, where)
    third = qkv.width // 3
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        parts[letter] = projection(f"{name}.{letter}", inner.qkv, where, (offset * third, (offset + 1) * third))
    parts["proj"] = projection(f"{name}.proj", module.output.dense, where)
    heads, edited = int(inner.num_heads), getattr(sys.modules[__name__], EDITED)
    by_frame = where.grid is not None or where.frames is None
    parts["core"] = attention_core(f"{name}.core", inner, edited, where, third, heads, per_window=by_frame)
    ends = Point(module, "input", "hidden_states"), Point(module, "output", 0)
    return site(name, AttentionSite, *ends, where, width, parts, None, (qkv,))
