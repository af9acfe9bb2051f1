"""All continual learners on the offline streams: three seeds, each with its own order of the classes.

    python benchmarks/continual.py --out runs/continual --page runs/continual/table.md

Each cell of the table is the mean over the seeds with its 95 % interval (Student's t). A run whose record is in the
folder is not done again, so a killed table goes on with the same command. `--only` and `--streams` choose a part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t

from vpeft.regimes.continual import RECORD, ContinualRecipe, run_continual
from vpeft.regimes.matrix_pictures import curves

BACKBONE = "pocket_vit"


class StreamChoice(NamedTuple):
    """What a stream is made of: sources, the classes of the first task, and those of each later one."""

    source: str
    domains: tuple[str, ...] = ()
    first: int = 0
    increment: int = 10


STREAMS = {
    "letters": StreamChoice("pocket/glyphs", first=6, increment=5),
    "photographs": StreamChoice("pocket/photographs", first=5, increment=4),
    "digits": StreamChoice("pocket/handwriting", increment=2),
}
# Adapters of this small backbone are trained at a rate ten times that of the class head alone.
TRAINED: dict[str, Any] = {"epochs": 5, "batch": 32, "lr": 2e-3, "weight_decay": 0.0, "device": "auto"}
LEARNERS: dict[str, dict[str, Any]] = {
    "simple_cil": {},
    "sequential(method=lora(rank=8))": {},
    "joint(method=lora(rank=8))": {},
    "lwf(method=lora(rank=8))": {},
    "ranpac(projection=2000)": {},
    "aper": {},
    "ease": {},
    "lae(method=lora(rank=5, targets=[k, v]))": {},
    "sema(expandable=2)": {},
    "l2p": {},
    "dualprompt(tasks=10)": {},
    "coda_prompt(tasks=10)": {},
    "inflora(tasks=10)": {},
}
COLUMNS = ("last", "average", "forgetting", "backward_transfer")


def main() -> None:
    """Make the runs that are missing, and write the table and one picture for each stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--page", type=Path, help="Markdown file of the table; by default table.md in the folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=TRAINED["epochs"])
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--only", default="", help="names of learners or methods, with commas")
    options = parser.parse_args()
    only = tuple(filter(None, options.only.split(",")))
    chosen = [text for text in LEARNERS if not only or text.partition("(")[0] in only]
    lines = ["# Continual learning, offline", ""]
    for stream in options.streams.split(","):
        records = {
            text: [record_of(options.out, stream, text, seed, options.epochs) for seed in range(options.seeds)]
            for text in chosen
        }
        lines += table(stream, records)
        drawn = curves({text: [one["accuracy"]["curve"] for one in found] for text, found in records.items()}, stream)
        drawn.savefig(options.out / f"{stream}.png", dpi=150)
    page: Path = options.page or options.out / "table.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


def record_of(out: Path, stream: str, text: str, seed: int, epochs: int) -> dict[str, Any]:
    """The record of one run, made now where it is not there."""
    what = STREAMS[stream]
    folder = out / stream / text.translate(str.maketrans("(=, ", "____", ")[]")) / f"seed_{seed}_epochs_{epochs}"
    recipe = ContinualRecipe.model_validate(
        {
            "backbone": BACKBONE,
            "method": text,
            "data": {"source": what.source},
            "domains": what.domains,
            "first": what.first,
            "increment": what.increment,
            "order_seed": seed,
            "out": folder,
            "optimisation": {**TRAINED, **LEARNERS[text], "epochs": epochs, "seed": seed},
        }
    )
    if not (folder / RECORD).exists():
        began = time.perf_counter()
        run_continual(recipe, say=lambda _: None)
        print(f"{stream} {text} seed {seed}: {time.perf_counter() - began:.1f} s", flush=True)
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def table(stream: str, records: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table of one stream in Markdown."""
    what = STREAMS[stream]
    lines = [
        f"## {stream}: {what.source}, {next(iter(records.values()))[0]['stream'].get('notation', 'domains')}",
        "",
        "| method | last, % | average, % | forgetting, points | backward transfer, points | stored numbers | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for text, found in records.items():
        cells = [interval([100 * one["accuracy"]["metrics"][name] for one in found]) for name in COLUMNS]
        stored = f"{found[0]['stored_numbers']:,}"
        seconds = statistics.mean(sum(one["seconds"]) for one in found)
        lines.append(f"| `{text}` | {' | '.join(cells)} | {stored} | {seconds:.0f} |")
    return [*lines, ""]


def interval(values: list[float]) -> str:
    """The mean with half of its 95 % interval, where there are several values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
