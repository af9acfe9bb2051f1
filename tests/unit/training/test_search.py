"""Search in three runs: what is within the budget is found, trained anew, and never done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from vpeft.cli import main
from vpeft.method import Evolution, NoSearch
from vpeft.methods import NOAH
from vpeft.training import search
from vpeft.training.recipe import Recipe
from vpeft.training.search import CannotSearch, run_search, searchable

SMALL = Evolution(rounds=1, population=4, parents=2, crossovers=2, mutations=2)


@timm.models.register_model
def search_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A ViT of two blocks for 16x16 pixels, known to timm by name as any other."""
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "search_test_vit", "crop_pct": 1.0}
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for name, colour in {"blue": (0, 0, 200), "red": (200, 0, 0)}.items():
        (folder / name).mkdir()
        for index in range(12):
            noisy = numbers.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{index}.png")
    return folder


def recipe(photos: Path, out: Path | None, method: str = "noah", **data: object) -> Recipe:
    return Recipe.from_mapping(
        {
            "backbone": "search_test_vit",
            "pretrained": False,
            **({} if out is None else {"out": str(out)}),
            "data": {"source": str(photos), **data},
            "method": {"name": method, "choices": [1, 2], "depths": [1, 2], "width": 4} if method == "noah" else method,
            "optimisation": {"epochs": 2, "batch": 8, "lr": 0.01},
        }
    )


def test_supernet_search_and_retraining_and_nothing_twice(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(photos, tmp_path / "a")
    outcome = run_search(asked, 900, evolution=SMALL, supernet_epochs=3, show=False)
    assert not outcome.stopped and outcome.retrained is not None
    assert "candidates scored" in capsys.readouterr().err
    assert len(outcome.supernet.result.history) == 3 and outcome.supernet.test is None
    assert outcome.supernet.recipe.optimisation.lr == 0.005
    best = outcome.found[0]
    assert best.parameters <= 900 and best.score == max(one.score for one in outcome.found)
    assert outcome.retrained.tuned.plan().trainable == best.parameters
    assert outcome.retrained.recipe.method.build() == best.method
    assert outcome.retrained.test is not None and len(outcome.retrained.result.history) == 2
    record = json.loads((tmp_path / "a" / "search.json").read_text())
    assert record["budget"] == 900 and len(record["candidates"]) == len(outcome.found)
    assert NOAH(**record["candidates"][0]["method"]) == best.method

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a known candidate was scored again")

    with monkeypatch.context() as patch:
        patch.setattr(search, "evaluate", never)
        again = run_search(asked, 900, evolution=SMALL, supernet_epochs=3, show=False, progress=False)
        assert again.found == outcome.found
        assert again.supernet.result.resumed_at == outcome.supernet.result.steps
        with pytest.raises(AssertionError, match="again"):
            run_search(asked, 900, evolution=SMALL, supernet_epochs=3, resume=False, show=False, progress=False)


def test_an_interrupted_search_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(photos, tmp_path / "b")
    real, scored = search.evaluate, []

    def twice(*arguments: object, **named: object) -> object:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(1)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "evaluate", twice)
    with pytest.raises(KeyboardInterrupt):
        run_search(asked, 900, evolution=SMALL, supernet_epochs=1, show=False, progress=False)
    kept = json.loads((tmp_path / "b" / "search.json").read_text())["candidates"]
    assert len(kept) == 2

    calls = []
    monkeypatch.setattr(search, "evaluate", lambda *a, **n: calls.append(1) or real(*a, **n))
    outcome = run_search(asked, 900, evolution=SMALL, supernet_epochs=1, show=False, progress=False)
    assert len(calls) == len(outcome.found) - 2


def test_what_a_search_needs(photos: Path, tmp_path: Path) -> None:
    assert searchable() == ["noah"]
    with pytest.raises(NoSearch, match="lora offers no search; these do: noah"):
        run_search(recipe(photos, tmp_path, "lora"), 900)
    with pytest.raises(CannotSearch, match="Name a folder"):
        run_search(recipe(photos, None), 900)


def test_the_command_searches_and_says_what_it_found(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "noah", "--data", str(photos), "--backbone", "search_test_vit", "--no-pretrained"]
    words += ["--noah.choices", "1,2", "--noah.depths", "1,2", "--noah.width", "4", "--epochs", "1", "--batch", "8"]
    words += ["--budget", "900", "--supernet-epochs", "1", "--rounds", "0", "--population", "3", "--out"]
    assert main([*words, str(tmp_path / "c"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["candidates"] == 3 and figures["parameters"] == figures["trainable"] <= 900
    assert (tmp_path / "c" / "found" / "adapter.safetensors").exists()
    assert main(["search", "noha", "--budget", "1", "--data", str(photos)]) == 1
    assert "Did you mean 'noah'" in capsys.readouterr().err
