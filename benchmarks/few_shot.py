"""Few-shot episodes on offline sources: methods beside each other, with intervals and the average rank.

    python benchmarks/few_shot.py --out runs/few_shot

A run whose record is in the folder is not done again. Sources, shots and methods can be chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from vpeft.regimes.few_shot import RECORD, FewShotRecipe, run_few_shot

SOURCES = ("pocket/glyphs", "pocket/photographs")
# What is tuned, and the head; the first two tune nothing and the head alone.
ROWS: dict[str, tuple[str, str, int]] = {
    "nearest mean": ("linear_probe", "centroid", 0),
    "linear probe": ("linear_probe", "linear", 40),
    "dra": ("dra", "centroid", 40),
    "ett": ("ett(ways=5)", "centroid", 40),
    "attnscale+dra": ("attnscale+dra", "centroid", 40),
    "lora": ("lora(rank=8)", "centroid", 40),
    "vpt_deep": ("vpt_deep(tokens=5)", "centroid", 40),
    "adaptformer": ("adaptformer", "centroid", 40),
    "full": ("full_finetuning", "centroid", 40),
}


def main() -> None:
    """Make the runs that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of table.md")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--shots", default="1,5")
    parser.add_argument("--only", default="", help="rows, with commas")
    options = parser.parse_args()
    only = tuple(filter(None, options.only.split(",")))
    rows = [name for name in ROWS if not only or name in only]
    columns = [(source, int(shot)) for source in options.sources.split(",") for shot in options.shots.split(",")]
    found = {
        name: [record_of(options.out, name, source, shot, options.episodes) for source, shot in columns]
        for name in rows
    }
    ranks: dict[str, list[int]] = {name: [] for name in rows}
    for column in range(len(columns)):
        order = sorted(rows, key=lambda name: -found[name][column]["accuracy"])
        for rank, name in enumerate(order, 1):
            ranks[name].append(rank)
    heads = [f"{source}, {shot}-shot" for source, shot in columns]
    lines = [f"| method | {' | '.join(heads)} | average rank |", "|---" * (len(heads) + 2) + "|"]
    for name in rows:
        cells = [f"{100 * one['accuracy']:.1f} ± {100 * one['interval']:.1f}" for one in found[name]]
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.mean(ranks[name]):.1f} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def record_of(out: Path, name: str, source: str, shot: int, episodes: int) -> dict[str, Any]:
    """The record of one run, made now where it is not there."""
    method, head, steps = ROWS[name]
    folder = out / source.replace("/", "_") / f"{shot}_shot_{episodes}_episodes" / name.replace(" ", "_")
    if not (folder / RECORD).exists():
        recipe = FewShotRecipe.model_validate(
            {
                "method": method,
                "head": head,
                "steps": steps,
                "episodes": episodes,
                "data": {"source": source},
                "sizes": {"way": 5, "shot": shot},
                "out": folder,
            }
        )
        run_few_shot(recipe, say=lambda _: None)
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    print(f"{source} {shot}-shot {name}: {record['seconds']:.0f} s", flush=True)
    return record


if __name__ == "__main__":
    main()
