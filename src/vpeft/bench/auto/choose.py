"""`run_auto`: probe the data, propose candidates from experience, race them within a budget, and keep the best one.

    auto.json         everything that was decided, and from what; the same call continues from it
    table.csv         every run of the race: candidate, epochs, validation score, seconds
    recipe.toml       the run that won; `vpeft train recipe.toml` repeats it
    runs/<number>/    the runs, as `vpeft train` writes them; the winner's has the adapter

Three stages share the budget. A pass of the frozen backbone gives the probes, by which known tasks are weighted. The
proposals race (`race.py`). What is left goes to neighbours of the winner, one after the other, each in full: twice its
size, half and twice its learning rate, half its size; a better validation score takes the lead. The test images are
read once, at the end, with the winner.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpeft.atomic import write_json, write_text
from vpeft.bench.auto.experience import Candidate, Experience
from vpeft.bench.auto.probes import Probed, probe
from vpeft.bench.auto.propose import PROPOSALS, Proposal, propose, weights
from vpeft.bench.auto.race import RaceEntry, race
from vpeft.bench.key import digest
from vpeft.errors import VpeftError
from vpeft.guarded import read_json
from vpeft.method_spec import parse, text_of
from vpeft.safe_text import write_csv
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import Recipe
from vpeft.training.run import RunOutcome, ready_run, run_recipe

NOTES, TABLE, RECIPE, RUNS = "auto.json", "table.csv", "recipe.toml", "runs"
_FORMAT = 1
# A training step against a frozen forward pass: forward, and a backward pass that costs about twice as much.
STEP_OF_FORWARD = 3.0
# The fields that are a method's size, the one that it has first.
SIZES = ("rank", "bottleneck", "hidden", "tokens", "length")


class CannotChoose(VpeftError):
    """Nothing can be chosen: no folder, notes of another call, or no candidate that gave a score."""


class BadNotes(VpeftError):
    """The notes of an earlier call cannot be read."""


@dataclass(frozen=True)
class AutoOutcome:
    """What was chosen and why.

    Attributes:
        winner: the candidate; None if the call was stopped before there was one.
        epochs: of its run.
        run: its run, with the test scores; None if the call was stopped.
        why: sentences.
        entries: all runs, with their candidates.
        folder: with the notes, the table and the recipe.
        seconds: of all stages together.
        stopped: a signal ended it; the same call continues.
    """

    winner: Candidate | None
    epochs: int
    run: RunOutcome | None
    why: tuple[str, ...]
    entries: tuple[tuple[Candidate, RaceEntry], ...]
    folder: Path
    seconds: float
    stopped: bool = False


class _Stopped(Exception):
    """A run ended by a signal."""


def run_auto(
    recipe: Recipe,
    experience: Experience,
    budget: float,
    *,
    proposals: int = PROPOSALS,
    stated: frozenset[str] = frozenset(),
    resume: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> AutoOutcome:
    """Choose a method with its settings for the data of a recipe, and train it.

    Args:
        recipe: data, backbone, task and output folder. Its method does not matter; `optimisation.epochs` is the length
            of a full run, and `optimisation.fit_memory` holds for every run.
        experience: records to choose from.
        budget: seconds for probes and all runs. The estimates are the machine's own, so it is kept within a run or so.
        proposals: how many candidates race.
        stated: settings of the optimisation that the user has typed; the others are those of the experience.
        resume: continue from the notes in the folder.
        say: takes a line of progress.

    Raises:
        CannotChoose: see there.
        CannotProbe: the data have no classes, or no validation images.
        VpeftError: an error of the data or the backbone.
    """
    folder = recipe.out
    if folder is None:
        raise CannotChoose("Choosing writes runs and a table. Name a folder for them (`out`).")
    settings = _settings(recipe.optimisation, experience, stated)
    recipe = recipe.model_copy(update={"optimisation": settings})
    ready = ready_run(recipe.model_copy(update={"out": None}), progress=False, show=False)
    identity = digest(
        {
            "recipe": recipe.model_dump(mode="json", exclude={"out", "method", "also"}),
            "data": ready.data.manifest.digest,
            "experience": experience.model_dump(mode="json"),
            "budget": budget,
            "proposals": proposals,
        },
        20,
    )
    notes = _Notes.opened(folder / NOTES, identity, resume)
    if notes.probed is None:
        notes.probed = probe(ready)
        notes.write()
    probed = notes.probed
    proposed = propose(experience, probed.values, count=proposals)
    base = STEP_OF_FORWARD * probed.forward_seconds / max(1, probed.images) * len(ready.train)
    if notes.per_epoch is None:
        notes.per_epoch = [base * one.relative_cost for one in proposed]
        notes.write()
    del ready
    candidates = [one.candidate for one in proposed]
    why = _reasons(experience, probed, proposed)
    for line in why:
        say(line)
    runs = _Runs(recipe, candidates, notes, say)
    left = budget - probed.seconds
    try:
        found = race(notes.per_epoch, left, settings.epochs, runs.run, known=notes.entries)
        best = found.winner
        if best is None:
            failures = "; ".join(f"{candidates[one.candidate].words()}: {one.note}" for one in found.entries)
            raise CannotChoose(f"No candidate gave a score. {failures or 'The budget is too short for any of them.'}")
        plan = ", then ".join(f"{rung.count} for {in_epochs(rung.epochs)}" for rung in found.rungs)
        why.append(f"race {found.rule}: {plan}; {candidates[best.candidate].words()} led with {best.score:.4g}")
        say(why[-1])
        best = _neighbours(runs, best, left - sum(one.seconds for one in found.entries), why, say)
        winner = candidates[best.candidate]
        outcome = runs.trained(best.candidate, best.epochs, test=True)
    except _Stopped:
        return AutoOutcome(None, 0, None, tuple(why), runs.entries(), folder, notes.seconds(), stopped=True)
    repeat = runs.recipe(best.candidate, best.epochs).model_copy(update={"out": folder / "again"})
    write_text(folder / RECIPE, repeat.to_toml())
    write_text(folder / TABLE, _table(runs.entries(), best, winner))
    notes.chosen = {**winner.model_dump(), "epochs": best.epochs, "validation": best.score, "why": why}
    notes.write()
    return AutoOutcome(winner, best.epochs, outcome, tuple(why), runs.entries(), folder, notes.seconds())


def _settings(given: Optimisation, experience: Experience, stated: frozenset[str]) -> Optimisation:
    """The settings of all runs: what the user has typed, else what the rates of the experience belong to."""
    carried = {name: value for name, value in experience.settings.items() if name not in stated}
    try:
        return Optimisation.model_validate({**given.model_dump(), **carried})
    except ValidationError as error:
        reasons = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors(include_url=False))
        raise CannotChoose(
            f"The settings do not go with those of the records ({', '.join(f'{k} = {v}' for k, v in carried.items())}):"
            f" {reasons}. State them, too."
        ) from None


def _neighbours(runs: _Runs, best: RaceEntry, left: float, why: list[str], say: Callable[[str], None]) -> RaceEntry:
    """Try variants of the winner, each in full, while there is time; return the best."""
    leader = runs.candidates[best.candidate]
    tried = [neighbour for neighbour in neighbours(leader) if neighbour not in runs.candidates]
    for neighbour in tried:
        if best.epochs * (best.seconds / best.epochs) > left:
            break
        runs.candidates.append(neighbour)
        number = len(runs.candidates) - 1
        known = next((one for one in runs.notes.entries if (one.candidate, one.epochs) == (number, best.epochs)), None)
        entry = known or runs.run(number, best.epochs, left)
        left -= entry.seconds
        if entry.score is not None and best.score is not None and entry.score > best.score:
            why.append(f"{neighbour.words()} did better than the leader: {entry.score:.4g} against {best.score:.4g}")
            say(why[-1])
            best = entry
    return best


def in_epochs(count: int) -> str:
    """Return "1 epoch" or "3 epochs"."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def neighbours(candidate: Candidate) -> list[Candidate]:
    """Variants of a candidate in the order in which they are worth trying: size, rate, rate, size."""
    larger, smaller = (_resized(candidate, factor) for factor in (2.0, 0.5))
    slower, faster = (candidate.model_copy(update={"lr": candidate.lr * factor}) for factor in (0.5, 2.0))
    return [one for one in (larger, slower, faster, smaller) if one is not None]


