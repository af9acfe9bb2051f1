"""A question about each image, and what may be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.items import Item
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import column_place, first_of
from vpeft.data.target import Given, Target, register_target

QUESTIONS, ANSWERS = ("question", "questions"), ("answer", "answers", "multiple_choice_answer")


class Answered(NamedTuple):
    """A question about an image and its right answers, one or several."""

    question: str
    answers: tuple[str, ...]


def answer_given(question: str, answers: Iterable[str]) -> Given:
    """A question with its answers, without spaces around them and empty ones."""
    said = tuple(text.strip() for text in answers if text.strip())
    asked = question.strip()
    return Given(f"{asked} {' | '.join(said)}", Answered(asked, said) if asked and said else None)


@register_target("answer")
class Answer(Target):
    """A question and one or several answers for each image; a sample carries them as `Answered`."""

    given = "questions with answers are"
    plural = "questions"
    task = "visual_question_answering"
    wants = "a question and an answer"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        question = first_of(header, QUESTIONS)
        answer = first_of(header, (config.label_column,) if config.label_column else ANSWERS)
        if question is None:
            column_place(header, QUESTIONS[0], where)
        if answer is None:
            column_place(header, config.label_column or ANSWERS[0], where)
        assert question is not None
        assert answer is not None
        return [question, answer]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        apart = config.label_separator
        made = [answer_given(cells[0], cells[1].split(apart) if apart else [cells[1]]) for _, cells in rows]
        return [one if one.value else None for one in made]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "UO":
            raise DataError(f"{where} is {array.dtype} {array.shape}; questions with answers are texts (N, 2).")
        return [answer_given(str(question), [str(answer)]) for question, answer in array]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        return []

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        train = {item.target for item in splits.get("train", ())}
        if len(train) < 2:
            raise DataError("All training images have the same question and answer, so there is nothing to tell apart.")

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """All in one group: answers make no classes."""
        return {item.name: "" for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return ()

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        return _target

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["question", "answer"]

    def cells(self, item: Item) -> list[str]:
        return [item.target.question, " | ".join(item.target.answers)]


def _target(item: Item) -> Any:
    return item.target
