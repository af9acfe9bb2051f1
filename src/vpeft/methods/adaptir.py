"""AdaptIR: a bottleneck with a local, a frequency and a channel expert beside each MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from math import prod

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("adaptir", category="addition", family="adapter", paper="2312.08881", year=2024, venue="NeurIPS")
class AdaptIR(Method):
    """Three experts in a bottleneck of h = D / r channels: a low-rank convolution, the spectrum, and the channels.

    x = BN(W x0 + b) on the grid, x0 what the MLP reads. Local: l, a depthwise 3 x 3 convolution with kernels A B, A
    (h, h / 2), B (h / 2, 9). Frequency: g = |irfft2(M exp(i P))|, M and P an affine map for each channel of amplitude
    and phase of rfft2(x). Channel: c = W_2 GELU(W_1 sum_n softmax_n(w x) x_n). Gates: t = sigmoid(MLP(mean g)), (h,),
    and u = sigmoid(v l), (H, W). MLP(x0) + W_tail (c * (t * l + u * g)). W_tail starts at zero, so step 0 is the frozen
    model; the gates start at a half.

    Made for restoration transformers, without class token: tokens before the grid pass as images of one pixel here, in
    the same BatchNorm. Its running statistics are saved with the adapter. The transforms run in single precision.
    """

    reduction: int = Field(default=24, gt=0)
    """r"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("mlp")
        for block in backbone.blocks:
            block.mlp.require_grid()
            yield block.mlp.parallel(Experts(block.dim, max(1, block.dim // self.reduction)))


class Experts(nn.Module):
    """x (B, P + H W, D) or (B, H, W, D) -> the same shape."""

    wants_grid = True
    dormant = {
        "compress.bias": "a shift of all positions leaves the softmax as it is",
        **dict.fromkeys(
            ("compress.weight", "phase.weight", "phase.bias"),
            "where the class token alone is read, the last block meets one pixel: a softmax over one, a phase of zero",
        ),
        **dict.fromkeys(
            ("gate_in.weight", "gate_in.bias"),
            "two maps behind it start at zero, so its gradient comes with the third step",
        ),
    }

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        rank, narrow = max(1, hidden // 2), max(1, hidden // 8)
        self.head, self.norm = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.A, self.B = nn.Parameter(torch.empty(hidden, rank)), nn.Parameter(torch.empty(rank, 9))
        self.local_bias = nn.Parameter(torch.zeros(hidden))
        for factor in (self.A, self.B):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.amplitude, self.phase = (nn.Conv2d(hidden, hidden, 1, groups=hidden) for _ in range(2))
        self.compress = nn.Conv2d(hidden, 1, 1)
        self.channel = nn.Sequential(nn.Linear(hidden, rank), nn.GELU(), nn.Linear(rank, hidden))
        self.gate_in, self.gate_out = nn.Conv2d(hidden, narrow, 1), nn.Conv2d(narrow, hidden, 1)
        self.gate_local = nn.Conv2d(hidden, 1, 1)
        self.tail = nn.Conv2d(hidden, width, 1, bias=False)
        if rank < 4:
            why = f"{rank} GELU of the channel expert may all be far below zero, where their slope is zero"
            channel = ("channel.0.weight", "channel.0.bias", "channel.2.weight")
            self.dormant = {**self.dormant, **dict.fromkeys(channel, why)}
        for zero in (self.gate_out, self.gate_local, self.tail):
            nn.init.zeros_(zero.weight)
        for one in (self.amplitude, self.phase):
            nn.init.ones_(one.weight)
        for conv in (self.amplitude, self.phase, self.gate_out, self.gate_local):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        rows = x.flatten(1, -2)
        first = rows.shape[1] - prod(grid)
        inner = self.norm(self.head(rows.mT[..., None]))[..., 0].mT  # (B, P + T H W, h)
        cells = inner[:, first:].reshape(-1, *grid[-2:], inner.shape[-1])  # a clip's frames one by one
        parts = [self._mixed(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape[0], -1, inner.shape[-1])]
        if first:
            parts = [
                self._mixed(inner[:, :first].flatten(0, 1)[..., None, None]).reshape(x.shape[0], first, -1),
                *parts,
            ]
        out = self.tail(torch.cat(parts, dim=1).mT[..., None])[..., 0].mT
        return torch.as_tensor(out).reshape(x.shape)

    def _mixed(self, x: Tensor) -> Tensor:
        """What the three experts make of maps (B, h, H, W)."""
        kernel = (self.A @ self.B).reshape(-1, 1, 3, 3).to(x.dtype)
        near = F.conv2d(x, kernel, self.local_bias.to(x.dtype), padding=1, groups=len(kernel))
        far = self._spectral(x)
        shares = self.compress(x).flatten(2).softmax(dim=-1)
        channels = self.channel((x.flatten(2) * shares).sum(dim=-1))[..., None, None]
        gate = self.gate_out(F.gelu(self.gate_in(far.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return torch.as_tensor(channels * (gate * near + self.gate_local(near).sigmoid() * far))

    def _spectral(self, x: Tensor) -> Tensor:
        known = torch.amp.is_autocast_available(x.device.type)  # not for the meta device
        with torch.autocast(x.device.type, enabled=False) if known else nullcontext():
            spectrum = torch.fft.rfft2(x if x.dtype == torch.float64 else x.float(), norm="ortho")
            size, angle = self.amplitude(spectrum.abs()), self.phase(spectrum.angle())
            # torch.polar has the gradient of positive sizes, and a trained size may be negative
            bent = torch.complex(size * angle.cos(), size * angle.sin())
            back = torch.fft.irfft2(bent, s=x.shape[-2:], norm="ortho")
        out: Tensor = back.abs().to(x.dtype)
        return out
