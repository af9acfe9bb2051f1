"""GPS: the authors' masks, what the optimiser can and cannot move, and that the selection is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, vectors
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.layers.contrast import supervised_contrastive, two_views
from vpeft.layers.sparse_delta import SparseDelta
from vpeft.methods import GPS, SSF

NAMES = {"patch": "patch_embed.proj"}
NAMES |= {
    f"blocks.{b}.{p}": f"blocks.{b}.{p}" for b in range(3) for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
}


def mask(layer: SparseDelta, shape: torch.Size) -> torch.Tensor:
    """1 where an entry trains."""
    chosen = torch.zeros(shape[0], shape[1:].numel(), dtype=torch.uint8)
    return chosen.scatter(1, layer.index.long(), 1).reshape(shape)


def layers(tuned: vpeft.TunedModel) -> dict[str, SparseDelta]:
    return {edit.place.name: edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, SparseDelta)}


@pytest.mark.parametrize("k", [1, 3])
def test_from_the_authors_gradients_the_authors_masks(k: int) -> None:
    stored = vectors("gps")
    for theirs in NAMES.values():
        gradient = stored[f"grad/{theirs}.weight"]
        layer = SparseDelta(len(gradient), gradient[0].numel(), k)
        layer.choose(gradient)
        assert torch.equal(1 - mask(layer, gradient.shape), stored[f"mask_k{k}/{theirs}.weight"].to(torch.uint8))


@pytest.mark.parametrize("k", [1, 3])
def test_prepare_makes_the_authors_selection(k: int) -> None:
    stored = vectors("gps")
    tuned = vpeft.tune(base_vit(), GPS(k=k), show=False)
    tuned.prepare(zip(stored["input/views"], stored["input/labels"], strict=True))
    assert set(layers(tuned)) == set(NAMES)
    for ours, theirs in NAMES.items():
        gradient = stored[f"grad/{theirs}.weight"].flatten(1).abs()
        ranked = gradient.sort(dim=1, descending=True).values
        clear = (ranked[:, k - 1] - ranked[:, k]) > 1e-3 * ranked[:, k - 1]  # rows without a near tie
        assert clear.float().mean() > 0.9
        shape = stored[f"grad/{theirs}.weight"].shape
        found = 1 - mask(layers(tuned)[ours], shape).flatten(1)
        assert torch.equal(found[clear], stored[f"mask_k{k}/{theirs}.weight"].to(torch.uint8).flatten(1)[clear])
    assert not any(p.requires_grad for p in tuned.backbone.parameters() if p.dim() > 1)


def test_loss_equals_the_authors() -> None:
    stored = vectors("gps")
    model = base_vit()
    for views, labels, loss in zip(stored["input/views"], stored["input/labels"], stored["input/loss"], strict=True):
        features = model(views.flatten(0, 1))
        assert torch.allclose(supervised_contrastive(features, labels.repeat(2), 0.07), loss, rtol=1e-5)


def test_trains_exactly_what_the_authors_train() -> None:
    stored = vectors("gps")
    tuned = vpeft.tune(base_vit(), GPS(k=3), show=False)
    assert tuned.plan().trainable == 5_376
    unfrozen = {name for name, p in tuned.backbone.named_parameters() if p.requires_grad}
    whole = {key.split("/")[1] for key, m in stored.items() if key.startswith("mask_k3/") and not bool(m.any())}
    assert unfrozen == whole


def test_counts() -> None:
    assert trained(GPS()) == 167_424
    assert trained(GPS(k=2)) == 251_136
    assert trained(GPS(k=15)) == 1_339_392
    assert trained(GPS(k=20)) == 1_757_952


def test_equals_dense_weights_with_a_few_changed_entries() -> None:
    tuned = vpeft.tune(base_vit(), GPS(k=2), show=False)
    tuned.prepare([(images_for(base_vit(), 4), torch.tensor([0, 1, 0, 1]))])
    randomise(tuned)
    plain = base_vit()
    for ours, theirs in NAMES.items():
        layer, module = layers(tuned)[ours], plain.get_submodule(theirs)
        for row in range(len(module.weight)):
            for place, value in zip(layer.index[row].tolist(), layer.values[row].detach(), strict=True):
                module.weight.data.view(len(module.weight), -1)[row, place] += value
        module.bias.data.copy_(dict(tuned.trainable())[f"{ours}.unfreeze.bias"].data)
    x = images_for(plain)
    expected = ViTByHand(plain)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_weight_decay_does_not_move_a_frozen_weight() -> None:
    tuned = vpeft.tune(base_vit(), GPS(), num_classes=2, show=False)
    x, y = images_for(base_vit(), 4), torch.tensor([0, 1, 0, 1])
    tuned.prepare([(x, y)])
    optimizer = torch.optim.AdamW((p for _, p in tuned.trainable()), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(tuned(x), y).backward()
        optimizer.step()
    before = base_vit()
    tuned.merge()
    for ours, theirs in NAMES.items():
        moved = (tuned.backbone.get_submodule(theirs).weight != before.get_submodule(theirs).weight).flatten(1)
        assert torch.equal(moved, mask(layers(tuned)[ours], moved.shape).bool())


def test_selection_is_saved_and_never_made_twice(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), GPS(k=2), num_classes=2, show=False)
    x, y = images_for(base_vit(), 4), torch.tensor([0, 1, 0, 1])
    tuned.prepare([(x, y)])
    randomise(tuned)
    chosen = {name: layer.index.clone() for name, layer in layers(tuned).items()}
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "gps.safetensors"))
    assert torch.equal(again(x), tuned(x))
    again.prepare([(x.flip(0) * 3, y)])
    assert all(torch.equal(layer.index, chosen[name]) for name, layer in layers(again).items())
    again.advance(0.0)


def test_training_without_a_selection_is_an_error() -> None:
    tuned = vpeft.tune(base_vit(), GPS(), num_classes=2, show=False)
    with pytest.raises(vpeft.VpeftError, match="prepare"):
        tuned.advance(0.0)
    with pytest.raises(vpeft.VpeftError, match="was given none"):
        tuned.prepare([])


def test_cross_entropy_takes_the_fresh_head() -> None:
    x, y = images_for(base_vit(), 4), torch.tensor([0, 1, 0, 1])
    tuned = vpeft.tune(base_vit(), GPS(loss="cross_entropy"), num_classes=2, show=False)
    tuned.prepare([(x, y), (x, 1 - y)])
    plain = base_vit()
    head = tuned.head
    for labels in (y, 1 - y):
        torch.nn.functional.cross_entropy(plain(x) @ head.weight.T + head.bias, labels).backward()
    gradient = plain.blocks[1].mlp.fc1.weight.grad.abs()
    top = gradient.sort(dim=1, descending=True)
    clear = top.values[:, 0] - top.values[:, 1] > 1e-3 * top.values[:, 0]
    assert torch.equal(layers(tuned)["blocks.1.mlp.fc1"].index[clear, 0].long(), top.indices[clear, 0])


def test_views_differ_and_keep_their_range() -> None:
    x = images_for(base_vit(), 3) * 2.0 + 5.0
    torch.manual_seed(0)
    views = two_views(x)
    assert views.shape == (2, *x.shape)
    assert not torch.allclose(views[0], views[1])
    assert bool((views.amax((2, 3, 4)) <= x.amax((1, 2, 3)) + 1e-4).all())
    assert bool((views.amin((2, 3, 4)) >= x.amin((1, 2, 3)) - 1e-4).all())
    assert two_views(torch.randn(2, 1, 16, 16)).shape == (2, 2, 1, 16, 16)


@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext, lambda: tiny_vit(init_values=0.1)])
def test_every_linear_and_convolution_has_rows_of_its_own(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    tuned = vpeft.tune(model, GPS(), show=False)
    weights = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    scales = sum(p.numel() for name, p in model.named_parameters() if name.endswith("gamma"))
    expected = sum(m.weight.shape[0] + (0 if m.bias is None else len(m.bias)) for m in weights) + scales
    assert tuned.plan().trainable == expected


def test_lives_beside_another_method() -> None:
    tuned = vpeft.tune(base_vit(), GPS(), SSF(), num_classes=2, show=False)
    tuned.prepare([(images_for(base_vit(), 4), torch.tensor([0, 1, 0, 1]))])
    assert all(bool(layer.chosen) for layer in layers(tuned).values())


def test_places_before_the_choice_are_centres_of_unlike_channels() -> None:
    """Behind a ReLU one channel may be silent on every image; a kernel's rim may meet no pixel of a small map."""
    layer = SparseDelta(5, 3 * 9, 2, taps=9)
    assert layer.index.tolist() == [[4, 13], [13, 22], [22, 5], [4, 13], [13, 22]]
    assert SparseDelta(4, 3, 1).index.tolist() == [[0], [1], [2], [0]]
    depthwise = SparseDelta(6, 9, 1, taps=9)
    assert depthwise.index.unique().tolist() == [4]
