"""Write what `vpeft auto` chooses from: src/vpeft/assets/experience_pocket.json, from results/pocket.

    python tools/experience.py            # probes nine tasks with the frozen backbone: some minutes
    python tools/experience.py --check    # whether the scores in the file are those of the records; probes are kept

The probes depend on the images and the weights of the backbone alone, so they are computed only for tasks that the file
does not have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vpeft.bench.auto.experience import SHIPPED, Experience, experience_of
from vpeft.bench.auto.probes import probe
from vpeft.bench.ledger import Ledger
from vpeft.training.recipe import Recipe
from vpeft.training.run import ready_run

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results" / "pocket"
FILE = ROOT / "src" / "vpeft" / "assets" / SHIPPED
PROTOCOL, BACKBONE, SUITE = "pocket@1", "pocket_vit", "pocket"


def probed(task: str) -> dict[str, float]:
    """The probes of a task of pocket."""
    data = {"source": f"{SUITE}/{task}"}
    recipe = Recipe.from_mapping({"backbone": BACKBONE, "data": data, "method": "linear_probe"})
    return dict(probe(ready_run(recipe, progress=False, show=False)).values)


def made(known: dict[str, dict[str, float]]) -> Experience:
    """The experience of the records, with known probes and new ones where they are lacking."""
    plain = experience_of(Ledger(LEDGER), PROTOCOL, BACKBONE)
    probes = {}
    for task in plain.tasks:
        if task not in known:
            known[task] = probed(task)
            print(task, known[task], flush=True)
        probes[task] = {name: round(value, 4) for name, value in known[task].items()}
    return experience_of(Ledger(LEDGER), PROTOCOL, BACKBONE, probes=probes)


def text_of(experience: Experience) -> str:
    """The file's text: one line for each task of the tables, seconds to a tenth."""
    values = experience.model_dump(mode="json")
    values["seconds"] = [[round(one, 1) for one in row] for row in values["seconds"]]
    lines = []
    for name, value in values.items():
        if name in ("probes", "candidates", "scores", "seconds"):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f'"{name}": [\n  {rows}\n ]')
        else:
            lines.append(f'"{name}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def main() -> int:
    known: dict[str, dict[str, float]] = {}
    if FILE.exists():
        stored = Experience.model_validate_json(FILE.read_text())
        known = dict(zip(stored.tasks, stored.probes, strict=True))
    text = text_of(made(known))
    if "--check" in sys.argv[1:]:
        fresh = FILE.exists() and FILE.read_text() == text
        if not fresh:
            print(f"{FILE.relative_to(ROOT)} is stale. Run: python tools/experience.py")
        return 0 if fresh else 1
    FILE.write_text(text)
    print(f"{FILE.relative_to(ROOT)}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
