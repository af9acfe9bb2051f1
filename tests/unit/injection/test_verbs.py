"""Each of the ten verbs, at every place of a block that offers it, against the backbone computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import FAMILIES, images_for, tiny_swin, tiny_vit
from tests.unit.injection.restated import RESTATED, Fns
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import VERBS, Edit
from vpeft.backbones.places import Place, Projection
from vpeft.backbones.points import Layout
from vpeft.methods import Method

INDEX = 1


class Plain(Method):
    """A method for tests: what `make` returns for the backbone."""

    make: Any
    identity: bool = False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from self.make(backbone)

    @property
    def starts_as_identity(self) -> bool:
        return self.identity


def tuned_with(model: nn.Module, make: Callable[[Backbone], list[Edit]]) -> vpeft.TunedModel:
    return vpeft.tune(model, Plain(make=make), verify=True, show=False).eval()


class Dense(nn.Module):
    """tanh(W x + b): needs channels last, and is far from linear."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Around(nn.Module):
    """enter: x + a tanh(x), leave: x + b cos(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(1.2))

    def enter(self, x: Tensor) -> Tensor:
        return x + self.a * torch.tanh(x)

    def leave(self, x: Tensor) -> Tensor:
        return x + self.b * torch.cos(x)


class Scaled(nn.Module):
    """W -> W * s + 0.01 and any tensor alike."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(1.4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.s + 0.01


class MoreKeys(nn.Module):
    """Two further keys and values in front, and scaled queries."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(2, 1, heads, 2, width))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = self.keys.expand(2, k.shape[0], -1, -1, -1)
        return q * 1.1, torch.cat([key, k], 2), torch.cat([value, v], 2)


def _offers() -> list[Any]:
    cells = []
    for family, make in FAMILIES.items():
        block = vpeft.describe(make()).blocks[INDEX]
        for place in block.walk():
            short = place.name.removeprefix(block.name).strip(".") or "block"
            for verb in VERBS:
                if verb in place.verbs and verb not in ("tap", "unfreeze", "insert_tokens"):
                    cells.append(pytest.param(family, short, verb, id=f"{family}-{short}-{verb}"))
    return cells


def _last(layout: Layout, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` on channels last, whatever the layout."""
    if layout is not Layout.CHANNELS_FIRST:
        return fn
    return lambda h: fn(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("family", "short", "verb"), _offers())
