"""Tiny models of transformers, made by the library's own configs; none where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import nn

from tests.models import roughen

SEQUENCE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def build(kind: str, config: str, **options: Any) -> nn.Module:
    """A model of the class `kind` from a config of the class `config`, with every parameter moved off zero and one."""
    import transformers

    settings = getattr(transformers, config)(**options)
    return roughen(getattr(transformers, kind)(settings))


def vit(**options: Any) -> nn.Module:
    return build("ViTModel", "ViTConfig", **{**SEQUENCE, **options})


def deit(**options: Any) -> nn.Module:
    return build("DeiTForImageClassification", "DeiTConfig", **{**SEQUENCE, "num_labels": 3, **options})


def mae(**options: Any) -> nn.Module:
    return build("ViTMAEModel", "ViTMAEConfig", **{**SEQUENCE, "mask_ratio": 0.0, **options})


def dinov2(**options: Any) -> nn.Module:
    return build("Dinov2Model", "Dinov2Config", **{**SEQUENCE, "mlp_ratio": 2, "layerscale_value": 0.5, **options})


def dinov2_registers(**options: Any) -> nn.Module:
    more = {"mlp_ratio": 2, "num_register_tokens": 3, "num_labels": 3}
    kind, config = "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig"
    return build(kind, config, **{**SEQUENCE, **more, **options})


def dinov3(**options: Any) -> nn.Module:
    more = {"num_register_tokens": 2, "layerscale_value": 0.5}
    return build("DINOv3ViTModel", "DINOv3ViTConfig", **{**SEQUENCE, **more, **options})


def beit(**options: Any) -> nn.Module:
    more = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5, "use_mask_token": False}
    return build("BeitModel", "BeitConfig", **{**SEQUENCE, **more, **options})


def clip(**options: Any) -> nn.Module:
    return build("CLIPVisionModel", "CLIPVisionConfig", **{**SEQUENCE, **options})


def siglip(**options: Any) -> nn.Module:
    return build("SiglipVisionModel", "SiglipVisionConfig", **{**SEQUENCE, **options})


def siglip2(**options: Any) -> nn.Module:
    return build("Siglip2VisionModel", "Siglip2VisionConfig", **{**SEQUENCE, "num_patches": 16, **options})


def videomae(**options: Any) -> nn.Module:
    more = {"num_frames": 4, "tubelet_size": 2, "num_labels": 3}
    return build("VideoMAEForVideoClassification", "VideoMAEConfig", **{**SEQUENCE, **more, **options})


MODELS: dict[str, Callable[[], nn.Module]] = {}
if find_spec("transformers") is not None:
    MODELS |= {
        "hf_vit": vit,
        "hf_deit": deit,
        "hf_mae": mae,
        "hf_dinov2": dinov2,
        "hf_dinov2_registers": dinov2_registers,
        "hf_dinov3": dinov3,
        "hf_beit": beit,
        "hf_clip": clip,
        "hf_siglip": siglip,
        "hf_siglip2": siglip2,
        "hf_videomae": videomae,
    }
