"""Where the outlet looks: attention roll-out, with the adapter and without.

Abnar and Zuidema, Quantifying Attention Flow in Transformers (arXiv 2005.00928): R = product over the blocks of
(A + I) / 2, where A is the attention averaged over the heads and each row adds up to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.errors import VpeftError
from vpeft.injection.carry_out import carry_out
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method

FROZEN = "frozen-for-the-roll-out"


class NoRollOut(VpeftError):
    """This backbone's attention is not between all tokens of an image."""


class Seen(nn.Module):
    """Keeps the attention (B, heads, N, keys) that passes, as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, unchanged."""
        return q, k, v

    def weights(self, weights: Tensor) -> Tensor:
        """The softmax of the scores, unchanged."""
        self.last = weights.detach().float().mean(1)
        return weights


class WatchedAttention(Method):
    """Changes nothing, and sees the attention of every block."""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            yield block.attn.core.extend(Seen())


class RollOut:
    """Roll-out on one model, which is given up for it: what watches the attention stays attached.

    Args:
        tuned: the model, with the adapter on.

    Raises:
        NoRollOut: the attention is in windows, or there is none.
    """

    def __init__(self, tuned: TunedModel) -> None:
        self.tuned, description = tuned, tuned.description
        name = tuned.active
        assert name is not None
        self.name = name
        try:
            watched = list(WatchedAttention().edits(description))
            for edit in watched:
                carry_out(edit, name, tuned._wiring)
            tuned.attach(WatchedAttention(), name=FROZEN, head=nn.Identity())
        except (VpeftError, AttributeError, KeyError) as error:
            raise NoRollOut(f"No attention of this backbone can be seen: {error}") from None
        finally:
            tuned.enable(name)
        self._seen = {
            name: [edit.layer for edit in watched],
            FROZEN: [edit.layer for edit in tuned.adapter(FROZEN).edits],
        }
        tuned.eval()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> how much of each cell of the grid reaches the outlet, without and with, (B, H', W').

        Raises:
            NoRollOut: the attention is not between all tokens.
        """
        return self._of(FROZEN, images), self._of(self.name, images)

    def _of(self, name: str, images: Tensor) -> Tensor:
        with torch.no_grad(), self.tuned.enable(name):
            self.tuned.features(images)
        maps = []
        for layer in self._seen[name]:
            assert isinstance(layer, Seen)
            if layer.last is None or len(layer.last) != len(images):
                raise NoRollOut("Its attention is in windows, or of fewer tokens from block to block.")
            maps.append(layer.last)
            layer.last = None
        block = self.tuned.description.blocks[0]
        if block.grid is None or len(block.grid) != 2:
            raise NoRollOut("Its tokens lie on no grid.")
        return rolled_out(maps, block.prefix, (int(block.grid[0]), int(block.grid[1])))


def rolled_out(maps: Sequence[Tensor], prefix: int, grid: tuple[int, int]) -> Tensor:
    """Attention (B, N, keys) of each block -> (B, H, W), from the class token, or the mean over the grid without one.

    Further keys, which stand in front, and inserted tokens, between prefix and grid, are left out.

    Raises:
        NoRollOut: there are fewer tokens than the prefix and the grid have.
    """
    cells = grid[0] * grid[1]
    whole: Tensor | None = None
    for attention in maps:
        rows, keys = attention.shape[-2:]
        if rows < prefix + cells or keys < rows:
            raise NoRollOut(f"A block has {rows} tokens and {keys} keys, fewer than the {prefix + cells} of its grid.")
        kept = torch.cat([torch.arange(prefix), torch.arange(rows - cells, rows)]).to(attention.device)
        own = attention[:, kept][:, :, kept + keys - rows]
        own = own / own.sum(-1, keepdim=True).clamp(min=1e-12)
        step = (own + torch.eye(len(kept), device=own.device)) / 2
        whole = step if whole is None else step @ whole
    assert whole is not None
    seen = whole[:, 0, prefix:] if prefix else whole.mean(1)
    return seen.reshape(len(seen), *grid)
