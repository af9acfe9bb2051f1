"""The supervised contrastive loss and its views, for methods that use data before training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """-mean_i mean_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)).

    z are the features (V, D) at length one; P(i) are the other features with the label of i, labels (V,),
    of which each must have one.
    """
    z = F.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_share = scores - scores.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    return -(log_share.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()


def two_views(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (2, B, C, H, W): random crops, flips, colours and grey for each image and each view.

    Colours stay between the smallest and the largest value of each image, because the inputs are normalised already.
    """
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(tuple(images.shape[-2:]), scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if images.shape[1] == 3:
        steps += [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2)]
    change = v2.Compose(steps)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    views = [torch.stack([change(image) for image in (images - low) / span]) for _ in range(2)]
    return torch.stack([view * span + low for view in views])
