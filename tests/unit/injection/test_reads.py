"""What an edit may read besides its own place: inputs, slices, maps, pixels, and what earlier edits made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.methods import Method


class Note(nn.Module):
    """Keeps what it was called with; passes h on, scaled by a trained number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, h: Tensor, *values: Tensor) -> Tensor:
        self.seen = [value.detach().clone() for value in (h, *values)]
        return h * self.scale


class Count(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((), 2.0))

    def forward(self, h: Tensor, before: Tensor | None = None) -> Tensor:
        mean = h.mean(dim=tuple(range(1, h.dim() - 1))) * self.weight
        return mean if before is None else mean + before


class Prompt(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(2, width))

    def forward(self, h: Tensor) -> Tensor:
        return self.tokens.expand(h.shape[0], -1, -1)


class Reading(Method):
    which: str

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        block = backbone.blocks[1]
        if self.which == "places":
            reads = (backbone.pixels, block.input, block, block.mlp.fc1)
            yield backbone.outlet.after(Note(), reads=reads)
        if self.which == "slices":
            yield backbone.outlet.after(Note(), reads=(block.attn.k, block.attn.v))
        if self.which == "taps":
            first = backbone.blocks[0].input.tap(Count())
            second = block.tap(Count(), reads=(first,))
            yield from (first, second)
            yield backbone.at_end(Note(), reads=(first, second))
        if self.which == "end":
            yield backbone.at_end(Note(), reads=(block,))
        if self.which == "tokens":
            inserted = block.insert_tokens(Prompt(block.dim))
            yield inserted
            yield backbone.outlet.after(Note(), reads=(inserted,))
        if self.which == "unknown":
            yield block.tap(Count(), reads=(backbone.blocks[0].tap(Count()),))


def _twins(make: Callable[[], nn.Module] = tiny_vit) -> tuple[nn.Module, nn.Module]:
    model = make()
    return model, copy.deepcopy(model)


def _noted(model: nn.Module, which: str, prompt: Tensor | None = None) -> tuple[list[Tensor], vpeft.TunedModel]:
    images = images_for(model)
    tuned = vpeft.tune(model, Reading(which=which), verify=False, show=False)
    if prompt is not None:
        with torch.no_grad():
            next(m for m in tuned.adapter().modules() if isinstance(m, Prompt)).tokens.copy_(prompt)
    tuned.features(images)
    return next(m for m in tuned.adapter().modules() if isinstance(m, Note)).seen, tuned


def _seen(module: nn.Module, side: str, model: nn.Module) -> Tensor:
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, args, out: kept.append(args[0] if side == "input" else out))
    model(images_for(model))
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_reads_arrive_channels_last(make: Callable[[], nn.Module]) -> None:
    model, plain = _twins(make)
    (_, pixels, before, after, hidden), tuned = _noted(model, "places")
    block = tuned.description.blocks[1]
    twin = vpeft.describe(plain).blocks[1]
    assert torch.equal(pixels, images_for(plain).permute(0, 2, 3, 1))
    wanted = [_seen(twin.exit.module, side, plain) for side in ("input", "output")]
    if wanted[0].dim() == 4:
        wanted = [value.permute(0, 2, 3, 1) for value in wanted]
    assert torch.equal(before, wanted[0])
    assert torch.equal(after, wanted[1])
    assert hidden.shape[-1] == block.mlp.fc1.width


def test_a_slice_of_a_fused_projection_is_read_as_a_slice() -> None:
    model, plain = _twins()
    (_, k, v), _ = _noted(model, "slices")
    fused = _seen(plain.blocks[1].attn.qkv, "output", plain)
    assert torch.equal(k, fused[..., 48:96])
    assert torch.equal(v, fused[..., 96:])


def test_what_a_tap_gives_reaches_several_readers() -> None:
    model, plain = _twins()
    (h, first, second), tuned = _noted(model, "taps")
    x0, x2 = _seen(plain.blocks[0], "input", plain), _seen(plain.blocks[1], "output", plain)
    assert torch.allclose(first, 2 * x0.mean(1), atol=1e-6)
    assert torch.allclose(second, 2 * x0.mean(1) + 2 * x2.mean(1), atol=1e-5)
    assert torch.equal(h, _seen(plain.norm, "input", plain))
    assert tuned.plan().reach == "none"


def test_inserted_tokens_are_read_as_they_leave() -> None:
    prompt = torch.randn(2, 48)
    model, plain = _twins()
    (_, left), _ = _noted(model, "tokens", prompt)
    x = _seen(plain.blocks[1], "input", plain)
    joined = torch.cat([x[:, :1], prompt.expand(2, -1, -1), x[:, 1:]], dim=1)
    assert torch.allclose(left, plain.blocks[1](joined)[:, 1:3], atol=1e-5)


def test_tokens_beside_a_map_are_read_too() -> None:
    (_, left), _ = _noted(tiny_swin(), "tokens")
    assert left.shape == (2, 2, 24)


def test_reading_an_edit_that_was_not_given_is_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match="not given before"):
        vpeft.tune(tiny_vit(), Reading(which="unknown"), verify=False, show=False)


@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext])
def test_a_stage_knows_its_downsampling(make: Callable[[], nn.Module]) -> None:
    model = make()
    stages = vpeft.describe(model).stages
    assert stages[0].downsample is None
    x = _seen(stages[0].exit.module, "output", model)
    assert torch.equal(stages[1].downsample(x), _seen(stages[1].enter.module, "input", model))


@pytest.mark.parametrize("options", [{}, {"init_values": 0.3}])
def test_the_steps_of_a_branch_are_the_branch(options: dict[str, float]) -> None:
    model = tiny_vit(**options)
    block = vpeft.describe(model).blocks[0]
    x = torch.randn(2, 17, 48)
    out = x
    for branch in (block.attn_branch, block.mlp_branch):
        change = out
        for step in branch.steps:
            change = step(change)
        out = out + change
    assert torch.allclose(out, model.blocks[0](x), atol=1e-6)


@pytest.mark.parametrize("make", [tiny_vit, lambda: tiny_vit(global_pool="avg"), tiny_swin, tiny_convnext])
def test_the_end_of_the_trunk_is_before_norm_and_pooling(make: Callable[[], nn.Module]) -> None:
    model, plain = _twins(make)
    (h, *_), tuned = _noted(model, "end")
    wanted = _seen(vpeft.describe(plain).blocks[-1].exit.module, "output", plain)
    if h.shape != wanted.shape:  # a layer sees channels last
        wanted = wanted.permute(0, 2, 3, 1)
    assert torch.equal(h, wanted)
    assert tuned.plan().reach == "none"
