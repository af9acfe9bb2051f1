"""Effective ranks of features, without an adapter and with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vpeft
from tests.multimodal_models import batch, multimodal
from vpeft.explanation.representation import features_by_block, ranks_by_block
from vpeft.methods import LoRA, VPTDeep

IMAGES = [torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(number)) for number in range(2)]


def test_ranks_are_those_of_the_features_by_hand() -> None:
    tuned = vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(rank=2), num_classes=2, show=False).eval()
    model: Any = vpeft.create_backbone("pocket_vit").eval()
    rows = ranks_by_block(tuned, tuned, IMAGES)
    assert [row.name for row in rows] == [f"blocks.{number}" for number in range(6)]
    # LoRA begins at zero, so that nothing has moved
    assert all(row.before == row.after and row.alike == pytest.approx(1.0) for row in rows)
    with torch.no_grad():
        hidden = model._pos_embed(model.patch_embed(torch.cat(IMAGES)))
        hidden = model.blocks[0](model.norm_pre(hidden))[:, 1:].mean(1)
    singular = torch.linalg.svdvals(hidden.double())
    shares = singular / singular.sum()
    assert rows[0].before == pytest.approx(math.exp(float(-(shares * shares.log()).sum())), rel=1e-4)


def test_only_edited_blocks_move() -> None:
    tuned = vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(rank=2), num_classes=2, show=False).eval()
    with torch.no_grad():
        for name, value in tuned.trainable():
            if "blocks.5" in name:
                value.normal_()
    rows = ranks_by_block(tuned, tuned, IMAGES)
    assert [row.alike == pytest.approx(1.0) for row in rows] == [True] * 5 + [False]
    assert rows[-1].after != rows[-1].before


def test_a_host_that_generates_is_read_in_its_first_pass() -> None:
    tuned = vpeft.tune(multimodal("llava"), {"vision": LoRA(rank=2), "language": VPTDeep(tokens=2)}, show=False).eval()
    given = batch("llava")

    def run(one: dict[str, Any]) -> Any:
        return tuned.generate(**one, max_new_tokens=3, min_new_tokens=3, do_sample=False, suppress_tokens=[4])

    found = features_by_block(tuned, run, [given, given])
    assert list(found) == ["vision.blocks.0", "vision.blocks.1", "language.blocks.0", "language.blocks.1"]
    assert found["vision.blocks.0"].shape == (4, 16)
    assert found["language.blocks.1"].shape == (4, 32)
    with torch.no_grad():
        hidden = tuned(**given, output_hidden_states=True).hidden_states[1]
    assert torch.allclose(found["language.blocks.0"][1], hidden[1, -1], atol=1e-4)
    rows = ranks_by_block(tuned, run, [given, given])
    assert all(1.0 <= row.before <= 4.0 for row in rows)


def test_the_command_prints_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.serving.fleet import LABELS, made
    from vpeft.cli import main

    made(tmp_path, "lora", LoRA(rank=2))
    for number, label in enumerate(LABELS * 2):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "data" / label / f"{number}.png")
    words = ["inspect", str(tmp_path / "lora.safetensors"), "--rank", "--data", str(tmp_path / "data")]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 2 * len(LABELS)
    assert all(1.0 <= one["after"] <= said["images"] for one in said["blocks"])
    assert main(words[:3]) == 1
    assert "--data" in capsys.readouterr().err
