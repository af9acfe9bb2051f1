"""Records: scores by name, and the form before there were names."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vpeft.bench.record import FORMAT, Chosen, RecordedScores, RunRecord, title_of

from .test_ledger import a_record

OLD_SCORES = {
    "split": "val",
    "top1": 0.42,
    "mean_per_class": 0.4220619282195637,
    "loss": 1.4487096922326956,
    "count": 200,
    "legacy_best_on_test": None,
}


def test_scores_of_format_1_are_read_by_name() -> None:
    scores = RecordedScores.model_validate(OLD_SCORES)
    assert scores.values == {"top1": 0.42, "mean_per_class": 0.4220619282195637, "loss": 1.4487096922326956}
    assert (scores.leading, scores.higher_is_better, scores.value) == ("top1", True, 0.42)
    assert (scores.split, scores.count, scores.legacy_best_on_test) == ("val", 200, None)
    bare = RecordedScores.model_validate({**OLD_SCORES, "loss": None, "mean_per_class": None})
    assert bare.values == {"top1": 0.42}, "what was not measured has no name"


def test_a_record_of_format_1_becomes_one_of_format_2() -> None:
    text = a_record().model_dump(mode="json")
    old = {
        **text,
        "format": 1,
        "state": "done",
        "scores": OLD_SCORES,
        "chosen": {"lr": 0.1, "weight_decay": 0.0, "rule": "r", "searched": [], "validation_top1": 0.5},
    }
    record = RunRecord.model_validate(old)
    assert record.format == FORMAT == 2
    assert record.chosen == Chosen(lr=0.1, weight_decay=0.0, rule="r", validation=0.5)
    written = record.model_dump(mode="json")
    assert written["scores"]["leading"] == "top1"
    assert RunRecord.model_validate(written) == record


def test_a_leading_value_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="leading value 'mae' is not among the values: rmse"):
        RecordedScores(split="val", values={"rmse": 1.0}, leading="mae")
    with pytest.raises(ValidationError, match="values"):
        RecordedScores.model_validate({"split": "val", "leading": "mae"})


@pytest.mark.parametrize(
    ("name", "title"),
    [("top1", "top-1"), ("mean_per_class", "mean per class"), ("macro_f1", "macro f1"), ("r2", "r2"), ("mae", "mae")],
)
def test_metrics_are_written_as_people_write_them(name: str, title: str) -> None:
    assert title_of(name) == title


def test_scores_in_words() -> None:
    assert RecordedScores(split="test", values={"top1": 0.871}, leading="top1").sentence() == "top-1 87.1 %"
    errors = RecordedScores(split="test", values={"mae": 0.12345}, leading="mae", higher_is_better=False)
    assert errors.sentence() == "mae 0.1235"
    assert errors.sign * errors.value < 0
