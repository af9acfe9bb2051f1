"""Methods that look at real batches before they train, from a recipe to an adapter that is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import vpeft
from vpeft.layers.ladder import Ladder
from vpeft.layers.salient import SalientMap
from vpeft.layers.sparse_delta import SparseDelta
from vpeft.training.evaluate import evaluate
from vpeft.training.recipe import Recipe
from vpeft.training.run import RunOutcome, run_recipe

COLOURS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


@timm.models.register_model
def prepare_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A ViT of two blocks for 16x16 pixels, known to timm by name as any other."""
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "prepare_test_vit", "crop_pct": 1.0}  # type: ignore[assignment]
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(12):
            noisy = numbers.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{index}.png")
    return folder


def ran(photos: Path, out: Path, **method: Any) -> RunOutcome:
    recipe = Recipe.from_mapping(
        {
            "backbone": "prepare_test_vit",
            "pretrained": False,
            "out": str(out),
            "data": {"source": str(photos), "augmentation": "none"},
            "method": method,
            "optimisation": {"epochs": 2, "batch": 8, "lr": 0.01},
        }
    )
    return run_recipe(recipe, progress=False, show=False)


def loaded_again(outcome: RunOutcome) -> vpeft.TunedModel:
    """The saved adapter on the frozen backbone; it must score as the trained one did."""
    assert outcome.adapter is not None and outcome.data.test is not None
    again = vpeft.load(outcome.tuned.detach(), outcome.adapter)
    assert evaluate(again, outcome.data.test, batch=8) == outcome.test
    return again


def test_gps_trains_the_weights_that_the_images_choose(photos: Path, tmp_path: Path) -> None:
    outcome = ran(photos, tmp_path, name="gps", k=2)
    layers = {name: m for name, m in outcome.tuned.adapter().named_modules() if isinstance(m, SparseDelta)}
    chosen = {name: layer.index.clone() for name, layer in layers.items()}
    assert layers and all(bool(layer.chosen) and layer.values.any() for layer in layers.values())
    first = {name: SparseDelta(1, 10**6, layer.k).index[0] for name, layer in layers.items()}
    assert any(not torch.equal(index[0], first[name]) for name, index in chosen.items())
    frozen = {name: value.clone() for name, value in outcome.tuned.backbone.named_parameters()}
    with torch.no_grad():
        outcome.tuned.merge()
    fc1 = outcome.tuned.backbone.get_parameter("blocks.1.mlp.fc1.weight")
    moved = (fc1 != frozen["blocks.1.mlp.fc1.weight"]).sum(1)
    assert int(moved.max()) == 2, "no row of a weight has moved in more than k places"
    outcome.tuned.unmerge()
    again = loaded_again(outcome)
    for name, module in again.adapter().named_modules():
        assert name not in chosen or torch.equal(module.index, chosen[name])  # type: ignore[arg-type]


def test_sct_takes_the_channels_that_the_training_images_excite(photos: Path, tmp_path: Path) -> None:
    outcome = ran(photos, tmp_path, name="sct", channels=5, site="mlp")
    layer = next(m for m in outcome.tuned.adapter().modules() if isinstance(m, SalientMap))
    chosen = layer.index.clone()
    again = loaded_again(outcome)
    plain = again.detach()
    train = outcome.data.train
    seen: list[torch.Tensor] = []
    handle = plain.get_submodule("blocks.0").register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        plain.eval()(torch.stack([train[i][0] for i in range(len(train))]))
    handle.remove()
    labels = torch.tensor([train[i][1] for i in range(len(train))])
    norms = torch.stack([seen[0][labels == c][:, 1:].square().sum((0, 1)).sqrt() for c in (0, 1)]).mean(0)
    assert torch.equal(chosen.sort().values, norms.topk(5).indices.sort().values)


def test_lst_starts_from_the_weights_that_matter_to_the_images(photos: Path, tmp_path: Path) -> None:
    outcome = ran(photos, tmp_path, name="lst", reduction=4, init="fisher")
    ladder = next(m for m in outcome.tuned.adapter().modules() if isinstance(m, Ladder))
    assert ladder.chosen is not None and bool(ladder.chosen)
    loaded_again(outcome)
