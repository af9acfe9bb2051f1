"""U-Tuning: parallel tuners beside attention and MLP, attached together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .u_tuner import UTuner

Form = Literal["adapter", "prefix", "prompt", "scale", "none"]


@register("u_tuning", category="unified", family="unified", paper="2303.00690", year=2023, venue="arXiv")
class UTuning(Method):
    """x + MSA(LN(x)) + T_a(LN(x)), then x + MLP(LN(x)) + T_m(LN(x)): a tuner T beside each operation, of any form.

    `parts` are the methods it is made of (`u_tuner`, once for each operation); attaching those instead gives the same.
    No code was published, and which combination made the paper's figures could not be verified: this is the interface.
    All forms start at zero, so step 0 is the frozen model.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"attention": "none"},)

    attention: Form = "adapter"
    """the tuner beside attention"""
    mlp: Form = "adapter"
    """the tuner beside the MLP"""
    block: Form = "none"
    """a tuner beside the whole block"""
    normed: bool = True
    """whether the tuners of attention and MLP read x behind the norm, or before it"""
    bottleneck: int = Field(default=8, gt=0)
    """inner channels of adapters"""
    length: int = Field(default=10, gt=0)
    """number of prefixes or prompts"""

    @property
    def parts(self) -> tuple[UTuner, ...]:
        """The methods that this one is made of."""
        return tuple(
            UTuner(op=op, form=form, normed=self.normed, bottleneck=self.bottleneck, length=self.length)
            for op, form in (("attn", self.attention), ("mlp", self.mlp), ("block", self.block))
            if form != "none"
        )

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for part in self.parts:
            yield from part.edits(backbone)