def _resized(candidate: Candidate, factor: float) -> Candidate | None:
    """The candidate with its size times a factor; None for a method without a size, or of several parts."""
    methods = parse(candidate.method).methods
    if len(methods) != 1:
        return None
    (method,) = methods
    for name in SIZES:
        size = method.fields.get(name)
        if isinstance(size, int) and not isinstance(size, bool) and size * factor >= 1:
            changed = method.model_copy(update={"fields": {**method.fields, name: round(size * factor)}})
            label = f"{candidate.label.partition('(')[0]}({name}={round(size * factor)})"
            return candidate.model_copy(update={"label": label, "method": text_of((changed,))})
    return None


class _Runs:
    """Carries out the runs of a race, each in a folder of its own, and notes them."""

    def __init__(self, recipe: Recipe, candidates: list[Candidate], notes: _Notes, say: Callable[[str], None]) -> None:
        self._recipe, self.candidates, self.notes, self._say = recipe, candidates, notes, say

    def recipe(self, number: int, epochs: int) -> Recipe:
        """The recipe of one run."""
        candidate = self.candidates[number]
        changed = {"lr": candidate.lr, "weight_decay": candidate.weight_decay, "epochs": epochs}
        values = self._recipe.model_dump(mode="json", exclude={"method", "also"}, exclude_none=True)
        values["optimisation"] = {**values["optimisation"], **changed}
        assert self._recipe.out is not None
        values["out"] = str(self._recipe.out / RUNS / f"{number}-{epochs}")
        return Recipe.from_mapping({**values, "method": candidate.method}, where="A run of the race")

    def trained(self, number: int, epochs: int, *, test: bool) -> RunOutcome:
        """Carry out a run, or continue it from its folder. Raises _Stopped."""
        outcome = run_recipe(self.recipe(number, epochs), progress=False, show=False, test=test)
        if outcome.state == "stopped":
            raise _Stopped
        return outcome

    def run(self, number: int, epochs: int, most_seconds: float) -> RaceEntry:
        """One run as an entry; a method that cannot run on this backbone or in this memory has no score."""
        candidate, begun = self.candidates[number], time.perf_counter()
        try:
            outcome = self.trained(number, epochs, test=False)
        except VpeftError as error:
            reason = " ".join(str(error).split())[:300]
            entry = RaceEntry(number, epochs, None, time.perf_counter() - begun, reason)
        else:
            spent = max(time.perf_counter() - begun, outcome.result.seconds)
            val = outcome.result.val
            assert val is not None  # probes refuse data without validation images
            score = val.value if val.higher_is_better else -val.value
            entry = RaceEntry(number, epochs, score if score == score else None, spent)
        said = f"{entry.score:.4g}" if entry.score is not None else f"no score: {entry.note or 'not a number'}"
        self._say(f"{candidate.words()}, {in_epochs(epochs)}: {said} in {entry.seconds:.1f} s")
        self.notes.entries.append(entry)
        self.notes.write()
        return entry

    def entries(self) -> tuple[tuple[Candidate, RaceEntry], ...]:
        """All runs with their candidates."""
        return tuple((self.candidates[one.candidate], one) for one in self.notes.entries)


