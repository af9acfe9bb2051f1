"""Two methods on one model merge to the model that runs with both: each in its own place in the order of a pass."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import timm
import torch

import vpeft
from vpeft.injection.merge import CannotMerge
from vpeft.method import Method, all_methods

# One for each way into the weights: beside, behind, before, instead; with and without the weight in the change.
WAYS = ("lora", "ssf", "arc", "repadapter", "dora", "glora", "rlrr", "fact_tk", "ia3")


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    """A tiny ViT with weights and biases of ordinary size."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, embed_dim=24, depth=2, num_heads=2, img_size=32, patch_size=8
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def _error(base: torch.nn.Module, *methods: Method) -> float | None:
    """The largest difference that merging makes, relative to the features; None where the two do not go together."""
    try:
        tuned = vpeft.tune(copy.deepcopy(base), *methods).eval()
    except vpeft.VpeftError:
        return None
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
        images = torch.randn(2, 3, 32, 32, generator=draw)
        before = tuned(images)
        try:
            tuned.merge()
        except CannotMerge:
            return None
        return float((tuned(images) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize(("first", "second"), list(permutations(WAYS, 2)))
def test_a_pair_merges_to_what_runs(first: str, second: str, base: torch.nn.Module) -> None:
    known = all_methods()
    error = _error(base, known[first](), known[second]())
    assert error is not None
    assert error < 1e-4


@pytest.mark.parametrize("three", [("arc", "ssf", "rlrr"), ("fact_tk", "lora", "dora"), ("repadapter", "ssf", "glora")])
def test_three_merge_too(three: tuple[str, ...], base: torch.nn.Module) -> None:
    known = all_methods()
    error = _error(base, *(known[name]() for name in three))
    assert error is not None
    assert error < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("first", list(all_methods()))
def test_all_pairs_merge_to_what_runs(first: str, base: torch.nn.Module) -> None:
    known = all_methods()
    errors = {name: _error(base, known[first](), other()) for name, other in known.items() if name != first}
    assert not {name: error for name, error in errors.items() if error is not None and not error < 1e-4}
