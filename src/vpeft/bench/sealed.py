"""Test splits that stay closed until the final evaluator opens them.

A number chosen on the test set is the most common fault of the field's benchmarks, and it is rarely meant. Here nothing
can touch a test split by accident: a `SealedTest` answers every access with an error, training is never handed one, and
only a `FinalEvaluator`, made for one final run, opens it, scores the trained model once, and closes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, TypeVar

from vpeft.bench.key import Identity
from vpeft.bench.record import RecordedScores
from vpeft.bench.splits import Split
from vpeft.errors import VpeftError

StoredT = TypeVar("StoredT")


class TestSetSealed(VpeftError):
    """The test split was read by something that is not the final evaluator."""

    # The name begins with "Test"; pytest would take it for a collection of tests.
    __test__ = False


class Trained(Protocol):
    """A model that has been trained, as far as the benchmark needs to know it."""

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        """Scores on one split; changes nothing in the model."""
        ...


class SealedTest:
    """The test split of one task, closed. Every access but the final evaluator's raises TestSetSealed."""

    def __init__(self, task: str, source: Callable[[], Split]) -> None:
        self.__task, self.__source = task, source

    def _refuse(self) -> NoReturn:
        raise TestSetSealed(
            f"The test split of {self.__task} is sealed: only the final evaluator reads it, once, after training. "
            "Choose hyper-parameters, epochs and checkpoints on the validation split."
        )

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse()

    def __iter__(self) -> Iterator[NoReturn]:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        # Only called for what is not found, so that `pixels`, `labels` and the like are refused with the reason; the
        # names Python itself looks for must stay plainly absent.
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __reduce__(self) -> NoReturn:
        self._refuse()

    def handed_over(self, store: Callable[[Split], StoredT]) -> StoredT:
        """What `store` makes of the split: for executors, which put it where a final evaluator elsewhere reads it.

        A test keeps other callers away.
        """
        return store(self.__source())

    def opened(self, evaluator: FinalEvaluator) -> Split:
        """The split itself, for a final evaluator that has not used up its one reading."""
        if not isinstance(evaluator, FinalEvaluator) or not evaluator.reading:
            self._refuse()
        return self.__source()


class FinalEvaluator:
    """Scores one final run on the sealed test split, once.

    With `legacy` it may also be shown the model after each epoch, to record the best test score over the epochs as
    many published tables do; that number goes to a field of its own and cannot influence the run, because `peek`
    returns nothing.
    """

    def __init__(self, identity: Identity, sealed: SealedTest, *, legacy: bool = False) -> None:
        if identity.purpose != "final":
            raise TestSetSealed(
                f"A {identity.purpose} run of {identity.task} asked for the test split. Only final runs are tested."
            )
        self.__sealed, self.__legacy = sealed, legacy
        self.__used = False
        self.__best: float | None = None
        self.reading = False

    def score(self, trained: Trained) -> RecordedScores:
        """The test scores. Raises TestSetSealed when called a second time."""
        if self.__used:
            raise TestSetSealed(
                "This run has been tested already, and a run is tested once. Make a run with another seed."
            )
        self.__used = True
        scores = trained.evaluate(self._read(), "test")
        return scores.model_copy(update={"split": "test", "legacy_best_on_test": self.__best})

    def peek(self, trained: Trained) -> None:
        """Note the test score of a model in training, for the legacy field only. Does nothing unless `legacy`."""
        if not self.__legacy:
            return
        scores = trained.evaluate(self._read(), "test")
        if self.__best is None or scores.sign * scores.value > scores.sign * self.__best:
            self.__best = scores.value

    def _read(self) -> Split:
        self.reading = True
        try:
            return self.__sealed.opened(self)
        finally:
            self.reading = False
