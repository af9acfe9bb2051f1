"""A question about each image, answered in words by a multimodal language model."""

from __future__ import annotations

import re
import string
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from ..batch import Batch, Sample
from ..task import Leading, UnsuitableTargets, register_task
from .answering_task import AnsweringTask, asked_and_answered

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}
_POINTS = re.compile(f"[{re.escape(string.punctuation)}]")


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, punctuation as spaces, no articles, numbers up to ten as digits."""
    words = _POINTS.sub(" ", answer.lower()).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ARTICLES)


@register_task("visual_question_answering", short="vqa")
class VisualQuestionAnswering(AnsweringTask):
    """A question about each image, answered in words: learnt by the loss of the answer's tokens.

    It is judged by exact match on generated answers: one counts if it equals one of the right answers, both normalised:
    in lower case, with punctuation as spaces, without the articles a, an and the, and with the numbers from zero to ten
    as digits. `accuracy` is the share of right ones; `question_accuracy` gives it for each first two words of a
    question, such as "how many".
    """

    target_kind: ClassVar[str] = "answer"

    question: str = ""
    """what is asked of an image that comes without a question, as in predict"""
    template: str = "Question: {} Answer:"
    """how a question is put to a model without a chat template"""

    @property
    def leading(self) -> Leading:
        """The share of answers that match."""
        return Leading("accuracy")

    def words(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        """The question and its answers."""
        known = asked_and_answered(sample.target)
        if known is not None:
            return known
        if sample.target is None and self.question:
            return self.question, ()
        raise UnsuitableTargets(
            f"Visual question answering wants a question and an answer beside each image; {sample.id or 'a sample'} has"
            f" {str(sample.target)[:60]!r}. For images alone, say what is asked of each:"
            " VisualQuestionAnswering(question='how many?'), vpeft predict --question 'how many?'."
        )

    def metric(self) -> Metric:
        """See `AnswerScores`."""
        return AnswerScores()


class AnswerScores(Metric):
    """The share of answers that equal a right one, in all, and by the first two words of the question."""

    full_state_update = False
    higher_is_better = True

    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.kinds: dict[str, list[int]] = {}

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch of answers."""
        for said, asked, answers in zip(outputs["said"], batch.inputs["words"], batch.targets, strict=True):
            hit = normalised(said) in {normalised(one) for one in answers}
            counted = self.kinds.setdefault(" ".join(asked.lower().split()[:2]), [0, 0])
            counted[0] += hit
            counted[1] += 1
            self.right += hit
            self.count += 1

    def compute(self) -> dict[str, Any]:
        """`accuracy`, from 0 to 1; `question_accuracy` of this process's questions, a mapping."""
        by_kind = {kind: right / count for kind, (right, count) in sorted(self.kinds.items())}
        return {"accuracy": float(self.right / self.count.clamp(min=1)), "question_accuracy": by_kind}

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kinds = {}
