"""Tiny models of timm's families with attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from tests.models import roughen


def tiny_beit(**options: object) -> nn.Module:
    """BEiT: functional qkv bias, a bias for relative positions in each block, LayerScale, average pooling."""
    from timm.models.beit import Beit

    chosen = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "init_values": 0.3,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": True,
        "num_classes": 0,
    }
    return roughen(Beit(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_eva(**options: object) -> nn.Module:
    """EVA-02: functional qkv bias, rotary positions, SwiGLU with a norm inside, average pooling."""
    from timm.models.eva import Eva

    chosen = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (4, 4),
        "num_classes": 0,
    }
    return roughen(Eva(**{**chosen, **options}))  # type: ignore[arg-type]


tiny_dinov3 = partial(
    tiny_eva,
    swiglu_mlp=False,
    scale_mlp=False,
    global_pool="token",
    init_values=0.3,
    num_reg_tokens=2,
    use_abs_pos_emb=False,
    rope_type="dinov3",
    ref_feat_shape=None,
    rope_rotate_half=True,
    dynamic_img_size=True,
    use_fc_norm=False,
)


def tiny_swin_v2(**options: object) -> nn.Module:
    """An 8x8 grid, windows of 4, widths 24 and 48: one stage of shifted windows, one of a single window."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    chosen = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 24,
        "depths": (2, 1),
        "num_heads": (2, 4),
        "window_size": 4,
        "num_classes": 0,
    }
    return roughen(SwinTransformerV2(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_relpos(**options: object) -> nn.Module:
    """A ViT without class token whose positions are a bias made by a small network."""
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    chosen = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    chosen |= {"rel_pos_dim": 16, "init_values": 0.3}  # type: ignore[dict-item]
    return roughen(VisionTransformerRelPos(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_distilled() -> nn.Module:
    """DeiT with a distillation token."""
    from timm.models.deit import VisionTransformerDistilled

    return roughen(
        VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    )


def tiny_sam(**options: object) -> nn.Module:
    """SAM's encoder: one block in padded windows, one over the whole 4x4 grid, a neck of convolutions."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    chosen = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": (1,),
        "neck_chans": 16,
        "global_pool": "avg",
    }
    return roughen(VisionTransformerSAM(**{**chosen, **options}))  # type: ignore[arg-type]


def tiny_cait() -> nn.Module:
    """Two blocks of talking heads over the patches, one of class attention."""
    from timm.models.cait import Cait

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    return roughen(Cait(**options, depth_token_only=1, init_values=0.3))  # type: ignore[arg-type]


def tiny_pvt_v2() -> nn.Module:
    """A stage whose keys come from a grid half as fine, and one with keys for every token; 32x32 pixels."""
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    model = PyramidVisionTransformerV2(
        depths=(1, 2), embed_dims=(16, 24), num_heads=(2, 2), sr_ratios=(2, 1), mlp_ratios=(2.0, 2.0), num_classes=0
    )
    model.pretrained_cfg = {"input_size": (3, 32, 32), "architecture": "tiny_pvt_v2"}  # type: ignore[assignment]
    return roughen(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm_beit": tiny_beit,
    "timm_eva": tiny_eva,
    "timm_dinov3": tiny_dinov3,
    "timm_eva_split": lambda: tiny_eva(qkv_fused=False, scale_attn_inner=True, global_pool="token"),
    "timm_swin_v2": tiny_swin_v2,
    "timm_relpos": tiny_relpos,
    "timm_deit": tiny_distilled,
    "timm_sam": tiny_sam,
    "timm_cait": tiny_cait,
    "timm_pvt_v2": tiny_pvt_v2,
    "timm_perception": lambda: tiny_eva(
        swiglu_mlp=False,
        scale_mlp=False,
        attn_type="rope",
        global_pool="map",
        use_fc_norm=False,
        use_pre_transformer_norm=True,
        use_post_transformer_norm=True,
        rope_grid_indexing="xy",
    ),
}
