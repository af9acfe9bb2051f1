"""timm's own convolutions, with edits of their weight: padding as TensorFlow has it, standardised weights.

Each keeps its class's own forward, which reads `self.weight`; so padding, stride, dilation, groups and standardisation
stay as they are, and an edit acts on the weight that is stored.
"""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame

from ..rewrites import EDITED, STANDARDISED, WeightInUse


class EditedConv2dSame(WeightInUse, Conv2dSame):  # type: ignore[misc]
    """A convolution with dynamic padding."""


class EditedStdConv2d(WeightInUse, StdConv2d):  # type: ignore[misc]
    """A convolution whose edited weight is standardised."""


class EditedStdConv2dSame(WeightInUse, StdConv2dSame):  # type: ignore[misc]
    """The same with dynamic padding."""


class EditedScaledStdConv2d(WeightInUse, ScaledStdConv2d):  # type: ignore[misc]
    """A convolution whose edited weight is standardised and scaled."""


class EditedScaledStdConv2dSame(WeightInUse, ScaledStdConv2dSame):  # type: ignore[misc]
    """The same with dynamic padding."""


class EditedTimmLinear(WeightInUse, Linear):  # type: ignore[misc]
    """timm's linear, which casts under TorchScript."""


EDITED.update(
    {
        Conv2dSame: EditedConv2dSame,
        StdConv2d: EditedStdConv2d,
        StdConv2dSame: EditedStdConv2dSame,
        ScaledStdConv2d: EditedScaledStdConv2d,
        ScaledStdConv2dSame: EditedScaledStdConv2dSame,
        Linear: EditedTimmLinear,
    }
)
STANDARDISED.update({StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame})