def test_verb(family: str, short: str, verb: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    images = images_for(model)
    name = f"blocks.{INDEX}" if short == "block" else f"blocks.{INDEX}.{short}"
    place: Place = vpeft.describe(model).place(name)
    layer: Any
    fns: Fns = {}
    held: list[Tensor] = []
    inner = place.layout
    if verb in ("before", "after", "replace"):
        layer = Dense(*(2 * [place.width_in if verb == "before" else place.width]))
        side = {"before": "in", "after": "out", "replace": "skip"}[verb]
        fns[short, side] = _last(inner, layer)
    elif verb == "parallel":
        layer = Dense(place.width_in, place.width)

        def hold(h: Tensor) -> Tensor:
            held.append(h)
            return h

        # q, k and v share one input: that of the fused projection
        source = "attn.qkv" if isinstance(place, Projection) and place.rows else short
        fns[source, "in"] = hold
        fns[short, "out"] = lambda h: h + _last(inner, layer)(held[-1])
    elif verb == "wrap":
        layer = Around()
        fns[short, "in"], fns[short, "out"] = layer.enter, layer.leave
    elif verb == "reparametrize":
        layer = Scaled()
        if isinstance(place, Projection) and place.rows:
            start, stop = place.rows.start, place.rows.stop
            fns["attn.qkv", "weight"] = lambda w: torch.cat([w[:start], layer(w[start:stop]), w[stop:]])
        else:
            fns[short, "weight"] = layer
    else:
        assert verb == "extend"
        layer = MoreKeys(place.heads, place.head_width)  # type: ignore[attr-defined]
        fns[short, "qkv"] = lambda t: layer(*t)
    reference = RESTATED[family]
    tuned = tuned_with(model, lambda backbone: [getattr(backbone.place(name), verb)(layer)])
    expected = reference(model, images, INDEX, fns)
    plain = reference(model, images, INDEX, {})
    with tuned.disable():
        assert torch.allclose(tuned.features(images), plain, atol=1e-5), "the restatement itself is off"
    assert not torch.allclose(expected, plain, atol=1e-4), "this edit would not show"
    assert torch.allclose(tuned.features(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tap_sees_what_leaves_and_changes_nothing(family: str) -> None:
    class Keep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, h: Tensor) -> None:
            self.seen.append(h)

    model = FAMILIES[family]()
    images = images_for(model)
    plain, outputs, keep = model(images), [], Keep()
    backbone = vpeft.describe(model)
    block = backbone.blocks[INDEX]
    assert block.exit is not None
    handle = block.exit.module.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    tuned = vpeft.tune(backbone, Plain(make=lambda b: [b.blocks[INDEX].tap(keep)]), show=False)
    keep.seen.clear()
    outputs.clear()
    assert torch.equal(tuned.features(images), plain)
    handle.remove()
    expected = outputs[0].permute(0, 2, 3, 1) if block.layout is Layout.CHANNELS_FIRST else outputs[0]
    assert len(keep.seen) == 1 and torch.equal(keep.seen[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_pass_other_places_on(family: str) -> None:
    """`parallel` with `reads` runs beside the branch on the norm's output instead of the branch's input."""
    model = FAMILIES[family]()
    images, norm = images_for(model), "norm2"
    width = vpeft.describe(model).blocks[INDEX].width
    layer, held = Dense(width, width), []
    tuned = tuned_with(model, lambda b: [b.blocks[INDEX].mlp_branch.parallel(layer, reads=(b.blocks[INDEX].norm2,))])

    def hold(h: Tensor) -> Tensor:
        held.append(h)
        return h

    turn = family == "timm_convnext"
    fns: Fns = {
        (norm, "out"): hold,
        ("mlp_branch", "out"): lambda h: h + (layer(held[-1]).permute(0, 3, 1, 2) if turn else layer(held[-1])),
    }
    assert torch.allclose(tuned.features(images), RESTATED[family](model, images, INDEX, fns), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_unfreeze_trains_the_named_parameters_alone(family: str) -> None:
    model = FAMILIES[family]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = images_for(model)
    plain = model(images)
    tuned = vpeft.tune(model, Plain(make=lambda b: [b.blocks[INDEX].norm2.unfreeze("bias")]), show=False)
    names = [key for key, _ in tuned.trainable()]
    assert names == [f"blocks.{INDEX}.norm2.unfreeze.bias"]
    with torch.no_grad():
        next(tuned.trainable())[1].add_(0.5)
    moved = [key for key, value in tuned.backbone.state_dict().items() if not value.equal(before[key])]
    assert len(moved) == 1 and moved[0].endswith("bias")
    assert not torch.allclose(tuned.features(images), plain)
    with tuned.disable():
        assert torch.equal(tuned.features(images), plain)
    assert torch.equal(tuned.detach()(images), plain)
    with pytest.raises(vpeft.MissingPlace, match=r"no parameter 'bais'. Did you mean 'bias'"):
        vpeft.describe(model).blocks[INDEX].norm2.unfreeze("bais")


class Tokens(nn.Module):
    """n learned tokens for every image."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.tokens.expand(hidden.shape[0], -1, -1)


def test_tokens_join_a_sequence_and_leave_it() -> None:
    """On a ViT, tokens at two nested spans: the trunk's travel on, the block's are gone after it."""
    model = tiny_vit(reg_tokens=2)
    images = images_for(model)
    whole, inner = Tokens(3, 48), Tokens(2, 48)
    tuned = tuned_with(model, lambda b: [b.blocks[INDEX].insert_tokens(inner), b.trunk.insert_tokens(whole)])
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    head, patches = x[:, :3], x[:, 3:]
    rows = torch.cat([head, whole.tokens.expand(2, -1, -1), patches], 1)
    for number, block in enumerate(model.blocks):
        if number == INDEX:
            rows = torch.cat([rows[:, :3], inner.tokens.expand(2, -1, -1), rows[:, 3:]], 1)
            rows = block.forward(rows)
            rows = torch.cat([rows[:, :3], rows[:, 5:]], 1)
        else:
            rows = block.forward(rows)
    with tuned.disable():
        expected = model.norm(rows)[:, 0]
    # the hand computation calls the blocks' forward, which skips their hooks only at the block itself
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


def test_pooled_tokens_take_part_in_the_mean() -> None:
    model = tiny_vit(class_token=False, global_pool="avg")
    images, tokens = images_for(model), Tokens(3, 48)
    made = Plain(make=lambda b: [b.trunk.insert_tokens(tokens, lifetime="pooled")])
    tuned = vpeft.tune(model, made, show=False).eval()
    x = model._pos_embed(model.patch_embed(images))
    x = torch.cat([tokens.tokens.expand(2, -1, -1), x], 1)
    for block in model.blocks:
        x = block.forward(x)
    assert torch.allclose(tuned.features(images), model.fc_norm(x.mean(1)), atol=1e-5)


def test_tokens_in_windows() -> None:
    """On Swin: copied into each window, no position bias, no mask, averaged over windows, merged four-fold."""
    model = tiny_swin()
    images, tokens = images_for(model), Tokens(2, 24)
    tuned = tuned_with(model, lambda b: [b.trunk.insert_tokens(tokens)])
    x = model.patch_embed.norm(model.patch_embed.proj(images).permute(0, 2, 3, 1))
    prompt = tokens.tokens.expand(2, -1, -1)
    for stage in model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            b, h, w, c = x.shape
            fourfold = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
            x = stage.downsample.reduction(stage.downsample.norm(fourfold))
            prompt = stage.downsample.reduction(stage.downsample.norm(torch.cat([prompt] * 4, -1)))
        for block in stage.blocks:
            x, prompt = _one_image_at_a_time(block, x, prompt)
    assert torch.allclose(tuned.features(images), model.norm(x).mean((1, 2)), atol=1e-5)


def _one_image_at_a_time(block: nn.Module, x: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """A Swin block on one image and one window after the other, so that nothing can mix."""
    (size, _), shift, attn = block.window_size, block.shift_size[0], block.attn
    table = attn.relative_position_bias_table[attn.relative_position_index.flatten()]
    bias = table.reshape(size * size, size * size, -1).permute(2, 0, 1)
    maps, prompts = [], []
    for image, own in zip(x, prompt, strict=True):
        height, width, channels = image.shape
        n = len(own)
        normed = torch.roll(block.norm1.forward(image), (-shift, -shift), (0, 1))
        out, gathered, number = torch.empty_like(normed), [], 0
        for top in range(0, height, size):
            for left in range(0, width, size):
                window = normed[top : top + size, left : left + size].reshape(-1, channels)
                rows = torch.cat([block.norm1.forward(own), window])
                q, k, v = attn.qkv(rows).reshape(len(rows), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
                scores = q @ k.transpose(-2, -1) * attn.scale
                scores[:, n:, n:] += bias
                if block.attn_mask is not None:
                    scores[:, n:, n:] += block.attn_mask[number]
                mixed = attn.proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(rows), channels))
                gathered.append(mixed[:n])
                out[top : top + size, left : left + size] = mixed[n:].reshape(size, size, channels)
                number += 1
        image = image + torch.roll(out, (shift, shift), (0, 1))
        own = own + torch.stack(gathered).mean(0)
        rows = torch.cat([own, image.reshape(-1, channels)])
        rows = rows + block.mlp.forward(block.norm2.forward(rows))
        prompts.append(rows[:n])
        maps.append(rows[n:].reshape(height, width, channels))
    return torch.stack(maps), torch.stack(prompts)
