"""Tiny convolutional nets and mixers of timm: each kind of residual unit once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, GatedMlp, GluMlp, GroupNormAct, SEModule
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models import roughen

SIZE = 32
SQUEEZE = ("se.fc1", "se.conv_reduce")


def ready(model: nn.Module, size: int = SIZE) -> nn.Module:
    """Rough weights and statistics, and a configuration that says how large the images are."""
    model.pretrained_cfg = {"input_size": (3, size, size), "architecture": f"tiny_{type(model).__name__.lower()}"}
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    roughen(model)
    for name, module in model.named_modules():
        bias = module._parameters.get("bias")
        if bias is not None and (isinstance(module, _BatchNorm) or name.endswith(SQUEEZE)):
            bias.data.add_(0.5)  # so that a ReLU over so few channels and positions is not closed for every image
    return model


def tiny_resnet(**options: Any) -> nn.Module:
    """Bottlenecks in two groups with squeeze-and-excitation, a deep stem, pooling on the shortcut; widths 32 and 64."""
    chosen = {
        "block": Bottleneck,
        "layers": (2, 1, 1, 2),
        "channels": (8, 12, 16, 16),
        "num_classes": 0,
        "cardinality": 2,
        "base_width": 32,
        "stem_type": "deep",
        "stem_width": 8,
        "avg_down": True,
        "block_args": {"attn_layer": partial(SEModule, rd_channels=4)},
    }
    return ready(ResNet(**{**chosen, **options}))


def tiny_basic_resnet(**options: Any) -> nn.Module:
    """Two 3x3 convolutions a block, a plain stem; widths 64 (timm's stem is that wide) to 16."""
    chosen: dict[str, Any] = {"block": BasicBlock, "layers": (1, 1, 1, 2), "channels": (16, 16, 24, 24)}
    return ready(ResNet(**{**chosen, "num_classes": 0, **options}))


def tiny_resnetv2(**options: Any) -> nn.Module:
    """Pre-activation bottlenecks with standardised weights and group norms, as BiT."""
    chosen: dict[str, Any] = {
        "layers": (2, 2),
        "channels": (32, 48),
        "num_classes": 0,
        "stem_chs": 16,
        "stem_type": "fixed",
        "norm_layer": partial(GroupNormAct, num_groups=4),
    }
    return ready(ResNetV2(**{**chosen, **options}))


def tiny_regnet(**options: Any) -> nn.Module:
    """RegNet Y with groups and squeeze-and-excitation."""
    chosen: dict[str, Any] = {"depth": 6, "w0": 8, "wa": 6.0, "wm": 1.5, "group_size": 8, "se_ratio": 0.25}
    return ready(RegNet(RegNetCfg(**{**chosen, "stem_width": 8, **options}), num_classes=0))


MQA, UIR = "mqa_r1_k3_h2_s1_d8_c16", "uir_r1_a3_k3_s1_e2_c16"
ARCH = [["ds_r2_k3_s1_e1_c8"], ["ir_r2_k3_s2_e2_c12_se0.5"], ["er_r2_k3_s2_e2_c16"]]


def tiny_efficientnet(**options: Any) -> nn.Module:
    """Inverted, fused and depthwise-separable residuals; padding as TensorFlow has it."""
    chosen: dict[str, Any] = {
        "block_args": decode_arch_def(ARCH),
        "num_features": 32,
        "stem_size": 8,
        "pad_type": "same",
        "norm_layer": partial(BatchNormAct2d),
        "num_classes": 0,
    }
    return ready(EfficientNet(**{**chosen, **options}))


def tiny_mobilenet(**options: Any) -> nn.Module:
    """MobileNet V4's universal blocks, and a head that convolves the pooled map."""
    arch = [["cn_r1_k3_s2_e1_c8"], ["uir_r2_a3_k3_s2_e2_c16"], ["uir_r2_a0_k3_s1_e2_c24"]]
    chosen: dict[str, Any] = {"block_args": decode_arch_def(arch), "num_features": 32, "stem_size": 8, "num_classes": 0}
    return ready(MobileNetV3(**{**chosen, **options}))


def tiny_mixer(**options: Any) -> nn.Module:
    """16 tokens of width 24, three blocks."""
    chosen: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "num_blocks": 3, "num_classes": 0}
    return roughen(MlpMixer(**{**chosen, **options}))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm_resnet": tiny_resnet,
    "timm_resnetv2": tiny_resnetv2,
    "timm_regnet": tiny_regnet,
    "timm_efficientnet": tiny_efficientnet,
    "timm_mobilenet": tiny_mobilenet,
    "timm_mlp_mixer": tiny_mixer,
}

# other settings of the same classes, for the tests of places alone
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "resnet basic": tiny_basic_resnet,
    "resnet drop path": lambda: tiny_resnet(drop_path_rate=0.2),
    "resnet without blocks": lambda: tiny_resnet(layers=(1, 1, 1, 1)),
    "resnetv2 basic": lambda: tiny_resnetv2(basic=True),
    "resnetv2 post-activation": lambda: tiny_resnetv2(preact=False, stem_type="deep"),
    "regnet before activation": lambda: tiny_regnet(preact=True, downsample="avg"),
    "mobilenet V3": lambda: tiny_mobilenet(block_args=decode_arch_def(ARCH), head_norm=True),
    "mobilenet V4 attention": lambda: tiny_mobilenet(
        block_args=decode_arch_def([["uir_r1_a3_k3_s2_e2_c16", MQA, UIR]])
    ),
    "resmlp": lambda: tiny_mixer(block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4),
    "gmlp": lambda: tiny_mixer(block_layer=SpatialGatingBlock, mlp_ratio=4, mlp_layer=GatedMlp),
    "gmixer": lambda: tiny_mixer(mlp_layer=GluMlp),
}
