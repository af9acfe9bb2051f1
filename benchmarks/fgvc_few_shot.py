"""The fixed few-shot lists of FGVC: shots times seeds of each set, with one method, and the table of means.

    python benchmarks/fgvc_few_shot.py --sets fgvc/food101 fgvc/pets --method "lora(rank=8)" --out runs/few

A set is a folder with annotations/ and images/, as NOAH passes the lists on. Everything else is the recipe
fgvc-few-shot-vit-b@noah. A run that is finished in the folder is not done again, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from vpeft.recipes import recipe_file
from vpeft.training.recipe import Recipe
from vpeft.training.run import RECORD, run_recipe

RECIPE = Path("fgvc-few-shot-vit-b@noah")


def main() -> None:
    """Make the runs that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--method", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of table.md")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--backbone", default="", help="in place of the recipe's")
    parser.add_argument("--epochs", type=int, default=0, help="in place of the recipe's")
    options = parser.parse_args()
    changes: dict[str, Any] = {"method": options.method}
    if options.backbone:
        changes["backbone"] = options.backbone
    if options.epochs:
        changes |= {"optimisation.epochs": options.epochs, "optimisation.warmup": 0.1}
    shots = [int(one) for one in options.shots.split(",")]
    means = {
        (folder.name, shot): statistics.mean(
            accuracy(folder, shot, int(seed), changes, options.out) for seed in options.seeds.split(",")
        )
        for folder in options.sets
        for shot in shots
    }
    lines = [f"| set | {' | '.join(f'{shot}-shot' for shot in shots)} |", "|---" * (len(shots) + 1) + "|"]
    for folder in options.sets:
        lines.append(f"| {folder.name} | {' | '.join(f'{100 * means[folder.name, shot]:.2f}' for shot in shots)} |")
    average = [statistics.mean(means[folder.name, shot] for folder in options.sets) for shot in shots]
    lines.append(f"| mean | {' | '.join(f'{100 * one:.2f}' for one in average)} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def accuracy(folder: Path, shots: int, seed: int, changes: dict[str, Any], out: Path) -> float:
    """The accuracy on the test list of one run, made now where it is not there."""
    run = out / folder.name / f"{shots}_shot_seed_{seed}"
    own = {"data.source": str(folder), "data.per_class": shots, "data.seed": seed, "optimisation.seed": seed}
    if not ((run / RECORD).exists() and _record(run)["state"] == "done"):
        recipe = Recipe.from_toml(recipe_file(RECIPE), {**changes, **own, "out": str(run)})
        run_recipe(recipe, progress=False, show=False)
    found = float(_record(run)["test"]["values"]["top1"])
    print(f"{folder.name} {shots}-shot seed {seed}: {100 * found:.2f}", flush=True)
    return found


def _record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / RECORD).read_text(encoding="utf-8"))
    return record


if __name__ == "__main__":
    main()
