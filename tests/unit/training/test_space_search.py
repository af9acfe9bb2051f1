"""Searches of recipe keys: what is tried stands in the record, is repeated bit by bit, and is never trained twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from vpeft.acceleration.shared_trunk import SharedRecords
from vpeft.cli import main
from vpeft.training import grouping, space_search
from vpeft.training.recipe import Recipe
from vpeft.training.search_space import Space
from vpeft.training.search_strategies import SearchPlan
from vpeft.training.space_search import CannotSearchSpace, SpaceSearchOutcome, search_space


@timm.models.register_model
def space_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A ViT of two blocks for 16x16 pixels, known to timm by name as any other."""
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "space_test_vit", "crop_pct": 1.0}
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for name, colour in {"blue": (90, 90, 140), "red": (140, 90, 90)}.items():
        (folder / name).mkdir()
        for index in range(12):
            noisy = numbers.normal(colour, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{index}.png")
    return folder


def recipe(photos: Path, out: Path | None, method: str = "lora(rank=2)", epochs: int = 3, **data: object) -> Recipe:
    return Recipe.from_mapping(
        {
            "backbone": "space_test_vit",
            "pretrained": False,
            **({} if out is None else {"out": str(out)}),
            "data": {"source": str(photos), **data},
            "method": method,
            "optimisation": {"epochs": epochs, "batch": 8, "acceleration": "frozen_prefix"},
        }
    )


def searched(asked: Recipe, *texts: str, resume: bool = True, **plan: Any) -> SpaceSearchOutcome:
    return search_space(asked, Space.parse(texts, asked), SearchPlan(**plan), progress=False, resume=resume)


def facts(outcome: SpaceSearchOutcome) -> list[dict[str, Any]]:
    return [trial.model_dump(exclude={"seconds"}) for trial in outcome.trials]


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders in which `fit` is called from now on."""
    real, called = space_search.fit, list[str]()

    def counted(*arguments: Any, **named: Any) -> Any:
        called.append(Path(named["out"]).name)
        return real(*arguments, **named)

    monkeypatch.setattr(space_search, "fit", counted)
    return called


def test_the_record_has_every_trial_and_the_best_is_tested_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(photos, tmp_path / "a")
    outcome = searched(asked, "lr=log(1e-4, 1e-1)", "rank=int(1, 4)", trials=3)
    assert [trial.state for trial in outcome.trials] == ["done"] * 3
    assert all([epoch for epoch, _ in trial.curve] == [1, 2, 3] for trial in outcome.trials)
    assert all(trial.curve[-1][1] == trial.score for trial in outcome.trials)
    best = outcome.best
    assert best is not None and best.score == max(trial.score or 0.0 for trial in outcome.trials)
    assert outcome.run is not None and outcome.run.test is not None
    assert outcome.run.recipe.method.build().model_dump()["rank"] == best.values["method.rank"]

    record = json.loads((tmp_path / "a" / "search.json").read_text())
    assert record["space"] == {"optimisation.lr": "log(0.0001, 0.1)", "method.rank": "int(1, 4)"}
    assert record["metric"] == "top1" and record["best"] == best.number and len(record["trials"]) == 3
    runs = {int(path.parent.name): json.loads(path.read_text()) for path in tmp_path.glob("a/trials/*/run.json")}
    assert set(runs) == {0, 1, 2}
    assert runs[best.number]["search"]["trials"] == record["trials"] and runs[best.number]["test"] is not None
    assert all(run["test"] is None for number, run in runs.items() if number != best.number)
    assert Recipe.from_toml(outcome.recipe).optimisation.lr == best.values["optimisation.lr"]

    # The same seed in another folder gives the same search; another seed another one.
    assert facts(searched(recipe(photos, tmp_path / "b"), "lr=log(1e-4, 1e-1)", "rank=int(1, 4)", trials=3)) == facts(
        outcome
    )
    called = count_runs(monkeypatch)
    more = searched(asked, "lr=log(1e-4, 1e-1)", "rank=int(1, 4)", trials=4)
    assert facts(more)[:3] == facts(outcome)
    assert more.best is not None and called == ["0003", f"{more.best.number:04d}"]
    with pytest.raises(CannotSearchSpace, match="another space"):
        searched(asked, "lr=log(1e-4, 1)", trials=3)


def test_an_interrupted_search_ends_as_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    plan: dict[str, Any] = {"by": "optuna", "trials": 7, "keep_one_in": 2}
    whole = searched(recipe(photos, tmp_path / "whole"), "lr=log(1e-5, 1)", **plan)
    pruned = [trial for trial in whole.trials if trial.state == "pruned"]
    assert pruned and all(len(trial.curve) < 3 and "goes on (ASHA)" in trial.why for trial in pruned)
    assert not (tmp_path / "whole" / "trials" / f"{pruned[0].number:04d}").exists()

    full = next(trial.number for trial in reversed(whole.trials) if trial.state == "done")
    real, seen = space_search._Curve.follow, list[int]()

    def interrupted(self: Any, tuned: Any, record: Any) -> None:
        # Of the last full trial, after its second epoch: the checkpoint then is that of the first.
        if self._trial.number == full and record.epoch == 2 and not seen:
            seen.append(full)
            raise KeyboardInterrupt
        real(self, tuned, record)

    monkeypatch.setattr(space_search._Curve, "follow", interrupted)
    asked = recipe(photos, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        searched(asked, "lr=log(1e-5, 1)", **plan)
    stored = json.loads((tmp_path / "cut" / "search.json").read_text())["trials"]
    assert stored[-1]["state"] == "running" and [epoch for epoch, _ in stored[-1]["curve"]] == [1]
    called = count_runs(monkeypatch)
    assert facts(searched(asked, "lr=log(1e-5, 1)", **plan)) == facts(whole)
    assert called[0] == f"{full:04d}" and len(called) == 7 - full + 1


def test_trials_open_the_images_once_and_share_the_trunk(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, recorded = list[int](), list[int]()
    real_open, real_put = grouping.open_data, SharedRecords.put
    monkeypatch.setattr(grouping, "open_data", lambda config: opened.append(1) or real_open(config))

    def put(self: Any, *arguments: Any) -> None:
        recorded.append(1)
        real_put(self, *arguments)

    monkeypatch.setattr(SharedRecords, "put", put)
    asked = recipe(photos, tmp_path, "linear_probe", epochs=2)
    outcome = searched(asked, "lr=log(1e-4, 1e-1, 3)", by="grid")
    assert len(outcome.trials) == 3 and len(opened) == 1 and len(recorded) == 1


def test_one_trial_may_fail_and_equal_values_are_trained_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = count_runs(monkeypatch)
    asked = recipe(photos, tmp_path / "a", epochs=1)
    outcome = searched(asked, "targets=choice([q, v], [conv])", trials=4)
    states = {str(trial.values["method.targets"]): trial.state for trial in outcome.trials}
    assert states == {"['q', 'v']": "done", "['conv']": "failed"}
    assert next(trial for trial in outcome.trials if trial.state == "failed").why
    assert sum(trial.same_as is not None for trial in outcome.trials) == 2
    assert len(called) == 2  # the one good trial, and its evaluation on the test images
    with pytest.raises(CannotSearchSpace, match="None of the 1 trials gave a score"):
        searched(recipe(photos, tmp_path / "b"), "targets=choice([conv])", by="grid")


def test_what_a_search_needs(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotSearchSpace, match="Name a folder"):
        searched(recipe(photos, None), "lr=log(1e-4, 1)")
    with pytest.raises(CannotSearchSpace, match="validation images"):
        searched(recipe(photos, tmp_path, val_fraction=0.0), "lr=log(1e-4, 1)")


def test_the_command_searches_and_says_what_it_found(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "search",
        "lora",
        "--data",
        str(photos),
        "--backbone",
        "space_test_vit",
        "--no-pretrained",
        "--epochs",
        "1",
    ]
    words += ["--batch", "8", "--space", "lr=log(1e-4, 1e-1), rank=int(1, 4)", "--trials", "2"]
    assert main([*words, "--out", str(tmp_path / "c")]) == 0
    said = capsys.readouterr()
    assert "2 trials (2 done)" in said.out and "trial 0: optimisation.lr=" in said.err
    assert main([*words, "--out", str(tmp_path / "c"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["trials"] == figures["done"] == 2 and Path(figures["adapter"]).exists()
    assert set(figures["best"]["values"]) == {"optimisation.lr", "method.rank"}
    for wrong, expected in (
        (["--space", "lrr=log(1e-4, 1)"], "Did you mean 'lr'"),
        (["--budget", "9"], "not both"),
        (["--by", "tpe"], "optuna"),
    ):
        assert main([*words, *wrong, "--out", str(tmp_path / "d")]) == 1
        assert expected in capsys.readouterr().err
    assert main(["search", "lora", "--data", str(photos), "--out", str(tmp_path / "d")]) == 1
    assert "Say what is searched" in capsys.readouterr().err
