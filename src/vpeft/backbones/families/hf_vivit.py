"""transformers' ViViT: a class token and the tubelets of a clip, with attention over space and time together.

The library's clips are (B, T, C, H, W). Its learnt table of positions is for one number of frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..clip_frames import fitted_in_time, steps_of
from ..describe import FramesRule, family
from ..hf_model import HfPooling, architecture, first_token, size_of
from ..hf_model import tower as tower_of
from ..points import Point
from .hf_videomae import TubeletSequence, clip_sequence, frames_first

MODELING = "transformers.models.vivit.modeling_vivit"


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Fit the table of positions, behind that of the class token, to clips of `frames` frames."""
    inner: Any = tower_of(model)
    config, stem, name = inner.config, inner.embeddings, architecture(model)
    tubelet = int(config.tubelet_size[0])
    old, new = config.num_frames // tubelet, steps_of(name, frames, tubelet)
    if new == old:
        return []
    table = stem.position_embeddings
    made, said = fitted_in_time(name, table.data[:, 1:], (old, new), rule)
    stem.position_embeddings = nn.Parameter(
        torch.cat([table.data[:, :1], made], dim=1), requires_grad=table.requires_grad
    )
    stem.patch_embeddings.num_patches = made.shape[1]
    config.num_frames = frames
    return [said]


@family("hf_vivit", f"{MODELING}.VivitModel", f"{MODELING}.VivitForVideoClassification", fit_frames=fit_frames)
def describe_hf_vivit(model: nn.Module) -> Backbone:
    """transformers ViViT (its first model, of space and time together), alone or for classes."""
    inner: Any = tower_of(model)
    config, stem = inner.config, inner.embeddings
    time, high, _ = config.tubelet_size
    pooler = inner._modules.get("pooler")
    return clip_sequence(
        model,
        TubeletSequence(
            family="hf_vivit",
            layers=inner.layers,
            patch=stem.patch_embeddings.projection,
            embedded=Point(stem, "output"),
            pooling=HfPooling(frames_first, first_token),
            kind="token",
            size=size_of(config),
            side=int(high),
            frames=config.num_frames,
            steps=config.num_frames // time,
            final=inner.layernorm,
            prefix=1,
            own={"cls_token": (stem, "cls_token"), "pos_embed": (stem, "position_embeddings")},
            idle=[pooler] if pooler is not None else [],
        ),
    )
