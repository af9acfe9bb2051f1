"""Spaces of recipe keys: what is written, drawn, listed and refused; and the strategies that propose values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from vpeft.cli.flags import InvalidValue
from vpeft.cli.validated import validated
from vpeft.errors import MissingExtra
from vpeft.training import search_strategies
from vpeft.training.recipe import Recipe
from vpeft.training.search_space import BadSpace, Choice, Number, Space
from vpeft.training.search_strategies import SearchPlan, rank_of, strategy

RECIPE = Recipe.from_mapping({"backbone": "pocket_vit", "data": {"source": "pocket/count"}, "method": "lora(rank=4)"})


def space(*texts: str) -> Space:
    return Space.parse(texts, RECIPE)


def test_keys_are_found_by_their_last_part_and_written_back_as_they_were_meant() -> None:
    found = space("lr=log(1e-4, 1e-1)", "rank=int(1, 16)", "optimisation.warmup = uniform(0, 0.3, 4)")
    assert found.stated() == {
        "optimisation.lr": "log(0.0001, 0.1)",
        "method.rank": "int(1, 16)",
        "optimisation.warmup": "uniform(0, 0.3, 4)",
    }
    assert space(*(f"{key}={text}" for key, text in found.stated().items())) == found
    chosen = space("method=choice(lora(rank=2), ssf, 'lora(rank=4)+ssf')", "batch=choice(8, 16)")
    assert dict(chosen.ranges)["method"] == Choice(("lora(rank=2)", "ssf", "lora(rank=4)+ssf"))
    assert space(*(f"{key}={text}" for key, text in chosen.stated().items())) == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate=log(1e-4, 1e-1)", "no key 'rate'"),
        ("lrr=log(1e-4, 1e-1)", "Did you mean 'lr'"),
        ("method.ranc=int(1, 4)", "Did you mean 'method.rank'"),
        ("lr", "no key with a range"),
        ("lr=lgo(1e-4, 1)", "Did you mean 'log'"),
        ("lr=log(0, 1)", "above 0"),
        ("lr=log(1, 1e-4)", "not below"),
        ("lr=log(1e-4)", "two numbers"),
        ("lr=log(1e-4, inf)", "two numbers"),
        ("lr=log(1e-4, high)", "two numbers"),
        ("lr=log(1e-4, 1, 1)", "from 2 to"),
        ("rank=int(1.5, 4)", "whole numbers"),
        ("rank=int(0, 4)", "goes to 0, which the recipe refuses"),
        ("epochs=int(-1, 3)", "optimisation.epochs"),
        ("method=choice(lora, sfs)", "or 'ssf'"),
        ("batch=choice()", "no values"),
        ("batch=choice(8, 8)", "twice"),
        ("optimisation.seed=int(0, 5)", "is luck"),
        ("seed=int(0, 5)", "data.seed or optimisation.seed"),
        ("data.source=choice(a, b)", "could not be compared"),
        ("rank=choice(lora(rank=2)", "not closed"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_to_do(text: str, said: str) -> None:
    with pytest.raises(BadSpace, match=said):
        space(text)


def test_two_ranges_that_contradict_are_refused() -> None:
    with pytest.raises(BadSpace, match="twice"):
        space("lr=log(1e-4, 1)", "optimisation.lr=log(1e-3, 1)")
    with pytest.raises(BadSpace, match="both method and method.rank"):
        space("method=choice(lora, ssf)", "rank=int(1, 4)")
    with pytest.raises(BadSpace, match="nothing to search"):
        space()


def test_a_grid_has_every_combination_and_evenly_spread_points() -> None:
    points = space("lr=log(1e-4, 1e-1, 4)", "rank=int(2, 4)").grid()
    assert len(points) == 12 and [point["method.rank"] for point in points[:3]] == [2, 3, 4]
    assert [point["optimisation.lr"] for point in points[::3]] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert points[0]["optimisation.lr"] == 1e-4 and points[-1]["optimisation.lr"] == 1e-1
    assert [point["method.rank"] for point in space("rank=int(1, 16, 4)").grid()] == [1, 6, 11, 16]
    with pytest.raises(BadSpace, match=r"log\(0.0001, 0.1, 4\)"):
        space("lr=log(1e-4, 1e-1)").grid()
    with pytest.raises(BadSpace, match="20,000 points"):
        space("rank=int(1, 20000)").grid()


def test_draws_depend_on_seed_and_number_alone_and_fill_the_range_evenly() -> None:
    wide = space("lr=log(1e-4, 1e-1)", "rank=int(1, 4)", "batch=choice(8, 16)")
    drawn = [wide.draw(0, number) for number in range(2000)]
    assert drawn[7] == wide.draw(0, 7) != wide.draw(1, 7)
    rates = [math.log10(one["optimisation.lr"]) for one in drawn]
    assert all(-4 <= rate <= -1 for rate in rates)
    # A third of the draws in each factor of ten: 667 with a standard deviation of 21.
    assert all(570 < sum(low <= rate < low + 1 for rate in rates) < 770 for low in (-4, -3, -2))
    ranks = [one["method.rank"] for one in drawn]
    assert set(ranks) == {1, 2, 3, 4} and all(400 < ranks.count(rank) < 600 for rank in (1, 2, 3, 4))
    assert {one["optimisation.batch"] for one in drawn} == {8, 16}


def test_a_plan_states_what_it_leaves_open() -> None:
    assert SearchPlan().trials == 20 and SearchPlan().prune is False
    assert SearchPlan(by="optuna").prune is True and SearchPlan(by="optuna", prune=False).prune is False
    grid = space("lr=log(1e-4, 1e-1, 4)")
    assert SearchPlan(by="grid").count(grid) == 4 and SearchPlan(by="random", trials=7).count(grid) == 7
    with pytest.raises(BadSpace, match="has 4 points, and 20"):
        SearchPlan(by="grid", trials=20).count(grid)
    with pytest.raises(InvalidValue, match="trials"):
        validated(SearchPlan, {"trials": 0}, [])


def sphere(values: dict[str, Any]) -> float:
    """The best rate is 1e-2, the best rank 3."""
    return -((math.log10(values["optimisation.lr"]) + 2) ** 2) - 0.1 * abs(values["method.rank"] - 3)


def searched(plan: SearchPlan, seed: int = 0, score: Callable[[dict[str, Any]], float] = sphere) -> list[float]:
    wide = space("lr=log(1e-4, 1e-1)", "rank=int(1, 16)")
    found, asked = [], strategy(plan, wide, seed, True)
    for _ in range(plan.trials or 0):
        found.append(score(asked.ask()))
        asked.tell("done", found[-1])
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tpe_repeats_itself_and_beats_random_search() -> None:
    pytest.importorskip("optuna")
    plan = SearchPlan(by="optuna", trials=30, prune=False)
    found = searched(plan, 3)
    assert found == searched(plan, 3) != searched(plan, 4)
    drawn = searched(SearchPlan(by="random", trials=400), 3)
    assert sum(found[15:]) / 15 > sum(drawn) / 400 + 0.3


def test_halving_ends_what_is_behind_and_lets_the_best_go_on() -> None:
    pytest.importorskip("optuna")
    asked = strategy(SearchPlan(by="random", trials=4, prune=True), space("lr=log(1e-4, 1e-1)"), 0, True)
    ended = []
    for score in (0.9, 0.5, 0.95, 0.2):
        asked.ask()
        gone = next((epoch for epoch in range(1, 10) if asked.hopeless(epoch, score)), None)
        ended.append(gone)
        asked.tell("pruned" if gone else "done", None if gone else score)
    assert ended == [None, 1, None, 1]


def test_random_search_with_pruning_proposes_what_it_proposes_without() -> None:
    pytest.importorskip("optuna")
    wide = space("lr=log(1e-4, 1e-1)", "rank=int(1, 9)", "batch=choice(8, 16)")
    plain = strategy(SearchPlan(by="random", trials=6), wide, 1, True)
    pruned = strategy(SearchPlan(by="random", trials=6, prune=True), wide, 1, True)
    for number in range(6):
        values = plain.ask()
        assert values == pruned.ask() == wide.draw(1, number)
        pruned.tell("failed", None)


def test_optuna_is_asked_for_by_name_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingExtra(f"{module} {extra}")

    monkeypatch.setattr(search_strategies, "need_extra", absent)
    with pytest.raises(MissingExtra, match="optuna search"):
        strategy(SearchPlan(by="optuna"), space("lr=log(1e-4, 1e-1)"), 0, True)
    strategy(SearchPlan(by="grid"), space("rank=int(1, 4)"), 0, True)


def test_places_are_counted_from_the_best() -> None:
    assert rank_of(0.5, [0.9, 0.5, 0.1], True) == 2
    assert rank_of(0.5, [0.9, 0.5, 0.1], False) == 2
    assert Number(1, 2).extremes() == (1, 2)
