"""Train and predict on a backbone that is no name of timm with weights: a folder, a file, or random tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import vpeft
from vpeft.backbones.positions import ResizedPositions
from vpeft.batch import Sample
from vpeft.cli.loaded import open_adapter
from vpeft.injection.weights_digest import weights_digest
from vpeft.training.recipe import Recipe
from vpeft.training.run import RunOutcome, run_recipe


@timm.models.register_model
def weights_test_vit(pretrained: bool = False, **options: Any) -> Any:
    """A tiny model with a name, which has no weights to download."""
    model: Any = timm.models.vision_transformer.VisionTransformer(
        **{"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **_known(options)}
    )
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "weights_test_vit", "crop_pct": 1.0}
    return model


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ("num_classes", "img_size")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 3)
    return tmp_path / "data.npz"


def _run(data: Path, out: Path, size: int | None = None, **more: Any) -> RunOutcome:
    given = {
        "data": {"source": str(data), "image_size": size},
        "method": {"name": "lora", "rank": 2},
        "out": out,
        "optimisation": {"epochs": 1, "batch": 6},
        **more,
    }
    return run_recipe(Recipe.from_mapping(given), progress=False, show=False)


def _same(outcome: RunOutcome, **more: Any) -> None:
    """The adapter that was saved finds its backbone again, and gives what the trained model gives."""
    assert outcome.adapter is not None
    size = outcome.tuned.description.facts.image_size
    images = list(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    loaded = open_adapter(outcome.adapter, device="cpu", **more)
    wanted = outcome.tuned.eval()(torch.stack(images)).softmax(-1)
    for said, row in zip(loaded.predictions([Sample(image) for image in images]), wanted, strict=True):
        assert [one["probability"] for one in said.rows] == pytest.approx(
            row.sort(descending=True).values.tolist(), abs=1e-6
        )


def test_random_weights_are_found_again(data: Path, tmp_path: Path) -> None:
    outcome = _run(data, tmp_path / "run", backbone="weights_test_vit", pretrained=False)
    torch.manual_seed(99)
    _same(outcome)


def test_a_file_of_weights_is_found_again_or_asked_for(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    file = tmp_path / "w.safetensors"
    state = timm.create_model("weights_test_vit", num_classes=0).state_dict()
    save_file({f"net.{key}": value for key, value in state.items()}, file)
    outcome = _run(data, tmp_path / "run", backbone="weights_test_vit", weights=str(file), weights_prefix="net.")
    _same(outcome)
    record = (tmp_path / "run" / "run.json").read_text()
    assert weights_digest(outcome.tuned.description, outcome.tuned) in record
    moved = file.rename(tmp_path / "moved.safetensors")
    assert outcome.adapter is not None
    with pytest.raises(vpeft.VpeftError, match=r"with the weights of .*w\.safetensors.*--weights FILE"):
        open_adapter(outcome.adapter, device="cpu")
    _same(outcome, weights=moved)


def test_another_image_size_resizes_the_positions_and_says_so(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model("weights_test_vit", num_classes=0).state_dict(), file)
    with pytest.warns(ResizedPositions, match=r"resized from \(1, 5, 16\) to \(1, 17, 16\)"):
        outcome = _run(data, tmp_path / "run", backbone="weights_test_vit", weights=str(file), size=32)
    assert outcome.tuned.description.facts.image_size == (32, 32)
    assert "resized" in json.loads((tmp_path / "run" / "run.json").read_text())["backbone"]["origin"]["notes"][0]
    _same(outcome)


@pytest.mark.filterwarnings("ignore:The checkpoint .* has no preprocessor_config")
def test_a_transformers_folder_is_a_backbone(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.families.transformers_models import vit

    vit(image_size=16).save_pretrained(tmp_path / "folder")  # type: ignore[operator]
    _same(_run(data, tmp_path / "run", backbone=f"hf:{tmp_path / 'folder'}"))
