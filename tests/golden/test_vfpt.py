"""VFPT against the authors' numbers, the cosine form of its transform, and plain VPT."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor

import vpeft
from tests.golden.parity import reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.layers.fourier import FourierTokens
from vpeft.methods import VFPT, VPTDeep


def cosines(tokens: Tensor, axes: str = "all") -> Tensor:
    """sum over n, d of E[n, d] cos(2 pi (k n / N + l d / D)), or over one axis alone, term by term."""
    N, D = tokens.shape
    out = torch.zeros(N, D, dtype=torch.float64)
    n, d = torch.arange(N)[:, None] / N, torch.arange(D)[None] / D
    for k in range(N):
        for l in range(D):  # noqa: E741 - the paper's letter
            if axes == "all":
                out[k, l] = (tokens * torch.cos(2 * math.pi * (k * n + l * d))).sum()
            elif axes == "hidden":
                out[k, l] = (tokens[k] * torch.cos(2 * math.pi * l * d[0])).sum()
            else:
                out[k, l] = (tokens[:, l] * torch.cos(2 * math.pi * k * n[:, 0])).sum()
    return out.float()


def test_equals_the_authors_code() -> None:
    mapping = {"blocks.0.insert_tokens.tokens": lambda t: t["transformer.prompt_embeddings"]}
    for i in (1, 2):
        mapping[f"blocks.{i}.insert_tokens.tokens"] = lambda t, i=i: t["transformer.deep_prompt_embeddings"][i - 1]
    reproduce("vfpt", "vit", VFPT(tokens=7, fraction=0.5), mapping)


@pytest.mark.parametrize("dimension", ["all", "hidden", "sequence"])
@pytest.mark.parametrize("location", ["prepend", "append"])
def test_transform_is_a_sum_of_cosines(dimension: str, location: str) -> None:
    layer = FourierTokens(5, 12, 1.0, 0.0, None, transformed=3, dimension=dimension, location=location)
    E, R = layer.tokens[:3], layer.tokens[3:]
    parts = [cosines(E.detach(), dimension), R]
    expected = torch.cat(parts if location == "prepend" else parts[::-1])
    found = layer(torch.zeros(2, 4, 12))
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("count", [1, 3])
def test_at_random_each_token_is_transformed_alone(count: int) -> None:
    layer = FourierTokens(4, 6, 1.0, 0.0, None, transformed=count, location="random").eval()
    seen = set()
    for _ in range(30):
        rows = layer(torch.zeros(1, 1, 6))[0]
        changed = [i for i in range(4) if not torch.equal(rows[i], layer.tokens[i])]
        assert len(changed) == count
        seen.add(tuple(changed))
        for i in changed:
            assert torch.allclose(rows[i], cosines(layer.tokens[i : i + 1].detach())[0], atol=1e-5)
    assert len(seen) == 4


def _transforms(method: VFPT, depth: int) -> list[int]:
    tuned = vpeft.tune(tiny_vit(depth=depth), method, verify=False, show=False)
    return [i for i in range(depth) if tuned.adapter().get_submodule(f"blocks.{i}.insert_tokens").transformed]


def test_which_blocks_transform() -> None:
    assert _transforms(VFPT(tokens=2), 6) == [0, 1, 2, 3, 4, 5]
    assert _transforms(VFPT(tokens=2, first=False), 6) == [1, 2, 3, 4, 5]
    assert _transforms(VFPT(tokens=2, layers="former"), 6) == [0, 1, 2]
    assert _transforms(VFPT(tokens=2, layers="later"), 6) == [3, 4, 5]
    assert _transforms(VFPT(tokens=2, layers="even"), 6) == [0, 2, 4]
    assert _transforms(VFPT(tokens=1, fraction=0.5), 3) == []
    assert _transforms(VFPT(tokens=3, fraction=0), 3) == []


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_without_transformed_tokens_it_is_vpt(make: type[torch.nn.Module]) -> None:
    plain = make()
    ours = vpeft.tune(copy.deepcopy(plain), VFPT(tokens=3, fraction=0.0), show=False)
    vpt = vpeft.tune(copy.deepcopy(plain), VPTDeep(tokens=3), show=False)
    vpt.load_adapter_state(ours.adapter_state())
    assert torch.equal(ours.features(images_for(plain)), vpt.features(images_for(plain)))


@pytest.mark.parametrize("fields", [{}, {"deep": False}, {"project": 5}, {"transform": "linear"}, {"fraction": 1.0}])
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_collapses_to_vpt(make: type[torch.nn.Module], fields: dict[str, object]) -> None:
    plain = make()
    images = images_for(plain)
    method = VFPT(tokens=4, dropout=0.1, **fields)
    tuned = vpeft.tune(copy.deepcopy(plain), method, num_classes=3, show=False).eval()
    simple, state = method.collapse(tuned)
    again = vpeft.tune(plain, simple, num_classes=3, show=False).eval()
    again.load_adapter_state(state)
    assert torch.allclose(again(images), tuned(images), atol=1e-6)
    assert type(simple).__name__ == ("VPTShallow" if fields == {"deep": False} else "VPTDeep")


def test_random_and_extra_do_not_collapse() -> None:
    for method in (VFPT(location="random"), VFPT(extra=2)):
        with pytest.raises(vpeft.VpeftError, match="plain VPT"):
            method.collapse(vpeft.tune(tiny_vit(), method, show=False))


def test_extra_tokens_are_transformed_and_leave_again() -> None:
    tuned = vpeft.tune(tiny_vit(), VFPT(tokens=4, extra=2), show=False)
    lengths: list[int] = []
    for block in tuned.backbone.blocks:
        block.attn.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].shape[1]))
    tuned.features(images_for(tiny_vit()))
    assert lengths == [17 + 4, 17 + 6, 17 + 6]
    layer = tuned.adapter().get_submodule("blocks.1.insert_tokens")
    assert torch.allclose(layer.baked(), torch.cat([cosines(layer.extra.detach()), layer.tokens]), atol=1e-4)


@pytest.mark.parametrize(("transform", "learns"), [("linear", True), ("fixed_linear", False)])
def test_the_linear_ablation_shares_one_map(transform: str, learns: bool) -> None:
    tuned = vpeft.tune(tiny_vit(), VFPT(tokens=4, transform=transform), show=False)
    prompts = 3 * 4 * 48
    assert tuned.plan().trainable == prompts + (48 * 48 + 48 if learns else 0)
    assert any("mixing" in key for key in tuned.adapter_state())
    layer = tuned.adapter().get_submodule("blocks.2.insert_tokens")
    mixed = layer.tokens[:2] @ layer.mixing.weight.T + layer.mixing.bias
    assert torch.allclose(layer.baked()[:2], mixed, atol=1e-6)


def test_dropout_comes_before_the_transform() -> None:
    layer = FourierTokens(2, 64, 1.0, 0.5, None, transformed=2).train()
    made = layer(torch.zeros(3, 1, 64))
    assert not (made == 0).any()  # a dropped entry is spread over all
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize(
    ("model", "count"), [("vit_base_patch16_224", 92_160), ("swin_base_patch4_window7_224", 120_320)]
)
def test_counts(model: str, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, VFPT(tokens=10), verify=False, show=False).plan().trainable == count


def test_runs_in_bfloat16() -> None:
    tuned = vpeft.tune(tiny_vit().bfloat16(), VFPT(), verify=False, show=False)
    assert tuned.features(images_for(tiny_vit()).bfloat16()).dtype == torch.bfloat16


def test_a_convolutional_backbone_is_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match="cannot insert_tokens"):
        vpeft.tune(tiny_convnext(), VFPT())
