"""Blocks and stages, and the attention and MLP inside a block."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .places import Attention, Norm, Projection, ResidualStream, Site, Span
from .points import MissingPlace

SHORT = ("attn.", "mlp.", "")  # where a projection's short name is looked for


class AttentionSite(Site):
    """Attention as a whole: its input and output inside LayerScale and drop path, and its projections."""

    @property
    def qkv(self) -> Projection:
        """The fused projection, where the model has one."""
        return self._part("qkv", Projection)

    @property
    def q(self) -> Projection:
        return self._part("q", Projection)

    @property
    def k(self) -> Projection:
        return self._part("k", Projection)

    @property
    def v(self) -> Projection:
        return self._part("v", Projection)

    @property
    def proj(self) -> Projection:
        return self._part("proj", Projection)

    @property
    def core(self) -> Attention:
        return self._part("core", Attention)

    @property
    def inputs(self) -> tuple[Projection, ...]:
        """The projections that make q, k and v as the model stores them: one fused, or three."""
        if "qkv" in self.parts:
            return (self._part("qkv", Projection),)
        return (self.q, self.k, self.v)


class MlpSite(Site):
    """The MLP as a whole, inside LayerScale and drop path, and its projections."""

    @property
    def fc1(self) -> Projection:
        return self._part("fc1", Projection)

    @property
    def fc2(self) -> Projection:
        return self._part("fc2", Projection)


@dataclass(eq=False)
class Block(Span):
    """A residual block. `index` counts through the whole backbone, `stage` says where it belongs.

    `leading` are re-expressions under which the block works for the first tokens alone, as many as its attention
    answers; empty where a family has none.
    """

    index: int = 0
    stage: int = 0
    drop_path: float = 0.0
    leading: tuple[tuple[nn.Module, type[nn.Module]], ...] = ()

    @property
    def dim(self) -> int:
        return self.width

    @property
    def attn_branch(self) -> Span:
        return self._part("attn_branch", Span)

    @property
    def mlp_branch(self) -> Span:
        return self._part("mlp_branch", Span)

    @property
    def attn(self) -> AttentionSite:
        return self._part("attn", AttentionSite)

    @property
    def mlp(self) -> MlpSite:
        return self._part("mlp", MlpSite)

    @property
    def norm1(self) -> Site:
        return self._part("norm1", Site)

    @property
    def norm2(self) -> Site:
        return self._part("norm2", Site)

    @property
    def skip1(self) -> Site:
        return self._part("skip1", Site)

    @property
    def skip2(self) -> Site:
        return self._part("skip2", Site)

    @property
    def stream1(self) -> ResidualStream:
        return self._part("stream1", ResidualStream)

    @property
    def stream2(self) -> ResidualStream:
        return self._part("stream2", ResidualStream)

    @property
    def norms(self) -> list[Site]:
        """The normalisations of this block, in the order of execution."""
        return [part for part in self.walk() if isinstance(part, Norm)]

    def projection(self, target: str) -> Projection:
        """The projection that papers call by this short name: q, k, v, qkv, proj, fc1, fc2 or conv.

        Raises:
            MissingPlace: this block has no such projection; the message lists those that it has.
        """
        for part in self.walk():
            if isinstance(part, Projection) and part.name in (f"{self.name}.{inner}{target}" for inner in SHORT):
                return part
        have = [part.name.rpartition(".")[2] for part in self.walk() if isinstance(part, Projection)]
        raise MissingPlace(f"{self.name} has no projection {target!r}. It has: {', '.join(have) or 'none'}.")

    def stored(self, target: str) -> tuple[Projection, ...]:
        """`projection(target)`; for qkv, the three where the model stores them apart."""
        if target == "qkv" and self.has("attn") and not self.has("attn.qkv"):
            return self.attn.inputs
        return (self.projection(target),)

    @property
    def projections(self) -> list[Projection]:
        """The linears and convolutions of this block as the model stores them (a fused qkv counts once)."""
        found = [part for part in self.walk() if isinstance(part, Projection)]
        return [part for part in found if part.rows is None]


@dataclass(eq=False)
class Stage(Span):
    """Blocks of one resolution, with the downsampling before them, if there is one.

    Attributes:
        downsample: the module that takes the previous stage's output, in its layout, to this stage's input.
    """

    index: int = 0
    downsample: nn.Module | None = None
    blocks: list[Block] = field(default_factory=list)
