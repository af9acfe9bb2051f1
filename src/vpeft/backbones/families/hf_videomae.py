"""transformers' VideoMAE: a plain sequence of the tubelets of a clip, with attention over space and time together.

The library's clips are (B, T, C, H, W); those of vpeft, (B, C, T, H, W), are turned where the model is called. Its
fixed table of positions is for one number of frames.
"""

from __future__ import annotations

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
from ..places import Projection
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
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    inner, name = tower_of(model), architecture(model)
    config, stem = inner.config, inner.embeddings
    old, new = config.num_frames // config.tubelet_size, steps_of(name, frames, int(config.tubelet_size))
    if new == old:
        return []
    table = stem.position_embeddings
    cells = table.shape[1] // old
    if rule == "first" and new > old:  # the table is made by a formula, which goes on
        made, said = get_sinusoid_encoding_table(cells * new, table.shape[2]), say(f"{name}, in steps,", (old,), (new,))
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
    config, layers, patch = inner.config, inner.encoder.layer, inner.embeddings.patch_embeddings.projection
    width, depth, size, side = int(config.hidden_size), len(layers), size_of(config), pair(config.patch_size)
    grid, steps = (size[0] // side[0], size[1] // side[1]), config.num_frames // config.tubelet_size
    last, after = Point(layers[-1], "output"), model._modules.get("fc_norm")
    if config.use_mean_pooling:
        read, final, mean = (mean_of_tokens if after is None else normed_mean), after, last
    else:
        read, final, mean = first_token, inner.layernorm, None
    pooling, carrier = HfPooling(frames_first, read), TokenCarrier(0)

    def where(index: int) -> Where:
        return Where(index, Layout.TOKENS, grid, 0, side[0], frames=steps)

    blocks = []
    for index, layer in enumerate(layers):
        found = read_layer(layer)
        attn = attention_places(f"blocks.{index}.attn", found, where(index), width)
        blocks.append(assembled(index, layer, found, attn, where(index), width, carrier))
    trunk, stage = outline.tower(blocks, where(0), mean)
    norms = None
    if final is not None:
        norms = norm("norm", final, where(depth) if mean is None else where(depth).but(Layout.VECTOR), width)
    idle = [] if final is inner.layernorm or inner.layernorm is None else list(inner.layernorm.parameters())
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_videomae",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="token" if mean is None else "avg",
        ),
        pixels=pixels(config.num_channels, pooling),
        trunk=trunk,
        stages=[stage],
        norm=norms,
        others=[tubelets(patch, where(-1)), outline.embedding(Point(inner.embeddings, "output"), where(-1), width)],
        pooled=pooling,
        classifier=classifier,
        unused=idle,
        inputs=InputSpec(size, config.num_channels, layout="clips", names=("pixel_values",), frames=config.num_frames),
    )


def tubelets(module: nn.Conv3d, tokens: Where) -> Projection:
    """The convolution that makes tokens of tubelets, (B, C, T, H, W) -> (B, D, T', H', W')."""
    return projection("patch", module, tokens.but(Layout.CHANNELS_FIRST, 0))
