"""The evolutionary search of NOAH: sub-networks of a trained supernet under a parameter budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..errors import VpeftError
from ..layers.elastic import Genes, drawn_widths
from .evolution import Evolution, Found
from .method import Method
from .noah import NOAH, draw, table_of

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

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


def search(
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
    """`search` in the terms of `Method.search`: candidates are methods."""
    if method.genes is not None:
        raise NothingToSearch("This NOAH has chosen widths already; the supernet has none of prompt, lora and adapter.")

    def of_model(model: TunedModel) -> float:
        genes = table_of(model).tried
        assert genes is not None
        return score(method.with_genes(genes))

    found = search(tuned, of_model, limit=budget, seed=seed, **evolution.model_dump())
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
