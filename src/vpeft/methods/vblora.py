"""VB-LoRA: low-rank factors put together from a bank of vectors that all layers share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightDelta, divisor
from ..method import register
from .lora import OnProjections


class VectorBank(nn.Module):
    """h trained vectors of length b, uniform within 0.02 of zero at the start."""

    def __init__(self, count: int, length: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(count, length).uniform_(-0.02, 0.02))


class FromBank(WeightDelta):
    """dW = B A, whose pieces of length b are mixtures of the k vectors of the bank with the largest logits."""

    def __init__(self, bank: VectorBank, width_in: int, width: int, rank: int, top: int) -> None:
        super().__init__()
        self.bank, self.top = bank, top
        count, length = bank.vectors.shape
        self.logits_A = nn.Parameter(torch.randn(rank, width_in // length, count) * 0.1)
        self.logits_B = nn.Parameter(torch.randn(width // length, rank, count) * 0.1)

    def _mixed(self, logits: Tensor) -> Tensor:
        largest, index = logits.topk(self.top, dim=-1)
        return (largest.softmax(dim=-1).unsqueeze(-1) * self.bank.vectors[index]).sum(dim=-2)

    def delta(self) -> Tensor:
        a = self._mixed(self.logits_A).flatten(1)  # (R, in)
        b = self._mixed(self.logits_B).transpose(1, 2).flatten(0, 1)  # (out, R)
        return b @ a


@register("vblora", family="reparameter", paper="2405.15179", year=2024, venue="NeurIPS")
class VBLoRA(OnProjections):
    """All low-rank factors are cut into pieces, and each piece is a mixture of a few vectors of one shared bank.

    dW = B A; a piece of b numbers is sum_i softmax(z_i) v_i over the k largest of its logits z (h,), v (h, b) the bank.
    The bank starts uniform within 0.02, the logits at N(0, 0.1), as in the paper, so step 0 is near the frozen model
    and not equal to it. It folds into W. Only the k largest logits and their numbers need be stored once trained, which
    is what the paper counts; here the file holds all logits, so that training can go on.

    b is the largest common divisor of D_in and D_out that is at most `length` (peft refuses others), and layers of
    another b have a bank of their own. Convolutions, as matrices (out, in k k), are ours.
    """

    rank: int = Field(default=4, gt=0)
    """R"""
    vectors: int = Field(default=256, gt=1)
    """h, vectors in the bank; 90 for the paper's RoBERTa, 2048 for Llama"""
    length: int = Field(default=256, gt=0)
    """b at most"""
    top: int = Field(default=2, gt=0)
    """k, vectors in a mixture"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        banks: dict[int, VectorBank] = {}
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            length = divisor(math.gcd(width, width_in), self.length)
            if length not in banks:
                banks[length] = VectorBank(self.vectors, length)
            top = min(self.top, self.vectors)
            yield place.reparametrize(FromBank(banks[length], width_in, width, self.rank, top))
