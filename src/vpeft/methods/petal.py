"""Mode approximation (Aurora, PETAL): all weight changes as slices of one tensor in CP or Tucker form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.factored import Banked, Factors
from ..method import BadField, Method, register
from .fact_tk import bank
from .fact_tt import TARGETS, Target

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("petal", category="partial", family="reparameter", paper="2305.08381", year=2023, venue="NeurIPS")
class PETAL(Method):
    """The changes of all M matrices D x D are slices of one tensor: shared U and V, one vector p_m for each.

    cp (the paper): dW_m = s V diag(lambda * p_m) U, with U (R, D), V (D, R), lambda and p_m (R,).
    tucker (the released code): y = W x + b + s V drop((U x) S_m), S_m = sum_c C[:, :, c] p_m[c], C (R, R, R): FacT-TK.

    V starts at zero, so step 0 is the frozen model; it folds into the weights. This is the bank of Aurora (2305.08381)
    and PETAL (2312.12458). Towers and parts of one host share U, V and lambda (or C) where the method is put on them
    together ("*", or "image+text_encoder"), those of two models through `share`; each keeps its own p_m. In layers with
    cross-attention the matrices are q, k and v of both attentions; keys and values that come in another width have a
    second U and V.

    `query_transformation` adds 0.1 (a_s g_s + b_s) + 0.1 (a_c g_c + b_c) to each layer with cross-attention, a_s and
    a_c (B, N, D) what self- and cross-attention give behind their norms; g, b start at N(0, 2e-4). It does not fold.
    `experts` (PETAL has 6) mixes word embeddings: e' = 0.6 e + 0.4 mean_k(W_up W_down e), with biases.

    lambda starts at one, where the paper says nothing. The parts of fc1 and fc2 interleave with `tucker`, as in the
    code, and not with `cp`. Left out is the context term of Aurora's matching loss, which lies in its training code.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    core: Literal["cp", "tucker"] = "cp"
    """the form of the tensor"""
    rank: int = Field(default=64, gt=0)
    """R; the paper has 64 and 128"""
    scale: float = 1.0
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """before V"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block without cross-attention"""
    query_transformation: bool = False
    """whether layers with cross-attention gain the gated query transformation"""
    experts: int = Field(default=0, ge=0)
    """linear bottlenecks on the word embeddings of a text tower; 0 for none"""
    expert_width: int = Field(default=64, gt=0)
    """their hidden width"""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what was added later where it is off, so that stored runs and files stay what they are."""
        fields: dict[str, Any] = write(self)
        later = {name: type(self).model_fields[name].default for name in LATER}
        return {key: value for key, value in fields.items() if key not in later or value != later[key]}

    @property
    def starts_as_identity(self) -> bool:
        return not self.query_transformation and not self.experts

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from self._edits({"": backbone})

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """One U, V and lambda (or C) for all towers of one width; each tower keeps its own p_m.

        Raises:
            BadField: a tower has no width in common with the first.
        """
        yield from self._edits(towers)

    def _edits(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        crossed = [block for tower in towers.values() for block in tower.blocks if block.has("cross")]
        texts = [tower for tower in towers.values() if tower.inputs.layout == "tokens"]
        names = ", ".join(tower.facts.architecture for tower in towers.values())
        if self.query_transformation and not crossed:
            raise MissingPlace(
                f"PETAL.query_transformation acts in layers with cross-attention, and {names} has none. Leave it out,"
                " or put the method on an encoder that reads the image: {'image+text_encoder': PETAL(...)} for BLIP."
            )
        if self.experts and not texts:
            raise MissingPlace(f"PETAL.experts act on the words of a text tower, and {names} is none. Leave them out.")
        yield from self._banks(towers)
        if self.query_transformation:
            for block in crossed:
                yield block.after(GatedQuery(block.dim), reads=(block.attn, block.parts["cross"]))
        if self.experts:
            for tower in texts:
                yield tower.words.after(Experts(tower.words.width, self.expert_width, self.experts))

    def _bank(self, tower: Backbone) -> Iterator[Edit]:
        if not any(block.has("cross") for block in tower.blocks):
            yield from bank(tower, self.targets, self.rank, self.scale, self.dropout, kind=self.core)
            return
        places = [block.projection(target) for block in tower.blocks for target in CROSS_TARGETS]
        for sizes in dict.fromkeys((place.width_in, place.width) for place in places):
            own = [place for place in places if (place.width_in, place.width) == sizes]
            factors = Factors(sizes[1], self.rank, len(own), self.core, sizes[0])
            for start, place in enumerate(own):
                yield place.parallel(Banked(factors, 1, 1, self.scale, self.dropout, start, cp=self.core == "cp"))

    def _banks(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        first, *others = ([*self._bank(tower)] for tower in towers.values())
        banks = _banks(edit.layer for edit in first)
        for edits in others:
            _tie(banks, _banks(edit.layer for edit in edits))
        for edits in (first, *others):
            yield from edits

    @staticmethod
    def share(first: TunedModel, *others: TunedModel) -> None:
        """Let the banks of further towers use the outer factors and the core of the first, width by width.

        Give an optimiser each parameter once: `{id(p): p for tower in towers for _, p in tower.trainable()}.values()`.
        Each tower saves whole, so after `load` call this again. Moving a tower to another device keeps the tie.

        Raises:
            BadField: a tower has no such bank, no width or form in common with the first, or was trained apart.
        """
        banks = _banks([first.adapter()])
        for other in others:
            _tie(banks, _banks([other.adapter()]))


class GatedQuery(nn.Module):
    """h, a_s and a_c (B, N, D) -> h + 0.1 (a_s g_s + b_s) + 0.1 (a_c g_c + b_c): scales and shifts of their own.

    In a pass without an image there is no a_c, and h stays.
    """

    optional_reads = (1,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(2e-4 * torch.randn(2, width))
        self.shifts = nn.Parameter(2e-4 * torch.randn(2, width))

    def forward(self, hidden: Tensor, own: Tensor, crossed: Tensor | None) -> Tensor:
        if crossed is None:
            return hidden
        texts = own * self.scales[0] + self.shifts[0]
        return hidden + 0.1 * texts + 0.1 * (crossed * self.scales[1] + self.shifts[1])


class Experts(nn.Module):
    """e (..., D) -> 0.6 e + 0.4 mean_k(W_up,k (W_down,k e + b_down,k) + b_up,k)."""

    def __init__(self, width: int, hidden: int, count: int) -> None:
        super().__init__()
        pairs = (nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, width)) for _ in range(count))
        self.experts = nn.ModuleList(pairs)

    def forward(self, words: Tensor) -> Tensor:
        mixed: Tensor = torch.stack([expert(words) for expert in self.experts]).mean(dim=0)
        return 0.6 * words + 0.4 * mixed


CROSS_TARGETS = ("attn.q", "attn.k", "attn.v", "cross.q", "cross.k", "cross.v")
LATER = ("query_transformation", "experts", "expert_width")
SHARED = ("U", "V", "C", "weight")
Key = tuple[int, int, int, tuple[str, ...]]  # width in and out, rank, names of what is shared


def _tie(banks: dict[Key, Factors], mine: dict[Key, Factors]) -> None:
    """Put what is shared of the first tower's banks into those of another."""
    if not banks.keys() & mine.keys():
        raise BadField(
            f"There is nothing to share: the first tower has banks of {_named(banks)}, the other of"
            f" {_named(mine)} (width, rank, form)."
        )
    for key in banks.keys() & mine.keys():
        pairs = [(name, getattr(banks[key], name), getattr(mine[key], name)) for name in key[3]]
        trained = not mine[key].V.is_meta and bool(mine[key].V.any())
        differ = [name for name, one, two in pairs if trained and one is not two and not one.cpu().equal(two.cpu())]
        if differ:
            raise BadField(f"The towers were trained apart: {', '.join(differ)} differ. Share before training.")
        for name, one, _ in pairs:
            setattr(mine[key], name, one)


def _banks(layers: Iterable[nn.Module | None]) -> dict[Key, Factors]:
    inside = (module for layer in layers if layer is not None for module in layer.modules())
    found = [module for module in inside if isinstance(module, Factors) and hasattr(module, "P")]
    return {
        (one.width_in, one.width, one.rank, tuple(name for name in SHARED if hasattr(one, name))): one for one in found
    }


def _named(banks: dict[Key, Factors]) -> str:
    forms = [(width, rank, "tucker" if "C" in names else "cp") for _, width, rank, names in banks]
    return ", ".join(map(str, forms)) or "nothing"
