"""NOAH against the authors' numbers (sub-network and supernet), its counts, its draws and its search."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden import parity
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.layers.elastic import Genes
from vpeft.method import BadField
from vpeft.methods import NOAH
from vpeft.methods.noah import NothingFits, draw, parameters_of, search_genes, table_of

GENES: Genes = ((3, 5, 2), (4, 2, 3), (6, 3, 5))  # of the stored vectors


def _mapping() -> dict[str, tuple[str, int | None, int]]:
    """Our names to the reference's, with the axis that is elastic and the index into GENES."""
    names: dict[str, tuple[str, int | None, int]] = {}
    for i in range(3):
        block = f"blocks.{i}"
        names[f"{block}.wrap.tokens"] = (f"{block}.visual_prompt_token", 0, 0)
        names[f"{block}.attn.qkv.parallel.A"] = (f"{block}.attn.LoRA_a.weight", 0, 1)
        names[f"{block}.attn.qkv.parallel.B"] = (f"{block}.attn.LoRA_b.weight", 1, 1)
        adapter = f"{block}.mlp_branch.after"
        names[f"{adapter}.down.weight"] = (f"{block}.adapter.ln1.weight", 0, 2)
        names[f"{adapter}.down.bias"] = (f"{block}.adapter.ln1.bias", 0, 2)
        names[f"{adapter}.up.weight"] = (f"{block}.adapter.ln2.weight", 1, 2)
        names[f"{adapter}.up.bias"] = (f"{block}.adapter.ln2.bias", None, 2)
    return names


def test_a_subnetwork_equals_the_authors_code() -> None:
    def take(theirs: str, axis: int | None, kind: int, block: int) -> parity.Take:
        def pick(tensors: dict[str, Tensor]) -> Tensor:
            value = tensors[theirs]
            value = value[0] if value.dim() == 3 else value
            return value if axis is None else value.narrow(axis, 0, GENES[kind][block])

        return pick

    mapping = {ours: take(*entry, block=int(ours.split(".")[1])) for ours, entry in _mapping().items()}
    parity.reproduce("noah", "vit", NOAH().with_genes(GENES), mapping)


def test_the_supernet_at_these_widths_equals_it_too() -> None:
    stored = parity.vectors("noah")
    tuned = vpeft.tune(parity.base_vit(), NOAH(width=7, choices=(1, 5)), verify=False, show=False).eval()
    ours = dict(tuned.trainable())
    with torch.no_grad():
        for key, (theirs, axis, _) in _mapping().items():
            value = stored[f"param/{theirs}"]
            value = value[0] if value.dim() == 3 else value
            target = ours[key] if axis is None else ours[key].narrow(axis, 0, value.shape[axis])
            target.copy_(value)
    inputs = load_file(parity.VECTORS / "inputs.safetensors")
    table_of(tuned).tried = GENES
    y = tuned.features(inputs["x"])
    assert (y - stored["y"]).abs().max() <= parity.OUTPUT
    (y * inputs["direction_vit"]).sum().backward()
    for key, (theirs, axis, _) in _mapping().items():
        expected = stored[f"grad/{theirs}"]
        expected = expected[0] if expected.dim() == 3 else expected
        found = ours[key].grad if axis is None else ours[key].grad.narrow(axis, 0, expected.shape[axis])
        assert (found - expected).abs().max() <= parity.GRADIENT * expected.abs().max(), key
        assert ours[key].grad.abs().sum() == pytest.approx(found.abs().sum())  # the rest gets none


def test_where_there_are_no_prompts_the_last_ones_travel_on() -> None:
    model = tiny_vit(depth=4)
    images = images_for(model)
    genes: Genes = ((2, 3, 0, 0), (0, 0, 0, 0), (0, 4, 0, 0))
    tuned = vpeft.tune(model, NOAH().with_genes(genes), show=False).eval()
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.3)
    p = {key: value.detach() for key, value in tuned.trainable()}
    assert sorted(p) == sorted(
        ["blocks.0.wrap.tokens", "blocks.1.wrap.tokens"]
        + [f"blocks.1.mlp_branch.after.{n}.{k}" for n in ("down", "up") for k in ("weight", "bias")]
    )
    with tuned.disable(), torch.no_grad():
        x = model._pos_embed(model.patch_embed(images))
        for i, block in enumerate(model.blocks):
            if i < 2:  # at the END of the sequence, as the authors have it
                x = torch.cat([x[:, :17], p[f"blocks.{i}.wrap.tokens"].expand(2, -1, -1)], dim=1)
            x = x + block.attn(block.norm1(x))
            h = block.mlp(block.norm2(x))
            if i == 1:
                key = "blocks.1.mlp_branch.after"
                hidden = h @ p[f"{key}.down.weight"].T + p[f"{key}.down.bias"]
                hidden = hidden * torch.sigmoid(1.702 * hidden)
                h = h + F.linear(hidden, p[f"{key}.up.weight"], p[f"{key}.up.bias"])
            x = x + h
        assert x.shape[1] == 17 + 3
        expected = model.norm(x)[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


def test_counts_are_what_takes_part() -> None:
    genes: Genes = ((5, 10, 1) * 4, (1, 5, 10) * 4, (10, 1, 5) * 4)
    formula = sum(v * 768 + 4 * 768 * a + 2 * 768 * b + b + 768 for v, a, b in zip(*genes, strict=True))
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, NOAH().with_genes(genes), verify=False, show=False).plan()
    assert plan.trainable == parameters_of(genes, 768) == formula
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    whole = vpeft.tune(model, NOAH(), verify=False, show=False).plan()
    assert whole.trainable == 12 * (100 * 768 + 4 * 768 * 100 + 2 * 768 * 100 + 100 + 768)


