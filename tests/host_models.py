"""Tiny whole models of transformers and torchvision at random start, each with a fixed batch and its own loss.

Images are 64 x 64 pixels with one bright square each; its box, its mask and its distance are the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from tests.models import roughen

SIDE = 64
SMALL_DETR = {
    "num_labels": 2,
    "num_queries": 4,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


@dataclass(frozen=True)
class Scene:
    """One image (3, H, W) with its box (xyxy, pixels), label (0 or 1) and mask (H, W)."""

    image: Tensor
    box: Tensor
    label: int
    mask: Tensor


def scenes(count: int, side: int = SIDE) -> list[Scene]:
    """Images with a bright square each."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        left, top = (int(value) for value in torch.randint(4, side // 2, (2,), generator=generator))
        image = 0.1 * torch.rand(3, side, side, generator=generator)
        edge = side * 3 // 8
        image[index % 3, top : top + edge, left : left + edge] = 1.0
        mask = torch.zeros(side, side, dtype=torch.uint8)
        mask[top : top + edge, left : left + edge] = 1
        box = torch.tensor([left, top, left + edge, top + edge], dtype=torch.float32)
        made.append(Scene(image, box, index % 2, mask))
    return made


def images(count: int = 2) -> Tensor:
    """(count, 3, H, W)."""
    return torch.stack([scene.image for scene in scenes(count)])


