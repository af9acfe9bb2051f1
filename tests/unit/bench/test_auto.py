"""`vpeft auto`: experience from records, proposals, the race, and the whole on a tiny folder."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.report.ledgers import a_run, keep

from vpeft.bench.auto import (
    Candidate,
    Experience,
    RaceEntry,
    Rung,
    experience_of,
    plan_race,
    propose,
    race,
    run_auto,
    shipped,
)
from vpeft.bench.auto.choose import CannotChoose, neighbours
from vpeft.bench.auto.experience import BadExperience
from vpeft.bench.auto.probes import CannotProbe, above_chance, probe
from vpeft.bench.auto.propose import weights
from vpeft.bench.record import Chosen, RecordedScores, RunRecord
from vpeft.cli import main
from vpeft.cli.auto import BadBudget, seconds_of
from vpeft.cli.failure import DONE, MISTAKE
from vpeft.method import all_methods
from vpeft.method_spec import parse
from vpeft.training.recipe import Recipe
from vpeft.training.run import ready_run


def candidate(label: str, lr: float = 1e-3) -> Candidate:
    return Candidate(label=label, method=label, lr=lr, weight_decay=1e-4)


def known(scores: list[list[float]], probes: list[dict[str, float]] | None = None) -> Experience:
    """Candidates a, b, c ... on tasks 0, 1, 2 ... that all take ten seconds."""
    return Experience(
        source="a test",
        backbone="pocket_vit",
        epochs=10,
        tasks=tuple(f"task{index}" for index in range(len(scores))),
        probes=tuple(probes or ()),
        candidates=tuple(candidate(letter) for letter in "abcdefgh"[: len(scores[0])]),
        scores=tuple(map(tuple, scores)),
        seconds=tuple((10.0,) * len(scores[0]) for _ in scores),
    )


def a_search(label: str, task: str, lr: float, value: float, **rest: object) -> RunRecord:
    optimisation = {"epochs": 10, "batch": 32, "warmup": 0.1, "lr": lr}
    return a_run(
        label,
        task,
        0,
        identity={"purpose": "search", "optimisation": optimisation},
        scores=RecordedScores(split="val", values={"top1": value}, leading="top1"),
        chosen=Chosen(lr=lr, weight_decay=1e-4, rule="stated"),
        **rest,  # type: ignore[arg-type]
    )


# -- experience --------------------------------------------------------------------------------------------------------


def test_experience_is_what_was_tried_on_every_task() -> None:
    records = [
        a_search(label, task, lr, 0.5 + 0.1 * place + 10 * lr)
        for label in ("lora", "ssf")
        for place, task in enumerate(("flags", "photos"))
        for lr in (1e-3, 4e-3)
    ]
    records += [a_search("bitfit", "flags", 1e-3, 0.9), a_run("lora", "flags", 0, 0.1)]
    found = experience_of(records, "pocket@1", "pocket_vit", probes={"flags": {"x": 1.0}, "photos": {"x": 2.0}})
    assert [(one.label, one.lr) for one in found.candidates] == [
        ("lora", 1e-3), ("lora", 4e-3), ("ssf", 1e-3), ("ssf", 4e-3)
    ]  # fmt: skip
    assert found.tasks == ("flags", "photos")
    assert found.scores[0] == pytest.approx((0.51, 0.54, 0.51, 0.54))
    assert found.probes == ({"x": 1.0}, {"x": 2.0})
    assert (found.epochs, found.settings) == (10, {"batch": 32, "warmup": 0.1})
    assert found.without("flags").tasks == ("photos",)
    assert found.behind[1] == pytest.approx([-0.03, 0, -0.03, 0])
    with pytest.raises(BadExperience, match="no search runs of pocket@9"):
        experience_of(records, "pocket@9", "pocket_vit")


def test_the_shipped_experience_is_that_of_methods_that_exist() -> None:
    found = shipped()
    assert len(found.tasks) == 9 and len(found.probes) == 9
    assert len({one.label for one in found.candidates}) >= 14
    for one in found.candidates:
        for method in parse(one.method).methods:
            all_methods()[method.name](**method.fields)
    assert np.isfinite(found.scores).all() and np.min(found.seconds) > 0


# -- proposals ---------------------------------------------------------------------------------------------------------


def test_the_second_proposal_helps_where_the_first_one_fails() -> None:
    # b is second best everywhere; c is bad on the first two tasks, and the best by far on the third.
    experience = known([[0.9, 0.89, 0.5], [0.9, 0.89, 0.5], [0.5, 0.5, 0.9]])
    found = propose(experience, count=2)
    assert [one.candidate.label for one in found] == ["a", "c"]
    assert found[1].best_on == ("task2",)
    assert [one.candidate.label for one in propose(experience, count=9)] == ["a", "c", "b"]


def test_tasks_that_look_alike_count_more() -> None:
    probes = [{"outlet": 0.1}, {"outlet": 0.5}, {"outlet": 0.9}]
    experience = known([[0.9, 0.5], [0.7, 0.69], [0.5, 0.9]], probes)
    near_first = weights(experience, {"outlet": 0.1})
    assert sum(near_first) == pytest.approx(1.0)
    # The median distance is 0.4, and at once and twice that the weights fall to exp(-1/2) and exp(-2); half is shared.
    alike = np.exp([0.0, -0.5, -2.0])
    assert near_first == pytest.approx((0.5 / 3 + 0.5 * alike / alike.sum()).tolist())
    assert propose(experience, {"outlet": 0.1}, count=1)[0].candidate.label == "a"
    assert propose(experience, {"outlet": 0.9}, count=1)[0].candidate.label == "b"
    assert weights(experience, {"something else": 0.3}) == [1 / 3] * 3
    far = weights(experience, {"outlet": 1e6})
    assert all(map(math.isfinite, far)) and sum(far) == pytest.approx(1.0)


def test_a_candidate_that_is_too_dear_is_passed_over() -> None:
    experience = known([[0.9, 0.8], [0.9, 0.8]]).model_copy(update={"seconds": ((30.0, 10.0), (30.0, 10.0))})
    assert experience.relative_costs() == [1.5, 0.5]
    assert [one.candidate.label for one in propose(experience, count=2, most_cost=1.0)] == ["b"]


# -- the race ----------------------------------------------------------------------------------------------------------


def test_what_fits_in_full_runs_in_full() -> None:
    assert plan_race([1.0, 1.0, 2.0], 40.0, 10) == (Rung(10, 3),)
    assert plan_race([], 40.0, 10) == ()


def test_what_does_not_fit_is_halved_by_thirds() -> None:
    # In full 4 x 18 = 72 seconds; by halving 4 x 2 + 2 x 6 + 18 = 38.
    assert plan_race([1.0] * 4, 40.0, 18) == (Rung(2, 4), Rung(6, 2), Rung(18, 1))
    # With less time fewer candidates, then fewer epochs, then one candidate for what there is.
    assert plan_race([1.0] * 4, 30.0, 18) == (Rung(2, 3), Rung(6, 1), Rung(18, 1))
    assert plan_race([1.0] * 4, 20.0, 18)[-1].epochs == 9
    assert plan_race([1.0] * 4, 2.5, 18) == (Rung(2, 1),)
    assert plan_race([9.0], 2.5, 18) == (Rung(1, 1),)


@pytest.mark.parametrize("budget", [5.0, 17.0, 38.0, 55.0, 100.0])
def test_a_plan_stays_within_its_budget(budget: float) -> None:
    costs = [1.0, 0.5, 2.0, 1.5]
    rungs = plan_race(costs, budget, 18)
    racing = costs[: rungs[0].count]
    worst = rungs[0].epochs * sum(racing)
    worst += sum(rung.epochs * sum(sorted(racing, reverse=True)[: rung.count]) for rung in rungs[1:])
    assert worst <= budget


class Track:
    """Runs whose score is known: its quality, closer to it with more epochs."""

    def __init__(self, quality: list[float | None], per_epoch: float = 1.0) -> None:
        self.quality, self.per_epoch, self.runs = quality, per_epoch, list[tuple[int, int]]()

    def __call__(self, number: int, epochs: int, most: float) -> RaceEntry:
        self.runs.append((number, epochs))
        quality = self.quality[number]
        score = None if quality is None else quality * (1 - 1 / (1 + epochs))
        return RaceEntry(number, epochs, score, self.per_epoch * epochs, "" if score is not None else "failed")


def test_the_best_of_each_rung_goes_on() -> None:
    track = Track([0.5, 0.9, 0.8, 0.1])
    found = race([1.0] * 4, 40.0, 18, track)
    assert track.runs == [(0, 2), (1, 2), (2, 2), (3, 2), (1, 6), (2, 6), (1, 18)]
    assert found.winner is not None and (found.winner.candidate, found.winner.epochs) == (1, 18)
    assert found.rule == "halving"


def test_a_failure_is_no_winner_and_its_place_goes_to_another() -> None:
    found = race([1.0] * 3, 60.0, 18, Track([None, 0.3, 0.4]))
    assert found.winner is not None and found.winner.candidate == 2
    assert found.entries[0].note == "failed"
    nothing = race([1.0] * 2, 60.0, 18, Track([None, None]))
    assert nothing.winner is None


def test_runs_that_take_longer_than_planned_end_the_rung() -> None:
    track = Track([0.5, 0.6, 0.7, 0.8], per_epoch=3.0)
    found = race([1.0] * 4, 40.0, 10, track)
    # Planned in full; the first run took 30 of the 40 seconds, and each of the others still needs 10.
    assert track.runs == [(0, 10), (1, 10)]
    assert found.winner is not None and found.winner.candidate == 1


def test_an_interrupted_race_takes_the_same_turns_again() -> None:
    whole = race([1.0] * 4, 40.0, 18, Track([0.5, 0.9, 0.8, 0.1]))
    for done in range(len(whole.entries) + 1):
        track = Track([0.5, 0.9, 0.8, 0.1])
        again = race([1.0] * 4, 40.0, 18, track, known=whole.entries[:done])
        assert again == whole
        assert len(track.runs) == len(whole.entries) - done


def test_neighbours_have_another_size_or_rate() -> None:
    found = neighbours(Candidate(label="lora", method="lora(rank=8)", lr=4e-3, weight_decay=0.0))
    assert [(one.label, one.lr) for one in found] == [
        ("lora(rank=16)", 4e-3),
        ("lora", 2e-3),
        ("lora", 8e-3),
        ("lora(rank=4)", 4e-3),
    ]
    assert found[0].method == "lora(rank=16)"
    assert [one.label for one in neighbours(candidate("bitfit"))] == ["bitfit", "bitfit"]


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of tiny pictures that differ in colour."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for index in range(12):
            pixels = generator.integers(0, 120, (32, 32, 3)).astype(np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def a_recipe(photos: Path, out: Path, **data: object) -> Recipe:
    return Recipe.from_mapping(
        {
            "backbone": "pocket_vit",
            "data": {"source": str(photos), "val_fraction": 0.25, "test_fraction": 0.25, **data},
            "method": "linear_probe",
            "out": str(out),
            "optimisation": {"epochs": 2, "batch": 8},
        }
    )


def an_experience() -> Experience:
    return Experience(
        source="a test",
        backbone="pocket_vit",
        epochs=2,
        settings={"batch": 12},
        tasks=("one", "two"),
        probes=({"outlet": 0.9}, {"outlet": 0.1}),
        candidates=(candidate("linear_probe", 2e-2), candidate("bitfit", 1e-2), candidate("no_such_field", 1e-3)),
        scores=((0.9, 0.8, 0.0), (0.2, 0.3, 0.0)),
        seconds=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    )


def test_probes_see_what_frozen_features_tell(photos: Path, tmp_path: Path) -> None:
    ready = ready_run(a_recipe(photos, tmp_path), progress=False, show=False)
    before = {name: one.clone() for name, one in ready.tuned.state_dict().items()}
    found = probe(ready)
    assert set(found.values) == {"outlet", "early", "middle", "late", "last"}
    assert all(value > 0.5 for value in found.values.values()), "colours are easy to tell"
    assert found.images == len(ready.train) + len(ready.val or ())
    assert 0 < found.forward_seconds < found.seconds
    after = ready.tuned.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], one) for name, one in before.items())
    assert (above_chance(0.25, 4), above_chance(1.0, 4)) == (0.0, 1.0)


def test_without_validation_images_nothing_is_chosen(photos: Path, tmp_path: Path) -> None:
    ready = ready_run(a_recipe(photos, tmp_path, val_fraction=0.0), progress=False, show=False)
    with pytest.raises(CannotProbe, match="needs validation images"):
        probe(ready)


def test_a_folder_of_pictures_gets_an_adapter_a_table_and_a_recipe(photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = a_recipe(photos, tmp_path / "auto")
    outcome = run_auto(recipe, an_experience(), 600.0, proposals=3, say=said.append)
    assert outcome.winner is not None and outcome.run is not None
    assert outcome.run.adapter is not None and outcome.run.adapter.exists()
    assert outcome.run.test is not None and outcome.run.test.count > 0
    scores = {entry.candidate: entry.score for _, entry in outcome.entries if entry.score is not None}
    assert outcome.run.result.val is not None and outcome.run.result.val.value == max(scores.values())
    # A method that cannot be made has no score, and the others go on.
    (failed,) = [entry for _, entry in outcome.entries if entry.score is None]
    assert "no_such_field" in failed.note
    rows = list(csv.DictReader((tmp_path / "auto" / "table.csv").read_text().splitlines()))
    assert len(rows) == len(outcome.entries)
    assert [row["method"] for row in rows if row["chosen"]] == [outcome.winner.method]
    repeat = Recipe.from_toml(tmp_path / "auto" / "recipe.toml")
    assert repeat.optimisation.lr == outcome.winner.lr
    assert repeat.optimisation.batch == 12, "a rate belongs to the batch of its records"
    assert any("most alike" in line for line in said) and any("race in full" in line for line in said)
    # The same call again reads the notes, and makes no run.
    stamp = (tmp_path / "auto" / "auto.json").read_text()
    again = run_auto(recipe, an_experience(), 600.0, proposals=3)
    assert (again.winner, again.entries, again.why) == (outcome.winner, outcome.entries, outcome.why)
    assert (tmp_path / "auto" / "auto.json").read_text() == stamp
    with pytest.raises(CannotChoose, match="other data, settings or budget"):
        run_auto(recipe, an_experience(), 601.0, proposals=3)


@pytest.mark.slow
def test_the_command_says_why_and_prints_json(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        a_search(label, task, 1e-2, 0.5 + gain)
        for label, gain in (("linear_probe", 0.0), ("bitfit", 0.1))
        for task in ("flags", "photos")
    ]
    plain = [one.model_copy(update={"identity": _bare(one)}) for one in records]
    keep(tmp_path / "ledger", [one.model_copy(update={"key": one.identity.key()}) for one in plain])
    ask = ["auto", "--data", str(photos), "--backbone", "pocket_vit", "--budget", "5s", "--epochs", "1"]
    ask += ["--out", str(tmp_path / "auto"), "--records", str(tmp_path / "ledger"), "--memory", "4GB"]
    assert main([*ask, "--json"]) == DONE
    figures = json.loads(capsys.readouterr().out)
    assert figures["method"].startswith(("linear_probe", "bitfit"))
    assert Path(figures["adapter"]).exists() and Path(figures["recipe"]).exists()
    assert figures["epochs"] == 1
    assert 'fit_memory = "4GB"' in Path(figures["recipe"]).read_text()
    ask[ask.index("5s")] = "soon"
    assert main(ask) == MISTAKE
    assert "is no time" in capsys.readouterr().err


def _bare(record: RunRecord) -> object:
    """The identity without the field that the hand-made ledgers give to methods."""
    methods = tuple(one.model_copy(update={"fields": {}}) for one in record.identity.methods)
    return record.identity.model_copy(update={"methods": methods})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400), ("45", 45)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "10 days", "-3s", "min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadBudget, match="is no time"):
        seconds_of(text)
