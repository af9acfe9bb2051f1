"""Retrieval on offline drawings: methods beside each other on classes that training has not seen, with intervals.

    python benchmarks/retrieval.py --out runs/retrieval

Half of the kinds train, the others are tested once, after the last epoch. A run that is finished in the folder is not
done again, and one that was killed goes on. Sets, seeds, epochs and methods can be chosen. The time that is left is
estimated after each run from those of the same method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from vpeft.training.recipe import Recipe
from vpeft.training.run import RECORD, run_recipe

SETS = ("pocket-retrieval/symbols", "pocket-retrieval/emoji")
# The method, the loss and the rate. Proxy-Anchor for all but the method that brings a loss; full tuning at the rate
# that keeps a pre-trained backbone whole.
ROWS: dict[str, tuple[str, str, float]] = {
    "linear_probe": ("linear_probe", "proxy_anchor", 1e-3),
    "bitfit": ("bitfit", "proxy_anchor", 1e-3),
    "ssf": ("ssf", "proxy_anchor", 1e-3),
    "lora": ("lora(rank=8)", "proxy_anchor", 1e-3),
    "adaptformer": ("adaptformer", "proxy_anchor", 1e-3),
    "vpt_deep": ("vpt_deep(tokens=10)", "proxy_anchor", 1e-3),
    "prompts+biases": ("vptsp_g(tokens=10)", "proxy_anchor", 1e-3),
    "vptsp_g": ("vptsp_g(tokens=10, class_tokens=5, dimensions=128)", "none", 1e-3),
    "full": ("full_finetuning", "proxy_anchor", 1e-4),
}
SCORES = ("recall_at_1", "map_at_r")


def main() -> None:
    """Make the runs that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of table.md")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", default="", help="rows, with commas")
    options = parser.parse_args()
    only = tuple(filter(None, options.only.split(",")))
    unknown = sorted(set(only) - set(ROWS))
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; rows: {', '.join(ROWS)}")
    rows = [name for name in ROWS if not only or name in only]
    sets = options.sets.split(",")
    wanted = [(name, one, seed) for seed in range(options.seeds) for one in sets for name in rows]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    taken: dict[str, list[float]] = {}
    for number, (name, one, seed) in enumerate(wanted):
        began = time.perf_counter()
        record, fresh = record_of(options.out, name, one, seed, options.epochs)
        found.setdefault((name, one), []).append(record)
        if not fresh:
            continue
        taken.setdefault(name, []).append(time.perf_counter() - began)
        known = statistics.mean(second for seconds in taken.values() for second in seconds)
        left = sum(statistics.mean(taken.get(later, [known])) for later, _, _ in wanted[number + 1 :])
        scores = record["test"]["values"]
        shown = ", ".join(f"{score} {100 * scores[score]:.1f}" for score in SCORES)
        print(f"{one} {name} seed {seed}: {shown} ({taken[name][-1]:.0f} s; {left / 60:.0f} min left)", flush=True)
    lines = table(rows, sets, found)
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(rows: list[str], sets: list[str], found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """The lines of the table: means in percent with 95 % intervals over the seeds, and trained parameters."""
    heads = [f"{one}, {score.replace('_', ' ')}" for one in sets for score in SCORES]
    lines = [f"| method | trained | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name in rows:
        cells = [
            interval([record["test"]["values"][score] for record in found[name, one]])
            for one in sets
            for score in SCORES
        ]
        trained = found[name, sets[0]][0]["plan"]["trainable"]
        lines.append(f"| {name} | {trained:,} | {' | '.join(cells)} |")
    return lines


def interval(values: list[float]) -> str:
    """The mean in percent, with its 95 % interval by Student's t where there are two values or more."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def record_of(out: Path, name: str, source: str, seed: int, epochs: int) -> tuple[dict[str, Any], bool]:
    """The record of one run, and whether it was made now."""
    method, loss, rate = ROWS[name]
    folder = out / source.rpartition("/")[2] / f"{epochs}_epochs" / f"{name.replace('+', '_')}_{seed}"
    file = folder / RECORD
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if record["state"] == "done" and record["test"] is not None:
            return record, False
    recipe = Recipe.model_validate(
        {
            "backbone": "pocket_vit",
            "method": method,
            "data": {"source": source, "test_fraction": 0.5, "val_fraction": 0.0, "augmentation": "crop"},
            "task": {"name": "retrieval", "loss": loss, "dimensions": 128, "sampler": "m_per_class(m=4)"},
            "optimisation": {"epochs": epochs, "batch": 64, "lr": rate, "seed": seed},
            "out": folder,
        }
    )
    run_recipe(recipe, progress=False, show=False)
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return made, True


if __name__ == "__main__":
    main()
