"""What `vpeft auto` loses against the best of the table, task by task, without having seen the task.

    python benchmarks/auto_regret.py                                    # replays the records of results/pocket
    python benchmarks/auto_regret.py --finals runs/auto_finals --make   # first makes the final runs that they lack

Leave one task out: the other tasks of pocket are the experience, the held-out task has its probes alone. The candidates
are proposed and raced by the code of `vpeft auto`, each in full, since the records have runs of one length only; a run
of the race is the record of the same search run (its validation score, its seconds). The share of `auto` counts the
probes (as the cheapest search run of the task, one of frozen features), the race and one final run; the grid is all
search runs of the held-out task and one final run.

The score is the mean on the test images over three seeds, refitted on training and validation images at the chosen
learning rate. The records hold it where that rate is the one that the protocol's own search chose for the method;
`--make` makes the others by the same rules. Where fewer than three seeds of such a run are there, their mean stands for
the others, and the row says how many there are. `best` is the method with the best test mean on the task, after a full
search of each. It is chosen on the test images, so the regret is more likely too large than too small. Intervals are of
a bootstrap over tasks and seeds; nine tasks are few.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpeft.bench.auto import Candidate, Experience, RaceEntry, propose, race, shipped
from vpeft.bench.auto.propose import PROPOSALS
from vpeft.bench.ledger import Ledger
from vpeft.bench.record import RunRecord
from vpeft.bench.statistics import Interval, paired_bootstrap
from vpeft.method_spec import text_of

ROOT = Path(__file__).resolve().parents[1]
LEDGER, PROTOCOL, BACKBONE, SUITE = ROOT / "results" / "pocket", "pocket@1", "pocket_vit", "pocket"
RESULTS = ROOT / "benchmarks" / "results" / "auto_regret.json"
SEEDS, BASELINE = (0, 1, 2), "lora"

# (task, method, rate) -> test score of each seed
Finals = dict[tuple[str, str, float], dict[int, float]]


@dataclass(frozen=True)
class Chosen:
    """What was chosen on a task: the candidate, its share of the grid's cost, and how it was weighted."""

    task: str
    candidate: Candidate
    share: float
    tried: tuple[str, ...]


def finals_of(records: Iterable[RunRecord]) -> Finals:
    """The test scores of final runs, by the rate that they used."""
    found: Finals = {}
    for record in records:
        identity = record.identity
        wanted = (identity.purpose, identity.protocol, identity.backbone) == ("final", PROTOCOL, BACKBONE)
        if wanted and record.scores is not None and record.chosen is not None and not record.departures:
            cell = record.task.split("/", 1)[-1], text_of(identity.methods), record.chosen.lr
            found.setdefault(cell, {})[identity.seed] = record.scores.value
    return found


def choose(experience: Experience, task: str, final_seconds: float, *, proposals: int, probes: bool) -> Chosen:
    """Replay `auto` on a task that the experience has, without it."""
    place = experience.tasks.index(task)
    known = experience.without(task)
    scores, seconds = experience.scores[place], experience.seconds[place]
    probing = min(seconds)
    grid = sum(seconds) + final_seconds
    here = experience.probes[place] if probes else None
    proposed = propose(known, here, count=proposals)
    numbers = [experience.candidates.index(one.candidate) for one in proposed]

    def run(number: int, epochs: int, most: float) -> RaceEntry:
        return RaceEntry(number, epochs, scores[numbers[number]], seconds[numbers[number]])

    found = race([one.relative_cost for one in proposed], math.inf, experience.epochs, run)
    assert found.winner is not None
    spent = probing + sum(one.seconds for one in found.entries) + final_seconds
    tried = tuple(proposed[one.candidate].candidate.words() for one in found.entries)
    return Chosen(task, proposed[found.winner.candidate].candidate, spent / grid, tried)


