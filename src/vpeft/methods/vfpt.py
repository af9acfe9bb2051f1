"""Visual Fourier Prompt Tuning: VPT whose prompts pass a Fourier transform in part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Span
from ..errors import VpeftError
from ..layers.fourier import Dimension, FourierTokens, Location
from ..layers.prompt import per_width, xavier_bound
from ..method import Method, register
from .vpt_deep import VPTDeep
from .vpt_shallow import VPTShallow

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("vfpt", category="addition", family="prompt", paper="2411.01327", year=2024, venue="NeurIPS")
class VFPT(VPTDeep):
    """VPT-Deep with [F(P_i[:n_f]); P_i[n_f:]] in place of P_i, n_f = floor(fraction n).

    F(E)[k, l] = sum over n < n_f, d < D of E[n, d] cos(2 pi (k n / n_f + l d / D)): the real part of the FFT over
    channels and over these tokens, unnormalised, after projection and dropout. `collapse` bakes it in.

    The real part halves the information: what is odd in E gets no gradient. Departures: n_f = 0 is plain VPT (the code
    fails); with `extra` all inserted tokens leave after each block (the code lets the sequence grow by `extra`).
    """

    fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """n_f / n; chosen on validation images, the code's examples take 1"""
    deep: bool = True
    """fresh prompts for each block; False: once, as in VPT-Shallow"""
    dimension: Dimension = "all"
    """axes of the FFT: channels and tokens, channels ("hidden") or tokens ("sequence")"""
    location: Location = "prepend"
    """transformed tokens before or behind the plain ones, or at random, drawn at each pass, also in evaluation"""
    transform: Literal["fft", "linear", "fixed_linear"] = "fft"
    """the ablation has a D x D linear map, trained or not, one for all blocks of a width"""
    layers: Literal["all", "former", "later", "even"] = "all"
    """which blocks transform: all, the first half, the second half, every second one from block 0"""
    first: bool = True
    """whether block 0 transforms"""
    extra: int = Field(default=0, ge=0)
    """so many transformed prompts more in each block behind the first, instead of the first n_f (the code: 50)"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        spans: list[Span] = list(backbone.blocks) if self.deep else [backbone.trunk]
        bound = xavier_bound(backbone, self.project or backbone.trunk.width_in)
        projections: dict[int, nn.Linear] = {}
        mixings: dict[int, nn.Linear] = {}
        for index, span in enumerate(spans):
            if self.deep and self.blocks is not None and index not in self.blocks:
                continue
            width, project, mixing = span.width_in, None, None
            transforms = self._transforms(index, len(backbone.blocks))
            if self.project is not None:
                project = per_width(projections, self.project, width)
            if transforms and self.transform != "fft":
                mixing = per_width(mixings, width, width).requires_grad_(self.transform == "linear")
            layer = FourierTokens(
                self.tokens,
                self.project or width,
                bound,
                self.dropout,
                project,
                transformed=math.floor(self.fraction * self.tokens) if transforms else 0,
                dimension=self.dimension,
                location=self.location,
                mixing=mixing,
                extra=self.extra if transforms and index > 0 else 0,
            )
            yield span.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")

    def _transforms(self, block: int, depth: int) -> bool:
        if self.fraction * self.tokens < 1 or (block == 0 and not self.first):
            return False
        chosen = {"former": block < depth // 2, "later": block >= depth // 2, "even": block % 2 == 0}
        return chosen.get(self.layers, True)

    @torch.no_grad()
    def collapse(self, tuned: TunedModel, name: str | None = None) -> tuple[Method, dict[str, Tensor]]:
        """Plain VPT and the tensors (its own and the head's) that give the same outputs as `tuned` does in evaluation.

        Raises:
            VpeftError: tokens are picked at random, or some blocks have `extra` ones, which VPT cannot express.
        """
        if self.location == "random" or self.extra:
            raise VpeftError(
                "Only fixed prompts, as many in each block, can become plain VPT: no `random`, no `extra`."
            )
        state = {key: value for key, value in tuned.adapter_state(name).items() if key.startswith("head.")}
        for key, layer in tuned.adapter(name).named_modules():
            if isinstance(layer, FourierTokens):
                state[f"{key}.tokens"] = layer.baked().clone()
        if not self.deep:
            return VPTShallow(tokens=self.tokens, pooled=self.pooled), state
        return VPTDeep(tokens=self.tokens, pooled=self.pooled, blocks=self.blocks), state
