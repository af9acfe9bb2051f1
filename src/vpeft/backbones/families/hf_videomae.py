"""transformers' VideoMAE: a plain sequence of the tubelets of a clip, with attention over space and time together.

The library's clips are (B, T, C, H, W); those of vpeft, (B, C, T, H, W), are turned where the model is called. Its
fixed table of positions is for one number of frames. V-JEPA 2 and ViViT are such sequences too: `clip_sequence`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..builders import Where, norm, projection
from ..clip_frames import fitted_in_time, steps_of
from ..describe import FramesRule, family
from ..hf_model import (
    HfPooling,
    architecture,
    classifier,
    first_token,
    mean_of_tokens,
    normed_mean,
    pair,
    pixels,
    size_of,
)
from ..hf_model import tower as tower_of
from ..hf_reading import read_layer
from ..inputs import InputSpec
from ..points import Layout, Point
from ..positions import say
from ..tokens import TokenCarrier
from .hf_vit import assembled, attention_places

MODELING = "transformers.models.videomae.modeling_videomae"


def frames_first(inner: Any, clips: Tensor) -> dict[str, Any]:
    """(B, C, T, H, W) -> what the library takes, (B, T, C, H, W); an image (B, C, H, W) becomes a clip that stands."""
    if clips.dim() == 4:
        return {"pixel_values": clips[:, None].expand(-1, inner.config.num_frames, -1, -1, -1)}
    return {"pixel_values": clips.transpose(1, 2)}


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Fit the table of positions to clips of `frames` frames; with "first", the table counts on where it ends."""
    from transformers.models.videomae import modeling_videomae

    inner, name = tower_of(model), architecture(model)
    config, stem = inner.config, inner.embeddings
    old, new = config.num_frames // config.tubelet_size, steps_of(name, frames, int(config.tubelet_size))
    if new == old:
        return []
    table = stem.position_embeddings
    cells = table.shape[1] // old
    if rule == "first" and new > old:  # the table is made by a formula, which goes on
        formula: Any = modeling_videomae.get_sinusoid_encoding_table
        made, said = formula(cells * new, table.shape[2]), say(f"{name}, in steps,", (old,), (new,))
    else:
        made, said = fitted_in_time(name, table, (old, new), rule)
    stem.position_embeddings = made
    stem.num_patches = stem.patch_embeddings.num_patches = cells * new
    config.num_frames = frames
    return [said]


@family("hf_videomae", f"{MODELING}.VideoMAEModel", f"{MODELING}.VideoMAEForVideoClassification", fit_frames=fit_frames)
def describe_hf_videomae(model: nn.Module) -> Backbone:
    """transformers VideoMAE, alone or for classes."""
    inner = tower_of(model)
    config, stem, after = inner.config, inner.embeddings, model._modules.get("fc_norm")
    if config.use_mean_pooling:
        pooling = HfPooling(frames_first, mean_of_tokens if after is None else normed_mean)
    else:
        after, pooling = inner.layernorm, HfPooling(frames_first, first_token)
    side = pair(config.patch_size)
    size = size_of(config)
    return clip_sequence(
        model,
        TubeletSequence(
            family="hf_videomae",
            layers=inner.encoder.layer,
            patch=stem.patch_embeddings.projection,
            embedded=Point(stem, "output"),
            pooling=pooling,
            kind="avg" if config.use_mean_pooling else "token",
            size=size,
            side=side[0],
            frames=config.num_frames,
            steps=config.num_frames // config.tubelet_size,
            final=after,
            vector=config.use_mean_pooling,
            idle=[layer for layer in (inner.layernorm,) if layer is not None and layer is not after],
        ),
    )


@dataclass(frozen=True)
class TubeletSequence:
    """What a model of transformers for sequences of tubelets is, beside the parts of its layers.

    Attributes:
        family: the description's name.
        layers: the blocks.
        patch: the convolution that makes tokens.
        embedded: where what enters the first block leaves.
        pooling: how the feature is reached, and "token" or "avg" or "map" as its `kind`.
        size, side, frames, steps: pixels, pixels of a cell, frames of a clip, and steps of the grid in time.
        final: the last norm; `vector` if it comes behind the pooling.
        prefix: tokens before the grid.
        mean: whether the library's own mean over all tokens is the feature.
        own: parameters of the embedding by their canonical names.
        idle: modules whose output is not the feature.
        carries: whether the blocks take sequences of any length; else `no_tokens` says why not.
        name: of the model's input.
    """

    family: str
    layers: Any
    patch: nn.Conv3d
    embedded: Point
    pooling: HfPooling
    kind: str
    size: tuple[int, int]
    side: int
    frames: int
    steps: int
    final: nn.Module | None
    vector: bool = False
    prefix: int = 0
    own: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    idle: list[nn.Module] = field(default_factory=list)
    no_tokens: str = ""
    name: str = "pixel_values"


def clip_sequence(model: nn.Module, found: TubeletSequence) -> Backbone:
    """The description of blocks over one sequence (B, n + T * H * W, D), step of time by step."""
    config: Any = tower_of(model).config
    width, depth = int(config.hidden_size), len(found.layers)
    grid = (found.size[0] // found.side, found.size[1] // found.side)
    carrier = None if found.no_tokens else TokenCarrier(found.prefix)
    last = Point(found.layers[-1], "output")

    def where(index: int) -> Where:
        return Where(index, Layout.TOKENS, grid, found.prefix, found.side, frames=found.steps)

    blocks = []
    for index, layer in enumerate(found.layers):
        parts = read_layer(layer)
        attn = attention_places(f"blocks.{index}.attn", parts, where(index), width)
        blocks.append(assembled(index, layer, parts, attn, where(index), width, carrier))
    if found.kind != "avg":
        mean = None
    elif found.vector or found.final is None:
        mean = last
    else:
        mean = Point(found.final, "output")
    trunk, stage = outline.tower(blocks, where(0), mean)
    after = where(depth).but(Layout.VECTOR) if found.vector else where(depth)
    channels = int(found.patch.in_channels)
    return Backbone(
        module=model,
        facts=Facts(
            family=found.family,
            library="transformers",
            architecture=architecture(model),
            image_size=found.size,
            depth=depth,
            width=width,
            prefix_tokens=found.prefix,
            pooling=found.kind,
        ),
        pixels=pixels(channels, found.pooling),
        trunk=trunk,
        stages=[stage],
        norm=None if found.final is None else norm("norm", found.final, after, width),
        others=[
            projection("patch", found.patch, where(-1).but(Layout.CHANNELS_FIRST, 0)),
            outline.embedding(found.embedded, where(-1), width, own=found.own),
        ],
        pooled=found.pooling,
        classifier=classifier,
        unused=[parameter for module in found.idle for parameter in module.parameters()],
        inputs=InputSpec(found.size, channels, layout="clips", names=(found.name,), frames=found.frames),
        no_tokens=found.no_tokens,
    )
