"""How much longer a run of `vpeft bench` takes than the same `fit` alone.

A is a whole call of `run_bench` for one run: plan, lease, checkpoints, training, the test, costs, the record. B is what
somebody would write by hand: the same images as tensors, `tune`, `fit` without a folder, `evaluate` on the test split.
A and B take turns, so that what else the machine does falls on both; the backbone is loaded and the data set is opened
before. Both end with the same test score, which is checked. The goal is less than 5 % of B.

    python benchmarks/harness_overhead.py --rounds 5 --json benchmarks/results/harness_overhead.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vpeft.backbones.create import create_backbone
from vpeft.bench import BenchConfig, run_bench
from vpeft.bench.key import Identity
from vpeft.bench.plan import Job, make_plan
from vpeft.bench.sealed import FinalEvaluator
from vpeft.bench.shared_cache import KeptTensors
from vpeft.bench.suite import BenchTask
from vpeft.bench.suites import open_task
from vpeft.bench.trainer import ACCELERATION, TEST_BATCH, VpeftEngine
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tune import tune
from vpeft.method import get_method
from vpeft.training.evaluate import evaluate
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed, seed_everything

SUITE, TIER, BACKBONE = "digits", "quick", "pocket_vit"


def clock() -> tuple[float, float]:
    """Processor seconds of this process, and seconds on the wall."""
    return time.process_time(), time.perf_counter()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """What went by since `start`, in both kinds of seconds."""
    now = clock()
    return now[0] - start[0], now[1] - start[1]


def asked(method: str, out: Path) -> BenchConfig:
    """One run of a method."""
    return BenchConfig(
        suite=SUITE, tier=TIER, methods=(method,), backbone=BACKBONE, seeds=1, out=out, show=False, workers=1
    )


def with_harness(method: str) -> tuple[tuple[float, float], float]:
    """A: seconds, and the test score."""
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        (record,) = run_bench(asked(method, Path(folder)), engine=VpeftEngine(accelerated=False))
        spent = since(start)
    assert record.scores is not None, record.error
    return spent, record.scores.value


class ByHand:
    """What a person has at hand before training: the plan's settings, the backbone and the data."""

    def __init__(self, method: str) -> None:
        (job,) = make_plan(asked(method, Path("unused")), VpeftEngine(accelerated=False))
        self.job: Job = job
        self.identity: Identity = job.identity
        self.data: BenchTask = open_task(job.suite, job.task)
        self.model = create_backbone(BACKBONE).eval()

    def settings(self) -> tuple[Optimisation, dict[str, Any]]:
        """Those of the optimiser, and the options of the task."""
        assert self.job.point is not None
        stated = {**self.identity.optimisation, **self.job.point.model_dump()}
        assert stated.pop("augmentation") == "none"
        options = {name: stated.pop(name) for name in list(stated) if name not in Optimisation.model_fields}
        stated |= {"seed": self.identity.seed, "device": "cpu", "acceleration": ACCELERATION}
        return Optimisation.model_validate(stated), options

    def run(self) -> tuple[tuple[float, float], float]:
        """B: seconds, and the test score."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        start = clock()
        settings, options = self.settings()
        model = copy.deepcopy(self.model)
        prepared = Preprocessing.from_model(model)
        seed_everything(derived_seed(settings.seed, "start"))
        unbound = type(self.data.learns)(labels=self.data.labels, **options)
        train = KeptTensors(
            self.data.train_and_val().dataset(unbound.labels, unbound.transforms(prepared, "none", True), settings.seed)
        )
        task = unbound.bind(train)
        methods = [get_method(one.name)(**one.fields) for one in self.identity.methods]
        tuned = tune(model, *methods, task=task, show=False)
        fit(tuned, train, None, optimisation=settings, progress=False, task=task)
        opened = FinalEvaluator(self.identity, self.data.test)
        opened.reading = True
        test = KeptTensors(
            self.data.test.opened(opened).dataset(task.labels, task.transforms(prepared, "none", False), 0)
        )
        scores = evaluate(tuned, test, task=task, batch=TEST_BATCH)
        spent = since(start)
        torch.set_num_threads(before)
        return spent, scores.value


def compared(method: str, rounds: int) -> dict[str, Any]:
    """Median seconds of both in turn, and the overhead of A as a share of B, from processor and wall time."""
    hand = ByHand(method)
    a, b = list[tuple[float, float]](), list[tuple[float, float]]()
    for number in range(rounds + 1):
        (spent_a, score_a), (spent_b, score_b) = with_harness(method), hand.run()
        assert abs(score_a - score_b) < 1e-9, f"{method}: the two runs differ: {score_a} and {score_b}"
        if number:  # the first turn warms caches
            a.append(spent_a)
            b.append(spent_b)
    found: dict[str, Any] = {"method": method, "rounds": rounds}
    for place, kind in enumerate(("processor", "wall")):
        ours, theirs = [one[place] for one in a], [one[place] for one in b]
        ratios = sorted(x / y - 1 for x, y in zip(ours, theirs, strict=True))
        found[kind] = {
            "with_harness": round(statistics.median(ours), 3),
            "by_hand": round(statistics.median(theirs), 3),
            "overhead": round(statistics.median(ratios), 4),
            "lowest": round(ratios[0], 4),
            "highest": round(ratios[-1], 4),
        }
    return found


def main() -> None:
    """Compare, print and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["lora", "adaptformer", "linear_probe"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [compared(method, given.rounds) for method in given.methods]
    for row in rows:
        for kind in ("processor", "wall"):
            one = row[kind]
            print(
                f"{row['method']:16} {kind:9} {one['with_harness']:7.2f} s with the harness, {one['by_hand']:7.2f} s by"
                f" hand: {100 * one['overhead']:+.1f} % ({100 * one['lowest']:+.1f} to {100 * one['highest']:+.1f} %)"
            )
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
