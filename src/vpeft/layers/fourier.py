"""Prompt tokens, some of which go through a Fourier transform."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from .prompt import PromptTokens

Dimension = Literal["all", "hidden", "sequence"]
Location = Literal["prepend", "append", "random"]


class FourierTokens(PromptTokens):
    """[F(E); R]: the first n_f tokens E are transformed, the others R stay plain.

    F(E) = Re FFT of E (n_f, D) over channels and tokens, without a factor; or a linear map of the channels instead.

    Args:
        transformed: n_f; 0 transforms nothing.
        dimension: the axes: both, the channels ("hidden") or the tokens ("sequence").
        location: transformed tokens before or behind the plain ones; "random" picks others at each call, also in eval
            mode, and transforms each by itself.
        mixing: the linear map, if that takes the transform's place.
        extra: so many tokens more, which are transformed in place of the first n_f; then all n stay plain.
        See PromptTokens for the others.
    """

    def __init__(
        self,
        count: int,
        width: int,
        bound: float,
        dropout: float,
        project: nn.Linear | None,
        *,
        transformed: int,
        dimension: Dimension = "all",
        location: Location = "prepend",
        mixing: nn.Linear | None = None,
        extra: int = 0,
    ) -> None:
        super().__init__(count, width, bound, dropout, project)
        self.transformed, self.location, self.mixing = transformed, location, mixing
        self.axes = {"all": (-2, -1), "hidden": (-1,), "sequence": (-2,)}[dimension]
        if extra:
            self.extra = nn.Parameter(torch.empty(extra, width).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        dropped = self.training and self.dropout.p > 0  # otherwise all samples have the same tokens
        made = self._rows(hidden.shape[0] if dropped else 1)
        return made.expand(hidden.shape[0], -1, -1)

    def _rows(self, batch: int) -> Tensor:
        if hasattr(self, "extra"):
            parts = [self._transform(self.rows(self.extra, batch)), self.rows(self.tokens, batch)]
        elif self.transformed == 0:
            return self.rows(self.tokens, batch)
        elif self.location == "random":
            rows = self.rows(self.tokens, batch)
            chosen = torch.randperm(len(self.tokens), device=rows.device)[: self.transformed]
            each = self._transform(rows[:, chosen].unsqueeze(-2)).squeeze(-2)
            return rows.index_copy(1, chosen, each)
        else:
            parts = [
                self._transform(self.rows(self.tokens[: self.transformed], batch)),
                self.rows(self.tokens[self.transformed :], batch),
            ]
        return torch.cat(parts if self.location != "append" else parts[::-1], dim=1)

    def _transform(self, tokens: Tensor) -> Tensor:
        if self.mixing is not None:
            return torch.as_tensor(self.mixing(tokens))
        # the FFT knows no bfloat16, and float16 only at powers of two
        known = torch.amp.is_autocast_available(tokens.device.type)  # not for the meta device
        with torch.autocast(tokens.device.type, enabled=False) if known else nullcontext():
            mixed: Tensor = torch.fft.fftn(tokens.float(), dim=self.axes).real
            return mixed.to(tokens.dtype)

    def baked(self) -> Tensor:
        """(n, D): the tokens as they enter the sequence, without dropout."""
        return self._rows(1)[0]
