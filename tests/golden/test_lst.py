"""LST against a restatement in plain tensors, its published count, and what it keeps in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.layers.fisher import NoBatches
from vpeft.layers.side_block import TooFewHeads
from vpeft.method import BadField
from vpeft.methods import LST


def _randomise(tuned: vpeft.TunedModel) -> dict[str, Tensor]:
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.2)
    return {key.removeprefix("outlet.after."): value.detach() for key, value in tuned.trainable()}


def _states(model: nn.Module, images: Tensor) -> list[Tensor]:
    """b_0 ... b_L by running timm's own pieces."""
    x = model._pos_embed(model.patch_embed(images))
    states = [x]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


def _side_block(p: dict[str, Tensor], key: str, x: Tensor, heads: int) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{key}.{name}.weight"], p[f"{key}.{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{key}.{name}.weight"].T + p[f"{key}.{name}.bias"]

    B, N, s = x.shape
    q, k, v = (part.reshape(B, N, heads, -1).transpose(1, 2) for part in linear(norm(x, "norm1"), "qkv").chunk(3, -1))
    mixed = ((q @ k.transpose(-1, -2)) * (s // heads) ** -0.5).softmax(-1) @ v
    x = x + linear(mixed.transpose(1, 2).reshape(B, N, s), "proj")
    return x + linear(F.gelu(linear(norm(x, "norm2"), "fc1")), "fc2")


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("merge_last", "heads"), [(False, None), (True, None), (False, 1)])
def test_equals_a_restatement(pooling: str, after: bool, merge_last: bool, heads: int | None) -> None:
    model = tiny_vit(global_pool=pooling)
    images = images_for(model)
    with torch.no_grad():
        frozen, b = model(images), _states(model, images)
    method = LST(reduction=4, keep=(0, 2), gate_after=after, merge_last=merge_last, heads=heads)
    tuned = vpeft.tune(model, method, show=False).eval()
    p = _randomise(tuned)
    h = b[0] @ p["ladders.0.weight"].T + p["ladders.0.bias"]
    for i, state in enumerate((b[1], b[3])):  # ladder i reads the OUTPUT of block i
        rung = state @ p[f"ladders.{i + 1}.weight"].T + p[f"ladders.{i + 1}.bias"]
        g = torch.sigmoid(p[f"gates.{i}"] / 0.1)
        if after:
            h = g * _side_block(p, f"blocks.{i}", h, heads or 3) + (1 - g) * rung
        else:
            h = _side_block(p, f"blocks.{i}", g * h + (1 - g) * rung, heads or 3)
    y = F.layer_norm(h, (12,), p["norm.weight"], p["norm.bias"], 1e-6) @ p["up.weight"].T + p["up.bias"]
    y = y[:, 0] if pooling == "token" else y[:, 1:].mean(1)
    if merge_last:
        g = torch.sigmoid(p["last"] / 0.1)
        y = g * y + (1 - g) * frozen
    assert torch.allclose(tuned.features(images), y, atol=1e-4)


@pytest.mark.parametrize(("gate", "start", "weight"), [("learnable", 0.0, 0.5), ("learnable", 0.3, 0.9526)])
def test_the_gate_saturates_fast(gate: str, start: float, weight: float) -> None:
    tuned = vpeft.tune(tiny_vit(), LST(gate=gate, gate_start=start), verify=False, show=False)
    assert torch.sigmoid(tuned.adapter().get_submodule("outlet.after").gates[0] / 0.1).item() == pytest.approx(
        weight, abs=1e-4
    )


def test_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, LST(), verify=False, show=False).plan()
    assert plan.trainable == 2_376_492  # printed 2.38 M
    assert plan.reach == "none"
    assert not plan.mergeable


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_nothing_of_the_trunk_is_saved_but_what_the_ladders_read(make: type) -> None:
    model = make()
    images = images_for(model)
    tuned = vpeft.tune(model, LST(), num_classes=3, show=False)
    saved = saved_by(tuned, images)
    assert sum(saved.within) == 0
    assert saved.beyond == []


@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext])
def test_stages_of_several_widths(make: type) -> None:
    model = make()
    images = images_for(model)
    tuned = vpeft.tune(model, LST(reduction=8), num_classes=3, show=False).eval()
    ladder = tuned.adapter().get_submodule("outlet.after")
    widths = [block.dim // 8 for block in tuned.description.blocks]
    assert [block.norm1.weight.shape[0] for block in ladder.blocks] == widths
    _randomise(tuned)
    one, two = tuned(images), tuned(images[:1])
    assert torch.allclose(one[:1], two, atol=1e-5)


def test_pruned_start_holds_rows_and_columns_of_the_frozen_block() -> None:
    model = tiny_vit()
    frozen = model.blocks[1].attn.qkv.weight.detach().clone(), model.blocks[1].mlp.fc1.weight.detach().clone()
    tuned = vpeft.tune(model, LST(reduction=4, init="magnitude"), show=False)
    side = tuned.adapter().get_submodule("outlet.after").blocks[1]
    for wide, narrow in zip(frozen, (side.qkv.weight, side.fc1.weight), strict=True):
        # every row of the narrow weight is a part of some row of the wide one
        inside = (narrow[:, :, None] == wide.flatten()[None, None]).any(-1)
        assert inside.all()
    power = sum(
        block.attn.qkv.weight.square().sum(0)
        + block.mlp.fc1.weight.square().sum(0)
        + block.attn.proj.weight.square().sum(1)
        + block.mlp.fc2.weight.square().sum(1)
        for block in model.blocks
    )
    channels = power.topk(12).indices.sort().values
    units = model.blocks[1].mlp.fc1.weight.square().sum(1) + model.blocks[1].mlp.fc2.weight.square().sum(0)
    chosen = units.topk(48).indices.sort().values
    assert torch.equal(side.fc1.weight, frozen[1][chosen][:, channels])


def test_fisher_start_follows_the_gradients_of_the_data(tmp_path: Path) -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4) % 3) for _ in range(2)]
    model, plain = tiny_vit(), tiny_vit()
    plain.load_state_dict(model.state_dict())
    tuned = vpeft.tune(model, LST(reduction=4, init="fisher"), num_classes=3, verify=False, show=False)
    assert tuned.head is not None
    power = {name: torch.zeros_like(value) for name, value in plain.named_parameters()}
    for images, labels in batches:  # restated on a model without anything attached
        plain.zero_grad()
        torch.nn.functional.cross_entropy(tuned.head(plain(images)), labels).backward()
        for name, value in plain.named_parameters():
            power[name] += torch.zeros_like(value) if value.grad is None else value.grad.square() / 2
    tuned.prepare(batches)
    total = sum(
        power[f"blocks.{i}.{name}.weight"].sum(axis)
        for i in range(len(model.blocks))
        for name, axis in (("attn.qkv", 0), ("mlp.fc1", 0), ("attn.proj", 1), ("mlp.fc2", 1))
    )
    assert isinstance(total, Tensor)
    channels = total.topk(12).indices.sort().values
    power_of_units = power["blocks.1.mlp.fc1.weight"].sum(1) + power["blocks.1.mlp.fc2.weight"].sum(0)
    units = power_of_units.topk(48).indices.sort().values
    side = tuned.adapter().get_submodule("outlet.after").blocks[1]
    assert torch.equal(side.fc1.weight, plain.blocks[1].mlp.fc1.weight[units][:, channels])
    assert not any(value.requires_grad for value in model.parameters())
    # other data would choose otherwise; a prepared, saved and loaded adapter keeps its start
    before = side.fc1.weight.clone()
    tuned.save(tmp_path / "a.safetensors", labels=list("abc"))
    again = vpeft.load(plain, tmp_path / "a.safetensors")
    for one in (tuned, again):
        one.prepare([(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)])
        assert torch.equal(one.adapter().get_submodule("outlet.after").blocks[1].fc1.weight, before)


