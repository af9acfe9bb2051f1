"""GLoRA: five supports that scale and shift the weight and the bias of each linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..method import BadField, Method, register
from .ssl import Target

MatrixForm = Literal["lora", "vector", "constant", "none"]
InputForm = Literal["lora", "vector", "none"]
BiasForm = Literal["vector", "constant", "none"]
Forms = tuple[MatrixForm, MatrixForm, InputForm, BiasForm, BiasForm]


@register("glora", category="unified", family="unified", paper="2306.07967", year=2023, venue="arXiv")
class GLoRA(Method):
    """Each linear layer W, b becomes W' x + b', W' = W + W * A + B, b' = b + b * D + E + W C (* by entries).

    A and B (out, in) are a low-rank product U V, one number for each output ("vector"), one for all, or none; C (in,)
    is U v, a vector, or none; D and E (out,) are a vector, one number, or none. It folds into weight and bias. What
    multiplies W starts at zero, the inner factors Xavier-uniform, so step 0 is the frozen model.

    The paper trains all forms as one supernet and searches one form for each layer; here the forms are stated:
    for all layers alike, or in `layers` for each by itself. The supernet and its search are not part of this. A layer
    without a bias has no D.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=4, gt=0)
    """R of the low-rank forms; 4 or 8 in the paper"""
    targets: tuple[Target, ...] = ("qkv", "proj", "fc1", "fc2")
    """projections of each block; qkv is q, k and v where the model stores them apart"""
    scale_weight: MatrixForm = "lora"
    """form of A"""
    shift_weight: MatrixForm = "lora"
    """form of B"""
    shift_input: InputForm = "lora"
    """form of C"""
    scale_bias: BiasForm = "vector"
    """form of D"""
    shift_bias: BiasForm = "vector"
    """form of E"""
    layers: Mapping[str, Forms] | None = None
    """forms A, B, C, D, E of single layers by the names of their places (`blocks.0.mlp.fc1`), as a search finds them"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        places = [p for block in backbone.blocks for target in self.targets for p in block.stored(target)]
        if unknown := sorted({*(self.layers or {})} - {place.name for place in places}):
            raise BadField(
                f"GLoRA.layers names {', '.join(unknown)}; its layers are {', '.join(p.name for p in places)}."
            )
        own = (self.scale_weight, self.shift_weight, self.shift_input, self.scale_bias, self.shift_bias)
        for place in places:
            forms = (self.layers or {}).get(place.name, own)
            weight = place.weight
            if weight[0, 0].numel() > 1 or weight.shape[1] != place.width_in:
                raise MissingPlace(
                    f"{place.name} is a convolution of a neighbourhood, and GLoRA changes linear layers."
                )
            if set(forms) != {"none"}:
                yield place.parallel(Supports(place, self.rank, forms))


class Supports(nn.Module):
    """x (..., in) -> (W * A + B) x + b * D + E + W C, with the frozen W and b of the layer that it stands beside."""

    def __init__(self, place: Projection, rank: int, forms: Forms) -> None:
        super().__init__()
        self.place = place
        count, width = place.width, place.width_in
        matrix = {"lora": (count, rank), "vector": (count, 1), "constant": (1, 1)}
        vector = {"vector": (count,), "constant": (1,)}
        names = dict(zip("ABCDE", forms, strict=True))
        if place.bias is None:
            names["D"] = "none"
        if place.name.endswith(".attn.k"):
            why = "the softmax over keys does not see what is the same for every key"
            self.dormant = dict.fromkeys(("C", "C_inner", "D", "E"), why)
        for name, form in names.items():
            shapes = {"A": matrix, "B": matrix, "C": {"lora": (width, rank), "vector": (width, 1)}}.get(name, vector)
            if form != "none":
                self.register_parameter(name, nn.Parameter(torch.zeros(shapes[form])))
            if form == "lora":
                inner = torch.empty(rank, 1 if name == "C" else width)
                self.register_parameter(f"{name}_inner", nn.Parameter(nn.init.xavier_uniform_(inner)))

    def _support(self, name: str) -> Tensor | None:
        """A, B (out, in) or broadcast to it; C (in, 1); D, E (out,) or (1,)."""
        outer, inner = self._parameters.get(name), self._parameters.get(f"{name}_inner")
        return outer if inner is None or outer is None else outer @ inner

    def weight_delta(self) -> tuple[Tensor, Tensor]:
        """What is added to the weight (out, in) and to the bias (out,)."""
        weight, bias = self.place.weight.flatten(1), self.place.bias
        A, B, C, D, E = (self._support(name) for name in "ABCDE")
        delta, shift = torch.zeros_like(weight), weight.new_zeros(len(weight))
        delta = delta if A is None else delta + weight * A
        delta = delta if B is None else delta + B
        shift = shift if C is None else shift + (weight @ C.to(weight.dtype))[:, 0]
        shift = shift if D is None or bias is None else shift + bias * D
        return delta, shift if E is None else shift + E

    def forward(self, x: Tensor) -> Tensor:
        delta, shift = self.weight_delta()
        return F.linear(x, delta.to(x.dtype), shift.to(x.dtype))
