"""Where the factors of a low-rank update start, if not as nn.Linear does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..backbones.places import Projection
from ..errors import VpeftError

Start = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"]
Factors = tuple[Tensor, Tensor]  # A (R, in), B (out, R)


class BadStart(VpeftError):
    """The rank, or the data, do not fit the start that was asked for."""


def principal(weight: Tensor, rank: int, scale: float) -> Factors:
    """PiSSA: s B A is the part of W (out, in) of its R largest singular values; each factor takes a square root."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def orthonormal(weight: Tensor, rank: int, scale: float) -> Factors:
    """OLoRA: B is the first R columns of Q, A the first R rows of R, of W = Q R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


PARTS_OF_WEIGHT: dict[str, Callable[[Tensor, int, float], Factors]] = {"pissa": principal, "olora": orthonormal}


def from_weight(start: str, place: Projection, rank: int, scale: float) -> Factors:
    """The factors that take a part of the weight of `place`, in at least single precision.

    Raises:
        BadStart: the rank is larger than the weight's.
    """
    weight = place.weight.detach().flatten(1)
    if rank > min(weight.shape):
        raise BadStart(
            f"{start} takes {rank} directions of a weight, and that of {place.name} is"
            f" {' x '.join(map(str, weight.shape))}. Take a rank of at most {min(weight.shape)}, or other targets."
        )
    return PARTS_OF_WEIGHT[start](weight.double() if weight.dtype == torch.float64 else weight.float(), rank, scale)


@torch.no_grad()
def start_gaussian(a: Tensor) -> None:
    """A from N(0, 1 / R), a standard deviation, as peft does."""
    nn.init.normal_(a, std=1 / len(a))


@torch.no_grad()
def start_orthogonal(a: Tensor, b: Tensor) -> None:
    """A and B lie in the spans of the even and of the odd rows of one orthogonal matrix, so that B A = 0.

    Raises:
        BadStart: the rank is odd.
    """
    rank = len(a)
    if rank % 2:
        raise BadStart(f"The orthogonal start needs an even rank, not {rank}.")
    q = torch.linalg.qr(torch.randn(rank, rank, device=a.device)).Q
    a.copy_((torch.randn(a.shape[1], rank // 2, device=a.device) @ q[0::2]).T / 10)
    b.copy_(torch.randn(len(b), rank // 2, device=a.device) @ q[1::2] / 10)


class InputDirections:
    """The principal directions of what enters a projection, over batches of data (EVA).

    Mean and covariance are summed in double precision, which gives the directions that an incremental PCA converges to.
    """

    def __init__(self, place: Projection, layer: nn.Module) -> None:
        self.place, self.layer = place, layer
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def watch(self) -> RemovableHandle:
        """Sum at every forward pass; the layer beside a linear is given what enters, a convolution itself has it."""
        watched = self.place.module if self.place.is_conv else self.layer
        return watched.register_forward_pre_hook(lambda _module, args: self.add(args[0]))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add one batch: (..., D), or (B, C, H, W) in patches of the kernel's size."""
        if isinstance(conv := self.place.module, nn.Conv2d):
            patches = F.unfold(x.float(), conv.kernel_size, conv.dilation, _padding(conv), conv.stride)
            # each group's filters see its own channels
            x = patches.reshape(len(patches), conv.groups, -1, patches.shape[-1]).movedim(2, -1)
        rows = x.reshape(-1, x.shape[-1]).double()
        self.count += len(rows)
        self.total = self.total.to(rows.device) + rows.sum(dim=0)
        self.products = self.products.to(rows.device) + rows.T @ rows

    def largest(self, rank: int) -> Tensor:
        """(R, D): the directions of the largest variance, in order; the largest entry of each is positive.

        Raises:
            BadStart: nothing was seen, or fewer directions than R exist.
        """
        if self.count <= rank or len(self.products) < rank:
            raise BadStart(
                f"EVA needs more than {rank} inputs of at least {rank} channels to start from, and {self.place.name}"
                f" saw {self.count}. Call tuned.prepare(batches) with more images, or take a smaller rank."
            )
        mean = self.total / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :rank].T
        signs = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True)).sign()
        return vectors * signs


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    if not isinstance(conv.padding, str):
        return conv.padding
    sides = zip(conv.dilation, conv.kernel_size, strict=True)
    return (0, 0) if conv.padding == "valid" else tuple(d * (k - 1) // 2 for d, k in sides)
