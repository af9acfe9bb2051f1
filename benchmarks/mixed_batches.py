"""What a batch of many adapters costs the server: its images drawn from all adapters, against images of the first few.

    python benchmarks/mixed_batches.py --out benchmarks/results/mixed_batches.json

The engine of `vpeft serve` alone, without HTTP: pocket_vit, eight methods in turn, every adapter in memory, one thread.
Batches of the two kinds alternate in one process; figures are medians of processor time, with the quartiles.
`benchmarks/load_test.py` measures the whole server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from load_test import BACKBONE, make_adapters

import vpeft
from vpeft.backbones.describe import describe
from vpeft.batch import Sample
from vpeft.data.preprocessing import Preprocessing
from vpeft.serving.catalogue import Catalogue
from vpeft.serving.engine import Engine, Work
from vpeft.serving.pool import Pool


def seconds(engine: Engine, names: list[str], image: torch.Tensor) -> float:
    """Processor time of a batch, one image for each name."""
    works = [Work("predict", name, [Sample(image, None, "image")]) for name in names]
    for one in works:
        one.answer.set_running_or_notify_cancel()
    start = time.process_time()
    engine._compute(works)
    passed = time.process_time() - start
    for one in works:
        one.answer.result()
    return passed


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures for adapters whose files are made in a folder."""
    make_adapters(folder / "adapters", options.adapters)
    description = describe(vpeft.create_backbone(BACKBONE).eval().requires_grad_(False))
    catalogue = Catalogue(folder / "adapters", Preprocessing.from_model(description.root))
    pool = Pool(description, catalogue, options.adapters)
    engine = Engine(pool, options.batch, 0, 10**6, 60)
    image = torch.randn(3, *catalogue.card("a0").preprocessing.size)
    names = [f"a{number}" for number in range(options.adapters)]
    for start in range(0, len(names), options.batch):  # loads each, and tries which share a pass
        seconds(engine, names[start : start + options.batch], image)
    draw = random.Random(0)
    kinds = {"few": names[: options.few], "all": names}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, known in kinds.items():
            found[kind].append(seconds(engine, draw.choices(known, k=options.batch), image))
    rows = {}
    for kind, values in found.items():
        low, middle, high = (1000 * one for one in statistics.quantiles(values, n=4))
        rows[kind] = {"median_ms": middle, "quartiles_ms": [low, high]}
        print(f"{kind:4} of {len(kinds[kind])}: {middle:.1f} ms [{low:.1f}, {high:.1f}]", flush=True)
    return {**rows, "throughput": rows["few"]["median_ms"] / rows["all"]["median_ms"]}


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--few", type=int, default=8, help="adapters of the batches that are compared with")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    made = {**settings, **found, "torch": str(torch.__version__), "load": os.getloadavg()[0]}
    print(f"throughput of batches drawn from all: {found['throughput']:.2f} of those drawn from the first few")
    if options.out is not None:
        options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
