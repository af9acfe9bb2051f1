"""Every verb may read other places; heads read places; `query` is the frozen model's own feature of the same input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.features import Feature
from vpeft.injection.carry_out import read_for_head
from vpeft.injection.merge import CannotMerge
from vpeft.method import Method


class Plain(Method):
    make: Callable[[Backbone], list[Edit]]

    def edits(self, backbone: Backbone) -> list[Edit]:  # type: ignore[override]
        return self.make(backbone)


class Noting(nn.Module):
    """Notes what it was given, in every role that a verb has, and changes little."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.tokens = nn.Parameter(torch.randn(2, width))
        self.seen: list[Tensor] = []

    def _note(self, values: tuple[Tensor, ...]) -> None:
        self.seen = [value.detach().clone() for value in values]


class Maps(Noting):
    def forward(self, h: Tensor, *values: Tensor) -> Tensor:
        self._note(values)
        return h * self.gain


class Wraps(Noting):
    def enter(self, h: Tensor, *values: Tensor) -> Tensor:
        self._note(values)
        return h * self.gain

    def leave(self, h: Tensor) -> Tensor:
        return h


class Prompts(Noting):
    def forward(self, h: Tensor, *values: Tensor) -> Tensor:
        self._note(values)
        return self.tokens.expand(len(h), -1, -1)


class Extends(Noting):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._note(values)
        return q, k * self.gain, v


