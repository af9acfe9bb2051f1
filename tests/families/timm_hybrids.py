"""Tiny nets of timm's that mix convolutions, pooling and attention: each kind of block once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.hiera import Hiera
from timm.models.levit import LevitDistilled
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, Pooling, SepConv
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.twins import Twins
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from timm.models.vitamin import GeGluMlp
from timm.models.xcit import Xcit
from torch import nn

from tests.families.timm_conv import ready
from tests.models import tiny_vit


def tiny_maxvit(
    conv: dict[str, Any] | None = None, attention: dict[str, Any] | None = None, **options: Any
) -> nn.Module:
    """An MBConv unit, attention in windows of 2x2 and over a grid of 2x2, in two stages; 32x32 pixels."""
    chosen: dict[str, Any] = {"embed_dim": (16, 24), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8}
    inner = {"dim_head": 8, "window_size": (2, 2), "rel_pos_type": "bias_tf", "head_first": False, **(attention or {})}
    config = MaxxVitCfg(
        **{**chosen, **options},
        conv_cfg=MaxxVitConvCfg(**{"padding": "same", **(conv or {})}),
        transformer_cfg=MaxxVitTransformerCfg(**inner),
    )
    return ready(MaxxVit(config, img_size=32, num_classes=0))


def tiny_coatnet(**options: Any) -> nn.Module:
    """A stage of MBConv units, then attention over the whole map whose fused rows lie head by head; 32x32 pixels."""
    chosen: dict[str, Any] = {
        "embed_dim": (8, 16, 24),
        "depths": (2, 2, 2),
        "block_type": ("C", "T", "T"),
        "attention": {"head_first": True, "rel_pos_type": "bias", "init_values": 0.4},
        "conv": {"padding": "", "stride_mode": "pool", "expand_output": False},
    }
    return tiny_maxvit(**{**chosen, **options})


def tiny_hiera(**options: Any) -> nn.Module:
    """Units of 4x4 tokens on an 8x8 grid, then all 4x4 tokens; widths 16 and 32."""
    chosen: dict[str, Any] = {"img_size": (32, 32), "embed_dim": 16, "num_heads": 2, "stages": (2, 2), "q_pool": 1}
    chosen |= {"mask_unit_size": (4, 4), "mask_unit_attn": (True, False), "init_values": 0.4, "num_classes": 0}
    return ready(Hiera(**{**chosen, **options}))


def tiny_mvit(**options: Any) -> nn.Module:
    """Two stages of two blocks, the keys of the first from a grid half as fine; widths 16 and 32; 32x32 pixels."""
    chosen: dict[str, Any] = {"depths": (2, 2), "embed_dim": (16, 32), "num_heads": (2, 4), "mlp_ratio": 2.0}
    chosen |= {"stride_q": ((1, 1), (2, 2)), "stride_kv": ((2, 2), (1, 1)), "expand_attn": True}
    return ready(MultiScaleVit(MultiScaleVitCfg(**{**chosen, **options}), img_size=(32, 32), num_classes=0))


def tiny_xcit(**options: Any) -> nn.Module:
    """Two blocks over 16 patches, one of class attention."""
    chosen: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return ready(Xcit(**{**chosen, "cls_attn_layers": 1, "eta": 0.4, "num_classes": 0, **options}))


def tiny_levit(**options: Any) -> nn.Module:
    """Two stages of one block, attention with fewer queries between them; widths 16 and 24, 4x4 and 2x2 tokens."""
    chosen: dict[str, Any] = {"img_size": 32, "embed_dim": (16, 24), "key_dim": 4, "depth": (2, 1), "num_heads": (2, 3)}
    return ready(LevitDistilled(**{**chosen, "stem_type": "s8", "num_classes": 0, **options}))


def tiny_metaformer(*mixers: type[nn.Module], **options: Any) -> nn.Module:
    """Two stages of one and two blocks, scaled shortcuts in the second; widths 16 and 24; 32x32 pixels."""
    chosen: dict[str, Any] = {"depths": (1, 2), "dims": (16, 24), "token_mixers": list(mixers), "num_classes": 0}
    chosen |= {"res_scale_init_values": (None, 0.8)}
    return ready(MetaFormer(**{**chosen, **options}))


def tiny_caformer() -> nn.Module:
    """A stage of separable convolutions, then one of attention over a sequence."""
    return tiny_metaformer(SepConv, Attention, norm_layers=[LayerNorm2dNoBias, LayerNormNoBias], head_dim=8)


def tiny_twins(**options: Any) -> nn.Module:
    """Two stages of attention within windows of 3x3, padded by one in the second, and with keys from a coarser grid."""
    chosen: dict[str, Any] = {"img_size": 24, "embed_dims": (16, 24), "num_heads": (2, 3), "mlp_ratios": (2, 2)}
    chosen |= {"depths": (2, 2), "sr_ratios": (2, 1), "wss": (3, 2), "num_classes": 0}
    return ready(Twins(**{**chosen, **options}), 24)


def tiny_parallel(**options: Any) -> nn.Module:
    """A ViT whose two blocks run attention and MLP side by side, with norms for the heads of q and k."""
    chosen: dict[str, Any] = {"embed_dim": 24, "depth": 2, "block_fn": ParallelScalingBlock, "mlp_ratio": 2.0}
    return tiny_vit(**{**chosen, "qkv_bias": False, "qk_norm": True, **options})


def tiny_hybrid(project: bool, **options: Any) -> nn.Module:
    """A ViT over the map of a small net of convolutions."""
    net = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 2, 2))
    embed = partial(HybridEmbed, backbone=net, proj=project)
    return ready(tiny_vit(embed_layer=embed, patch_size=1, embed_dim=24, depth=2, **options))


def tiny_byobnet(*kinds: str, img_size: int | None = None, **options: Any) -> nn.Module:
    """Two blocks of each kind, each kind at half the resolution of the one before; a stem of two convolutions."""
    blocks = tuple(ByoBlockCfg(type=kind, d=2, c=16, s=2, gs=0, br=0.5) for kind in kinds)
    config = ByoModelCfg(blocks, **{"stem_chs": (8, 16), "stem_pool": "", **options})  # type: ignore[arg-type]
    return ready(ByobNet(config, num_classes=0, img_size=img_size))


def tiny_nfnet(**options: Any) -> nn.Module:
    """Two stages of two blocks without norms, gated behind the last convolution, with a gain that starts at zero."""
    chosen: dict[str, Any] = {"depths": (2, 2), "channels": (16, 24), "stem_type": "3x3_pool", "stem_chs": 8}
    chosen |= {"skipinit": True, "extra_conv": True, "attn_layer": "se", "attn_kwargs": {"rd_channels": 4}}
    return ready(NormFreeNet(NfCfg(**{**chosen, **options}), num_classes=0))


def torchvision_maxvit() -> nn.Module:
    """torchvision's MaxVit: the same kinds of layers, widths 16 and 24, windows of 4x4; 32x32 pixels."""
    from torchvision.models.maxvit import MaxVit

    settings: dict[str, Any] = {"block_channels": [16, 24], "block_layers": [2, 1], "head_dim": 8}
    model = MaxVit((32, 32), 8, 4, stochastic_depth_prob=0.1, **settings)
    model.classifier[-1] = nn.Identity()
    return ready(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm_maxvit": lambda: tiny_maxvit(head_hidden_size=24),
    "timm_coatnet": tiny_coatnet,
    "torchvision_maxvit": torchvision_maxvit,
    "timm_hiera": tiny_hiera,
    "timm_mvitv2": tiny_mvit,
    "timm_xcit": tiny_xcit,
    "timm_levit": tiny_levit,
    "timm_twins": tiny_twins,
    "timm_parallel": tiny_parallel,
    "timm_nfnet": tiny_nfnet,
    "timm_byobnet": lambda: tiny_byobnet("bottle", "edge", num_features=32, attn_layer="se"),
    "timm_poolformer": lambda: tiny_metaformer(Pooling, Pooling, layer_scale_init_values=0.4, mlp_bias=True),
    "timm_caformer": tiny_caformer,
}

