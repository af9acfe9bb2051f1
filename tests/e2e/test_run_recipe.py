"""A recipe from images on disk to an adapter file that is loaded and used again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import vpeft
from vpeft.training.evaluate import evaluate
from vpeft.training.failures import NonFinite
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


@timm.models.register_model
def recipe_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A ViT of two blocks for 16x16 pixels, known to timm by name as any other."""
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "recipe_test_vit", "crop_pct": 1.0}
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(20):
            noisy = numbers.normal(colour, 40, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{index}.png")
    return folder


def recipe(photos: Path, out: Path, **optimisation: object) -> Recipe:
    return Recipe.from_mapping(
        {
            "backbone": "recipe_test_vit",
            "pretrained": False,
            "out": str(out),
            "data": {"source": str(photos), "augmentation": "flip"},
            "method": {"name": "lora", "rank": 2},
            "optimisation": {"epochs": 6, "batch": 8, "lr": 0.01, **optimisation},
        }
    )


def test_from_images_to_an_adapter_that_is_used_again(photos: Path, tmp_path: Path) -> None:
    chosen = recipe(photos, tmp_path / "a")
    outcome = run_recipe(chosen, progress=False, show=False)
    assert outcome.state == "done"
    assert outcome.test is not None
    assert outcome.test.top1 > 0.8
    assert outcome.test.labels == ["blue", "green", "red"]

    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["state"] == "done"
    assert record["test"]["values"]["top1"] == outcome.test.top1
    assert record["result"]["steps"] == outcome.result.steps
    assert record["data"]["labels"] == ["blue", "green", "red"]
    assert record["plan"]["trainable"] == outcome.tuned.plan().trainable
    assert Recipe.from_toml(tmp_path / "a" / "recipe.toml") == chosen

    assert outcome.adapter is not None
    base = outcome.tuned.detach()
    again = vpeft.load(base, outcome.adapter)
    assert again.manifest is not None
    assert again.manifest.labels == ["blue", "green", "red"]
    assert again.manifest.scores["test_top1"] == outcome.test.top1
    assert outcome.data.test is not None
    assert evaluate(again, outcome.data.test, batch=8) == outcome.test


def test_the_same_recipe_gives_the_same_weights_in_another_folder_and_nothing_twice_in_the_same(
    photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    first = run_recipe(recipe(photos, tmp_path / "a"), progress=False, show=False)
    torch.manual_seed(2)
    second = run_recipe(recipe(photos, tmp_path / "b"), progress=False, show=False)
    again = run_recipe(recipe(photos, tmp_path / "a"), progress=False, show=False)
    for name, value in first.tuned.adapter_state().items():
        assert torch.equal(value, second.tuned.adapter_state()[name])
        assert torch.equal(value, again.tuned.adapter_state()[name])
    assert first.test == second.test == again.test
    assert again.result.resumed_at == first.result.steps
    other = run_recipe(recipe(photos, tmp_path / "c", seed=1), progress=False, show=False)
    assert any(not torch.equal(v, other.tuned.adapter_state()[n]) for n, v in first.tuned.adapter_state().items())


def test_a_failure_is_in_the_record(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFinite):
        run_recipe(recipe(photos, tmp_path, lr=1e25, warmup=0), progress=False, show=False)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["state"] == "failed"
    assert "not finite" in record["error"]
    assert not (tmp_path / "adapter.safetensors").exists()
