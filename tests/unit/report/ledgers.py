"""Ledgers made by hand, for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpeft.bench.key import Identity, digest
from vpeft.bench.ledger import Ledger
from vpeft.bench.record import Chosen, Costs, Failure, Provenance, RecordedScores, RunRecord, State
from vpeft.method_spec import MethodSpec

TASKS = {"flags": "natural", "photos": "natural", "count": "structured"}
PARAMETERS = {"linear_probe": 0, "lora": 60_000, "ssf": 20_000, "full_finetuning": 2_000_000}


def a_run(
    label: str = "lora",
    task: str = "flags",
    seed: int = 0,
    value: float | None = 0.5,
    *,
    identity: dict[str, Any] | None = None,
    **rest: Any,
) -> RunRecord:
    """A run with a score, or without one if `value` is None."""
    made = Identity.model_validate(
        {
            "purpose": "final",
            "task": f"pocket/{task}",
            "data": digest(task),
            "protocol": "pocket@1",
            "methods": (MethodSpec(name=label.partition("(")[0], fields={"as": label}),),
            "backbone": "pocket_vit",
            "weights": "ab" * 32,
            "optimisation": {"epochs": 20},
            "seed": seed,
            **(identity or {}),
        }
    )
    trainable = PARAMETERS.get(label, 10_000)
    fields: dict[str, Any] = {
        "key": made.key(),
        "identity": made,
        "suite": "pocket",
        "group": TASKS.get(task, "other"),
        "label": label,
        "rule": "Chosen on validation, tested once.",
        "minimum_seeds": 2,
        "provenance": Provenance(versions={"vpeft": "0.1.0"}, hardware="2 cores of a Test", system="Linux", threads=1),
    }
    if value is not None:
        fields |= {
            "state": State.done,
            "finished": f"2026-11-21T10:0{seed}:00+00:00",
            "chosen": Chosen(lr=2e-3, weight_decay=1e-4, rule="stated"),
            "scores": RecordedScores(split="test", values={"top1": value}, leading="top1", count=1200),
            "costs": Costs(
                trainable=trainable,
                trainable_with_head=trainable + 1610,
                reach="full",
                stored_bytes=4 * trainable,
                saved_bytes=20_000_000,
                step_seconds=0.05 + seed * 0.01,
                wall_seconds=20.0 + seed,
            ),
        }
    return RunRecord.model_validate({**fields, **rest})


def a_failure(label: str, task: str, seed: int, **rest: Any) -> RunRecord:
    """A run that failed."""
    error = Failure(kind="NonFinite", message="The loss is NaN at step 12.\nSecond line.", trace="Traceback <b>")
    return a_run(label, task, seed, None, state=State.failed, error=error, finished="2026-11-21T11:00:00+00:00", **rest)


def grid(gains: dict[str, float], seeds: int = 3) -> list[RunRecord]:
    """All methods on all tasks: 0.5, plus the method's gain, plus a little that differs from seed to seed."""
    return [
        a_run(label, task, seed, 0.5 + gain + 0.05 * index + 0.01 * seed)
        for label, gain in gains.items()
        for index, task in enumerate(TASKS)
        for seed in range(seeds)
    ]


def keep(path: Path, records: list[RunRecord]) -> Ledger:
    """A ledger of these records."""
    ledger = Ledger(path)
    for record in records:
        lease = ledger.claim(record.key)
        assert lease is not None
        with lease:
            ledger.write(record, lease)
    return ledger
