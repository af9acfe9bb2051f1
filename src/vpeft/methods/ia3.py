"""IA3: trained factors on keys, values and the hidden features of the MLP."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.scale_shift import Scale
from ..layers.weight_scale import WeightScale
from ..method import Method, register
from .lora import Target, chosen_places


@register("ia3", family="reparameter", paper="2205.05638", year=2022, venue="NeurIPS")
class IA3(Method):
    """Keys, values and the features inside the MLP are each multiplied by a trained vector.

    k = l_k * (W_k x + b_k), v = l_v * (W_v x + b_v), MLP(x) = W_2 (l_ff * f(W_1 x)) + b_2, with l_k, l_v (D,) and l_ff
    (4 D,), all starting at one. It folds into the weights: a factor on an output also into the bias, one on an input
    not. A convolution is scaled by channel.

    With `inputs` and `outputs` of your own other projections are scaled; in blocks without attention the default is
    the second layer of the MLP alone. Weight decay would pull the factors to zero: leave it off (one-dimensional
    tensors are not decayed here). The paper's rate is 3e-3.
    """

    variants = ({"outputs": (), "inputs": ("fc2",)}, {"outputs": ("conv",), "inputs": ()})

    outputs: tuple[Target, ...] = ("k", "v")
    """projections whose output is scaled"""
    inputs: tuple[Target, ...] = ("fc2",)
    """projections whose input is scaled"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if not self.outputs and not self.inputs:
            raise MissingPlace("IA3 was given no projection. Name some in `outputs` or `inputs`.")
        for place in chosen_places(backbone, self.outputs, "IA3"):
            yield place.after(Scale(place.width))
        for place in chosen_places(backbone, self.inputs, "IA3"):
            groups = getattr(place.module, "groups", 1)
            yield place.reparametrize(WeightScale(tuple(place.weight.shape), groups=groups, outputs=False))
