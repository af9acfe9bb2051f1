"""How `pocket_vq` is trained: a killed training ends with the same weights; and what the shipped one keeps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vpeft.backbones.picture_codec import PocketVq, picture_codec

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretraining_pocket_vq", ROOT / "pretraining" / "pocket_vq.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def folder(path: Path, script: ModuleType) -> Path:
    """A folder in which the pictures are made already."""
    scale = script.SCALES["tiny"]
    path.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    np.save(path / f"pictures-32-{scale.copies}-{scale.pocket}.npy", pictures)
    return path


def test_a_killed_training_ends_with_the_same_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = script.SCALES["tiny"]
    expected, log = script.train(folder(tmp_path / "whole", script), scale, 0, None)
    killed, plain, calls = folder(tmp_path / "killed", script), script.losses, 0

    def dies(model: PocketVq, x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return plain(model, x)

    monkeypatch.setattr(script, "losses", dies)
    with pytest.raises(KeyboardInterrupt):
        script.train(killed, scale, 0, None)
    found, again = script.train(killed, scale, 0, None)
    assert found.digest() == expected.digest()
    strip = [{key: value for key, value in entry.items() if key != "seconds"} for entry in log]
    assert strip == [{key: value for key, value in entry.items() if key != "seconds"} for entry in again]
    assert log[-1]["step"] == scale.steps


def test_gradients_pass_the_codes_and_reach_every_tensor(script: ModuleType) -> None:
    torch.manual_seed(0)
    model = PocketVq(width=8, depth=1, codes=16)
    parts, cells, tokens = script.losses(model, torch.rand(4, 3, 32, 32))
    assert cells.shape == (4, 64, 8) and tokens.shape == (4, 64)
    torch.stack(list(parts.values())).sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_codes_that_nothing_takes_are_put_where_cells_are(script: ModuleType) -> None:
    model = PocketVq(width=8, depth=1, codes=16)
    before, cells = model.codebook.detach().clone(), torch.randn(2, 64, 8)
    idle = torch.tensor([0, 5, 0, 7] + [1] * 12)
    assert script.move_idle_codes(model, idle, cells, 5) == 2
    moved = (model.codebook != before).any(1)
    assert moved.nonzero().flatten().tolist() == [1, 3]
    assert all((cells.flatten(0, 1) == row).all(1).any() for row in model.codebook[moved])
    assert idle.tolist() == [0, 0, 0, 0] + [1] * 12


def test_the_shipped_one_keeps_what_pictures_show() -> None:
    codec = picture_codec("pocket_vq")
    assert (codec.side, codec.count, codec.codes) == (32, 64, 512)
    pictures = torch.zeros(3, 3, 32, 32)
    pictures[0, :, 8:24, 8:24] = torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    pictures[1] = torch.linspace(0, 1, 32)
    pictures[2, 2] = 1.0
    error = (codec.decoded(codec.encoded(pictures)) - pictures).square().mean(dim=(1, 2, 3))
    assert float((-10 * error.log10()).min()) > 17
