"""Protocols: the exact rules by which a number is made, each under an id with a version.

A protocol never changes: whatever alters a number gets a new version (a test keeps the digest of each). Two are told
apart by whether hyper-parameters are searched:

- with a grid: every point of the grid is trained on the training split and scored on the validation split with the
  search seed, once per task and method; the best point is refitted on both splits together for every seed and tested
  once;
- without: the stated point is trained on both splits together for every seed and tested once;
- without, and `validates`: the stated point is trained on the training split alone, scored on the validation split, by
  which methods can be chosen, and tested once. It costs a third of the time, and is for demos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vpeft.bench.image_protocols import IMAGE_PROTOCOLS
from vpeft.bench.protocol_rules import Grid, Point, Protocol, TaskRules, adamw_protocol
from vpeft.bench.record import Chosen, RunRecord, State, title_of
from vpeft.errors import VpeftError, nearest

__all__ = [
    "PROTOCOLS",
    "Grid",
    "Point",
    "Protocol",
    "SearchFailed",
    "TaskRules",
    "UnknownProtocol",
    "choose",
    "protocol",
]


class UnknownProtocol(VpeftError):
    """No protocol has this id."""


class SearchFailed(VpeftError):
    """No point of the grid gave a score, so there is nothing to refit."""


def choose(candidates: Sequence[tuple[Point, RunRecord | None]]) -> Chosen:
    """The point with the best validation score, by the task's leading metric, and what it was chosen from.

    Ties go to the lower validation loss, then to the smaller learning rate, then to the smaller decay (the order of
    `Grid.points`). Points whose run failed or scored NaN are passed over. Raises SearchFailed when none is left.
    """
    best: tuple[float, float] | None = None
    winner: tuple[Point, RunRecord] | None = None
    for point, record in candidates:
        if record is None or record.state is not State.done or record.scores is None:
            continue
        if record.scores.split != "val":
            raise SearchFailed(
                f"The search run {record.key} has scores on the split {record.scores.split!r}. "
                "Hyper-parameters are chosen on the validation split only."
            )
        if math.isnan(record.scores.value):
            continue
        rank = (record.scores.sign * record.scores.value, -record.scores.values.get("loss", math.inf))
        if best is None or rank > best:
            best, winner = rank, (point, record)
    if winner is None:
        errors = {record.error.message for _, record in candidates if record is not None and record.error is not None}
        said = f" The errors: {'; '.join(sorted(errors))}" if errors else ""
        raise SearchFailed(
            f"None of the {len(candidates)} points of the grid gave a score, so nothing is refitted.{said}"
        )
    point, record = winner
    assert record.scores is not None
    metric = title_of(record.scores.leading)
    return Chosen(
        lr=point.lr,
        weight_decay=point.weight_decay,
        rule=f"best validation {metric} of {len(candidates)} points, seed {record.identity.seed}",
        searched=tuple(found.key for _, found in candidates if found is not None),
        validation=record.scores.value,
    )


_SEARCHED = Grid(lr=(5e-4, 2e-3, 8e-3), weight_decay=(1e-4,))
_SEARCHED_OWN = Grid(lr=(5e-5, 2e-4, 8e-4), weight_decay=(1e-4,))
# In 250 to 320 steps probes and prompts want higher rates. One weight decay: over a whole run at the middle rate even
# 1e-2 shrinks a weight by 0.6 % only.
_WIDE = Grid(lr=(1e-3, 4e-3, 1.6e-2), weight_decay=(1e-4,))
_WIDE_OWN = Grid(lr=(1e-4, 4e-4, 1.6e-3), weight_decay=(1e-4,))
_MIDDLE = Grid(lr=(4e-3,), weight_decay=(1e-4,))
_MIDDLE_OWN = Grid(lr=(4e-4,), weight_decay=(1e-4,))
_BRIEF = Grid(lr=(2e-3, 1e-2), weight_decay=(1e-4,))
_BRIEF_OWN = Grid(lr=(2e-4, 1e-3), weight_decay=(1e-4,))
_STATED = Grid(lr=(2e-3,), weight_decay=(1e-4,))
_STATED_OWN = Grid(lr=(2e-4,), weight_decay=(1e-4,))
# Of dense prediction: 50 to 75 steps an epoch, since heads are learnt from nothing.
_DENSE: dict[str, Any] = {"batch": 8, "measure": "leading metric", "of_task": {}}

# Of clips: 30 steps an epoch of 480 clips.
_CLIPS: dict[str, Any] = {"batch": 16}

PROTOCOLS: dict[str, Protocol] = {
    rules.id: rules
    for rules in (
        *IMAGE_PROTOCOLS,
        adamw_protocol("digits", "Digits", epochs=20, grid=_SEARCHED, own_weights=_SEARCHED_OWN, seeds=3),
        adamw_protocol("digits-quick", "Digits, no search", epochs=15, grid=_STATED, own_weights=_STATED_OWN, seeds=3),
        adamw_protocol("digits-smoke", "Digits, one look", epochs=3, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        adamw_protocol("digits-demo", "Digits, the demo", epochs=8, grid=_BRIEF, own_weights=_BRIEF_OWN, seeds=1),
        adamw_protocol("pocket", "pocket", epochs=10, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3),
        # One rate for all methods, the middle of pocket's grids: what a table without a search would show.
        adamw_protocol(
            "pocket-one-rate", "pocket, one rate", epochs=10, grid=_MIDDLE, own_weights=_MIDDLE_OWN, seeds=3
        ),
        adamw_protocol("pocket-quick", "pocket, no search", epochs=6, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        adamw_protocol("pocket-demo", "pocket, the demo", epochs=8, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        adamw_protocol("pocket-smoke", "pocket, one look", epochs=3, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        adamw_protocol("pocket-dense", "pocket-dense", epochs=8, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_DENSE),
        adamw_protocol(
            "pocket-dense-quick",
            "pocket-dense, no search",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        adamw_protocol(
            "pocket-dense-demo",
            "pocket-dense, the demo",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            validates=True,
            **_DENSE,
        ),
        adamw_protocol(
            "pocket-dense-smoke",
            "pocket-dense, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        adamw_protocol("pocket-multi", "pocket-multi", epochs=8, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_DENSE),
        adamw_protocol(
            "pocket-multi-quick",
            "pocket-multi, no search",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        adamw_protocol(
            "pocket-multi-smoke",
            "pocket-multi, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        adamw_protocol("pocket-video", "pocket-video", epochs=15, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_CLIPS),
        adamw_protocol(
            "pocket-video-quick",
            "pocket-video, no search",
            epochs=15,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_CLIPS,
        ),
        adamw_protocol(
            "pocket-video-smoke",
            "pocket-video, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_CLIPS,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol with this id (`pocket@1`). Raises UnknownProtocol."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UnknownProtocol(f"There is no protocol {name!r}. {nearest(name, PROTOCOLS)}") from None
