"""Weight updates of many matrices with shared outer factors: U and V for all, a small core for each."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Factors(nn.Module):
    """What all matrices of one width share.

    Args:
        width: D.
        rank: R.
        columns: number of D x D matrices that a bank mixes; 0 where each matrix has a core of its own.
        kind: "tensor_train" (U and V alone), "tucker" (also C (R, R, R) and P (R, columns)) or "cp" (also lambda (R,)
            and P).
        width_in: channels of the input, for matrices D x width_in; D where it is not given.

    U (R, width_in) starts Kaiming-uniform as nn.Linear, V (D, R) at zero, so every change starts at zero; C and P start
    Xavier-uniform on exactly these shapes, lambda at one.
    """

    def __init__(
        self, width: int, rank: int, columns: int = 0, kind: str = "tensor_train", width_in: int | None = None
    ) -> None:
        super().__init__()
        self.width, self.rank, self.width_in = width, rank, width_in or width
        self.U = nn.Parameter(nn.Linear(self.width_in, rank, bias=False).weight.detach().clone())
        self.V = nn.Parameter(torch.zeros(width, rank))
        if kind == "tucker":
            self.C = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank, rank)))
        if kind == "cp":
            self.weight = nn.Parameter(torch.ones(rank))
        if kind != "tensor_train":
            self.P = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, columns)))


class Factored(nn.Module, ABC):
    """x -> s V drop(core U x) beside a projection whose sizes are multiples of D.

    The input (..., m D) is m pieces of D, each of which passes U; the core maps m R to n R numbers; each of n pieces of
    R passes V: (..., n D). Pieces lie one behind the other (block-major), as the row blocks of fc1.

    Args:
        factors: shared with other projections; it is registered in every one and counted once.
        pieces_in, pieces: m and n.
        scale: s.
        dropout: between core and V.
    """

    def __init__(self, factors: Factors, pieces_in: int, pieces: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.factors = factors
        self.pieces_in, self.pieces, self.scale = pieces_in, pieces, scale
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def matrix(self) -> Tensor:
        """The core (n R, m R)."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.factors
        inner = F.linear(x.reshape(*x.shape[:-1], self.pieces_in, f.width_in), f.U).flatten(-2)
        inner = self.dropout(F.linear(inner, self.matrix()))
        out = F.linear(inner.reshape(*inner.shape[:-1], self.pieces, f.rank), f.V)
        return out.flatten(-2) * self.scale

    def weight_delta(self) -> tuple[Tensor, None]:
        """(n D, m D): what to add to the weight."""
        f = self.factors
        core = self.matrix().reshape(self.pieces, f.rank, self.pieces_in, f.rank)
        delta = torch.einsum("da,namb,be->ndme", f.V, core, f.U)
        return self.scale * delta.reshape(self.pieces * f.width, self.pieces_in * f.width_in), None


class TensorTrain(Factored):
    """With a core of its own, (n R, m R), that starts as nn.Linear."""

    def __init__(self, factors: Factors, pieces_in: int, pieces: int, scale: float, dropout: float) -> None:
        super().__init__(factors, pieces_in, pieces, scale, dropout)
        rank = factors.rank
        self.core = nn.Parameter(nn.Linear(pieces_in * rank, pieces * rank, bias=False).weight.detach().clone())

    def matrix(self) -> Tensor:
        return self.core


class Banked(Factored):
    """With a core that columns `start` ... of the bank P mix from what all matrices share.

    Tucker: C P[:, columns], (R, R, n m), laid out in memory as (R, n m R) and read as n m pieces of R. The released
    code does not transpose in between, so the pieces interleave: element (a, b, i) is column n m b + i. It is applied
    as (U x) core to matrices D x D and to fc1; to fc2, with m pieces coming in, transposed.
    CP: piece i is diag(lambda * P[:, start + i]).
    """

    def __init__(
        self, factors: Factors, pieces_in: int, pieces: int, scale: float, dropout: float, start: int, cp: bool
    ) -> None:
        super().__init__(factors, pieces_in, pieces, scale, dropout)
        self.start, self.cp = start, cp

    def matrix(self) -> Tensor:
        f = self.factors
        number = self.pieces * self.pieces_in
        mixing = f.P[:, self.start : self.start + number]
        if self.cp:
            parts = [torch.diag(f.weight * mixing[:, i]) for i in range(number)]
            return torch.cat(parts, dim=0 if self.pieces > 1 else 1)
        core = (f.C @ mixing).reshape(f.rank, number * f.rank)
        return core if self.pieces_in > 1 else core.T
