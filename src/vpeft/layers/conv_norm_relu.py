"""The convolution of decoders: convolution, norm, ReLU; and a BatchNorm that also takes a single value."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

MapNorm = Literal["batch", "group"]

# Groups of a GroupNorm (Wu and He, arXiv 1803.08494), or as many as divide the channels and leave FEWEST to each. One
# or two channels are normalised to the same numbers whatever a map of one cell holds.
GROUPS = 32
FEWEST = 8


class BatchNorm2dOrRunning(nn.BatchNorm2d):
    """BatchNorm over (B, H, W), which uses its running statistics where a training batch has one value per channel.

    One value has no deviation, and torch's BatchNorm refuses it: one image, pooled to one cell, as the first scale of
    pyramid pooling has it. Such a batch is normalised with the running mean and deviation, and leaves them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def map_norm(channels: int, kind: MapNorm) -> nn.Module:
    """The norm of a map: over the batch, or over groups of channels of each image, which no batch size changes.

    Raises:
        ValueError: there is no such norm.
    """
    if kind == "batch":
        return BatchNorm2dOrRunning(channels)
    if kind == "group":
        most = min(GROUPS, max(1, channels // FEWEST))
        return nn.GroupNorm(next(count for count in range(most, 0, -1) if channels % count == 0), channels)
    raise ValueError(f"The norm of a decoder is 'batch' or 'group', not {kind!r}.")


class ConvNormReLU(nn.Sequential):
    """ReLU of the norm of a convolution without bias; same size.

    Args:
        channels: of what comes in.
        out: channels of what comes out.
        kernel: side of the kernel, an odd number.
        norm: see `map_norm`.
    """

    def __init__(self, channels: int, out: int, kernel: int = 1, norm: MapNorm = "batch") -> None:
        convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, map_norm(out, norm), nn.ReLU())
