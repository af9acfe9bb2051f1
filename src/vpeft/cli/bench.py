"""`vpeft bench`: methods x tasks x seeds, with one record per run; recorded runs are not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.bench.config import BenchConfig
from vpeft.bench.record import State
from vpeft.bench.runner import run_bench
from vpeft.cli import show
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch, flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.safe_text import SafeConsole
from vpeft.training.optimisation import Optimisation

# The protocol sets these: its grid and its seeds. Everything else may depart from it, and is marked where it does.
_OF_THE_PROTOCOL = ("lr", "weight_decay", "seed")

_FLAGS = [
    *flags_of(BenchConfig, group=Group("The benchmark", sort_key=1), skip=("optimisation",)),
    *flags_of(
        Optimisation,
        group=Group("Departures from the protocol", sort_key=2),
        path=("optimisation",),
        skip=_OF_THE_PROTOCOL,
    ),
]


def _bench(*, json: Switch = False, given: dict[str, Any]) -> int:
    """Run methods x tasks x seeds of a suite, with one record per run. Recorded runs are not repeated.

    If a run fails, its record holds the error, the other runs go on, and the exit code is 1.

    Parameters
    ----------
    json:
        Print a summary as JSON instead of a sentence.
    """
    config = validated(BenchConfig, nested(_FLAGS, given), _FLAGS)
    ledger = run_bench(config, console=SafeConsole(stderr=True))
    records = list(ledger)
    failed = [record for record in records if record.state in (State.failed, State.out_of_memory)]
    if json:
        states = {state.value: sum(record.state is state for record in records) for state in State}
        show.as_json({"ledger": str(config.out), "runs": len(records), "states": states})
    else:
        show.console().print(
            Text(f"{len(records)} runs in {config.out}. See them: vpeft report {_quoted(config.out)} --html page.html")
        )
    for record in failed:
        error = record.error.message.splitlines()[0] if record.error and record.error.message else "no message"
        say_warning(f"{record.label} on {record.task}, seed {record.identity.seed}: {record.state.value}: {error}")
    return 1 if failed else 0


def _quoted(path: Path) -> str:
    text = str(path)
    return f"'{text}'" if " " in text else text


bench = with_flags(_bench, _FLAGS)
