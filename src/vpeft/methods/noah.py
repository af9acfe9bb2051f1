"""NOAH: prompts, LoRA and adapters of elastic width in one supernet, from which a sub-network is searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..layers.elastic import ElasticBottleneck, ElasticLowRank, ElasticPrompts, Genes, Widths, drawn_widths, widths_in
from .evolution import Evolution, Found
from .method import BadField, Method
from .registry import register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("noah", category="unified", family="unified", paper="2206.04673", year=2024, venue="TPAMI")
class NOAH(Method):
    """VPT-Deep, LoRA on the fused qkv and an adapter behind each MLP, with a width of its own in every block.

    Block l: d_v prompts replace those of the block before (where there are none, the last ones travel on);
    qkv += B A norm1(x), A (d_l, D), B (3 D, d_l); x + [h + W_up q(W_down h + b) + b'], h the MLP branch, W_down (d_a,
    D), q = QuickGELU. Without `prompt`, `lora` and `adapter` this is the supernet: tensors of `width` rows, of which
    the first d take part; each training step draws for each kind a depth and widths. `noah_search.search` finds the
    best sub-network under a budget; `with_genes` makes it a method with tensors of those widths, to be trained anew.

    The prompts stand behind the class token, not at the end (attention does not mind). Published start: every linear
    map normal with deviation 0.02, so step 0 is not the frozen model. Left out: the code's model-level prompt and its
    position table, which block 0 replaces at once.
    """

    prompt: tuple[int, ...] | None = None
    """d_v of each block of a chosen sub-network; 0 for none"""
    lora: tuple[int, ...] | None = None
    """d_l of each block"""
    adapter: tuple[int, ...] | None = None
    """d_a of each block"""
    choices: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    """widths of the search space; (5, 10, 50, 100) for few-shot"""
    depths: tuple[int, ...] = Field(default=(3, 6, 9, 12), min_length=1)
    """numbers of first blocks that carry a kind; those beyond the backbone's depth count as its depth"""
    width: int = Field(default=100, gt=0)
    """of the supernet's tensors; it also sets the prompts' range at the start"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on prompts, on LoRA's input, and behind q"""
    init: Literal["published", "zero"] = "published"
    """"zero" starts B and W_up at zero"""
    seed: int = 0
    """of the widths that training draws"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    @property
    def genes(self) -> Genes | None:
        """The chosen sub-network, or None for the supernet."""
        chosen = (self.prompt, self.lora, self.adapter)
        if all(widths is None for widths in chosen):
            return None
        if self.prompt is None or self.lora is None or self.adapter is None:
            raise BadField("NOAH takes prompt, lora and adapter together (a sub-network), or none (the supernet).")
        return self.prompt, self.lora, self.adapter

    def with_genes(self, genes: Genes) -> NOAH:
        """The method that trains this sub-network alone."""
        return NOAH(**{**self.model_dump(), "prompt": genes[0], "lora": genes[1], "adapter": genes[2]})

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.qkv", "mlp_branch")
        depth, genes = len(backbone.blocks), self.genes
        if genes is not None and any(len(widths) != depth for widths in genes):
            raise BadField(f"NOAH's widths are for each block; {backbone.facts.architecture} has {depth} blocks.")
        if max(self.choices) > self.width:
            raise BadField(f"NOAH.choices go up to {max(self.choices)}, but the supernet has only {self.width} rows.")
        made = genes or ((self.width,) * depth,) * 3
        table, zero = Widths(genes or ((max(self.choices),) * depth,) * 3), self.init == "zero"
        for i, block in enumerate(backbone.blocks):
            prompt, lora, adapter = (widths[i] for widths in made)
            if block.carrier is None or block.layout is not Layout.TOKENS or block.rewrites.get("insert_tokens"):
                raise MissingPlace(f"NOAH needs a plain sequence; {block.name} has {block.layout.value} or masks.")
            if any(made[0]):
                bound = math.sqrt(6.0 / ((self.width + 1) * block.dim))  # Xavier for 1 x width x D, as the code
                yield block.wrap(ElasticPrompts(prompt, block.dim, i, table, block.carrier, bound, self.dropout))
            if lora:
                qkv = block.attn.qkv
                yield qkv.parallel(ElasticLowRank(qkv.width_in, qkv.width, lora, i, table, self.dropout, zero))
            if adapter:
                yield block.mlp_branch.after(ElasticBottleneck(block.dim, adapter, i, table, self.dropout, zero))

    def advance(self, tuned: TunedModel, progress: float) -> None:
        """Draw the sub-network of the next step: the same on every process, and after a resumed run."""
        if self.genes is None:
            widths = table_of(tuned)
            widths.drawn = draw(self, len(widths.rest[0]), Random(f"{self.seed}:{progress!r}"))

    def search(
        self, tuned: TunedModel, score: Callable[[Method], float], budget: int, evolution: Evolution, seed: int
    ) -> list[Found]:
        from .noah_search import methods_found  # which builds on this file

        return methods_found(self, tuned, score, budget, evolution, seed)


def draw(method: NOAH, blocks: int, random: Random) -> Genes:
    """One sub-network, uniformly: a depth for each kind, then a width for each block up to it."""
    prompt, lora, adapter = (drawn_widths(method.choices, method.depths, blocks, random) for _ in range(3))
    return prompt, lora, adapter


def table_of(tuned: TunedModel) -> Widths:
    """The table of widths that the active adapter's elastic layers share."""
    return widths_in(tuned.adapter())
