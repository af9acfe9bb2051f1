"""Predicted memory against what is kept, byte by byte."""

from __future__ import annotations

import json

import pytest
import torch

import vpeft
from tests.models import tiny_vit
from vpeft.cli import main
from vpeft.methods import get
from vpeft.training.memory import saved_bytes
from vpeft.training.memory_plan import plan_memory

# Three times as many tokens as the other tests have, so that a wrong guess at the attention would show.
SIZE = {"img_size": 64, "patch_size": 8}


@pytest.mark.parametrize("name", ["lora", "ssf", "vpt_deep", "bitfit", "full_finetuning", "linear_probe", "convpass"])
def test_predicted_activations_are_those_that_are_kept(name: str) -> None:
    method = get(name)()
    real = vpeft.tune(tiny_vit(**SIZE), method, num_classes=3, show=False, verify=False).train()
    kept = saved_bytes(real, torch.randn(5, 3, 64, 64))
    with torch.device("meta"):
        model = type(real.backbone)(**SIZE, embed_dim=48, depth=3, num_heads=3, num_classes=0)
        twin = vpeft.tune(model, method, num_classes=3, show=False, verify=False).eval()
        plan = plan_memory(twin, 5)
    assert plan.activations == pytest.approx(kept, rel=0.1)
    assert plan.weights == sum(p.numel() * 4 for p in (*real.parameters(), *real.buffers()))
    assert plan.optimiser == 2 * plan.gradients == 8 * sum(p.numel() for _, p in real.trainable())
    assert not twin.training
    assert plan.largest_batch(plan.total) == 5
    assert plan.largest_batch(plan.total - plan.per_image) == 4
    assert plan.largest_batch(0) == 0


def test_explain_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "lora", "--batch", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["memory"]
    assert told["batch"] == 4 and told["total"] > told["activations"] > 0
