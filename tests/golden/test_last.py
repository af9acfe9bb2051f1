"""LAST against its equations in plain tensors, its count, and what it keeps in memory."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.method import BadField
from vpeft.methods import LAST


def _f(p: dict[str, Tensor], key: str, x: Tensor, heads: int, scale: float) -> Tensor:
    """One module with its residual, as the paper writes it."""
    n = F.layer_norm(x, x.shape[-1:], p[f"{key}.norm.weight"], p[f"{key}.norm.bias"], 1e-6)
    q, k, v = (n @ p[f"{key}.{c}.weight"].T for c in "qkv")
    outs = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        outs.append((a @ b.transpose(1, 2) * scale).softmax(-1) @ c)
    return x + torch.cat(outs, -1) @ p[f"{key}.o.weight"].T


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize(
    ("gap", "modules", "heads", "scale", "output"),
    [(1, 1, 1, "head", "residual"), (2, 2, 2, "head", "difference"), (3, 1, 2, "rank", "residual")],
)
def test_equals_the_ladder_with_its_subtraction(
    pooling: str, gap: int, modules: int, heads: int, scale: str, output: str
) -> None:
    model = tiny_vit(global_pool=pooling, depth=5)
    images = images_for(model)
    method = LAST(rank=4, gap=gap, modules=modules, heads=heads, scale=scale, output=output)
    tuned = vpeft.tune(model, method, verify=False, show=False).eval()
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.3)
    p = {key.partition("before.")[2] or key.partition("after.")[2]: v.detach() for key, v in tuned.trainable()}
    with tuned.disable(), torch.no_grad():
        x = model._pos_embed(model.patch_embed(images))
        z = [x]
        for i, block in enumerate(model.blocks):
            x = block(x)
            if (i + 1) % gap == 0 or i == 4:
                z.append(x)
        u = torch.zeros_like(x)
        for i in range(1, len(z)):
            u = u + z[i - 1]
            for j in range(modules):
                u = _f(p, f"groups.{i - 1}.{j}", u, heads, (4 // heads if scale == "head" else 4) ** -0.5)
        learnt = u - sum(z[:-1])
        out = learnt + (z[-1] if output == "residual" else 0)
        expected = model.forward_head(model.norm(out))
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)


@pytest.mark.parametrize(("fields", "count"), [({}, 608_256), ({"rank": 8, "gap": 2}, 6 * (4 * 768 * 8 + 2 * 768))])
def test_count(fields: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, LAST(**fields), verify=False, show=False).plan()
    assert plan.trainable == count
    assert plan.reach == "none"


def test_nothing_of_the_trunk_is_saved_but_the_states() -> None:
    model = tiny_vit()
    images = images_for(model)
    saved = saved_by(vpeft.tune(model, LAST(rank=2), num_classes=3, show=False), images)
    assert sum(saved.within) == 0
    assert saved.beyond == []


@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext])
def test_several_widths_are_refused(make: type) -> None:
    with pytest.raises(vpeft.MissingPlace, match="one width and one grid"):
        vpeft.tune(make(), LAST(), show=False)


def test_heads_must_divide_the_rank() -> None:
    with pytest.raises(BadField, match="3 heads do not divide 16"):
        vpeft.tune(tiny_vit(), LAST(heads=3), show=False)
