"""PAE: VPT-Deep whose prompts start from the frequencies that a task needs, and evolve together over the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.class_labels import class_labels
from ..layers.frozen_block import FrozenBlock
from ..layers.prompt import PromptTokens
from ..layers.watched_place import watch_tokens
from ..method import BadField, Method, register
from .vpt_deep import VPTDeep

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("pae", category="addition", family="prompt", paper="2601.20232", year=2026, venue="ICLR")
class PAE(VPTDeep):
    """Visual prompt-agnostic evolution on VPT-Deep: a start by frequency, and a penalty on how prompts follow another.

    Start (modal pre-alignment), in `prepare`, on the first batch x: windows of w x w, at steps of r, of the centred
    2-D spectrum are kept alone, x_s = Re ifft(m_s fft x); the n windows with the lowest cross-entropy (prompts zero,
    the head as it starts) give the first prompts, the mean of all patch embeddings of x_s weighted by their squared
    norms; P_{i+1} = Block_i(P_i), the prompts alone as the sequence.

    Penalty (Koopman-Lyapunov), z_i = P_i W_in, K and L (d, d) from the identity, shared: the sum over i of
    a mean (z_i K - z_{i+1})^2 + b 10 tanh(s / 10), s = mean softplus(V(z_i K) - V(z_i)), V(z) = z Q z^T on z of at
    most norm one, Q = L^T L / |L^T L|_2. That is the released code's; its equations have max(0, .) for softplus, sums
    for means, and none of the bounds. `first` begins with the first block, as the equations do; the code, with the
    second. `collapse` gives plain VPT-Deep, as nothing of the penalty is used at inference.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"window": 8, "stride": 8}, {"start": "vpt"})

    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the tokens, for each sample and block"""
    start: Literal["mpa", "vpt"] = "mpa"
    """of the prompts; "mpa" needs a plain chain of norm, attention and MLP, "vpt" is VPT's"""
    window: int = Field(default=16, gt=0)
    """w, frequencies"""
    stride: int = Field(default=8, gt=0)
    """r"""
    dim: int = Field(default=256, gt=0)
    """d"""
    koopman: float = Field(default=0.5, gt=0.0)
    """a; this and `lyapunov` are those of the example for CUB"""
    lyapunov: float = Field(default=0.2, gt=0.0)
    """b"""
    first: bool = True
    """whether the first block's prompts take part in the penalty"""

    @property
    def reads_data(self) -> bool:
        return self.start == "mpa"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.project is not None:
            raise BadField("PAE has prompts of the backbone's width: leave `project` out.")
        if self.start == "mpa":
            _ = [FrozenBlock(block) for block in backbone.blocks]
            windows = self._windows(backbone.facts.image_size) if backbone.inputs.takes_images else 0
            if windows < self.tokens:
                raise MissingPlace(
                    f"PAE starts {self.tokens} prompts from as many windows of an image's spectrum, and the inputs of"
                    f" {backbone.facts.architecture} have {windows}. Take a smaller window and stride, fewer tokens, or"
                    " start='vpt'."
                )
        edits = list(super().edits(backbone))
        layers = [edit.layer for edit in edits if isinstance(edit.layer, PromptTokens)]
        together = layers[1 - self.first :]
        if len(together) > 1:
            widths = tuple(dict.fromkeys(layer.tokens.shape[1] for layer in together))
            layers[0].add_module("evolution", Evolution(widths, self.dim))
        yield from edits

    def _windows(self, size: tuple[int, int]) -> int:
        rows, columns = (max((side - self.window) // self.stride + 1, 0) for side in size)
        return rows * columns

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        images, targets = next(iter(batches))
        labels = class_labels(targets, len(images), "PAE").to(images.device)
        layers = _prompts(tuned)
        for layer in layers.values():
            layer.tokens.zero_()
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        spectrum = torch.fft.fft2(images.float())
        height, width = images.shape[-2:]
        shown = [
            (top, left)
            for top in range(0, height - self.window + 1, self.stride)
            for left in range(0, width - self.window + 1, self.stride)
        ]

        def kept(corner: tuple[int, int]) -> Tensor:
            mask = torch.zeros(height, width, device=images.device)
            mask[corner[0] : corner[0] + self.window, corner[1] : corner[1] + self.window] = 1.0
            pixels: Tensor = torch.fft.ifft2(spectrum * torch.fft.ifftshift(mask)).real
            return pixels.to(images.dtype)

        losses = torch.stack([F.cross_entropy(tuned(kept(corner)).float(), labels) for corner in shown])
        tokens = list[Tensor]()
        blocks = tuned.description.blocks
        handle = watch_tokens(blocks[0].input, tokens.append)
        try:
            with tuned.disable():
                for number in losses.topk(self.tokens, largest=False).indices.tolist():
                    tuned.features(kept(shown[number]))
        finally:
            handle.remove()
            for module, mode in modes.items():
                module.training = mode
        energies = [x.float().square().sum(-1, keepdim=True) for x in tokens]
        prompts = torch.stack([(x * e).sum((0, 1)) / e.sum() for x, e in zip(tokens, energies, strict=True)])
        for block in blocks:
            if block.index in layers:
                layers[block.index].tokens.copy_(prompts)
            prompts = FrozenBlock(block)(prompts[None])[0]

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        layers = list(_prompts(tuned).values())
        evolution = getattr(layers[0], "evolution", None)
        if evolution is None:
            return None
        total: Tensor = evolution([layer.tokens for layer in layers[1 - self.first :]], self.koopman, self.lyapunov)
        return total

    @torch.no_grad()
    def collapse(self, tuned: TunedModel, name: str | None = None) -> tuple[Method, dict[str, Tensor]]:
        """Plain VPT-Deep and the tensors (its own and the head's) that give the same outputs as `tuned` does."""
        state = {key: value.clone() for key, value in tuned.adapter_state(name).items() if ".evolution." not in key}
        return VPTDeep(tokens=self.tokens, dropout=self.dropout, pooled=self.pooled, blocks=self.blocks), state


def _prompts(tuned: TunedModel) -> dict[int, PromptTokens]:
    """The prompts by the block's number."""
    return {edit.place.depth: edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, PromptTokens)}


class Evolution(nn.Module):
    """Prompts P_i (n, D_i), block by block -> the penalty."""

    def __init__(self, widths: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.into = nn.ModuleDict({str(width): nn.Linear(width, dim, bias=False) for width in widths})
        self.K, self.L = nn.Parameter(torch.eye(dim)), nn.Parameter(torch.eye(dim))

    def forward(self, prompts: list[Tensor], koopman: float, lyapunov: float) -> Tensor:
        z: list[Tensor] = [self.into[str(p.shape[1])](p) for p in prompts]
        Q = self.L.T @ self.L
        Q = Q / (torch.linalg.matrix_norm(Q, ord=2) + 1e-8)

        def energy(one: Tensor) -> Tensor:
            bounded = one / (torch.linalg.vector_norm(one, dim=-1, keepdim=True) + 1e-8).clamp(min=1.0)
            value: Tensor = ((bounded @ Q) * bounded).sum(-1)
            return value

        total = self.K.new_zeros(())
        for now, then in pairwise(z):
            foreseen = now @ self.K
            growth = F.softplus(energy(foreseen) - energy(now)).mean()
            total = total + koopman * (foreseen - then).square().mean() + lyapunov * 10 * torch.tanh(growth / 10)
        return total