VERBS: dict[str, tuple[type[Noting], Callable[[Backbone, nn.Module, Any], Edit]]] = {
    "before": (Maps, lambda b, layer, reads: b.blocks[1].mlp.before(layer, reads=reads)),
    "after": (Maps, lambda b, layer, reads: b.blocks[1].mlp.after(layer, reads=reads)),
    "stream": (Maps, lambda b, layer, reads: b.blocks[1].stream1.after(layer, reads=reads)),
    "tap": (Maps, lambda b, layer, reads: b.blocks[1].tap(layer, reads=reads)),
    "replace": (Maps, lambda b, layer, reads: b.blocks[1].skip1.replace(layer, reads=reads)),
    "reparametrize": (Maps, lambda b, layer, reads: b.blocks[1].mlp.fc1.reparametrize(layer, reads=reads)),
    "wrap": (Wraps, lambda b, layer, reads: b.blocks[1].wrap(layer, reads=reads)),
    "insert_tokens": (Prompts, lambda b, layer, reads: b.blocks[1].insert_tokens(layer, reads=reads)),
    "extend": (Extends, lambda b, layer, reads: b.blocks[1].attn.core.extend(layer, reads=reads)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_hands_on_what_it_reads(verb: str) -> None:
    kind, place = VERBS[verb]
    model, images = tiny_vit(), images_for(tiny_vit())
    frozen = copy.deepcopy(model)
    layer = kind(48)
    method = Plain(make=lambda b: [place(b, layer, (b.blocks[0], b.embedding, b.query))])
    tuned = vpeft.tune(model, method, show=False, verify=False).eval()
    tuned(images)
    kept: list[Tensor] = []
    frozen.blocks[0].register_forward_hook(lambda _m, args, out: kept.extend([out, args[0]]))  # type: ignore[union-attr, index]
    pooled = vpeft.describe(frozen.eval()).pooled(images)
    for seen, expected in zip(layer.seen, (*kept[:2], pooled), strict=True):
        assert torch.allclose(seen, expected, atol=1e-6)
    tuned.detach()
    assert torch.equal(tuned.backbone(images), frozen(images))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuned.backbone.modules())


def test_unfreeze_reads_nothing() -> None:
    with pytest.raises(TypeError, match="reads"):
        vpeft.describe(tiny_vit()).blocks[0].unfreeze(reads=())  # type: ignore[call-arg]


def test_a_weight_that_reads_the_images_does_not_merge() -> None:
    layer = Maps(48)
    method = Plain(make=lambda b: [b.blocks[1].mlp.fc1.reparametrize(layer, reads=(b.blocks[0],))])
    tuned = vpeft.tune(tiny_vit(), method, show=False, verify=False)
    with pytest.raises(CannotMerge, match=r"blocks\.1\.mlp\.fc1: Maps reads values that depend on the images"):
        tuned.merge()


class Chooses(nn.Module):
    """Adds a map of the query to every token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, h: Tensor, query: Tensor) -> Tensor:
        return h + self.map(query)[:, None]


def choosing(backbone: Backbone) -> list[Edit]:
    return [block.after(Chooses(block.dim), reads=(backbone.query,)) for block in backbone.blocks]


def test_the_query_is_computed_once_and_only_where_it_is_read() -> None:
    model, images = tiny_vit(), images_for(tiny_vit())
    runs: list[int] = []
    model.patch_embed.register_forward_pre_hook(lambda _m, args: runs.append(len(args[0])))  # type: ignore[union-attr, operator]
    tuned = vpeft.tune(model, Plain(make=choosing), num_classes=3, show=False, name="a")
    tuned.attach(vpeft.methods.LoRA(), num_classes=3, name="b")
    runs.clear()
    tuned(images)
    assert len(runs) == 1, "this adapter reads no query"
    tuned.enable("a")
    tuned(images)
    assert len(runs) == 3
    tuned.train()
    tuned(images).sum().backward()
    weight = tuned.adapter().get_submodule("blocks.2.after").map.weight  # type: ignore[union-attr]
    assert weight.grad is not None and bool(weight.grad.any())
    with pytest.raises(vpeft.VpeftError, match="reads `query`"):
        tuned.backbone(images)
    with tuned.disable():
        tuned.backbone(images)


def test_each_image_of_a_mixed_batch_has_its_own_query() -> None:
    images = images_for(tiny_vit(), 3)
    tuned = vpeft.tune(tiny_vit(), Plain(make=choosing), num_classes=3, show=False, name="a").eval()
    tuned.attach(vpeft.methods.LoRA(), num_classes=3, name="b").eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable("a"):
            parameter.add_(torch.randn_like(parameter) * 0.3)
        with tuned.enable("a"):
            expected = tuned(images)
        out = tuned.each(images, ["b", "a", "a"])
    assert torch.allclose(out[1], expected[1], atol=1e-5) and torch.allclose(out[2], expected[2], atol=1e-5)


@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_a_head_reads_places_as_the_adapter_leaves_them(make: Callable[[], nn.Module]) -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, h: Tensor) -> Tensor:
            return h * self.gain

    model, images = make(), images_for(make())
    frozen = copy.deepcopy(model).eval()
    method = Plain(make=lambda b: [b.blocks[-1].after(Doubles())])
    tuned = vpeft.tune(model, method, show=False, verify=False).eval()
    last, stage = tuned.description.blocks[-1], tuned.description.stages[-1]
    read_for_head([last, stage, tuned.description.blocks[0]], "default", tuned._wiring)
    with tuned._pass((images,)) as now:
        tuned._pooled(images)
        found = dict(now.features)
        size = now.size
    assert size == tuple(images.shape[-2:])
    assert list(found) == [tuned.description.blocks[0].name, last.name, stage.name]
    kept: list[Tensor] = []
    vpeft.describe(frozen).blocks[-1].exit.module.register_forward_hook(lambda _m, _a, out: kept.append(out))  # type: ignore[union-attr]
    frozen(images)
    expected = kept[0].movedim(1, -1) if kept[0].dim() == 4 else kept[0]
    for name in (last.name, stage.name):
        feature = found[name]
        assert isinstance(feature, Feature)
        assert torch.allclose(feature.value, 2 * expected, atol=1e-5)
        assert feature.grid == last.grid and feature.prefix == last.prefix and feature.stride == last.stride
    assert not tuned._wiring.switch.present.features, "nothing is kept alive behind a pass"


def test_a_place_that_cannot_be_read_is_refused_for_a_head() -> None:
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(), show=False, verify=False)
    stream = tuned.description.blocks[0].stream1
    with pytest.raises(vpeft.MissingPlace, match="is no tensor that an edit could read"):
        read_for_head([stream], "default", tuned._wiring)
