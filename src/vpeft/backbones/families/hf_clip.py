"""Whole CLIP, SigLIP and SigLIP 2 models of transformers: an image tower and a text tower into one space.

CLIP keeps the projections into that space outside of its towers; the outlet of each tower is behind its projection.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..describe import describe, family
from ..host import Towers

MODELING = "transformers.models"


@family(
    "hf_clip",
    f"{MODELING}.clip.modeling_clip.CLIPModel",
    f"{MODELING}.siglip.modeling_siglip.SiglipModel",
    f"{MODELING}.siglip2.modeling_siglip2.Siglip2Model",
)
def describe_hf_clip(model: nn.Module) -> Backbone:
    """transformers' whole CLIP, SigLIP and SigLIP 2: `image` and `text`; tuned, the model's own forward runs."""
    clip: Any = model
    folder = str(getattr(clip.config, "_name_or_path", ""))
    if folder and not getattr(clip.text_model.config, "_name_or_path", ""):
        clip.text_model.config._name_or_path = folder  # the tokenizer lies beside the whole model
    towers = {"image": describe(clip.vision_model), "text": describe(clip.text_model)}
    for name, projection in (("image", "visual_projection"), ("text", "text_projection")):
        found: Any = clip._modules.get(projection)
        if found is not None:
            towers[name].through(found, int(found.out_features))
    return Towers(model, towers, "hf_clip")
