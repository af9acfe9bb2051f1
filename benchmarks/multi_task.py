"""pocket-multi: many tasks on one backbone, every method against a fully fine-tuned model for each task.

    python benchmarks/multi_task.py --out runs/multi_task --tier full --seeds 3

A row is a method that learns all tasks with one adapter, or, below `an adapter for each`, a method on each task by
itself. delta_m is the mean gain in per cent over the single models, which are measured here with the same heads, steps
and seeds. Records are in the ledger of the folder: a run that is there is not repeated, and a killed table goes on with
the same command. On two cores a run of eight epochs takes two to five minutes: `--tier quick` (24 runs) about an hour
and a half, `--tier full --seeds 3` with its search about half a day; `--methods lora --seeds 1` eight runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from vpeft.bench.config import BenchConfig
from vpeft.bench.ledger import Ledger
from vpeft.bench.runner import run_bench
from vpeft.bench.suites.pocket_multi import NAME, PARTS, TOGETHER, task_of
from vpeft.regimes.compared_tasks import gains

SINGLE = "full_finetuning"
METHODS = (
    *("full_finetuning", "linear_probe", "bitfit", "merging_and_norms", "lora", "adapter"),
    *("polyhistor", "polyhistor_lite", "hyperformer", "vmt_adapter", "vmt_adapter_lite", "mtlora", "tadformer"),
    "ditask",
)
ALONE = ("lora", "adapter")
Scores = Mapping[int, Mapping[str, float]]


def measured(ledger: Ledger, method: str, task: str) -> Scores:
    """The test scores of the final runs of a method on a task, by seed."""
    return {
        record.identity.seed: record.scores.values
        for record in ledger
        if record.label == method and record.identity.task == f"{NAME}/{task}" and record.scores is not None
        if record.identity.purpose == "final"
    }


def row(values: Mapping[str, Scores], single: Mapping[str, Scores]) -> dict[str, Any]:
    """The mean of each task's leading metric over the seeds, its gain, and delta_m of each seed.

    Args:
        values: for each task the scores by seed; of one adapter for all tasks the same scores for each.
        single: the same of the single models.
    """
    task = task_of(TOGETHER)
    found: dict[str, Any] = {"rows": [], "deltas": []}
    for name, part in task.parts.items():
        key = f"{name}/{part.leading.name}"
        mine = [scores[key] for scores in values[name].values()]
        base = [scores[key] for scores in single[name].values()]
        value = statistics.fmean(mine) if mine else math.nan
        alone = statistics.fmean(base) if base else None
        sign = 1.0 if part.leading.higher_is_better else -1.0
        gain = None if not alone or not mine else 100.0 * sign * (value - alone) / alone
        found["rows"].append({"task": name, "metric": part.leading.name, "value": value, "alone": alone, "gain": gain})
    seeds = set.intersection(*(set(one) for one in (*values.values(), *single.values())))
    for seed in sorted(seeds):
        leading = {name: f"{name}/{part.leading.name}" for name, part in task.parts.items()}
        base = {name: single[name][seed][key] for name, key in leading.items()}
        found["deltas"].append(
            task.with_singles(base).delta({name: values[name][seed][key] for name, key in leading.items()})
        )
    return found


def interval(values: Sequence[float]) -> str:
    """The mean with its 95 % interval (Student's t); the mean alone of one value."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ± {half:.2f}"


def table(ledger: Ledger, methods: Sequence[str], alone: Sequence[str]) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """The table as Markdown, and the rows of each method for the picture."""
    single = {name: measured(ledger, SINGLE, name) for name in PARTS}
    heads = [f"{name} {part.leading.name}" for name, part in task_of(TOGETHER).parts.items()]
    lines = [f"| method | {' | '.join(heads)} | delta_m, % | seeds |", "|---" * (len(heads) + 3) + "|"]
    drawn: dict[str, list[dict[str, Any]]] = {}

    def add(label: str, values: Mapping[str, Scores]) -> None:
        found = row(values, single)
        cells = ["" if math.isnan(one["value"]) else f"{one['value']:.4g}" for one in found["rows"]]
        lines.append(f"| {label} | {' | '.join(cells)} | {interval(found['deltas'])} | {len(found['deltas'])} |")
        if found["deltas"]:
            drawn[label] = found["rows"]

    add(f"{SINGLE}, a model for each", single)
    for method in alone:
        add(f"{method}, an adapter for each", {name: measured(ledger, method, name) for name in PARTS})
    for method in methods:
        together = measured(ledger, method, TOGETHER)
        add(method, dict.fromkeys(PARTS, together))
    return "\n".join(lines) + "\n", drawn


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/multi_task"))
    parser.add_argument("--tier", default="quick")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--alone", default=",".join(ALONE))
    parser.add_argument("--backbone", default="pocket_vit")
    parser.add_argument("--epochs", type=int, default=None, help="instead of the protocol's own, marked in the records")
    asked = parser.parse_args()
    methods, alone = (tuple(one for one in text.split(",") if one) for text in (asked.methods, asked.alone))
    changed = {} if asked.epochs is None else {"epochs": asked.epochs}
    for some, tasks in ((tuple(dict.fromkeys((SINGLE, *alone))), tuple(PARTS)), (methods, (TOGETHER,))):
        run_bench(
            BenchConfig(
                suite=NAME,
                tier=asked.tier,
                methods=some,
                tasks=tasks,
                seeds=asked.seeds,
                backbone=asked.backbone,
                out=asked.out,
                optimisation=changed,
            )
        )
    text, drawn = table(Ledger(asked.out), methods, alone)
    (asked.out / "table.md").write_text(text, encoding="utf-8")
    gains(drawn).savefig(asked.out / "gains.png", dpi=150)
    print(text)


if __name__ == "__main__":
    main()
