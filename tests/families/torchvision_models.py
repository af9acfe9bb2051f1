"""torchvision's models, tiny, without their last layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tests.models import roughen


def vit() -> nn.Module:
    """16 patches and a class token, width 48, three blocks, four heads: torch's fused kernel takes even numbers."""
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96)
    model.heads = nn.Identity()
    return roughen(model)


MODELS: dict[str, Callable[[], nn.Module]] = {"torchvision_vit": vit}
