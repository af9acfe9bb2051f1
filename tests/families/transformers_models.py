"""Tiny models of transformers, made by the library's own configs; none where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

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


def blip(**options: Any) -> nn.Module:
    return build("BlipVisionModel", "BlipVisionConfig", **{**SEQUENCE, **options})


def siglip(**options: Any) -> nn.Module:
    return build("SiglipVisionModel", "SiglipVisionConfig", **{**SEQUENCE, **options})


def siglip2(**options: Any) -> nn.Module:
    return build("Siglip2VisionModel", "Siglip2VisionConfig", **{**SEQUENCE, "num_patches": 16, **options})


def videomae(**options: Any) -> nn.Module:
    more = {"num_frames": 4, "tubelet_size": 2, "num_labels": 3}
    return build("VideoMAEForVideoClassification", "VideoMAEConfig", **{**SEQUENCE, **more, **options})


def convnext(**options: Any) -> nn.Module:
    more = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "layer_scale_init_value": 0.5, "image_size": 64}
    return build("ConvNextForImageClassification", "ConvNextConfig", **{**more, "num_labels": 3, **options})


def convnextv2(**options: Any) -> nn.Module:
    more = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "image_size": 64}
    return build("ConvNextV2Model", "ConvNextV2Config", **{**more, **options})


def dinov3_convnext(**options: Any) -> nn.Module:
    more = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "layer_scale_init_value": 0.5, "image_size": 64}
    return build("DINOv3ConvNextModel", "DINOv3ConvNextConfig", **{**more, **options})


def swin(**options: Any) -> nn.Module:
    more = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    return build("SwinModel", "SwinConfig", **{**more, "drop_path_rate": 0.0, **options})


def swinv2(**options: Any) -> nn.Module:
    more = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    more |= {"drop_path_rate": 0.0, "num_labels": 3}
    return build("Swinv2ForImageClassification", "Swinv2Config", **{**more, **options})


def segformer(**options: Any) -> nn.Module:
    more: dict[str, Any] = {"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 2], "hidden_sizes": [12, 24]}
    more |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2]}
    more |= {"mlp_ratios": [2, 2], "drop_path_rate": 0.0, "num_labels": 3}
    return build("SegformerForImageClassification", "SegformerConfig", **{**more, **options})


def hiera(**options: Any) -> nn.Module:
    more: dict[str, Any] = {"image_size": [32, 32], "embed_dim": 12, "depths": [1, 3], "num_heads": [1, 2]}
    more |= {"num_query_pool": 1, "masked_unit_size": [4, 4], "masked_unit_attention": [True, False], "mlp_ratio": 2.0}
    return build("HieraModel", "HieraConfig", **{**more, **options})


def swin_backbone(**options: Any) -> nn.Module:
    more = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    more |= {"drop_path_rate": 0.0, "out_features": ["stage1", "stage2"]}
    return build("SwinBackbone", "SwinConfig", **{**more, **options})


def swinv2_backbone(**options: Any) -> nn.Module:
    more = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    return build("Swinv2Backbone", "Swinv2Config", **{**more, "drop_path_rate": 0.0, **options})


def beit_backbone(**options: Any) -> nn.Module:
    more = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5, "use_mask_token": False}
    return build("BeitBackbone", "BeitConfig", **{**SEQUENCE, **more, **options})


def hiera_backbone(**options: Any) -> nn.Module:
    more: dict[str, Any] = {"image_size": [32, 32], "embed_dim": 12, "depths": [1, 3], "num_heads": [1, 2]}
    more |= {"num_query_pool": 1, "masked_unit_size": [4, 4], "masked_unit_attention": [True, False], "mlp_ratio": 2.0}
    return build("HieraBackbone", "HieraConfig", **{**more, "out_features": ["stage1", "stage2"], **options})


def resnet(**options: Any) -> nn.Module:
    more = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 3}
    model: Any = build("ResNetForImageClassification", "ResNetConfig", **{**more, **options})
    model.config.image_size = 64
    return settle(model)


def settle(model: nn.Module) -> nn.Module:
    """Give the BatchNorms statistics other than zero and one."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


def inputs(model: Any, images: Tensor) -> dict[str, Any]:
    """The arguments with which a user of the library would call the model."""
    kind = type(model).__name__
    if kind.startswith(("VideoMAE", "Vivit", "Timesformer")):
        return {"pixel_values": images.transpose(1, 2)}
    if kind.startswith("VJEPA2"):
        return {"pixel_values_videos": images.transpose(1, 2)}
    if kind.startswith("Siglip2"):
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        side = model.config.patch_size
        patches = torch.stack([convert_image_to_patches(image, side) for image in images])
        grid = [images.shape[2] // side, images.shape[3] // side]
        return {
            "pixel_values": patches,
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor([grid] * len(images)),
        }
    if kind.startswith("ViTMAE"):
        count = model.embeddings.patch_embeddings.num_patches
        return {"pixel_values": images, "noise": torch.arange(count).float().expand(len(images), -1)}
    return {"pixel_values": images}


def features(model: Any, images: Tensor) -> Tensor:
    """What enters the classifier; of a model without one its pooled output, or the class token where it has none."""
    if "classifier" in model._modules:
        caught: list[Tensor] = []
        handle = model.classifier.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
        model(**inputs(model, images))
        handle.remove()
        return caught[0].flatten(1)
    outputs = model(**inputs(model, images))
    if type(model).__name__.startswith("VJEPA2"):
        return outputs.last_hidden_state.mean(1)  # type: ignore[no-any-return]
    if "feature_maps" in outputs:
        return outputs.feature_maps[-1].mean((2, 3))  # type: ignore[no-any-return]
    pooled = outputs.get("pooler_output")
    if pooled is None or "tanh" in str(getattr(model, "pooler", None)).lower():  # ViT's, which checkpoints often lack
        return outputs.last_hidden_state[:, 0]  # type: ignore[no-any-return]
    return pooled.flatten(1)  # type: ignore[no-any-return]


def output(model: Any, images: Tensor) -> Tensor:
    """Logits, or features where the model has no classifier."""
    if "classifier" not in model._modules:
        return features(model, images)
    return model(**inputs(model, images)).logits  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {}
if find_spec("transformers") is not None:
    MODELS |= {
        "hf_vit": vit,
        "hf_dinov2_registers": dinov2_registers,
        "hf_dinov3": dinov3,
        "hf_beit": beit,
        "hf_clip": clip,
        "hf_siglip2": siglip2,
        "hf_videomae": videomae,
        "hf_convnext": convnext,
        "hf_resnet": resnet,
        "hf_segformer": segformer,
        "hf_hiera": hiera,
        "hf_swin": swin,
        "hf_swinv2": swinv2,
    }
# of the same structures as those above, so that the contract need not run on them too
ALIKE: dict[str, Callable[[], nn.Module]] = {
    "hf_deit": deit,
    "hf_mae": mae,
    "hf_dinov2": dinov2,
    "hf_blip": blip,
    "hf_siglip": siglip,
    "hf_convnextv2": convnextv2,
    "hf_dinov3_convnext": dinov3_convnext,
    "hf_swin_backbone": swin_backbone,
    "hf_swinv2_backbone": swinv2_backbone,
    "hf_beit_backbone": beit_backbone,
    "hf_hiera_backbone": hiera_backbone,
}
