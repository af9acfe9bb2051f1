"""`pocket_vit`: the small Vision Transformer that ships inside vpeft, so that everything runs without a network.

A plain timm `VisionTransformer` (class token, 64x64 input, patch 16, width 160, depth 6, 5 heads). Importing this
module registers it with timm; afterwards `timm.create_model("pocket_vit", pretrained=True)` works offline. The weights
are made by pretraining/pocket_vit.py; the card beside them says what they have seen.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

__all__ = ["ARCHITECTURE", "SHOWN", "pocket_vit"]

# The one copy of the shape; the pre-training script reads it too.
ARCHITECTURE: dict[str, int] = {"img_size": 64, "patch_size": 16, "embed_dim": 160, "depth": 6, "num_heads": 5}

# How images are shown to the pocket models, as timm writes it.
SHOWN: dict[str, Any] = {
    "input_size": (3, ARCHITECTURE["img_size"], ARCHITECTURE["img_size"]),
    "fixed_input_size": True,
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "num_classes": 0,
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(
    {
        "pocket_vit.vpeft": {
            "file": str(files("vpeft") / "assets" / "pocket_vit.safetensors"),
            **SHOWN,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def pocket_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The embedded backbone: images (B, 3, 64, 64) to features (B, 160), or logits when `num_classes` is given.

    `pretrained=True` reads the half-precision weights shipped in the package into float32 parameters. `num_classes`
    defaults to 0 (no head): the weights carry none. Other arguments go to timm's `VisionTransformer`.
    """
    kwargs.setdefault("num_classes", 0)
    # strict loading would refuse the head that a caller asks for: there is none in the file
    strict = kwargs["num_classes"] == 0
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "pocket_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_strict=strict,
        **dict(ARCHITECTURE, **kwargs),
    )
    # by which timm without vpeft makes the same architecture
    model.made_by_timm = ("vit_tiny_patch16_224", dict(ARCHITECTURE))  # type: ignore[assignment]
    return model
