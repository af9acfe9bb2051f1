"""What the benchmark asks of an engine, which trains. Everything else in this folder keeps books."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vpeft.bench.key import Identity, Numerics
from vpeft.bench.protocol import Point
from vpeft.bench.record import Costs, RecordedScores
from vpeft.bench.sealed import Trained
from vpeft.bench.splits import Split
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.method_spec import MethodSpec
from vpeft.task import DEFAULT, Task, get_task


@dataclass(frozen=True)
class Assignment:
    """One training to be done: what (the identity), with which learning rate and decay, for which classes.

    `folder` is the run's own, for checkpoints; what lies there may be from an attempt that was killed. `learns`,
    `image_size` and `clip` are those of the suite's task.
    """

    identity: Identity
    point: Point
    labels: tuple[str, ...]
    folder: Path
    learns: Task = field(default_factory=lambda: get_task(DEFAULT)())
    image_size: tuple[int, int] | None = None
    clip: ClipConfig | None = None


class TrainedRun(Trained, Protocol):
    """A finished training: a model to evaluate, its costs and its history (numbers per epoch)."""

    @property
    def costs(self) -> Costs: ...

    @property
    def history(self) -> tuple[dict[str, float], ...]: ...

    def evaluate(self, images: Split, split: str) -> RecordedScores: ...

    def pictures(self, images: Split, split: str) -> Mapping[str, bytes]:
        """PNG files by name that show what the model says of a split that it was evaluated on; none is fine."""
        ...


class Engine(Protocol):
    """Trains. Picklable, since worker processes get a copy."""

    @property
    def numerics(self) -> Numerics:
        """What decides the rounding of the numbers this engine makes."""
        ...

    def device(self) -> str:
        """The accelerator in words, or an empty string when the processor does the work."""
        ...

    def weights(self, backbone: str) -> str:
        """A digest of the weights of the backbone of this name. Raises VpeftError if there is none."""
        ...

    def resolve(self, method: MethodSpec, backbone: str) -> MethodSpec:
        """The method with all its fields as they are on this backbone. Raises VpeftError for an unknown one."""
        ...

    def train(
        self,
        assignment: Assignment,
        train: Split,
        val: Split | None,
        after_epoch: Callable[[Trained], None] | None,
    ) -> TrainedRun:
        """Train on `train`; `val` may be watched but decides nothing. The same assignment gives the same run."""
        ...
