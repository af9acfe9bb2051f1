"""Methods on both towers, learnt by `fit` from names of classes: alike with and without accelerations, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vpeft
from vpeft.methods import CLIPAdapter, CoCoOp, CoOp, MaPLe, TipAdapter, VLAdapter
from vpeft.tasks.classification_by_name import ClassificationByName

NAMES, PLAIN = ("cat", "ball", "boat", "plane"), "a photo of a {}."
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "coop": ({"text": CoOp(tokens=4, words="a photo of a")}, "{}."),
    "cocoop": ({"*": CoCoOp()}, "{}."),
    "maple": ({"*": MaPLe(depth=3)}, PLAIN),
    "clip_adapter": ({"image": CLIPAdapter()}, PLAIN),
    "tip_adapter": ({"image": TipAdapter(passes=2, train_keys=True)}, PLAIN),
    "vl_adapter": ({"*": VLAdapter()}, PLAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fit_learns_alike_with_accelerations(name: str, tmp_path: Path) -> None:
    methods, template = CASES[name]
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(3, 64, 64, generator=generator) + 0.5 * (i % 4), i % 4) for i in range(16)]
    images = torch.stack([image for image, _ in data[:4]])
    outputs, losses = [], []
    for acceleration in ("off", "auto"):
        torch.manual_seed(0)
        clip = vpeft.create_backbone("host::pocket_clip", pretrained=False)
        task = ClassificationByName(NAMES, templates=(template,))
        tuned = vpeft.tune(clip, methods, task=task)
        settings = vpeft.Optimisation(epochs=3, batch=8, lr=5e-3, acceleration=acceleration)
        result = vpeft.fit(tuned, data, data, task=task, optimisation=settings, progress=False)
        losses.append([record.train_loss for record in result.history])
        assert losses[-1][-1] < losses[-1][0]
        path = tuned.save(tmp_path / f"{acceleration}.safetensors")
        with torch.no_grad():
            learnt = tuned.eval()(images)
            again = vpeft.load(tuned.detach(), path).eval()(images)
        assert torch.equal(learnt, again)
        outputs.append(learnt)
    assert losses[0] == losses[1] and torch.equal(*outputs)
