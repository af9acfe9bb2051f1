"""A small engine that really learns, in milliseconds and without torch: nearest class mean on noisy pixels.

Every training start and end is appended to a log file, so that tests can count what was done, also by processes that
were killed. It lives in a file of its own because worker processes import it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpeft.bench.engine import Assignment
from vpeft.bench.key import Numerics
from vpeft.bench.record import Costs, RecordedScores
from vpeft.bench.sealed import Trained
from vpeft.bench.splits import Split
from vpeft.errors import VpeftError, nearest
from vpeft.method_spec import MethodSpec

FIELDS: dict[str, dict[str, object]] = {
    "good": {"noise": 0.0},
    "poor": {"noise": 200.0},
    "broken": {},
    "hungry": {},
    "suicidal": {},
    "full_finetuning": {"noise": 50.0},
}


class NoSuchMethod(VpeftError):
    """The stand-in has no such method."""


@dataclass(frozen=True)
class Means:
    """The trained stand-in: one mean picture per class."""

    centres: np.ndarray
    costs: Costs
    history: tuple[dict[str, float], ...]

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        flat = images.pixels.reshape(len(images.pixels), -1).astype(np.float64)
        distance = ((flat[:, None] - self.centres[None]) ** 2).mean(axis=2)
        right = distance.argmin(axis=1) == images.labels
        return RecordedScores(
            split=split,
            values={"top1": float(right.mean()), "loss": float(distance.min(axis=1).mean())},
            leading="top1",
            count=len(right),
        )

    def pictures(self, images: Split, split: str) -> dict[str, bytes]:
        return {}


@dataclass(frozen=True)
class StandIn:
    """Methods differ in how much noise spoils the means; learning rates above 2e-3 are made worse."""

    log: Path
    seconds: float = 0.0

    @property
    def numerics(self) -> Numerics:
        return Numerics()

    def device(self) -> str:
        return ""

    def weights(self, backbone: str) -> str:
        return f"weights of {backbone}"

    def resolve(self, method: MethodSpec, backbone: str) -> MethodSpec:
        if method.name not in FIELDS:
            raise NoSuchMethod(f"There is no method {method.name!r}. {nearest(method.name, FIELDS)}")
        return MethodSpec(name=method.name, fields={**FIELDS[method.name], **method.fields})

    def note(self, what: str, key: str) -> None:
        with self.log.open("a") as stream:
            stream.write(f"{what} {key} {os.getpid()}\n")

    def train(
        self,
        assignment: Assignment,
        train: Split,
        val: Split | None,
        after_epoch: Callable[[Trained], None] | None,
    ) -> Means:
        identity = assignment.identity
        key = identity.key()
        self.note("start", key)
        (method,) = identity.methods
        if method.name == "broken":
            raise ZeroDivisionError("the method divides by zero")
        if method.name == "hungry":
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 TiB")
        if method.name == "suicidal":
            os.kill(os.getpid(), 9)
        time.sleep(self.seconds)
        generator = np.random.default_rng(identity.seed)
        noise = float(method.fields["noise"]) + 1e4 * max(assignment.point.lr - 2e-3, 0.0)
        flat = train.pixels.reshape(len(train.pixels), -1).astype(np.float64)
        means = np.stack([flat[train.labels == label].mean(axis=0) for label in range(len(assignment.labels))])
        model = Means(
            means + noise * generator.standard_normal(means.shape),
            Costs(trainable=1000 * len(train.pixels), trainable_with_head=2000 * len(train.pixels)),
            ({"epoch": 1.0, "train_loss": 0.5},),
        )
        if after_epoch is not None:
            after_epoch(Means(means, model.costs, ()))
            after_epoch(model)
        self.note("end", key)
        return model
