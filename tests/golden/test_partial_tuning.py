"""BitFit and LN-Tune: exactly which tensors train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import SWIN_B, trained
from tests.golden.parity import base_swin, base_vit
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import BitFit, LNTune


def live_names(tuned: vpeft.TunedModel) -> set[str]:
    return {name for name, parameter in tuned.backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_bitfit_trains_what_is_called_bias(make) -> None:  # type: ignore[no-untyped-def]
    tuned = vpeft.tune(make(), BitFit(), show=False)
    assert live_names(tuned) == {name for name, _ in make().named_parameters() if name.split(".")[-1] == "bias"}


def test_bitfit_takes_the_tables_of_positions_where_asked() -> None:
    tuned = vpeft.tune(tiny_swin(), BitFit(relative_position=True), show=False)
    assert live_names(tuned) == {name for name, _ in tiny_swin().named_parameters() if "bias" in name}


def test_bitfit_counts() -> None:
    assert trained(BitFit()) == 102_912
    assert trained(BitFit(relative_position=True), model=SWIN_B) - trained(BitFit(), model=SWIN_B) == 63_544
    assert trained(BitFit(only="query_fc1")) == 12 * (768 + 3_072)


def test_bitfit_adds_its_delta_to_each_bias() -> None:
    tuned = vpeft.tune(base_vit(), BitFit(), show=False)
    randomise(tuned)
    plain = base_vit()
    for name, parameter in tuned.trainable():
        key = name.replace(".unfreeze", "").replace("patch.", "patch_embed.proj.")
        plain.get_parameter(key).data.copy_(parameter.data)
    x = images_for(plain)
    assert torch.allclose(tuned.features(x), ViTByHand(plain)(x), atol=1e-5)
    assert not torch.allclose(tuned.features(x), base_vit()(x), atol=1e-2)


def test_the_subset_shifts_queries_and_hidden_units_only() -> None:
    tuned = vpeft.tune(base_vit(), BitFit(only="query_fc1"), show=False)
    randomise(tuned)
    delta, changes = dict(tuned.trainable()), {}
    for block in range(3):
        q = torch.cat([delta[f"blocks.{block}.attn.q.after.shift"], torch.zeros(96)])
        fc1 = delta[f"blocks.{block}.mlp.fc1.after.shift"]
        changes[f"blocks.{block}.qkv"] = lambda out, _, q=q: out + q
        changes[f"blocks.{block}.fc1"] = lambda out, _, fc1=fc1: out + fc1
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-5)
    tuned.merge()
    assert torch.allclose(tuned.features(x), expected, atol=1e-5)


def test_the_subset_is_refused_without_queries() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"attn\.q"):
        vpeft.tune(tiny_convnext(), BitFit(only="query_fc1"), show=False)


def test_missing_biases_are_made_where_asked() -> None:
    bare = vpeft.tune(tiny_vit(qkv_bias=False), BitFit(), show=False)
    given = vpeft.tune(tiny_vit(qkv_bias=False), BitFit(add_missing=True), show=False)
    added = {name for name, _ in given.trainable()} - {name for name, _ in bare.trainable()}
    assert added == {f"blocks.{block}.attn.qkv.after.shift" for block in range(3)}
    before = given.features(images_for(given.backbone))
    randomise(given)
    after = given.features(images_for(given.backbone))
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(given.merge().features(images_for(given.backbone)), after, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_vit, lambda: tiny_vit(qk_norm=True), tiny_swin, tiny_convnext])
def test_ln_tune_trains_every_norm_and_nothing_else(make) -> None:  # type: ignore[no-untyped-def]
    tuned = vpeft.tune(make(), LNTune(), show=False)
    norms = [module for module in tuned.backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert {id(p) for _, p in tuned.trainable()} == {id(p) for norm in norms for p in norm.parameters()}


def test_ln_tune_counts() -> None:
    assert trained(LNTune()) == 38_400


def test_ln_tune_changes_the_norms_output() -> None:
    tuned = vpeft.tune(base_swin(), LNTune(), show=False)
    randomise(tuned)
    plain = base_swin()
    state = plain.state_dict()
    for name, parameter in tuned.trainable():
        key = name.replace(".unfreeze", "")
        for index in range(4):
            key = key.replace(f"blocks.{index}.", f"layers.{index // 2}.blocks.{index % 2}.")
        key = key.replace("stages.1.", "layers.1.").replace("patch_norm", "patch_embed.norm")
        state[key].copy_(parameter.data)
    plain.load_state_dict(state)
    x = images_for(plain)
    assert torch.allclose(tuned.features(x), plain(x), atol=1e-6)
    assert tuned.plan().reach == "full"
