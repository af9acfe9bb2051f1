"""Small networks on the input image in parallel to a frozen backbone, and ways to join both features."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 63  # the least size in pixels that AlexNet's strides leave anything of


class ConvolutionalSide(nn.Module):
    """Images (B, C, H, W) -> (B, D): four 3x3 convolutions of stride 2 with GroupNorm and ReLU, mean, linear map."""

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        sizes = [channels, hidden, hidden, hidden, hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, b), nn.ReLU()]
        self.features, self.project = nn.Sequential(*layers), nn.Linear(hidden, width)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.project(self.features(images).mean(dim=(2, 3)))
        return out


class AlexNetSide(nn.Module):
    """Images (B, 3, H, W) -> (B, D): AlexNet's convolutions, its 6x6 pooling, a linear map without bias.

    Args:
        width: D.
        pretrained: start from the ImageNet-1k weights that torchvision offers (a download).
    """

    def __init__(self, width: int, pretrained: bool) -> None:
        super().__init__()
        from torchvision.models import AlexNet_Weights, alexnet

        whole = alexnet(weights=AlexNet_Weights.IMAGENET1K_V1 if pretrained else None)
        self.features, self.pool = whole.features, whole.avgpool
        self.project = nn.Linear(256 * 6 * 6, width, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < SMALLEST:
            images = F.interpolate(images, scale_factor=-(-SMALLEST // min(images.shape[-2:])), mode="nearest")
        out: Tensor = self.project(self.pool(self.features(images)).flatten(1))
        return out


Join = Literal["alpha", "sum", "product", "film", "mlp"]


class JoinedSide(nn.Module):
    """(B(x), pixels (B, H, W, C)) -> B(x) joined with S(x), both (B, D).

    Args:
        side: S.
        width: D.
        join: "alpha": sigmoid(a) B + (1 - sigmoid(a)) S; "sum": B + S; "product": B S; "film": B (S + m) + (S + n) with
            m, n linear in ReLU(GN(W S)), GN in two groups; "mlp": MLP(B) + S.
        start: a at the start.
        learn: whether a trains.
        hidden: width inside "film".
    """

    def __init__(self, side: nn.Module, width: int, join: Join, start: float, learn: bool, hidden: int = 64) -> None:
        super().__init__()
        self.side, self.join = side, join
        if join == "alpha":
            self.alpha = nn.Parameter(torch.tensor(start), requires_grad=learn)
        elif join == "film":
            self.read = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GroupNorm(2, hidden), nn.ReLU())
            self.scale, self.shift = nn.Linear(hidden, width), nn.Linear(hidden, width)
        elif join == "mlp":
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, base: Tensor, pixels: Tensor) -> Tensor:
        side: Tensor = self.side(pixels.permute(0, 3, 1, 2))
        if self.join == "product":
            return base * side
        if self.join == "alpha":
            share = torch.sigmoid(self.alpha)
            base, side = share * base, (1 - share) * side
        elif self.join == "film":
            read = self.read(side)
            base, side = base * (self.scale(read) + side), self.shift(read) + side
        elif self.join == "mlp":
            base = self.mlp(base)
        return base + side
