"""Queries: each kind of wish chooses what its filter chooses, ranks come from results, a mistake lists what exists."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.taxonomy.examples import DIAGONAL, ONE, SIDE, TWIN

from vpeft.taxonomy.results import Results, ScoreTable
from vpeft.taxonomy.wishes import WORDS, BadWish, Query

PROMPT = replace(
    ONE, name="prompt", family="prompt", category="addition", year=2022, verbs=("insert_tokens",), mergeable=False,
    latency=True, parameters=2_000_000, share=0.02, memory=0.4, places=("blocks.*",), trains=("r x D",),
)  # fmt: skip
EVERY = (ONE, TWIN, DIAGONAL, SIDE, PROMPT)
RESULTS = Results(
    source="here",
    tables=(
        ScoreTable(
            protocol="p@1",
            higher_is_better=True,
            tasks={"count": "structured", "distance": "structured", "coast": "specialised"},
            scores={
                "one": {"count": 0.5, "distance": 0.7, "coast": 0.1},
                "diagonal": {"count": 0.9, "distance": 0.1},
                "side": {"count": 0.3, "distance": 0.2, "coast": 0.9},
                "prompt": {"count": 0.95},
            },
        ),
        ScoreTable(
            protocol="errors@1", higher_is_better=False, tasks={"depth": "dense"}, scores={"one": {"depth": 3.0}}
        ),
    ),
)


def fitting(text: str) -> list[str]:
    return [fit.properties.name for fit in Query(text, EVERY, RESULTS)(EVERY).fits]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("merges", {"one", "twin", "diagonal"}),
        ("is mergeable", {"one", "twin", "diagonal"}),
        ("no latency", {"one", "twin", "diagonal", "side"}),
        ("adds no latency", {"one", "twin", "diagonal", "side"}),
        ("Merges and no LATENCY", {"one", "twin", "diagonal"}),
        ("does not merge", {"side", "prompt"}),
        ("adds tokens", {"prompt"}),
        ("without tokens", {"one", "twin", "diagonal", "side"}),
        ("no gradients", {"side"}),
        ("at attention", {"one", "twin", "diagonal"}),
        ("prompt", {"prompt"}),
        ("prompts", {"prompt"}),
        ("not a prompt", {"one", "twin", "diagonal", "side"}),
        ("addition", {"prompt"}),
        ("under 0.5 % parameters", {"one", "twin", "diagonal", "side"}),
        ("at most 1,000 parameters", {"one", "twin", "diagonal", "side"}),
        ("under 1,000 parameters", {"diagonal"}),
        ("under 1K parameters", {"diagonal"}),
        ("at least 2M parameters", {"prompt"}),
        ("more than 1 % of parameters", {"prompt"}),
        ("under 50 % memory", {"prompt"}),
        ("below 0.5 memory", {"prompt"}),
        ("since 2022", {"prompt"}),
        ("before 2022", {"one", "twin", "diagonal", "side"}),
        ("like one", {"twin", "diagonal"}),
        ("good on structured", {"one"}),
        ("good on count", {"diagonal", "prompt"}),
        ("good on depth", {"one"}),
        ("merges, no latency, under 0.5 % parameters, good on structured", {"one"}),
    ],
)
def test_each_kind_of_wish(text: str, names: set[str]) -> None:
    assert set(fitting(text)) == names


def test_a_third_rounded_up_is_good_and_ranks_are_within_one_table() -> None:
    assert [str(RESULTS.standing(name, "structured")) for name in ("one", "diagonal", "side")] == [
        "60.0 %, 1 of 3 (p@1)",
        "50.0 %, 2 of 3 (p@1)",
        "25.0 %, 3 of 3 (p@1)",
    ]
    assert RESULTS.standing("prompt", "structured") is None  # it lacks one of the tasks
    assert str(RESULTS.standing("one", "depth")) == "3, 1 of 1 (errors@1)"
    assert RESULTS.standing("twin", "count") is None


def test_of_two_tables_the_one_with_more_tasks_counts() -> None:
    (whole, _), part = (
        RESULTS.tables,
        ScoreTable(
            protocol="smoke@1",
            higher_is_better=True,
            tasks={"count": "structured"},
            scores={"one": {"count": 0.1}, "twin": {"count": 0.2}},
        ),
    )
    both = Results(tables=(part, whole))
    one, twin = both.standing("one", "structured"), both.standing("twin", "structured")
    assert one is not None and twin is not None
    assert (one.protocol, one.among) == ("p@1", 3) and (twin.protocol, twin.rank) == ("smoke@1", 1)


def test_the_best_come_first_and_else_the_smallest() -> None:
    assert fitting("good on count") == ["prompt", "diagonal"]
    assert fitting("merges") == ["diagonal", "one", "twin"]


def test_what_was_never_measured_is_said_and_not_chosen() -> None:
    answer = Query("merges, good on structured", EVERY, RESULTS)(EVERY)
    assert [fit.properties.name for fit in answer.fits] == ["one"] and answer.unmeasured == ("twin",)
    assert not answer.missing


def test_where_none_fits_the_wish_that_each_misses_is_said() -> None:
    answer = Query("merges, tokens, since 2020", EVERY, RESULTS)(EVERY)
    assert not answer.fits and answer.missing == {
        "one": "tokens", "twin": "tokens", "diagonal": "tokens", "prompt": "merges",
    }  # fmt: skip


def test_a_wish_tells_its_filter() -> None:
    query = Query("merges, not a prompt, under 0.5 % parameters, no gradients, like one", EVERY, RESULTS)
    assert [wish.filter for wish in query.wishes] == [
        "mergeable",
        "not (family == 'prompt')",
        "share < 0.005",
        "not (reach != 'none')",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mergs", "Did you mean 'merges'"),
        ("merges, quick", "does not know 'quick'"),
        ("under 5 flowers", "does not know 'under 5 flowers'"),
        ("under 5.5.5 % parameters", "is not a number"),
        ("good on flowers", "results on: structured, specialised, dense, count, distance, coast, depth"),
        ("like lor", "There is no method 'lor'"),
        ("", "The query is empty"),
        (" , ", "The query is empty"),
        ("no", "does not know 'no'"),
        ("merges, " * 100, "are the most"),
    ],
)
def test_a_mistake_lists_what_exists(text: str, says: str) -> None:
    with pytest.raises(BadWish) as caught:
        Query(text, EVERY, RESULTS)
    assert says in str(caught.value)
    if "does not know" in says or "empty" in says:
        assert all(word in str(caught.value) for word in (*WORDS, "prompt", "structured", "since 2023"))


def test_without_results_good_on_says_so() -> None:
    with pytest.raises(BadWish, match="none, as no results are at hand"):
        Query("good on structured", EVERY, Results())
