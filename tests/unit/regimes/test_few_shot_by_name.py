"""Few images of each class and their names: shots, base and new classes, two protocols that are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vpeft
from tests.image_text_models import LIBRARIES
from vpeft.data.config import DataConfig
from vpeft.data.pocket_captions import Group, draw_groups
from vpeft.methods import LoRA
from vpeft.regimes import few_shot_by_name
from vpeft.regimes.few_shot_by_name import FewShotByNameRecipe, TooFewShots, methods_on_towers, run_few_shot_by_name
from vpeft.regimes.few_shot_protocols import FEW_SHOT_PROTOCOLS, UnknownFewShotProtocol, few_shot_protocol
from vpeft.training.optimisation import Optimisation

CLASSES = ("blue_bar", "green_ring", "red_circle", "white_cross")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn pictures of each of four classes in train, three in val and four in test; weights of pocket_clip."""
    root = tmp_path_factory.mktemp("shots")
    rng = np.random.Generator(np.random.PCG64(5))
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        for name in CLASSES:
            (root / "data" / split / name).mkdir(parents=True)
            colour, figure = name.split("_")
            for number in range(count):
                pixels = draw_groups((Group(1, colour, figure),), rng)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{number}.png")
    save_file(LIBRARIES["pocket_clip"]().state_dict(), root / "clip.safetensors")
    return root


def recipe(folder: Path, **more: Any) -> FewShotByNameRecipe:
    """A short run."""
    given = {
        "backbone": "pocket_clip",
        "weights": folder / "clip.safetensors",
        "method": "image:lora(rank=2)+text:bitfit",
        "templates": ("a picture of one {}",),
        "data": DataConfig(source=str(folder / "data")),
        "shots": 2,
        "optimisation": Optimisation(epochs=2, batch=8, lr=1e-2, acceleration="off"),
    }
    return FewShotByNameRecipe(**{**given, **more})


def test_so_many_images_of_each_class_are_seen_and_others_with_another_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(few_shot_by_name, "fit", lambda tuned, train, val, **more: seen.append((train, val)))
    for seed in (0, 1):
        run_few_shot_by_name(
            recipe(folder, optimisation=Optimisation(seed=seed), protocol="few-shot-validated@1"), say=lambda _: None
        )
    (train, val), (other, _) = seen
    assert train.counts() == dict.fromkeys(CLASSES, 2) and val.counts() == dict.fromkeys(CLASSES, 2)
    assert [item.name for item in train.items] != [item.name for item in other.items]
    with pytest.raises(TooFewShots, match="blue_bar has 6 images, and 7 are asked for"):
        run_few_shot_by_name(recipe(folder, shots=7), say=lambda _: None)


def test_new_classes_are_told_apart_by_an_adapter_of_the_base_classes(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run_few_shot_by_name(recipe(folder, base_to_new=True, out=tmp_path), say=said.append)
    record = outcome.record
    assert record["protocol"] == "few-shot-validation-free@1" and "2 images of each of 2 classes" in said[0]
    base, new = record["base"], record["new"]
    assert record["harmonic_mean"] == pytest.approx(2 * base * new / (base + new) if base + new else 0.0)
    assert outcome.tuned.task.labels == CLASSES[:2]
    loaded = vpeft.load(LIBRARIES["pocket_clip"](), tmp_path / "adapter.safetensors").eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), outcome.tuned.eval()(pictures))
    plain = run_few_shot_by_name(recipe(folder, method="linear_probe", base_to_new=True), say=said.append)
    assert plain.record["trainable"] == 0 and len(said) == 1  # nothing to train: zero-shot


def test_the_two_protocols_have_ids_of_their_own() -> None:
    validated, free = (few_shot_protocol(f"few-shot-{name}@1") for name in ("validated", "validation-free"))
    assert [validated.validation_images(shots) for shots in (1, 2, 4, 8, 16)] == [1, 2, 4, 4, 4]
    assert [free.validation_images(shots) for shots in (1, 16)] == [0, 0] and len(FEW_SHOT_PROTOCOLS) == 2
    with pytest.raises(UnknownFewShotProtocol, match="Did you mean 'few-shot-validated@1'"):
        few_shot_protocol("few-shot-validate@1")


def test_methods_in_text_are_put_on_their_towers() -> None:
    found = methods_on_towers("image:lora(rank=2)+petal(rank=4)+linear_probe")
    assert found[0] == {"image": LoRA(rank=2)} and list(found[1]) == ["*"] and list(found[2]) == ["image"]
    assert methods_on_towers("lora") == [LoRA()]
