"""transformers' V-JEPA 2: a plain sequence of the tubelets of a clip, whose attention turns q and k by their place.

The library's clips are (B, T, C, H, W). It has no table of positions, so it takes any number of frames. The feature is
the mean of the tokens, or what the attentive pooler of a model for classes makes of them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..clip_frames import steps_of
from ..describe import FramesRule, family
from ..hf_model import HfPooling, architecture, mean_of_tokens
from ..hf_model import tower as tower_of
from ..points import Point
from .hf_videomae import TubeletSequence, clip_sequence

MODELING = "transformers.models.vjepa2.modeling_vjepa2"
NO_TOKENS = "its attention turns queries and keys by the number of each token, and inserted ones would move all others"


def without_predictor(inner: Any, clips: Tensor) -> dict[str, Any]:
    """(B, C, T, H, W) -> what the library takes, (B, T, C, H, W), and the wish for the encoder alone."""
    return {"pixel_values_videos": clips.transpose(1, 2), "skip_predictor": True}


def attentive(model: nn.Module, outputs: Any) -> Tensor:
    """What the model's own pooler makes of the tokens, (B, D)."""
    whole: Any = model
    pooled: Tensor = whole.pooler(outputs.last_hidden_state)
    return pooled


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Any number of whole tubelets is taken as it is."""
    config: Any = tower_of(model).config
    steps_of(architecture(model), frames, int(config.tubelet_size))
    config.frames_per_clip = frames
    return []


@family("hf_vjepa2", f"{MODELING}.VJEPA2Model", f"{MODELING}.VJEPA2ForVideoClassification", fit_frames=fit_frames)
def describe_hf_vjepa2(model: nn.Module) -> Backbone:
    """transformers V-JEPA 2, alone or for classes with its attentive pooler."""
    inner: Any = tower_of(model)
    config, encoder = inner.config, inner.encoder
    pools = "pooler" in model._modules
    return clip_sequence(
        model,
        TubeletSequence(
            family="hf_vjepa2",
            layers=encoder.layer,
            patch=encoder.embeddings.patch_embeddings.proj,
            embedded=Point(encoder.embeddings, "output"),
            pooling=HfPooling(without_predictor, attentive if pools else mean_of_tokens),
            kind="map" if pools else "avg",
            size=(int(config.crop_size), int(config.crop_size)),
            side=int(config.patch_size),
            frames=config.frames_per_clip,
            steps=config.frames_per_clip // config.tubelet_size,
            final=encoder.layernorm,
            idle=[inner.predictor],
            no_tokens=NO_TOKENS,
            name="pixel_values_videos",
        ),
    )