def test_published_start() -> None:
    tuned = vpeft.tune(tiny_vit(), NOAH(), verify=False, show=False)
    block = tuned.adapter().get_submodule("blocks.0")
    assert block.attn.qkv.parallel.B.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp_branch.after.up.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.wrap.tokens.std().item() == pytest.approx((2 / (101 * 48)) ** 0.5, rel=0.1)
    zero = vpeft.tune(tiny_vit(), NOAH(init="zero"), verify=False, show=False).adapter().get_submodule("blocks.0")
    assert zero.attn.qkv.parallel.B.abs().sum() == zero.mlp_branch.after.up.weight.abs().sum() == 0


def test_draws_are_uniform_over_depths_and_widths() -> None:
    random, method = Random(0), NOAH()
    drawn = [draw(method, 12, random) for _ in range(2000)]
    depths = Counter(sum(1 for d in genes[1] if d) for genes in drawn)
    assert set(depths) == {3, 6, 9, 12}
    assert max(depths.values()) / min(depths.values()) < 1.3
    assert set(Counter(genes[2][0] for genes in drawn)) == {1, 5, 10}


def test_training_draws_and_evaluation_rests() -> None:
    model = tiny_vit()
    images = images_for(model)
    tuned = vpeft.tune(model, NOAH(dropout=0.0), num_classes=3, show=False)
    resting = tuned.eval()(images)
    tuned.advance(0.25)
    assert torch.equal(tuned.eval()(images), resting)
    drawn = tuned.train()(images)
    assert not torch.equal(drawn, resting)
    tuned.advance(0.5)
    assert not torch.equal(tuned(images), drawn)
    tuned.advance(0.25)  # the same share of training draws the same, on any process and after a resumed run
    assert torch.equal(tuned(images), drawn)


def test_a_chosen_subnetwork_survives_saving(tmp_path: Path) -> None:
    model = tiny_vit()
    images, state = images_for(model), {k: v.clone() for k, v in model.state_dict().items()}
    tuned = vpeft.tune(model, NOAH().with_genes(((5, 1, 0), (0, 1, 5), (1, 0, 0))), num_classes=3, show=False).eval()
    base = tiny_vit()
    base.load_state_dict(state)
    again = vpeft.load(base, tuned.save(tmp_path / "a.safetensors")).eval()
    assert again.methods()[0].genes == ((5, 1, 0), (0, 1, 5), (1, 0, 0))
    assert torch.equal(again(images), tuned(images))


@pytest.mark.parametrize("resample", [False, True])
def test_search_finds_what_scores_best_within_the_budget(resample: bool) -> None:
    tuned = vpeft.tune(tiny_vit(), NOAH(depths=(1, 2, 3)), num_classes=3, show=False).eval()
    calls: list[Genes] = []

    def score(model: vpeft.TunedModel) -> float:
        genes = table_of(model).tried
        assert genes is not None
        calls.append(genes)
        return float(sum(genes[1]) - sum(genes[0]) - sum(genes[2]))  # wants much LoRA and nothing else

    found = search_genes(tuned, score, limit=4 * 48 * 30 + 9_000, rounds=12, seed=1, resample=resample)
    assert len(calls) == len(set(calls)) == len(found)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert all(c.parameters == parameters_of(c.genes, 48) <= 4 * 48 * 30 + 9_000 for c in found)
    drawn = [sum(g[1]) - sum(g[0]) - sum(g[2]) for g in calls[:50]]
    assert found[0].score > max(drawn)  # evolution gets beyond the first population
    assert table_of(tuned).tried is None
    plan = vpeft.tune(tiny_vit(), NOAH().with_genes(found[0].genes), verify=False, show=False).plan()
    assert plan.trainable == found[0].parameters


def test_an_impossible_budget_says_so() -> None:
    tuned = vpeft.tune(tiny_vit(), NOAH(), num_classes=3, verify=False, show=False)
    with pytest.raises(NothingFits, match="at most 10 parameters"):
        search_genes(tuned, lambda _: 0.0, limit=10)


def test_the_lora_part_merges() -> None:
    tuned = vpeft.tune(tiny_vit(), NOAH().with_genes(((0,) * 3, (5, 0, 2), (0,) * 3)), show=False).eval()
    images = torch.randn(2, 3, 32, 32)
    before = tuned.features(images)
    assert torch.allclose(tuned.merge().features(images), before, atol=1e-5)


def test_bad_fields_are_refused() -> None:
    with pytest.raises(BadField, match="together"):
        vpeft.tune(tiny_vit(), NOAH(lora=(1, 1, 1)), show=False)
    with pytest.raises(BadField, match="3 blocks"):
        vpeft.tune(tiny_vit(), NOAH().with_genes(((1,), (1,), (1,))), show=False)
    with pytest.raises(BadField, match="only 8 rows"):
        vpeft.tune(tiny_vit(), NOAH(width=8), show=False)
    with pytest.raises(vpeft.MissingPlace, match="plain sequence"):
        vpeft.tune(tiny_swin(), NOAH(), show=False)