def seconds_of_finals(records: Iterable[RunRecord]) -> dict[str, float]:
    """The median seconds of a final run of each task."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.identity.purpose == "final" and record.identity.protocol == PROTOCOL and record.costs is not None:
            found.setdefault(record.task.split("/", 1)[-1], []).append(record.costs.wall_seconds or 0.0)
    return {task: statistics.median(values) for task, values in found.items()}


def make(chosen: Sequence[Chosen], finals: Finals, records: Sequence[RunRecord], folder: Path) -> None:
    """Make the final runs at chosen rates that the records lack, in a ledger of their own."""
    from vpeft.bench.execute import perform
    from vpeft.bench.key import Identity
    from vpeft.bench.plan import Job
    from vpeft.bench.protocol import Point
    from vpeft.bench.trainer import VpeftEngine

    ledger, engine = Ledger(folder), VpeftEngine()
    for one in chosen:
        cell = one.task, one.candidate.method, one.candidate.lr
        if set(SEEDS) <= set(finals.get(cell, {})):
            continue
        like = next(
            record
            for record in records
            if record.identity.purpose == "search"
            and record.identity.protocol == PROTOCOL
            and (record.task.split("/", 1)[-1], text_of(record.identity.methods)) == cell[:2]
            and record.chosen is not None
            and record.chosen.lr == one.candidate.lr
        )
        for seed in SEEDS:
            identity = Identity.model_validate({**like.identity.model_dump(), "purpose": "final", "seed": seed})
            point = Point(lr=one.candidate.lr, weight_decay=one.candidate.weight_decay)
            job = Job(
                key=identity.key(),
                identity=identity,
                suite=like.suite,
                task=one.task,
                group=like.group,
                label=like.label,
                point=point,
                rule=like.rule,
                minimum_seeds=like.minimum_seeds,
            )
            made = perform(job, ledger, engine, threads=1).record
            print(f"{one.task}: {one.candidate.words()}, seed {seed}: {made.scores if made else None}", flush=True)


def table(chosen: Sequence[Chosen], finals: Finals, recorded: Finals) -> dict[str, object]:
    """Scores, regrets and costs of all tasks, with intervals."""
    by_task: dict[str, dict[str, list[float]]] = {}
    for (task, method, _), scores in recorded.items():
        if set(SEEDS) <= set(scores):
            by_task.setdefault(task, {})[method] = [scores[seed] for seed in SEEDS]
    everywhere = set.intersection(*(set(of_task) for of_task in by_task.values()))
    rows, ours, best, base = [], [], [], []
    for one in chosen:
        of_task = {method: by_task[one.task][method] for method in everywhere}
        top = max(of_task, key=lambda method: statistics.fmean(of_task[method]))
        lora = next(method for method in of_task if method.partition("(")[0] == BASELINE)
        found = finals.get((one.task, one.candidate.method, one.candidate.lr), {})
        mean = statistics.fmean(found.values()) if found else None
        mine = None if mean is None else [found.get(seed, mean) for seed in SEEDS]
        row: dict[str, object] = {
            "task": one.task,
            "chosen": one.candidate.words(),
            "tried": list(one.tried),
            "test": None if mine is None else round(100 * statistics.fmean(mine), 2),
            "seeds": len(found),
            "best": top.partition("(")[0],
            "best_test": round(100 * statistics.fmean(of_task[top]), 2),
            "lora_test": round(100 * statistics.fmean(of_task[lora]), 2),
            "share": round(one.share, 4),
        }
        rows.append(row)
        if mine is not None:
            ours.append(mine)
            best.append(of_task[top])
            base.append(of_task[lora])
    summary: dict[str, object] = {
        "methods": len(everywhere),
        "share": round(statistics.fmean(one.share for one in chosen), 4),
        "most_share": round(max(one.share for one in chosen), 4),
        "without_a_score": [row["task"] for row in rows if row["test"] is None],
    }
    if len(ours) == len(chosen):
        summary["regret"] = _points(paired_bootstrap(np.array(best), np.array(ours)))
        summary["over_tuned_lora"] = _points(paired_bootstrap(np.array(ours), np.array(base)))
        summary["regret_of_always"] = {
            method.partition("(")[0]: round(
                100 * float(np.mean(best) - np.mean([by_task[one.task][method] for one in chosen])), 2
            )
            for method in sorted(everywhere)
        }
    return {"tasks": rows, "summary": summary}


def _points(interval: Interval) -> list[float]:
    """Value, low and high in points."""
    return [round(100 * one, 2) for one in (interval.value, interval.low, interval.high)]


def said(found: Mapping[str, object]) -> str:
    """The table for a terminal."""
    lines = [f"{'task':14}{'chosen':34}{'test':>7}{'best':>18}{'':>7}{'LoRA':>7}{'cost':>8}"]
    for row in found["tasks"]:  # type: ignore[attr-defined]
        score = "–" if row["test"] is None else f"{row['test']:.1f}"
        lines.append(
            f"{row['task']:14}{row['chosen']:34}{score:>7}{row['best']:>18}{row['best_test']:7.1f}{row['lora_test']:7.1f}"
            f"{100 * row['share']:7.1f}%"
        )
    return "\n".join([*lines, json.dumps(found["summary"], indent=1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finals", type=Path, help="ledger of final runs that the records lack")
    parser.add_argument("--make", action="store_true", help="make those that are lacking there, too")
    parser.add_argument("--proposals", type=int, default=PROPOSALS)
    parser.add_argument("--no-probes", action="store_true", help="all known tasks count alike")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    records, experience = list(Ledger(LEDGER)), shipped()
    recorded, seconds = finals_of(records), seconds_of_finals(records)
    chosen = [
        choose(experience, task, seconds[task], proposals=arguments.proposals, probes=not arguments.no_probes)
        for task in experience.tasks
    ]
    finals = {cell: dict(scores) for cell, scores in recorded.items()}
    if arguments.finals is not None:
        if arguments.make:
            make(chosen, finals, records, arguments.finals)
        for cell, scores in finals_of(Ledger(arguments.finals)).items():
            finals.setdefault(cell, {}).update(scores)
    found = table(chosen, finals, recorded)
    found["settings"] = {"proposals": arguments.proposals, "probes": not arguments.no_probes}
    print(said(found))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
