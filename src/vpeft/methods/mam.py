"""MAM: prefixes in every attention together with a scaled parallel adapter beside every MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .adapter_parallel import ParallelAdapter
from .prefix_tuning import PrefixTuning


@register("mam", category="unified", family="unified", paper="2110.04366", year=2022, venue="ICLR")
class MAM(Method):
    """[K_p; k], [V_p; v] with n rows in each attention, and MLP(z) + s (W_up ReLU(W_down z + b) + b') beside the MLP.

    z = LN(h) is what the MLP reads, W_down (R, D). `parts` are the methods it is made of: `prefix_tuning` and
    `adapter_parallel`. With form="mlp" a network makes the prefixes in training, one in each block (the code has one
    network for all blocks); `PrefixTuning.collapse` keeps the rows. Prefixes change the attention at once, so step 0 is
    not the frozen model.

    The sizes of the paper are 30 prefixes and R = 512 in language models; 10 and 8 fit a budget of VTAB-1k.
    """

    length: int = Field(default=10, gt=0)
    """n"""
    form: Literal["direct", "mlp"] = "direct"
    """whether the prefixes are the parameters, or a network makes them"""
    hidden: int = Field(default=800, gt=0)
    """inner channels of that network"""
    bottleneck: int = Field(default=8, gt=0)
    """R"""
    scale: float = 4.0
    """s"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    @property
    def parts(self) -> tuple[PrefixTuning, ParallelAdapter]:
        """The methods that this one is made of."""
        return (
            PrefixTuning(length=self.length, form=self.form, hidden=self.hidden),
            ParallelAdapter(bottleneck=self.bottleneck, scale=self.scale),
        )

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for part in self.parts:
            yield from part.edits(backbone)
