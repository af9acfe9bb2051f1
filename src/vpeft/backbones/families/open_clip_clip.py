"""A whole open_clip CLIP that keeps the parts of its text tower beside the image tower.

CustomTextCLIP and CoCa hold both towers as modules, which `describe` finds by itself; here the text tower is no module.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..describe import describe, family
from ..host import Towers
from .open_clip_text import described_text


def _encoded_text(model: nn.Module, texts: Tensor) -> Tensor:
    clip: Any = model
    features: Tensor = clip.encode_text(texts)
    return features


@family("open_clip", "open_clip.model.CLIP")
def describe_open_clip(model: nn.Module) -> Backbone:
    """open_clip's CLIP with both towers, `image` and `text`; tuned, its own forward pass runs: images, texts."""
    clip: Any = model
    image = describe(clip.visual)
    others = [*clip.visual.parameters()]
    others += [value for value in (clip.logit_scale, clip.logit_bias) if value is not None]
    pool_type = str(clip.text_pool_type)
    text = described_text(model, None, pool_type, int(getattr(clip, "text_eos_id", 0)), _encoded_text, others)
    return Towers(model, {"image": image, "text": text}, "open_clip")
