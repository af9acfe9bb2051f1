"""Tiny backbones with random weights, one for each family: seconds on a CPU, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def tiny_vit(**options: object) -> nn.Module:
    """16 patches and a class token, width 48, three blocks, three heads."""
    from timm.models.vision_transformer import VisionTransformer

    chosen = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    return roughen(VisionTransformer(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_swin(**options: object) -> nn.Module:
    """A 16x16 grid, windows of 4, widths 24 and 48, two blocks each, the second of each shifted."""
    from timm.models.swin_transformer import SwinTransformer

    chosen = {
        "img_size": 32,
        "patch_size": 2,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        "num_classes": 0,
    }
    return roughen(SwinTransformer(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_convnext(**options: object) -> nn.Module:
    """Widths 16 to 48, five blocks; 64x64 pixels."""
    from timm.models.convnext import ConvNeXt

    chosen = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "num_classes": 0, "ls_init_value": 0.5}
    model = ConvNeXt(**{**chosen, **options})  # type: ignore[arg-type]
    model.pretrained_cfg = {"input_size": (3, 64, 64), "architecture": "tiny_convnext"}
    return roughen(model)


def roughen(model: nn.Module) -> nn.Module:
    """Move every parameter off zero and one, so that a forgotten norm, bias or scale shows in the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm_vit": tiny_vit,
    "timm_swin": tiny_swin,
    "timm_convnext": tiny_convnext,
}
# The same three, made so that they take images of any size, and two sizes (height, width) for each. The second has more
# rows than columns, so that a layer that mixes them up, or keeps the grid of the first, is found.
ANY_SIZE: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, int], tuple[int, int]]]] = {
    "timm_vit": (lambda: tiny_vit(dynamic_img_size=True), ((32, 32), (48, 32))),
    "timm_swin": (lambda: tiny_swin(strict_img_size=False), ((32, 32), (48, 32))),
    "timm_convnext": (tiny_convnext, ((64, 64), (96, 64))),
}


def images_for(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """A fixed batch of the size that the model expects."""
    import vpeft

    return vpeft.describe(model).inputs.example(batch, torch.Generator().manual_seed(1))


def library_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features (B, D) as the model's own library gives them, read from its outputs and not from a description."""
    if type(model).__module__.startswith("transformers."):
        from tests.families.transformers_models import features

        return features(model, images)
    if hasattr(model, "forward_head"):
        pooled: torch.Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
        return pooled
    out: torch.Tensor = model(images)
    return out


def library_output(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the model itself says of the images: logits, or features where it has no classifier."""
    if type(model).__module__.startswith("transformers."):
        from tests.families.transformers_models import output

        return output(model, images)
    out: torch.Tensor = model(images)
    return out
