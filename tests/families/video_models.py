"""Tiny models that read clips: an image model frame by frame, and models for clips of transformers and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import nn

from tests.families.transformers_models import SEQUENCE, build, settle
from tests.models import roughen, tiny_swin, tiny_vit

JEPA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 1,
}


JOINT = {"attention_type": "joint_space_time"}


def frames(make: Callable[[], nn.Module] = tiny_vit, count: int = 4) -> nn.Module:
    """A tiny ViT that reads four frames."""
    from vpeft.backbones.frame_reader import FrameReader

    return FrameReader(make(), count)


def vjepa2(**options: Any) -> nn.Module:
    return build("VJEPA2Model", "VJEPA2Config", **{**JEPA, **options})


def vjepa2_classes() -> nn.Module:
    return build("VJEPA2ForVideoClassification", "VJEPA2Config", **{**JEPA, "num_pooler_layers": 1, "num_labels": 3})


def vivit(**options: Any) -> nn.Module:
    more = {"num_frames": 4, "tubelet_size": [2, 8, 8], "num_labels": 3}
    without = {key: value for key, value in SEQUENCE.items() if key != "patch_size"}
    return build("VivitForVideoClassification", "VivitConfig", **{**without, **more, **options})


def timesformer(**options: Any) -> nn.Module:
    more = {"num_frames": 3, "num_labels": 3}
    return build("TimesformerForVideoClassification", "TimesformerConfig", **{**SEQUENCE, **more, **options})


def swin3d(clip: int = 6, size: int = 32, window: tuple[int, int, int] = (2, 3, 3), **options: Any) -> nn.Module:
    """A grid of 3 x 8 x 8, then 3 x 4 x 4, in windows of 2 x 3 x 3, all padded, every second shifted; widths 12, 24."""
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    chosen = {"stochastic_depth_prob": 0.1, **options}
    model: Any = SwinTransformer3d([2, 4, 4], 12, [2, 2], [2, 2], list(window), 2.0, **chosen)
    model.head = nn.Identity()
    model.image_size, model.clip_frames = size, clip
    return roughen(model)


def video_resnet(kind: str = "Conv3DSimple", stem: str = "BasicStem") -> nn.Module:
    """Two of the four layers: 64 and 128 channels, the second of half the steps in time; no narrower one is made."""
    from torchvision.models.video import resnet as library

    makers = [getattr(library, kind)] * 4
    model: Any = library.VideoResNet(library.BasicBlock, makers, [1, 2, 1, 1], getattr(library, stem))
    model.layer3, model.layer4, model.fc = nn.Sequential(), nn.Sequential(), nn.Identity()
    model.image_size, model.clip_frames = 16, 4
    return settle(roughen(model))


def mvit() -> nn.Module:
    """Version 2 on a grid of 2 x 4 x 4: a block, one that pools and widens, a block; widths 8 and 16."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    plain = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
    blocks = [
        MSBlockConfig(1, 8, 8, stride_q=[1, 1, 1], stride_kv=[1, 2, 2], **plain),
        MSBlockConfig(2, 8, 16, stride_q=[1, 2, 2], stride_kv=[1, 1, 1], **plain),
        MSBlockConfig(2, 16, 16, stride_q=[1, 1, 1], stride_kv=[1, 1, 1], **plain),
    ]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    model: Any = MViT((16, 16), 4, blocks, stochastic_depth_prob=0.1, dropout=0.0, **options)
    model.head = nn.Identity()
    return roughen(model)


def pocket_video() -> nn.Module:
    from vpeft.backbones.pocket_video import PocketVideo

    return roughen(PocketVideo(32, 8, 24, 2, 2, frames=4))


MODELS: dict[str, Callable[[], nn.Module]] = {"frame_reader": frames, "torchvision_swin3d": swin3d}
# what the contract need not run on, because it is like those
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "frame_reader_of_swin": lambda: frames(tiny_swin, 3),
    "pocket_video": pocket_video,
    "torchvision_mvit": mvit,
    "torchvision_r3d": video_resnet,
    "torchvision_r2plus1d": lambda: video_resnet("Conv2Plus1D", "R2Plus1dStem"),
    "torchvision_swin3d_whole": lambda: swin3d(8, 16, (8, 7, 7)),
}
if find_spec("transformers") is not None:
    MODELS |= {"hf_vjepa2": vjepa2}
    VARIANTS |= {
        "hf_timesformer": timesformer,
        "hf_timesformer_joint": lambda: timesformer(**JOINT),
        "hf_vivit": vivit,
        "hf_vjepa2_classes": vjepa2_classes,
    }