def test_fisher_needs_data_and_a_head() -> None:
    tuned = vpeft.tune(tiny_vit(), LST(init="fisher"), num_classes=3, verify=False, show=False)
    with pytest.raises(NoBatches, match="given none"):
        tuned.prepare([])
    headless = vpeft.tune(tiny_vit(), LST(init="fisher"), verify=False, show=False)
    with pytest.raises(BadField, match="num_classes"):
        headless.prepare([(torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))])


def test_pruning_needs_attention() -> None:
    with pytest.raises(vpeft.MissingPlace, match="attn"):
        vpeft.tune(tiny_convnext(), LST(init="magnitude"), show=False)


@pytest.mark.parametrize("keep", [(), (0, 3)])
def test_blocks_that_do_not_exist_cannot_be_kept(keep: tuple[int, ...]) -> None:
    with pytest.raises(BadField, match="blocks are 0 to 2"):
        vpeft.tune(tiny_vit(), LST(keep=keep), show=False)


def test_heads_that_no_frozen_head_can_fill_are_refused() -> None:
    with pytest.raises(TooFewHeads, match="at least 2"):
        vpeft.tune(tiny_vit(), LST(reduction=2, heads=1, init="magnitude"), show=False)
    vpeft.tune(tiny_vit(), LST(reduction=2, heads=2, init="magnitude"), show=False)
