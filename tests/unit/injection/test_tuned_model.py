"""The life of adapters: several side by side, switched, routed, compiled; and the errors on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import vpeft
from tests.models import images_for, tiny_convnext, tiny_vit
from tests.unit.injection.test_verbs import Dense, Plain, Tokens
from vpeft.injection.merge import CannotMerge
from vpeft.injection.switch import Shares
from vpeft.methods import AdaptFormer, LoRA, get


def three_adapters() -> vpeft.TunedModel:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=4, name="a", show=False)
    tuned.attach(AdaptFormer(bottleneck=4), name="b", num_classes=4)
    tuned.attach(LoRA(rank=3, targets=("fc1",)), name="c", num_classes=4)
    for name in "abc":
        for _, parameter in tuned.trainable(name):
            nn.init.normal_(parameter, std=0.2)
    return tuned.eval()


def test_one_adapter_for_each_sample() -> None:
    tuned, images = three_adapters(), images_for(tiny_vit(), 5)
    alone = {}
    for name in "abc":
        with tuned.enable(name):
            alone[name] = tuned(images)
    with tuned.enable("c", "a", "a", "b", "c"):
        mixed = tuned(images)
    for row, name in enumerate("caabc"):
        assert torch.allclose(mixed[row], alone[name][row], atol=1e-6)
    assert torch.equal(tuned(images), alone["c"]), "leaving the `with` brings the last adapter back"


def test_adapters_share_a_pass_where_that_is_exact() -> None:
    """Two low-rank adapters, a bottleneck and a trained norm run together, equal prompts with each other."""
    tuned, images = three_adapters(), images_for(tiny_vit(), 8)
    for name, method in (("p", get("vpt_deep")(tokens=2)), ("q", get("vpt_deep")(tokens=2)), ("n", get("ln_tune")())):
        tuned.attach(method, name=name, num_classes=4)
    tuned.attach(get("vpt_deep")(tokens=3), name="r", num_classes=4)
    tuned.eval()
    names, passes = ["a", "p", "b", "n", "q", "c", "r", "a"], list[int]()
    handle = tuned.backbone.patch_embed.register_forward_hook(lambda _, __, out: passes.append(len(out)))
    with torch.no_grad(), tuned.enable(*names):
        tuned(images)  # tries each adapter once
        passes.clear()
        mixed = tuned(images)
    handle.remove()
    assert passes == [5, 2, 1], "a, b, n, c, a; p, q; r"
    for row, name in enumerate(names):
        with torch.no_grad(), tuned.enable(name):
            assert torch.allclose(mixed[row], tuned(images)[row], atol=1e-6), name


def test_adapters_at_zero_are_not_taken_for_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go to the wrong adapter: a low-rank change that is still zero must not hide that."""
    monkeypatch.setattr(Shares, "of", _by_tokens)
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=4, name="a", show=False, verify=False).eval()
    assert tuned._routing.company(tuned, "a", images_for(tiny_vit(), 2)) == "none"


def _by_tokens(shares: Shares, *tensors: torch.Tensor) -> Iterator[tuple[str | None, list[torch.Tensor]]]:
    """As if the rows of the first adapter were everybody's."""
    for number, (name, _) in enumerate(shares.counts):
        yield name, [tensor if not number else tensor[:0] for tensor in tensors]


