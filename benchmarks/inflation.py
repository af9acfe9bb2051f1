"""What the best epoch on the test split, and a rate that is not tuned, change in each method's score on pocket.

    python benchmarks/inflation.py --out runs/inflation            # says what it will cost, then runs; resumable
    python benchmarks/inflation.py --out runs/inflation --cost     # only says what it will cost

Three scores of each method, task and seed: the last epoch at the rate that validation chose (the honest score); the
best test score over the epochs of the same run; and the last epoch at one rate for all methods, the middle of the grid
(a tenth of it where whole weights move). The columns are differences from the honest score in points, means over tasks
and seeds with 95 % bootstrap intervals over both. `published` is one rate and the best epoch, as most tables have it.
Where validation chose the middle of the grid, the run is the same and is not made again.

A run whose record is in the folder is not made again, so a command that was stopped goes on. table.md and
inflation.json are written into the folder, for the methods whose runs are complete.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpeft.bench import BenchConfig, Ledger, RunRecord, State, run_bench
from vpeft.bench.protocol import protocol
from vpeft.bench.statistics import Interval, paired_bootstrap
from vpeft.bench.suites import suite
from vpeft.method_spec import parse_all

ROOT = Path(__file__).resolve().parents[1]
TUNED, ONE_RATE = "full", "one-rate"
METHODS = (
    "linear_probe",
    "bitfit",
    "ln_tune",
    "ssf",
    "lora",
    "adaptformer",
    "convpass",
    "repadapter",
    "vpt_deep",
    "partial_k",
    "full_finetuning",
)
COLUMNS = {
    "best_on_test": "the best epoch on the test split, at the tuned rate",
    "one_rate": "the last epoch at one rate for all",
    "published": "the best epoch on the test split, at one rate for all",
}
# Seconds of a run where the records that ship have none of the method.
UNKNOWN_SECONDS = 45.0


def main() -> None:
    """Make the runs that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the ledger, table.md and inflation.json")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    parser.add_argument("--tasks", default="", help="only these, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes, with one thread each")
    parser.add_argument("--epochs", type=int, help="other than the protocol's; for a trial")
    parser.add_argument("--cost", action="store_true", help="say what it costs, and run nothing")
    options = parser.parse_args()
    methods = [asked.label for asked in parse_all((options.methods,))]
    tasks = tuple(filter(None, options.tasks.split(","))) or suite("pocket").tasks
    print(cost_of(methods, len(tasks), options.seeds, options.epochs))
    if options.cost:
        return
    config = {
        "suite": "pocket",
        "seeds": options.seeds,
        "out": options.out,
        "workers": options.workers,
        "optimisation": {} if options.epochs is None else {"epochs": options.epochs},
        "legacy_best_on_test": True,
    }
    run_bench(BenchConfig.model_validate({**config, "tier": TUNED, "tasks": tasks, "methods": methods}))
    for method, elsewhere in chosen_elsewhere(Ledger(options.out), methods, tasks).items():
        if elsewhere:
            run_bench(BenchConfig.model_validate({**config, "tier": ONE_RATE, "tasks": elsewhere, "methods": [method]}))
    rows = rows_of(Ledger(options.out), methods, tasks, options.seeds)
    text = table(rows, len(tasks), options.seeds)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    (options.out / "inflation.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(text)


def cost_of(methods: Sequence[str], tasks: int, seeds: int, epochs: int | None) -> str:
    """The number of runs and core-hours, from the times in the records of results/pocket."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in Ledger(ROOT / "results" / "pocket"):
        if record.costs is not None and record.costs.wall_seconds is not None:
            times[record.label, record.identity.purpose].append(record.costs.wall_seconds)
    rules = protocol(suite("pocket").tiers[TUNED].protocol)
    searches, finals = tasks * len(rules.grid.points()), tasks * seeds * 2
    seconds = sum(
        count * statistics.median(times.get((method, purpose)) or [UNKNOWN_SECONDS])
        for method in methods
        for count, purpose in ((searches, "search"), (finals, "final"))
    )
    if epochs is not None:
        seconds *= epochs / rules.optimisation["epochs"]
    # The test images after each epoch: 1,200 forward passes beside 1,000 with their gradients, about a third more.
    hours = seconds * 4 / 3 / 3600
    return (
        f"{len(methods)} methods x {tasks} tasks: at most {(searches + finals) * len(methods)} runs, about"
        f" {hours:.1f} core-hours, less what {TUNED} and {ONE_RATE} share; what is recorded is not done again."
    )


def middle_of(record: RunRecord) -> float:
    """The rate of the tier with one rate for the methods of a record."""
    return protocol(suite("pocket").tiers[ONE_RATE].protocol).grid_for(record.identity.methods).lr[0]


def finals(ledger: Iterable[RunRecord], tier: str) -> dict[tuple[str, str, int], RunRecord]:
    """Finished final runs of a tier, by label, task and seed."""
    name = suite("pocket").tiers[tier].protocol
    return {
        (one.label, one.task.partition("/")[2], one.identity.seed): one
        for one in ledger
        if one.identity.protocol == name and one.identity.purpose == "final" and one.state is State.done
    }


def chosen_elsewhere(ledger: Ledger, methods: Sequence[str], tasks: Sequence[str]) -> dict[str, list[str]]:
    """For each method the tasks on which validation chose another rate than the middle."""
    found: dict[str, list[str]] = {method: [] for method in methods}
    for (label, task, _), record in finals(ledger, TUNED).items():
        other = record.chosen is not None and record.chosen.lr != middle_of(record)
        if other and label in found and task in tasks and task not in found[label]:
            found[label].append(task)
    return found


def rows_of(ledger: Ledger, methods: Sequence[str], tasks: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """A row for each method whose runs are complete: the honest mean, and the differences in points."""
    tuned, fixed = finals(ledger, TUNED), finals(ledger, ONE_RATE)
    rows: list[dict[str, Any]] = []
    for method in methods:
        values: dict[str, list[list[float]]] = {"honest": [], **{name: [] for name in COLUMNS}}
        for task in tasks:
            cells: dict[str, list[float]] = {name: [] for name in values}
            for seed in range(seeds):
                record = tuned.get((method, task, seed))
                same = record is not None and record.chosen is not None and record.chosen.lr == middle_of(record)
                other = record if same else fixed.get((method, task, seed))
                scores = scores_of(record, other)
                for name in cells:
                    cells[name].append(scores.get(name, float("nan")))
            for name, row in cells.items():
                values[name].append(row)
        arrays = {name: np.array(cells) for name, cells in values.items()}
        if any(np.isnan(array).any() for array in arrays.values()):
            continue
        changed = {name: paired_bootstrap(arrays[name], arrays["honest"]) for name in COLUMNS}
        rows.append(
            {
                "method": method,
                "honest": float(arrays["honest"].mean()),
                **{name: points_of(interval) for name, interval in changed.items()},
            }
        )
    return sorted(rows, key=lambda row: -row["honest"])


def scores_of(tuned: RunRecord | None, other: RunRecord | None) -> dict[str, float]:
    """The scores of one cell; empty where a run is missing."""
    if tuned is None or tuned.scores is None or other is None or other.scores is None:
        return {}
    best, published = tuned.scores.legacy_best_on_test, other.scores.legacy_best_on_test
    if best is None or published is None:
        return {}
    return {
        "honest": tuned.scores.value,
        "best_on_test": best,
        "one_rate": other.scores.value,
        "published": published,
    }


def points_of(interval: Interval) -> dict[str, float]:
    return {"value": 100 * interval.value, "low": 100 * interval.low, "high": 100 * interval.high}


def table(rows: Sequence[Mapping[str, Any]], tasks: int, seeds: int) -> str:
    """The table in Markdown; points of top-1, with the rank that each way of reporting gives."""
    if not rows:
        return "No method has all of its runs yet: run the same command again.\n"
    ranks = {name: rank_by(rows, lambda row, name=name: row["honest"] + row[name]["value"] / 100) for name in COLUMNS}
    honest = rank_by(rows, lambda row: row["honest"])
    lines = [
        f"Points of top-1 on {tasks} tasks of pocket, {seeds} seeds; differences from the honest score with 95 %"
        " intervals, and the rank.",
        "",
        f"| method | honest | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for row in rows:
        name = row["method"]
        cells = [
            f"{row[column]['value']:+.1f} ({row[column]['low']:+.1f} to {row[column]['high']:+.1f}),"
            f" {ranks[column][name]}"
            for column in COLUMNS
        ]
        lines.append(f"| {name} | {100 * row['honest']:.1f}, {honest[name]} | {' | '.join(cells)} |")
    lines += ["", *(f"- {name.replace('_', ' ')}: {what}" for name, what in COLUMNS.items())]
    return "\n".join(lines) + "\n"


def rank_by(rows: Sequence[Mapping[str, Any]], value: Any) -> dict[str, int]:
    ordered = sorted(rows, key=value, reverse=True)
    return {row["method"]: place for place, row in enumerate(ordered, start=1)}


if __name__ == "__main__":
    main()
