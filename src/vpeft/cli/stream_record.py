"""The record of a stream in a ledger, beside those of benchmarks: `vpeft continual --ledger`."""

from __future__ import annotations

from pathlib import Path

import torch

from vpeft.bench.key import Identity, Numerics, digest
from vpeft.bench.ledger import Ledger
from vpeft.bench.provenance import provenance
from vpeft.bench.record import Costs, RecordedScores, RunRecord, State, now
from vpeft.errors import VpeftError
from vpeft.method_spec import MethodSpec
from vpeft.regimes.continual import ContinualRecipe, Outcome

SUITE = "continual"
PROTOCOL = "continual@1"
RULE = (
    "Tasks come one by one, and their images are gone afterwards, except for what the learner keeps. Accuracies are"
    " measured after each task on all classes so far; the last pooled one counts. Settings as stated, no search."
)


class TakenRun(VpeftError):
    """Another process writes the record of this run."""


def record_of(recipe: ContinualRecipe, outcome: Outcome) -> RunRecord:
    """The record of a stream that was learnt to its end.

    Its task is the source with the notation of its tasks, the leading value the last accuracy over all classes; the
    data's digest covers the order of the classes too.
    """
    told = outcome.record
    identity, stream = told["identity"], told["stream"]
    names = [recipe.data.source, *recipe.domains]
    options = {name: value for name, value in identity["options"].items() if value is not None}
    made = Identity(
        purpose="final",
        task=f"{', '.join(names)} {stream.get('notation', stream['kind'])}",
        data=digest(identity["stream"]),
        protocol=PROTOCOL,
        methods=(MethodSpec(name=told["learner"]["name"], fields=options),),
        backbone=recipe.backbone,
        weights=identity["backbone"],
        optimisation=identity["optimisation"],
        seed=identity["seed"],
        numerics=Numerics(precision=recipe.optimisation.precision),
    )
    values = {f"{name}_accuracy" if name in ("last", "average") else name: one for name, one in
              told["accuracy"]["metrics"].items() if one is not None}  # fmt: skip
    return RunRecord(
        key=made.key(),
        identity=made,
        suite=SUITE,
        group=stream["kind"],
        label=recipe.method,
        state=State.done,
        attempts=1,
        created=now(),
        finished=told["finished"],
        rule=RULE,
        scores=RecordedScores(
            split=recipe.judge,
            values=values,
            leading="last_accuracy",
            count=sum(outcome.matrix.counts),
        ),
        costs=Costs(trainable=told["trained_in_one_task"], wall_seconds=sum(told["seconds"])),
        history=tuple(
            {"task": float(number + 1), "accuracy": value, "seconds": seconds}
            for number, (value, seconds) in enumerate(zip(outcome.matrix.curve, told["seconds"], strict=True))
        ),
        provenance=provenance(torch.get_num_threads()),
    )


def add_to_ledger(path: Path, recipe: ContinualRecipe, outcome: Outcome) -> Path:
    """Write the record of a finished stream; one of the same run is replaced by it.

    Raises:
        TakenRun: another process is writing it.
        LedgerError: the ledger cannot be read.
    """
    ledger, record = Ledger(path), record_of(recipe, outcome)
    lease = ledger.claim(record.key)
    if lease is None:
        raise TakenRun(f"Another process writes the run {record.key} of {path}. Give the same command again.")
    with lease:
        return ledger.write(record, lease)
