"""LoRA's starts keep what the contract promises, on linears and on convolutions; EVA's directions of a convolution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.contract import checks
from tests.families.timm_conv import tiny_basic_resnet
from tests.models import images_for
from vpeft.methods import LoRA

CHECKS = (
    checks.starts_as_promised,
    checks.every_tensor_learns,
    checks.detach_is_exact,
    checks.reloads_exactly,
    checks.merges_or_says_why,
    checks.copies_are_independent,
    checks.pickles,
    checks.shares_a_batch,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", ["timm_vit", "timm_convnext"])
@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "olora", "eva"])
def test_promise(start: str, family: str, check: Callable[[checks.Cell], None]) -> None:
    check(checks.Cell(LoRA(rank=4, start=start, use_rslora=True), family))


def test_the_scale_of_rslora() -> None:
    layer = vpeft.tune(tiny_basic_resnet(), LoRA(rank=4, alpha=6, use_rslora=True), verify=False, show=False)
    assert layer.adapter().edits[0].layer.scale == 3.0


def test_eva_sees_the_patches_of_a_convolution() -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_basic_resnet().eval(), LoRA(rank=5, start="eva"), verify=False, show=False)
    images, seen = images_for(tuned.backbone, 6), list[Tensor]()
    edit = tuned.adapter().edits[0]
    tuned.prepare([(images[:4], torch.zeros(4)), (images[4:], torch.zeros(2))])
    edit.place.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tuned.eval().features(images)
    rows = F.unfold(seen[0].double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    expected = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh[:5]
    assert torch.allclose((edit.layer.A.double() @ expected.T).abs(), torch.eye(5).double(), atol=1e-3)
