"""SAM and SAM 2 of transformers: `input_boxes` (B, N, 4) in pixels -> `pred_masks`; they have no loss of their own.

The boxes of the targets are the prompts, in training and in evaluation, so an evaluation says how well a given box is
turned into a mask. Of images with fewer boxes than others of the batch the first box is repeated, and what is given for
it is left out.

Loss as in the paper (Kirillov et al., arXiv 2304.02643): 20 times the focal loss (gamma 2, alpha 0.25) and the Dice
loss of each mask, and the squared error of the predicted IoU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vpeft.batch import Batch

from .host_format import HostFormat, fields_given, learnt, register_format, taken, target_of

FOCAL = 20.0


@register_format
class PromptedMasks(HostFormat):
    """The mask of each box."""

    kinds = ("objects",)
    gives_masks = True

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        return {"pixel_values", "input_boxes"} <= set(taken(host)) and "pred_masks" in fields_given(host)

    @property
    def classes(self) -> int | None:
        return None

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        boxes = [target["boxes"][learnt(target)].float() for target in self._targets(inputs, batch)]
        most = max(1, *map(len, boxes)) if boxes else 1
        height, width = inputs.shape[-2:]
        whole = inputs.new_tensor([[0.0, 0.0, width, height]])
        rows = [torch.cat([one, (one if len(one) else whole)[:1].expand(most - len(one), 4)]) for one in boxes]
        return (), {"pixel_values": inputs, "input_boxes": torch.stack(rows), "multimask_output": False}

    @staticmethod
    def _targets(inputs: Tensor, batch: Batch) -> list[Any]:
        return [target_of(batch, number) for number in range(len(inputs))]

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        masks, said = outputs.pred_masks[:, :, 0].float(), outputs.iou_scores[:, :, 0].float()
        if training:
            return {"losses": self._losses(masks, said, inputs, batch)}
        found = []
        for mask, scores, target in zip(masks, said, self._targets(inputs, batch), strict=True):
            kept = learnt(target)
            large = F.interpolate(mask[: len(kept), None], size=inputs.shape[-2:], mode="bilinear").sigmoid()
            found.append(
                {
                    "boxes": target["boxes"][kept].float(),
                    "labels": target["labels"][kept],
                    "scores": scores[: len(kept)],
                    "masks": large,
                }
            )
        return found

    def _losses(self, masks: Tensor, said: Tensor, inputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        logits, truths, scores = [], [], []
        for mask, score, target in zip(masks, said, self._targets(inputs, batch), strict=True):
            kept = learnt(target)
            if not len(kept) or "masks" not in target:
                continue
            given = target["masks"][kept].float()
            height, width = inputs.shape[-2:]
            given = F.pad(given, (0, width - given.shape[-1], 0, height - given.shape[-2]))
            truths.append(F.interpolate(given[:, None], size=mask.shape[-2:], mode="area")[:, 0])
            logits.append(mask[: len(kept)])
            scores.append(score[: len(kept)])
        if not logits:
            nothing = masks.sum() * 0.0
            return {"focal": nothing, "dice": nothing, "iou": nothing}
        logit, truth, score = torch.cat(logits), torch.cat(truths), torch.cat(scores)
        chance = logit.sigmoid().flatten(1)
        flat = truth.flatten(1)
        dice = 1 - (2 * (chance * flat).sum(1) + 1) / (chance.sum(1) + flat.sum(1) + 1)
        inside, whole = (chance > 0.5) & (flat > 0.5), (chance > 0.5) | (flat > 0.5)
        overlap = inside.sum(1) / whole.sum(1).clamp(min=1)
        focal = sigmoid_focal_loss(logit, truth, alpha=0.25, gamma=2.0, reduction="mean")
        return {"focal": FOCAL * focal, "dice": dice.mean(), "iou": F.mse_loss(score, overlap)}