@dataclass(frozen=True)
class TinyHost:
    """A whole model.

    Attributes:
        make: builds it, in evaluation mode, the same weights each time.
        loss: its own loss on a fixed batch; given the model or a tuned one.
        outputs: what it gives in evaluation for a fixed batch.
        decoder: names of modules that train in full beside the tower.
        part: a part of it that takes a method; the first of `decoder` by default.
        lr: of AdamW with which ten steps learn something.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[Any], Tensor]
    outputs: Callable[[Any], Any]
    decoder: tuple[str, ...]
    part: str = ""
    lr: float = 3e-3

    @property
    def tuned_part(self) -> str:
        """The part that takes a method."""
        return self.part or self.decoder[0]


def _made(kind: str, config: Any, **more: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return roughen(getattr(transformers, kind)(config, **more))  # off the zeros and ones of a random start


def _resnet() -> Any:
    import transformers

    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", out_features=["stage2"]
    )


def _swin(features: list[str]) -> Any:
    import transformers

    return transformers.SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=features,
    )


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _detr() -> nn.Module:
    import transformers

    return _made(
        "DetrForObjectDetection",
        transformers.DetrConfig(backbone_config=_resnet(), use_timm_backbone=False, **SMALL_DETR),
    )


def _rt_detr_v2() -> nn.Module:
    import transformers

    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=STAGES[1:],
    )
    config = transformers.RTDetrV2Config(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        feat_strides=[8, 16, 32],
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=6,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_denoising=0,
        num_labels=2,
        freeze_backbone_batch_norms=True,
    )
    return _made("RTDetrV2ForObjectDetection", config)


def _d_fine() -> nn.Module:
    import transformers

    backbone = transformers.HGNetV2Config(
        embedding_size=8,
        depths=[2, 2, 2, 2],
        hidden_sizes=[8, 8, 16, 16],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 8, 16],
        stage_mid_channels=[4, 4, 4, 8],
        stage_out_channels=[8, 8, 16, 16],
        stage_num_blocks=[2, 2, 2, 2],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[2, 2, 2, 2],
        out_features=STAGES[1:],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        feat_strides=[8, 16, 32],
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=6,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_n_points=[2, 2, 2],
        num_denoising=0,
        num_labels=2,
        freeze_backbone_batch_norms=True,
    )
    model = _made("DFineForObjectDetection", config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".backbone." in name:  # its norms are frozen, so its maps would vanish
            nn.init.kaiming_normal_(module.weight)
    return model


def _rf_detr() -> nn.Module:
    import transformers

    backbone = transformers.RfDetrDinov2Config(
        image_size=SIDE,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        num_windows=2,
        out_features=["stage1", "stage3"],
    )
    config = transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=16,
        decoder_layers=1,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        decoder_n_points=2,
        decoder_ffn_dim=16,
        num_queries=6,
        group_detr=1,
        c2f_num_blocks=1,
        dropout=0.0,
        num_labels=2,
    )
    return _made("RfDetrForObjectDetection", config)


def _mask2former() -> nn.Module:
    import transformers

    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(STAGES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=4,
        train_num_points=64,
        num_labels=2,
    )
    return _made("Mask2FormerForUniversalSegmentation", config)


def _eomt() -> nn.Module:
    import transformers

    config = transformers.EomtConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        num_blocks=1,
        num_queries=4,
        num_register_tokens=1,
        num_upscale_blocks=1,
        train_num_points=64,
        num_labels=2,
    )
    return _made("EomtForUniversalSegmentation", config)


def _eomt_dinov3() -> nn.Module:
    import transformers

    config = transformers.EomtDinov3Config(
        image_size=SIDE,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_blocks=1,
        num_queries=4,
        num_register_tokens=1,
        num_upscale_blocks=1,
        train_num_points=64,
        num_labels=2,
    )
    return _made("EomtDinov3ForUniversalSegmentation", config)


def _upernet() -> nn.Module:
    import transformers

    config = transformers.UperNetConfig(
        backbone_config=_swin(STAGES),
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=32,
        auxiliary_channels=8,
        num_labels=2,
    )
    return _made("UperNetForSemanticSegmentation", config)


def _segformer() -> nn.Module:
    import transformers

    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=2,
    )
    return _made("SegformerForSemanticSegmentation", config)


def _dpt() -> nn.Module:
    import transformers

    config = transformers.DPTConfig(
        image_size=SIDE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _made("DPTForDepthEstimation", config)


def _sam() -> nn.Module:
    import transformers

    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            image_size=SIDE,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            output_channels=16,
            num_pos_feats=8,
            mlp_dim=32,
            window_size=4,
            global_attn_indexes=[1],
        ).to_dict(),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=16, image_size=SIDE, patch_size=8, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ).to_dict(),
    )
    return _made("SamModel", config)


def _sam2() -> nn.Module:
    import transformers

    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 2, 4],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[4],
        mlp_ratio=2.0,
    )
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=16,
        ),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=16, image_size=SIDE, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    return _made("Sam2Model", config)


def _torchvision_detector(kind: str) -> nn.Module:
    """A detector of torchvision on a ResNet-18 with a narrow feature pyramid, for two classes."""
    from torchvision.models import detection, resnet18
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    torch.manual_seed(0)
    sizes = {"min_size": SIDE, "max_size": SIDE}
    layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    trunk = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    body = BackboneWithFPN(trunk, layers, [64, 128, 256, 512], 32)
    if kind in ("RetinaNet", "FCOS"):
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        classes = {"RetinaNet": 2, "FCOS": 2}[kind]
        anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (64,)), ((1.0,),) * 5)
        model: nn.Module = getattr(detection, kind)(body, num_classes=classes, anchor_generator=anchors, **sizes)
        return model.eval()
    parts: dict[str, Any] = {
        "num_classes": None,
        "box_head": TwoMLPHead(32 * 49, 32),
        "box_predictor": FastRCNNPredictor(32, 3),
    }
    if kind == "MaskRCNN":
        parts |= {"mask_head": MaskRCNNHeads(32, (16,), 1), "mask_predictor": MaskRCNNPredictor(16, 16, 3)}
    made: nn.Module = getattr(detection, kind)(body, **parts, **sizes)
    return made.eval()


def _deeplab() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    torch.manual_seed(0)
    body = IntermediateLayerGetter(resnet18(weights=None), return_layers={"layer4": "out"})
    model: nn.Module = DeepLabV3(body, DeepLabHead(512, 2)).eval()
    return model


def _lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    model: nn.Module = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).eval()
    return model


# -- losses -----------------------------------------------------------------------------------------------------------


def detr_labels(count: int = 2) -> list[dict[str, Tensor]]:
    """`class_labels` and `boxes` (centre, width and height as fractions)."""
    made = []
    for scene in scenes(count):
        left, top, right, bottom = (scene.box / SIDE).tolist()
        box = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
        made.append({"class_labels": torch.tensor([scene.label]), "boxes": box})
    return made


def _detr_loss(model: Any) -> Tensor:
    found: Tensor = model(pixel_values=images(), labels=detr_labels()).loss
    return found


def _universal_loss(model: Any) -> Tensor:
    found = scenes(2)
    loss: Tensor = model(
        pixel_values=images(),
        mask_labels=[scene.mask[None].float() for scene in found],
        class_labels=[torch.tensor([scene.label]) for scene in found],
    ).loss
    return loss.squeeze()


def _semantic_loss(model: Any) -> Tensor:
    masks = torch.stack([scene.mask for scene in scenes(2)]).long()
    found: Tensor = model(pixel_values=images(), labels=masks).loss
    return found


def _depth_loss(model: Any) -> Tensor:
    wanted = torch.stack([2.0 - scene.mask.float() for scene in scenes(2)])
    given = model(pixel_values=images()).predicted_depth
    return F.l1_loss(F.interpolate(given[:, None], size=wanted.shape[-2:], mode="bilinear")[:, 0], wanted)


def _sam_arguments() -> dict[str, Tensor]:
    found = scenes(2)
    return {"pixel_values": images(), "input_boxes": torch.stack([scene.box[None] for scene in found])}


def _sam_loss(model: Any) -> Tensor:
    outputs = model(**_sam_arguments(), multimask_output=False)
    given = outputs.pred_masks[:, :, 0]
    masks = torch.stack([scene.mask for scene in scenes(2)])[:, None].float()
    loss = F.binary_cross_entropy_with_logits(given, F.interpolate(masks, size=given.shape[-2:]))
    return loss + F.mse_loss(outputs.iou_scores, torch.ones_like(outputs.iou_scores))


def torchvision_targets(count: int = 2, masks: bool = False) -> list[dict[str, Tensor]]:
    """`boxes` and `labels` from 1, and `masks`."""
    made = []
    for scene in scenes(count):
        target = {"boxes": scene.box[None], "labels": torch.tensor([scene.label + 1])}
        made.append({**target, "masks": scene.mask[None]} if masks else target)
    return made


def _detector_loss(first: int, masks: bool = False) -> Callable[[Any], Tensor]:
    """`first`: the number of the first class, 1 where 0 is the background."""

    def loss(model: Any) -> Tensor:
        targets = torchvision_targets(masks=masks)
        for target in targets:
            target["labels"] = target["labels"] - 1 + first
        losses = model(list(images()), targets)
        return torch.stack(list(losses.values())).sum()

    return loss


def _map_loss(model: Any) -> Tensor:
    masks = torch.stack([scene.mask for scene in scenes(2)]).long()
    return F.cross_entropy(model(images())["out"], masks)


def _pixels(model: Any) -> Any:
    return model(pixel_values=images())


def _list(model: Any) -> Any:
    return model(list(images()))


def _tensor(model: Any) -> Any:
    return model(images())


TRANSFORMERS = {
    "detr": TinyHost(_detr, _detr_loss, _pixels, ("model.decoder", "class_labels_classifier", "bbox_predictor")),
    "rt_detr_v2": TinyHost(_rt_detr_v2, _detr_loss, _pixels, ("model.decoder",)),
    "d_fine": TinyHost(_d_fine, _detr_loss, _pixels, ("model.decoder",)),
    "rf_detr": TinyHost(_rf_detr, _detr_loss, _pixels, ("model.decoder", "class_embed", "bbox_embed")),
    "mask2former": TinyHost(
        _mask2former, _universal_loss, _pixels, ("model.transformer_module.decoder", "class_predictor")
    ),
    "eomt": TinyHost(
        _eomt, _universal_loss, _pixels, ("query", "mask_head", "upscale_block", "class_predictor"), "mask_head"
    ),
    "eomt_dinov3": TinyHost(
        _eomt_dinov3,
        _universal_loss,
        _pixels,
        ("query", "mask_head", "upscale_block", "class_predictor"),
        "mask_head",
    ),
    "upernet": TinyHost(_upernet, _semantic_loss, _pixels, ("decode_head", "auxiliary_head")),
    "segformer": TinyHost(_segformer, _semantic_loss, _pixels, ("decode_head",)),
    "dpt": TinyHost(_dpt, _depth_loss, _pixels, ("neck", "head"), "head"),
    "sam": TinyHost(
        _sam, _sam_loss, lambda model: model(**_sam_arguments(), multimask_output=False), ("mask_decoder",)
    ),
    "sam2": TinyHost(
        _sam2, _sam_loss, lambda model: model(**_sam_arguments(), multimask_output=False), ("mask_decoder",)
    ),
}
TORCHVISION = {
    "faster_rcnn": TinyHost(
        lambda: _torchvision_detector("FasterRCNN"), _detector_loss(1), _list, ("roi_heads.box_predictor", "rpn.head")
    ),
    "mask_rcnn": TinyHost(
        lambda: _torchvision_detector("MaskRCNN"),
        _detector_loss(1, masks=True),
        _list,
        ("roi_heads.box_predictor", "roi_heads.mask_predictor"),
    ),
    "retinanet": TinyHost(lambda: _torchvision_detector("RetinaNet"), _detector_loss(0), _list, ("head",), lr=3e-4),
    "fcos": TinyHost(lambda: _torchvision_detector("FCOS"), _detector_loss(0), _list, ("head",)),
    "deeplabv3": TinyHost(_deeplab, _map_loss, _tensor, ("classifier",)),
    "lraspp": TinyHost(_lraspp, _map_loss, _tensor, ("classifier",)),
}
HOSTS = {**TRANSFORMERS, **TORCHVISION}


def flat(outputs: Any) -> list[Tensor]:
    """Every tensor among the outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [tensor for part in parts for tensor in flat(part)]
