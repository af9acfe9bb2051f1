"""NOAH: prompts, LoRA and adapters of elastic width in one supernet, from which a sub-network is searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..errors import VpeftError
from ..layers.elastic import ElasticBottleneck, ElasticLowRank, ElasticPrompts, Genes, Widths, drawn_widths, widths_in
from ..method import BadField, Evolution, Found, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("noah", category="unified", family="unified", paper="2206.04673", year=2024, venue="TPAMI")
class NOAH(Method):
    """VPT-Deep, LoRA on the fused qkv and an adapter behind each MLP, with a width of its own in every block.

    Block l: d_v prompts replace those of the block before (where there are none, the last ones travel on);
    qkv += B A norm1(x), A (d_l, D), B (3 D, d_l); x + [h + W_up q(W_down h + b) + b'], h the MLP branch, W_down (d_a,
    D), q = QuickGELU. Without `prompt`, `lora` and `adapter` this is the supernet: tensors of `width` rows, of which
    the first d take part; each training step draws for each kind a depth and widths. `search_genes` finds the
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
        return methods_found(self, tuned, score, budget, evolution, seed)


def draw(method: NOAH, blocks: int, random: Random) -> Genes:
    """One sub-network, uniformly: a depth for each kind, then a width for each block up to it."""
    prompt, lora, adapter = (drawn_widths(method.choices, method.depths, blocks, random) for _ in range(3))
    return prompt, lora, adapter


def table_of(tuned: TunedModel) -> Widths:
    """The table of widths that the active adapter's elastic layers share."""
    return widths_in(tuned.adapter())


# -- the search over sub-networks ------------------------------------------------------------------------------------

TRIES = 10  # draws for each wanted candidate before a round goes on with fewer, as in the authors' code


class NothingFits(VpeftError):
    """No sub-network of the search space is within the budget."""


class NothingToSearch(VpeftError):
    """The method is a sub-network already."""


@dataclass(frozen=True)
class Candidate:
    """A sub-network, its trained parameters without the head, and its score (higher is better)."""

    genes: Genes
    parameters: int
    score: float


def parameters_of(genes: Genes, width: int) -> int:
    """Trained parameters of a sub-network on blocks of `width` channels: what takes part, without the head."""
    prompt, lora, adapter = genes
    low_rank = sum(4 * width * d for d in lora)
    return sum(d * width for d in prompt) + low_rank + sum(2 * width * d + d + width for d in adapter if d)


def search_genes(
    tuned: TunedModel,
    score: Callable[[TunedModel], float],
    *,
    limit: int = 640_000,
    rounds: int = 15,
    population: int = 50,
    parents: int = 10,
    crossovers: int = 25,
    mutations: int = 25,
    mutate: float = 0.2,
    redraw_depth: float = 0.4,
    resample: bool = False,
    seed: int = 0,
) -> list[Candidate]:
    """Search the supernet that is active on `tuned`; its weights are inherited, nothing is trained.

    Args:
        tuned: holds the supernet, in the mode in which it is to be scored (eval).
        score: for instance the accuracy on validation images, called with each sub-network in force.
        limit: most parameters of a candidate.
        rounds, population, parents, crossovers, mutations: sizes of the evolution.
        mutate: probability that a kind changes in a mutation.
        redraw_depth: probability that its depth is then drawn anew.
        resample: also draw each width anew with probability `mutate`, as the paper says; the code does not.
        seed: of the draws.

    Returns:
        Every candidate that was scored, best first; ties go to the smaller one. `NOAH.with_genes` takes the winner's.

    Raises:
        NothingFits: no candidate is within the limit.
    """
    table, random = table_of(tuned), Random(seed)
    method = next(method for method in tuned.methods() if isinstance(method, NOAH))
    blocks, width = len(table.rest[0]), tuned.description.blocks[0].dim
    seen: dict[Genes, Candidate] = {}
    best: list[Candidate] = []

    def gather(count: int, make: Callable[[], Genes]) -> list[Candidate]:
        found: list[Candidate] = []
        for _ in range(TRIES * max(count, 1)):
            if len(found) >= count:
                break
            genes = make()
            size = parameters_of(genes, width)
            if genes not in seen and size <= limit:
                seen[genes] = Candidate(genes, size, _scored(tuned, score, genes))
                found.append(seen[genes])
        return found

    def mutated() -> Genes:
        kinds = [
            _mutate(method, kind, random, redraw_depth, mutate if resample else 0.0)
            if random.random() < mutate
            else kind
            for kind in random.choice(best).genes
        ]
        return kinds[0], kinds[1], kinds[2]

    def crossed() -> Genes:
        one, other = random.choice(best).genes, random.choice(best).genes
        kinds = [random.choice(pair) for pair in zip(one, other, strict=True)]
        return kinds[0], kinds[1], kinds[2]

    gather(population, lambda: draw(method, blocks, random))
    if not seen:
        raise NothingFits(f"No sub-network with at most {limit:,} parameters was drawn; raise the limit.")
    for _ in range(rounds):
        best = _ranked(seen)[:parents]
        made = gather(mutations, mutated) + gather(crossovers, crossed)
        gather(population - len(made), lambda: draw(method, blocks, random))
    return _ranked(seen)


def methods_found(
    method: NOAH, tuned: TunedModel, score: Callable[[Method], float], budget: int, evolution: Evolution, seed: int
) -> list[Found]:
    """`search_genes` in the terms of `Method.search`: candidates are methods."""
    if method.genes is not None:
        raise NothingToSearch("This NOAH has chosen widths already; the supernet has none of prompt, lora and adapter.")

    def of_model(model: TunedModel) -> float:
        genes = table_of(model).tried
        assert genes is not None
        return score(method.with_genes(genes))

    found = search_genes(tuned, of_model, limit=budget, seed=seed, **evolution.model_dump())
    return [Found(method.with_genes(one.genes), one.parameters, one.score) for one in found]


def _ranked(seen: dict[Genes, Candidate]) -> list[Candidate]:
    return sorted(seen.values(), key=lambda candidate: (-candidate.score, candidate.parameters))


def _scored(tuned: TunedModel, score: Callable[[TunedModel], float], genes: Genes) -> float:
    table = table_of(tuned)
    table.tried = genes
    try:
        return float(score(tuned))
    finally:
        table.tried = None


def _mutate(method: NOAH, kind: tuple[int, ...], random: Random, redraw: float, resample: float) -> tuple[int, ...]:
    """Another depth, filled up with drawn widths; with `resample`, each width that stays may change too."""
    fresh = drawn_widths(method.choices, method.depths, len(kind), random)
    depth = sum(1 for d in (fresh if random.random() < redraw else kind) if d)
    kept = [random.choice(method.choices) if d and random.random() < resample else d for d in kind]
    return tuple((kept[i] or random.choice(method.choices)) if i < depth else 0 for i in range(len(kind)))