def test_a_trial_leaves_no_trace() -> None:
    """A graph that waits for its backward pass, modes, random numbers and parameters are as they were."""
    tuned, images = three_adapters(), images_for(tiny_vit(), 2)
    tuned.train()
    with tuned.enable("a"):
        waiting = tuned(images).sum()
    state = {key: value.clone() for key, value in tuned.state_dict().items()}
    random = torch.get_rng_state()
    assert [tuned._routing.company(tuned, name, images) for name in "ab"] == ["any", "any"]
    assert tuned.training and all(module.training for module in tuned.adapters["a"].modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(value.equal(state[key]) for key, value in tuned.state_dict().items())
    waiting.backward()


def test_routing_refuses_what_does_not_fit() -> None:
    tuned, images = three_adapters(), images_for(tiny_vit(), 3)
    with (
        tuned.enable("a", "b"),
        pytest.raises(vpeft.VpeftError, match="A batch of 3 images needs as many adapters, not 2"),
    ):
        tuned(images)
    tuned.attach(LoRA(rank=1), name="wide", num_classes=9)
    with tuned.enable("a", "wide", "a"), pytest.raises(vpeft.VpeftError, match="outputs of different shapes"):
        tuned(images)
    each = tuned.each(images, ["a", "wide", "a"])
    assert [tuple(out.shape) for out in each] == [(4,), (9,), (4,)]
    with tuned.enable("wide"):
        assert torch.allclose(each[1], tuned(images)[1], atol=1e-6)
    with pytest.raises(vpeft.VpeftError, match="no adapter 'aa'"):
        tuned.each(images, ["a", "aa", "a"])
    with pytest.raises(vpeft.VpeftError, match="no adapter 'aa'"):
        tuned.enable("aa")


def test_detaching_one_leaves_the_others() -> None:
    tuned, images = three_adapters(), images_for(tiny_vit())
    with tuned.disable():
        plain = tuned(images)
    with tuned.enable("b"):
        before = tuned(images)
    tuned.detach("a")
    tuned.detach("c")
    assert torch.equal(tuned.enable("b").__enter__()(images), before)
    assert torch.equal(tuned.detach("b")(images), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuned.backbone.modules())


def test_an_unfreezing_adapter_beside_a_hooked_one() -> None:
    """Parameters that train under one name are frozen, at their old values, under another."""
    model, images = tiny_vit(), images_for(tiny_vit())
    tuned = vpeft.tune(model, LoRA(rank=2), name="lora", show=False).eval()
    plain = tuned.features(images)
    tuned.attach(Plain(make=lambda b: [block.unfreeze() for block in b.blocks]), name="free")
    with torch.no_grad():
        for _, parameter in tuned.trainable("free"):
            parameter.add_(0.1)
    assert not torch.allclose(tuned.features(images), plain)
    with tuned.enable("lora"):
        assert torch.equal(tuned.features(images), plain)
    twin = copy.deepcopy(tuned)
    with torch.no_grad():
        next(twin.trainable("free"))[1].zero_()
    assert not torch.equal(twin.features(images), tuned.features(images))
    tuned.detach("free")
    assert torch.equal(tuned.features(images), plain)


def test_names_and_methods_are_checked() -> None:
    tuned = three_adapters()
    with pytest.raises(vpeft.VpeftError, match="'a' is taken or no usable name. There are: a, b, c"):
        tuned.attach(LoRA(), name="a")
    with pytest.raises(vpeft.VpeftError, match="no usable name"):
        tuned.attach(LoRA(), name="with.dot")
    with pytest.raises(vpeft.VpeftError, match="No method was given"):
        tuned.attach(name="d")
    with pytest.raises(vpeft.VpeftError, match=r"'lora' is none; vpeft.methods.get\('lora'\)\(\) would be one"):
        tuned.attach("lora", name="d")  # type: ignore[arg-type]
    with pytest.raises(vpeft.VpeftError, match=r"the class LoRA is none; LoRA\(\) would be one"):
        tuned.attach(LoRA, name="d")  # type: ignore[arg-type]
    with pytest.raises(vpeft.VpeftError, match="changes nothing"):
        tuned.attach(Plain(make=lambda _: []), name="d")
    with pytest.raises(vpeft.VpeftError, match=r"LoRA has no hyper-parameter 'rang'. Did you mean 'rank'"):
        LoRA(rang=3)
    with pytest.raises(vpeft.VpeftError, match=r"LoRA.rank = 0: .*greater than 0"):
        LoRA(rank=0)


def test_a_failed_attach_leaves_nothing_behind() -> None:
    tuned, images = three_adapters(), images_for(tiny_vit())
    before, keys = tuned(images), list(tuned.state_dict())

    def bad(backbone: vpeft.Backbone) -> list[object]:
        edit = backbone.blocks[0].after(Dense(48, 48))
        return [edit, backbone.blocks[0].mlp_branch.parallel(Dense(48, 48), reads=(backbone.outlet, nn.Identity()))]  # type: ignore[arg-type]

    with pytest.raises(AttributeError):
        tuned.attach(Plain(make=bad), name="d")
    assert list(tuned.state_dict()) == keys
    assert torch.equal(tuned(images), before)


def test_the_only_door_to_compile_is_compile() -> None:
    tuned, images = three_adapters(), images_for(tiny_vit())
    before = tuned(images)
    tuned.compile(fullgraph=True)
    with pytest.raises(vpeft.VpeftError, match="compiled, and hooks added afterwards would be ignored"):
        tuned.attach(LoRA(), name="late")
    tuned._decompile()
    assert torch.equal(tuned(images), before)


def test_own_classifier_is_kept_without_a_new_head() -> None:
    model, images = tiny_vit(num_classes=7), images_for(tiny_vit())
    expected = model(images)
    tuned = vpeft.tune(model, LoRA(), show=False).eval()
    assert torch.equal(tuned(images), expected)
    assert not any(key.startswith("head.") for key, _ in tuned.trainable())


def test_merging_several_kinds_at_once() -> None:
    """LoRA, a scale and a linear map before the same projection, in both orders, fold into one weight."""

    class Scale(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.g, self.t = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.g + self.t

        def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
            return self.g, self.t

    class Map(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.m, self.s = nn.Parameter(torch.randn(width, width) * 0.2), nn.Parameter(torch.randn(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.m.T + self.s

        def linear_map(self) -> tuple[torch.Tensor, torch.Tensor]:
            return self.m, self.s

    from vpeft.layers.low_rank import LowRank

    for order in (0, 1):

        def make(b: vpeft.Backbone, order: int = order) -> list[object]:
            block = b.blocks[1]
            low = LowRank(48, 48, 2)
            nn.init.normal_(low.B)
            edits = [
                block.attn.qkv.after(Scale(144)),
                block.attn.q.parallel(low),
                block.norm1.after(Map(48)),
                block.attn.before(Map(48)),
                block.norm1.after(Map(48)),
            ]
            return edits[::-1] if order else edits

        tuned = vpeft.tune(tiny_vit(qkv_bias=False), Plain(make=make), show=False).eval()
        images = images_for(tiny_vit())
        before = tuned.features(images)
        tuned.merge()
        assert torch.allclose(tuned.features(images), before, atol=2e-5), order
        tuned.unmerge()
        assert tuned.backbone.blocks[1].attn.qkv.bias is None
        assert torch.equal(tuned.features(images), before)


def test_a_merged_adapter_is_merged_for_itself_alone() -> None:
    """Another adapter, or none, runs on the frozen weights; back again, on the merged ones."""
    images = images_for(tiny_vit())
    tuned = vpeft.tune(tiny_vit(qkv_bias=False), LoRA(rank=2), num_classes=4, name="a", show=False)
    tuned.attach(get("ssf")(), name="c", num_classes=4)  # which makes a bias where there is none
    tuned.attach(Plain(make=lambda b: [block.unfreeze() for block in b.blocks]), name="free", num_classes=4)
    for name in ("a", "c", "free"):
        for _, parameter in tuned.trainable(name):
            nn.init.normal_(parameter, 0.5, std=0.2)
    tuned.eval()
    expected = {}
    for name in ("a", "c", "free"):
        with tuned.enable(name):
            expected[name] = tuned(images)
    with tuned.disable():
        expected["none"] = tuned.features(images)
    tuned.enable("free")
    tuned.merge("c")
    merged = tuned(images)
    assert torch.allclose(merged, expected["c"], atol=1e-5)
    for name in ("a", "free"):
        with tuned.enable(name):
            assert torch.equal(tuned(images), expected[name]), name
    with tuned.disable():
        assert torch.equal(tuned.features(images), expected["none"])
    with tuned.enable("a", "c"):
        mixed = tuned(images)
    assert torch.allclose(mixed[0], expected["a"][0], atol=1e-6)
    assert torch.allclose(mixed[1], expected["c"][1], atol=1e-5)
    assert torch.equal(tuned(images), merged), "the merged weights are back"
    tuned.enable("a")
    tuned.unmerge("c")
    with tuned.enable("c"):
        assert torch.equal(tuned(images), expected["c"])


def test_a_merged_adapter_or_several_cannot_be_trained() -> None:
    tuned = three_adapters()
    images = images_for(tiny_vit(), 2)
    data = [(image, 0) for image in images]
    tuned.enable("a", "c")
    with pytest.raises(vpeft.VpeftError, match=r"Several adapters are on \(a, c\)\. Enable the one to train"):
        vpeft.fit(tuned, data, epochs=1, progress=False)
    tuned.enable("a")
    tuned.merge()
    with pytest.raises(vpeft.VpeftError, match="'a' is merged into the weights and cannot be trained"):
        vpeft.fit(tuned, data, epochs=1, progress=False)
    tuned.unmerge()
    assert vpeft.fit(tuned, data, epochs=1, progress=False).state == "done"


def test_switching_before_a_checkpointed_backward_is_refused() -> None:
    """What runs again in the backward pass would run with the other adapter, and its gradients would be wrong."""
    tuned, images = three_adapters(), images_for(tiny_vit(), 2)
    tuned.backbone.set_grad_checkpointing(True)
    tuned.train()
    with tuned.enable("a"):
        loss = tuned(images).sum()
    with pytest.raises(vpeft.VpeftError, match=r"Call backward\(\) before switching"):
        loss.backward()
    with tuned.enable("a"):
        one = tuned(images).sum()
    with tuned.enable("c"):
        both = one + tuned(images).sum()
        with pytest.raises(vpeft.VpeftError, match="another adapter or task is on"):
            both.backward()
    for name in "ac":  # one after the other, looked at in between, without gradients as with
        with tuned.enable(name):
            tuned(images).sum().backward()
            with tuned.disable():
                tuned(images)
            with torch.no_grad(), tuned.enable("b"):
                tuned(images)
            tuned(images).sum().backward()
    with tuned.enable("a"):
        tuned(images)  # a graph that nobody goes back through
    assert tuned.verify(name="c")


def test_merge_refuses_with_reasons_and_changes_nothing() -> None:
    tuned = vpeft.tune(tiny_convnext(), LoRA(targets=("fc1",)), AdaptFormer(bottleneck=2), show=False)
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    with pytest.raises(
        CannotMerge, match=r"blocks\.0\.mlp_branch: parallel with Bottleneck cannot be expressed as a weight"
    ):
        tuned.merge()
    assert all(value.equal(before[key]) for key, value in tuned.state_dict().items())


def test_frozen_batch_norm_stays_in_eval() -> None:
    model = tiny_vit()
    model.patch_embed.norm = nn.Sequential(nn.Identity())
    model.patch_embed.norm.add_module("bn", nn.BatchNorm1d(16))
    tuned = vpeft.TunedModel(vpeft.describe(model)).train()
    assert not model.patch_embed.norm.bn.training
    assert tuned.training and model.training


def test_plan_shows_folded_rows_and_totals() -> None:
    text = str(vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3, show=False).plan())
    assert "blocks.0-2.attn.q" in text
    assert "1,152 trained parameters" in text and "1,299 with the head" in text
    assert "gradients reach: full; mergeable" in text


def test_tokens_module_is_reused_by_batch_size() -> None:
    tuned = vpeft.tune(tiny_vit(), Plain(make=lambda b: [b.trunk.insert_tokens(Tokens(2, 48))]), show=False).eval()
    images = images_for(tiny_vit(), 4)
    assert torch.allclose(tuned(images)[2:3], tuned(images[2:3]), atol=1e-5)