class _Notes:
    """What was measured and decided, on disk after every step."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.probed: Probed | None = None
        self.per_epoch: list[float] | None = None
        self.entries: list[RaceEntry] = []
        self.chosen: dict[str, Any] | None = None

    @classmethod
    def opened(cls, path: Path, identity: str, resume: bool) -> _Notes:
        """The notes at `path`, empty if there are none or they are not wanted."""
        notes = cls(path, identity)
        if not (resume and path.exists()):
            return notes
        stored = read_json(path, f"The notes {path}", BadNotes)
        try:
            if stored["identity"] != identity:
                raise CannotChoose(
                    f"{path} is of a call with other data, settings or budget. Name another folder with --out, or start"
                    " again with --no-resume."
                )
            if stored["probed"] is not None:
                notes.probed = Probed(**stored["probed"])
            notes.per_epoch = stored["per_epoch"]
            notes.entries = [RaceEntry(**one) for one in stored["entries"]]
        except (KeyError, TypeError, ValueError):
            raise BadNotes(f"The notes {path} are damaged. Start again with --no-resume.") from None
        return notes

    def write(self) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path,
            {
                "format": _FORMAT,
                "identity": self.identity,
                "probed": None if self.probed is None else asdict(self.probed),
                "per_epoch": self.per_epoch,
                "entries": [asdict(one) for one in self.entries],
                "chosen": self.chosen,
            },
        )

    def seconds(self) -> float:
        """Of the probes and all runs."""
        return (self.probed.seconds if self.probed else 0.0) + sum(one.seconds for one in self.entries)


def _reasons(experience: Experience, probed: Probed, proposed: Sequence[Proposal]) -> list[str]:
    """Why these candidates, in sentences."""
    shown = ", ".join(f"{name} {value:.2f}" for name, value in probed.values.items())
    found = [f"probes of the frozen features (accuracy above chance): {shown}"]
    weight = weights(experience, probed.values)
    alike = sorted(zip(weight, experience.tasks, strict=True), reverse=True)[:3]
    known = ", ".join(f"{task} ({100 * share:.0f} %)" for share, task in alike)
    found.append(
        f"most alike of {len(experience.tasks)} known tasks, with their weights: {known} ({experience.source})"
    )
    found += [f"to try: {one.candidate.words()}: {one.reason()}" for one in proposed]
    return found


def _table(entries: Sequence[tuple[Candidate, RaceEntry]], best: RaceEntry, winner: Candidate) -> str:
    text = io.StringIO()
    ranked = sorted(entries, key=lambda one: (-one[1].epochs, -(one[1].score if one[1].score is not None else -1e99)))
    write_csv(
        text,
        ["chosen", "method", "lr", "weight_decay", "epochs", "validation", "seconds", "note"],
        [
            [
                "yes" if candidate == winner and entry.epochs == best.epochs else "",
                candidate.method,
                candidate.lr,
                candidate.weight_decay,
                entry.epochs,
                "" if entry.score is None else entry.score,
                round(entry.seconds, 2),
                entry.note,
            ]
            for candidate, entry in ranked
        ],
    )
    return text.getvalue()
