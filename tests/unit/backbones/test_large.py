"""Describing and attaching to a large model on the meta device costs next to nothing, and copies nothing."""

from __future__ import annotations

import time

import pytest
import timm
import torch

import vpeft
from vpeft.methods import LoRA, VPTDeep


@pytest.fixture(scope="module")
def large() -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_large_patch16_224", num_classes=0)


def test_a_large_model_is_described_and_edited_within_two_seconds(large: torch.nn.Module) -> None:
    vpeft.describe(large)  # finds the families, once for the process
    objects = {id(p) for p in large.parameters()}
    start = time.process_time()
    tuned = vpeft.tune(vpeft.describe(large), LoRA(rank=8), VPTDeep(tokens=10), num_classes=10, show=False)
    seconds = time.process_time() - start
    assert seconds < 2.0, f"{seconds:.2f} s of processor time"
    assert {id(p) for p in tuned.backbone.parameters()} == objects
    assert all(p.is_meta for p in tuned.parameters())
    assert tuned.plan().trainable == 24 * (2 * 8 * (1024 + 1024) + 10 * 1024)
