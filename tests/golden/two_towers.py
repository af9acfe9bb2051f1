"""Methods on both towers of a CLIP: tuned with made-up classes, compared with restatements, counted on ViT-B/16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.clip_by_hand import class_ids
from vpeft.heads.class_names import ClassNames
from vpeft.methods import Method

NAMES = ("a", "b", "c", "d", "e")


def tuned_with(
    model: torch.nn.Module, methods: Mapping[str, Method | Sequence[Method]], std: float = 0.2
) -> vpeft.TunedModel:
    """Methods on a CLIP whose classes have made-up tokens, with random values in every trained tensor."""
    torch.manual_seed(3)
    tuned = vpeft.tune(model, methods, head=ClassNames.of_ids(NAMES, class_ids()), show=False).eval()
    randomise(tuned, std)
    return tuned


def require_equal(tuned: vpeft.TunedModel, expected: Tensor, found: Tensor) -> None:
    """Outputs within 1e-5 of their size, and gradients of every trained tensor within 1e-4."""
    own, size = dict(tuned.trainable()), float(expected.detach().abs().max())
    assert torch.allclose(found, expected, atol=1e-5 * size, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    wanted = torch.autograd.grad((expected * weights).sum(), [*own.values()])
    for name, a, b in zip(own, torch.autograd.grad((found * weights).sum(), [*own.values()]), wanted, strict=True):
        assert b.abs().max() > 0, name
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4), name


def on_vit_b_16(methods: Mapping[str, Any]) -> int:
    """Trained parameters on a CLIP ViT-B/16 of open_clip with 100 classes, without its tensors."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    with torch.device("meta"):
        model = CLIP(512, CLIPVisionCfg(layers=12, width=768, patch_size=16, image_size=224), CLIPTextCfg())
        head = ClassNames(["a"] * 100, length=77)
        tuned = vpeft.tune(model, methods, head=head, verify=False, show=False)
    return tuned.plan().trainable
