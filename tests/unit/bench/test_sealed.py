"""The test split is the final evaluator's, once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from vpeft.bench.record import RecordedScores
from vpeft.bench.sealed import FinalEvaluator, SealedTest, TestSetSealed
from vpeft.bench.splits import Split, SplitArrays

from .test_key import IDENTITY

SPLIT = SplitArrays(np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 1, 0, 1]))


def sealed() -> SealedTest:
    return SealedTest("digits/classes", lambda: SPLIT)


class Model:
    def __init__(self, *values: float, higher_is_better: bool = True) -> None:
        self.values, self.seen, self.higher = list(values), 0, higher_is_better

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        assert images is SPLIT
        self.seen += 1
        return RecordedScores(split=split, values={"m": self.values.pop(0)}, leading="m", higher_is_better=self.higher)


@pytest.mark.parametrize(
    "touch",
    [
        len,
        lambda test: test[0],
        list,
        lambda test: test.pixels,
        lambda test: test.labels,
        lambda test: test.subset([0]),
        lambda test: test.opened(None),
        pickle.dumps,
        copy.copy,
    ],
    ids=["len", "index", "iterate", "pixels", "labels", "subset", "opened", "pickle", "copy"],
)
def test_every_access_is_refused(touch: Callable[[SealedTest], object]) -> None:
    with pytest.raises(TestSetSealed, match="digits/classes is sealed: only the final evaluator"):
        touch(sealed())


def test_an_evaluator_that_is_not_scoring_cannot_open_it_either() -> None:
    test = sealed()
    evaluator = FinalEvaluator(IDENTITY, test)
    with pytest.raises(TestSetSealed):
        test.opened(evaluator)
    evaluator.score(Model(0.5))
    with pytest.raises(TestSetSealed):
        test.opened(evaluator)


def test_a_run_is_tested_once() -> None:
    evaluator = FinalEvaluator(IDENTITY, sealed())
    scores = evaluator.score(Model(0.5))
    assert (scores.split, scores.value, scores.legacy_best_on_test) == ("test", 0.5, None)
    with pytest.raises(TestSetSealed, match="tested already"):
        evaluator.score(Model(0.6))


def test_a_search_run_gets_no_evaluator() -> None:
    with pytest.raises(TestSetSealed, match="Only final runs are tested"):
        FinalEvaluator(IDENTITY.model_copy(update={"purpose": "search"}), sealed())


def test_the_legacy_number_is_apart_and_only_on_demand() -> None:
    evaluator = FinalEvaluator(IDENTITY, sealed(), legacy=True)
    model = Model(0.4, 0.9, 0.7)
    evaluator.peek(model)
    evaluator.peek(model)
    scores = evaluator.score(model)
    assert scores.value == 0.7
    assert scores.legacy_best_on_test == 0.9

    model = Model(4.0, 2.0, 3.0, higher_is_better=False)
    evaluator = FinalEvaluator(IDENTITY, sealed(), legacy=True)
    evaluator.peek(model)
    evaluator.peek(model)
    assert evaluator.score(model).legacy_best_on_test == 2.0, "the lowest error is the best"

    model = Model(0.7)
    evaluator = FinalEvaluator(IDENTITY, sealed())
    evaluator.peek(model)
    assert model.seen == 0
