"""The small model for clips, and the script that makes its weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch

import vpeft
from vpeft.backbones.clip_frames import for_clips
from vpeft.backbones.create import NoWeights, create_backbone
from vpeft.backbones.pocket_video import PocketVideo
from vpeft.backbones.positions import ResizedPositions
from vpeft.data.pocket import SEED as SEED_OF_IMAGES
from vpeft.data.pocket_video.video_set import SEED as SEED_OF_CLIPS
from vpeft.methods import LoRA

PRETRAINING = Path(__file__).parents[3] / "pretraining"


@pytest.fixture(scope="module")
def script() -> Any:
    """pretraining/pocket_video.py, which is no package and imports motion.py beside it."""
    found: dict[str, ModuleType] = {}
    for name in ("motion", "pocket_video"):
        spec = importlib.util.spec_from_file_location(name, PRETRAINING / f"{name}.py")
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        sys.modules[name] = found[name]
        spec.loader.exec_module(found[name])
    yield found["pocket_video"]
    for name in found:
        del sys.modules[name]


def test_it_is_made_by_name_and_is_small() -> None:
    model = create_backbone("pocket_video", pretrained=False)
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    description = vpeft.describe(model)
    assert (description.inputs.shape, description.facts.width) == ((3, 16, 64, 64), 160)
    clips = description.inputs.example(2)
    assert torch.equal(description.pooled(clips), model(clips))
    tuned = vpeft.tune(model, LoRA(rank=2), num_classes=3, show=False)
    assert tuned(clips).shape == (2, 3)


def test_without_a_file_of_weights_it_says_what_makes_one() -> None:
    if (Path(vpeft.__file__).parent / "assets" / "pocket_video.safetensors").exists():
        assert create_backbone("pocket_video")(torch.zeros(1, 3, 16, 64, 64)).shape == (1, 160)
        return
    with pytest.raises(NoWeights, match=r"pretraining/pocket_video\.py makes it"):
        create_backbone("pocket_video")


def test_it_is_fitted_to_other_numbers_of_frames() -> None:
    with pytest.warns(ResizedPositions):
        model = create_backbone("pocket_video", pretrained=False, frames=8)
    assert vpeft.describe(model).inputs.frames == 8 and model(torch.zeros(1, 3, 8, 64, 64)).shape == (1, 160)
    assert for_clips(model, 8)[1] == []


def test_the_script_shares_no_seed_with_the_sets(script: Any) -> None:
    motion = sys.modules["motion"]
    assert motion.SEED not in (SEED_OF_IMAGES, SEED_OF_CLIPS)
    one, again = (motion.clip(np.random.default_rng((motion.SEED, 3))) for _ in range(2))
    assert one.shape == (16, 64, 64, 3) and np.array_equal(one, again)


def test_pixels_of_a_token_are_those_that_its_filter_sees(script: Any) -> None:
    model, clips = PocketVideo(), torch.randn(2, 3, 16, 64, 64)
    weight = model.patch_embed.weight.permute(0, 2, 3, 4, 1).flatten(1)  # time, rows, columns, channels
    tokens = script.tubelets(clips) @ weight.T + model.patch_embed.bias
    expected = model.patch_embed(clips).flatten(2).transpose(1, 2)
    assert torch.allclose(tokens, expected, atol=1e-4)


def test_a_clip_that_stands_still_starts_as_the_picture_does(script: Any) -> None:
    student = script.Student()
    script.start_from_images(student)
    picture = torch.randn(1, 3, 64, 64)
    vit = timm.create_model("pocket_vit", pretrained=True)
    with torch.no_grad():
        student.backbone.time_embed.zero_()
        tokens = student.backbone.embed(picture[:, :, None].expand(-1, -1, 16, -1, -1))
        expected = vit.patch_embed(picture) + vit.pos_embed[:, 1:]
    assert torch.allclose(tokens, expected.repeat(1, 8, 1), atol=1e-4)


def test_half_of_the_batches_hide_the_same_cells_at_all_times(script: Any) -> None:
    torch.manual_seed(0)
    batches = script.Batches(np.zeros((3, 16, 64, 64, 3), np.uint8), script.SCALES["tiny"])
    tubes = 0
    for _ in range(20):
        x, seen, unseen = batches.draw(128, 16)
        assert x.shape == (4, 3, 16, 64, 64) and seen.shape == (4, 32) and unseen.shape == (4, 96)
        both = torch.cat([seen, unseen], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(128).expand(4, -1))
        tubes += all(len(set((row % 16).tolist())) == 4 for row in seen)
    assert 4 <= tubes <= 16


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    scale, plain = script.SCALES["tiny"], script.losses
    (tmp_path / "a").mkdir()
    whole, log = script.train(tmp_path / "a", scale, 0, None)
    calls = 0

    def dies(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return plain(*given)

    (tmp_path / "b").mkdir()
    monkeypatch.setattr(script, "losses", dies)
    with pytest.raises(KeyboardInterrupt):
        script.train(tmp_path / "b", scale, 0, None)
    monkeypatch.setattr(script, "losses", plain)
    again, resumed = script.train(tmp_path / "b", scale, 0, None)
    assert [entry["pixels"] for entry in log] == [entry["pixels"] for entry in resumed]
    theirs = again.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())
    script.export(again, resumed, scale, tmp_path / "w.safetensors", tmp_path / "log.json")
    model = create_backbone("pocket_video", pretrained=False, weights=tmp_path / "w.safetensors")
    own = dict(again.backbone.state_dict())
    assert all(torch.allclose(value, own[key], atol=1e-3) for key, value in model.state_dict().items())