# other settings of the same classes, for the tests of places alone
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "maxvit grid alone, ConvNeXt": lambda: tiny_maxvit(
        {"block_type": "convnext"}, {"no_block_attn": True}, embed_dim=(8, 16), depths=(2, 1)
    ),
    "maxvit channels first": lambda: tiny_maxvit(attention={"use_nchw_attn": True, "rel_pos_type": "mlp"}),
    "hiera absolute windows": lambda: tiny_hiera(
        abs_win_pos_embed=True, global_pos_size=(2, 2), use_expand_proj=False, mask_unit_attn=(True, True)
    ),
    "mvitv2 class token, wide MLPs": lambda: tiny_mvit(use_cls_token=True, use_abs_pos=True, expand_attn=False),
    "xcit norms all tokens": lambda: tiny_xcit(tokens_norm=True, patch_size=16, use_pos_embed=False),
    "levit convolutions": lambda: tiny_levit(use_conv=True),
    "convformer": lambda: tiny_metaformer(SepConv, SepConv),
    "parallel, one output": lambda: tiny_parallel(
        block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), qkv_bias=True, init_values=0.4
    ),
    "vit on a map": lambda: tiny_hybrid(True),
    "vit on a map that is as wide, gated MLP": lambda: tiny_hybrid(False, mlp_layer=GeGluMlp),
    "byobnet, darknet blocks and a head of its own": lambda: tiny_byobnet(
        "dark", "basic", attn_layer="eca", downsample="avg", head_type="mlp", head_hidden_size=20, act_layer="silu"
    ),
    "repvgg": lambda: tiny_byobnet("rep", "rep", stem_type="rep", stem_chs=8),
    "mobileone": lambda: tiny_byobnet("one", "one", stem_type="one", stem_chs=8, attn_layer="se"),
    "byobnet, self-attention": lambda: tiny_byobnet("bottle", "self_attn", self_attn_layer="lambda"),
    "nfnet as RegNet, a last convolution": lambda: tiny_nfnet(
        reg=True, num_features=32, skipinit=False, extra_conv=False, attn_layer=None
    ),
    "parallel differential": lambda: tiny_parallel(block_fn=DiffParallelScalingBlock),
    "coatnet early gate": lambda: tiny_coatnet(conv={"attn_early": True, "stride_mode": "1x1"}),
}
