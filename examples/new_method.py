"""A method in one file: what stands here, saved as src/vpeft/methods/output_scale.py, is all that there is to do."""

# [method]
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from vpeft import Backbone, Edit, Method, register


class ChannelScale(nn.Module):
    """One trained factor per channel, applied to the last dimension."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@register("output_scale", family="reparameter")
class OutputScale(Method):
    """Each block's MLP output is scaled per channel; at the start all factors are one.

    y = f * MLP(x), f (D,). D is the block's width.
    """

    start: float = Field(default=1.0, gt=0)
    """value of every factor at the start; anything but one changes the model before it is trained"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == 1.0

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            yield block.mlp.after(ChannelScale(block.mlp.width, self.start))


# [/method]


# [use]
import vpeft  # noqa: E402

for name in ("pocket_vit", "swin_tiny_patch4_window7_224", "convnext_atto"):
    tuned = vpeft.tune(vpeft.create_backbone(name, pretrained=False), OutputScale(), num_classes=10)
    print(name, tuned.plan().trainable)
# [/use]
