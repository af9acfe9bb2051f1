"""torchvision's models, tiny, without their last layer. Its convolutional nets do not say what images they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.models import roughen


def vit() -> nn.Module:
    """16 patches and a class token, width 48, three blocks, four heads: torch's fused kernel takes even numbers."""
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96)
    model.heads = nn.Identity()
    return roughen(model)


def convnext() -> nn.Module:
    """Widths 16 and 24, three blocks."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model = ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)], layer_scale=0.5)
    model.classifier[-1] = nn.Identity()
    return _sized(model)


def resnet(block: str = "BasicBlock") -> nn.Module:
    """The first of the four layers, two blocks of width 64: the library makes no narrower one."""
    from torchvision.models import resnet as library

    model = library.ResNet(getattr(library, block), [2, 2, 1, 1])
    model.layer2, model.layer3, model.layer4 = nn.Sequential(), nn.Sequential(), nn.Sequential()
    model.fc = nn.Identity()
    return _sized(model)


def regnet() -> nn.Module:
    """Y: with squeeze-and-excitation; the second block of the second stage keeps its shape."""
    from torchvision.models.regnet import BlockParams, RegNet

    model = RegNet(BlockParams([2, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25), stem_width=24)
    model.fc = nn.Identity()
    return _sized(model)


def efficientnet() -> nn.Module:
    """One fused and one plain stage of two blocks each."""
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    settings = [FusedMBConvConfig(2, 3, 1, 16, 16, 2), MBConvConfig(2, 3, 2, 16, 24, 2)]
    model = EfficientNet(settings, dropout=0.1, last_channel=48)
    model.classifier[-1] = nn.Identity()
    return _sized(model)


def swin(version: int = 1) -> nn.Module:
    """A 16x16 grid in windows of 4, every second block shifted, then 8x8; widths 16 and 32, two blocks each."""
    from torchvision.models import swin_transformer as library

    block = library.SwinTransformerBlock if version == 1 else library.SwinTransformerBlockV2
    merging = library.PatchMerging if version == 1 else library.PatchMergingV2
    model = library.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], 2.0, stochastic_depth_prob=0.1, block=block, downsample_layer=merging
    )
    model.head = nn.Identity()
    return _sized(model)


def swin_v2() -> nn.Module:
    """The same of version 2, whose network for positions is narrowed: it has 512 hidden units whatever the width."""
    model: Any = swin(2)
    for block in (
        block
        for layer in model.features
        if isinstance(layer, nn.Sequential)
        for block in layer
        if hasattr(block, "attn")
    ):
        block.attn.cpb_mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, block.attn.num_heads, bias=False))
    return _sized(model)


def _sized(model: Any) -> nn.Module:
    model.image_size = 32
    return roughen(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision_vit": vit,
    "torchvision_swin": swin,
    "torchvision_swin_v2": swin_v2,
    "torchvision_convnext": convnext,
    "torchvision_resnet": resnet,
    "torchvision_regnet": regnet,
    "torchvision_efficientnet": efficientnet,
}
