"""ViT-Adapter against a restatement with plain tensors, transformers' deformable attention, and its derived count."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

import vpeft
from tests.golden.counts import trained
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from vpeft.backbones.points import MissingPlace
from vpeft.layers.deformable_attention import DeformableAttention, cell_centres
from vpeft.method import BadField
from vpeft.methods.vit_adapter import ViTAdapter
from vpeft.tasks.semantic_segmentation import SemanticSegmentation

SIZE = (64, 96)
State = dict[str, Tensor]


def _rough(tuned: vpeft.TunedModel) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in tuned.adapter_state().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=draw) * 0.1)


def _attention(state: State, prefix: str, q: Tensor, centres: Tensor, maps: list[Tensor], heads: int) -> Tensor:
    """With transformers' sampling. q (B, N, D), maps (B, h, w, D)."""
    part = {
        key: state[f"{prefix}.{key}"] for key in ("offsets.weight", "offsets.bias", "weights.weight", "value.weight")
    }
    batch, count, width = q.shape
    levels, sizes = len(maps), [tuple(one.shape[1:3]) for one in maps]
    tokens = torch.cat([one.flatten(1, 2) for one in maps], dim=1)
    value = F.linear(tokens, part["value.weight"], state[f"{prefix}.value.bias"]).reshape(
        batch, -1, heads, width // heads
    )
    offsets = F.linear(q, part["offsets.weight"], part["offsets.bias"]).reshape(batch, count, heads, levels, 4, 2)
    weights = F.linear(q, part["weights.weight"], state[f"{prefix}.weights.bias"]).reshape(
        batch, count, heads, levels * 4
    )
    weights = weights.softmax(-1).reshape(batch, count, heads, levels, 4)
    cells = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32)
    at = centres[None, :, None, None, None] + offsets / cells[None, None, None, :, None]
    mixed = MultiScaleDeformableAttention()(value, torch.tensor(sizes), sizes, torch.zeros(levels), at, weights, 64)
    return F.linear(mixed, state[f"{prefix}.out.weight"], state[f"{prefix}.out.bias"])


def _norm(state: State, prefix: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{prefix}.weight"], state[f"{prefix}.bias"], eps=1e-6)


def _conv(state: State, prefix: str, number: int, x: Tensor, stride: int) -> Tensor:
    x = F.conv2d(x, state[f"{prefix}.{number}.weight"], stride=stride, padding=1)
    return F.relu(_batch_norm(state, f"{prefix}.{number + 1}", x))


def _batch_norm(state: State, prefix: str, x: Tensor) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{prefix}.{name}"] for name in names))


def _centres(height: int, width: int) -> Tensor:
    return torch.tensor([((x + 0.5) / width, (y + 0.5) / height) for y, x in product(range(height), range(width))])


def _restated(model: Any, state: State, images: Tensor, heads: int) -> tuple[list[Tensor], Tensor]:
    """The levels (B, D, h, w), and the tokens that the frozen ViT's final norm gives."""
    stem = "pixels.tap"
    x = images
    for number, stride in ((0, 2), (3, 1), (6, 1)):
        x = _conv(state, f"{stem}.stem", number, x, stride)
    maps = [F.max_pool2d(x, 3, 2, 1)]
    for number in range(3):
        maps.append(_conv(state, f"{stem}.down.{number}", 0, maps[-1], 2))
    c = [
        F.conv2d(one, state[f"{stem}.out.{n}.weight"], state[f"{stem}.out.{n}.bias"]).permute(0, 2, 3, 1)
        for n, one in enumerate(maps)
    ]
    c = [c[0], *(one + level for one, level in zip(c[1:], state[f"{stem}.level"], strict=True))]
    x = model._pos_embed(model.patch_embed(images))
    height, width = images.shape[2] // 8, images.shape[3] // 8
    groups = []
    for number, block in enumerate(model.blocks):
        prefix = f"blocks.{number}.before"
        normed = [_norm(state, f"{prefix}.norm_maps", one) for one in c[1:]]
        query = _norm(state, f"{prefix}.norm", x[:, 1:])
        seen = _attention(state, f"{prefix}.attention", query, _centres(height, width), normed, heads)
        x = torch.cat((x[:, :1], x[:, 1:] + state[f"{prefix}.gamma"] * seen), dim=1)
        x = block(x)
        patches = x[:, 1:].unflatten(1, (height, width))
        groups.append(patches.permute(0, 3, 1, 2))
        for step in range(3 if number == len(model.blocks) - 1 else 1):
            c = _extracted(state, f"blocks.{number}.tap.steps.{step}", c, patches, heads)
    levels = [one.permute(0, 3, 1, 2) for one in c]
    up, bias = state["outlet.after.up.weight"], state["outlet.after.up.bias"]
    levels[0] = levels[0] + F.conv_transpose2d(levels[1], up, bias, stride=2)
    for number, group in enumerate((0, 0, 1, 2)):
        size = levels[number].shape[2:]
        resized = F.interpolate(groups[group], size, mode="bilinear", align_corners=False)
        levels[number] = _batch_norm(state, f"outlet.after.norms.{number}", levels[number] + resized)
    return levels, model.norm(x)


def _extracted(state: State, prefix: str, c: list[Tensor], patches: Tensor, heads: int) -> list[Tensor]:
    sizes = [tuple(one.shape[1:3]) for one in c[1:]]
    counts = [h * w for h, w in sizes]
    tokens = torch.cat([one.flatten(1, 2) for one in c[1:]], dim=1)
    centres = torch.cat([_centres(*size) for size in sizes])
    normed = [_norm(state, f"{prefix}.norm_patches", patches)]
    query = _norm(state, f"{prefix}.norm", tokens)
    tokens = tokens + _attention(state, f"{prefix}.attention", query, centres, normed, heads)
    hidden = F.linear(
        _norm(state, f"{prefix}.norm_ffn", tokens), state[f"{prefix}.fc1.weight"], state[f"{prefix}.fc1.bias"]
    )
    mixed = []
    for part, size in zip(hidden.split(counts, dim=1), sizes, strict=True):
        laid = part.transpose(1, 2).unflatten(2, size)
        weight, bias = state[f"{prefix}.mix.weight"], state[f"{prefix}.mix.bias"]
        mixed.append(F.conv2d(laid, weight, bias, padding=1, groups=len(weight)).flatten(2).transpose(1, 2))
    hidden = F.gelu(torch.cat(mixed, dim=1))
    tokens = tokens + F.linear(hidden, state[f"{prefix}.fc2.weight"], state[f"{prefix}.fc2.bias"])
    laid = [part.unflatten(1, size) for part, size in zip(tokens.split(counts, dim=1), sizes, strict=True)]
    return [c[0], *laid]


def test_equals_a_plain_restatement() -> None:
    model = tiny_vit(dynamic_img_size=True)
    task = SemanticSegmentation(labels=("a", "b"), head="segformer_map(channels=8)")
    tuned = vpeft.tune(model, ViTAdapter(gamma=0.3), task=task, verify=False).eval()
    _rough(tuned)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    state = {key: value for key, value in tuned.adapter_state().items() if not key.startswith("head.")}
    with torch.no_grad():
        outputs, found = tuned(images), tuned.features(images)
        tuned.detach()
        levels, _ = _restated(model, state, images, heads=6)
    assert [tuple(one.shape[2:]) for one in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(found, torch.stack([one.mean((2, 3)) for one in levels]).mean(0), atol=1e-4, rtol=1e-4)
    assert outputs.shape == (2, 2, 16, 24)


def test_heads_read_the_levels() -> None:
    """What the decoder is given are the restated levels, under the decoder's own LayerNorms."""
    model = tiny_vit(dynamic_img_size=True)
    task = SemanticSegmentation(labels=("a", "b"), head="segformer_map(channels=8)")
    tuned = vpeft.tune(model, ViTAdapter(gamma=0.3), task=task, verify=False).eval()
    _rough(tuned)
    head: Any = tuned.head
    assert head.reads == ("levels.0", "levels.1", "levels.2", "levels.3")
    assert (head.maps.strides, head.maps.channels) == ([4, 8, 16, 32], [48] * 4)
    seen: list[Tensor] = []
    for level in head.maps.levels:
        level.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    state = dict(tuned.adapter_state())
    with torch.no_grad():
        tuned(images)
        tuned.detach()
        levels, _ = _restated(model, state, images, heads=6)
    for one, other in zip(seen, levels, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_frozen_vit_computes_what_it_did_while_gamma_is_zero() -> None:
    model = tiny_vit()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tuned = vpeft.tune(model, ViTAdapter(), num_classes=3).eval()
    found: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda *given: found.append(given[2]))  # type: ignore[union-attr]
    with torch.no_grad():
        tuned(images)
        with tuned.disable():
            tuned(images)
    handle.remove()
    assert torch.equal(*found)


def test_deformable_attention_at_its_start() -> None:
    """Heads look in equal angles, point k at k + 1 cells; all points weigh alike."""
    layer = DeformableAttention(8, heads=4, levels=1, points=2)
    with torch.no_grad():
        layer.value.weight.copy_(torch.eye(8))
        layer.out.weight.copy_(torch.eye(8))
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    place = torch.stack([rows, columns] * 4, dim=-1)[None]  # heads have two channels: the row and the column
    centre = cell_centres((9, 9), place)[40][None]
    found = layer(torch.zeros(1, 1, 8), centre, [place])[0, 0].reshape(4, 2)
    torch.testing.assert_close(found, torch.tensor([[4, 5.5], [5.5, 4], [4, 2.5], [2.5, 4]]), atol=1e-4, rtol=0)


def test_count_on_vit_b() -> None:
    """Derived from the published code: 4 injectors, 6 extractors, the spatial prior, the deconvolution, the norms."""
    injector, extractor, prior = 927_024, 1_004_112, 1_579_328
    assert trained(ViTAdapter()) == 4 * injector + 6 * extractor + prior + 2_304 + 2_360_064 + 6_144 == 13_680_608


@pytest.mark.parametrize(
    ("width", "heads", "found"), [(192, None, 6), (384, None, 6), (768, None, 12), (1024, None, 16), (48, 4, 4)]
)
def test_heads_of_the_published_models(width: int, heads: int | None, found: int) -> None:
    method = ViTAdapter(heads=heads)
    assert method._heads(width, 0.5 if width >= 768 else 1.0) == found


def test_refusals() -> None:
    for model in (tiny_swin(), tiny_convnext()):
        with pytest.raises(MissingPlace, match="for a plain ViT"):
            vpeft.tune(model, ViTAdapter(), num_classes=3)
    with pytest.raises(BadField, match="heads = 5 does not divide 48"):
        vpeft.tune(tiny_vit(), ViTAdapter(heads=5), num_classes=3)


@pytest.mark.parametrize("head", ["linear_map", "upernet(channels=8)", "segformer_map(channels=8)"])
def test_is_saved_with_a_head_that_reads_its_levels(head: str, tmp_path: Path) -> None:
    task = SemanticSegmentation(labels=("a", "b"), head=head)
    model = tiny_vit()
    other = deepcopy(model)
    tuned = vpeft.tune(model, ViTAdapter(), task=task)
    tuned.train()(torch.randn(3, 3, 32, 32))  # moves the running statistics
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tuned.eval()(images)
    tuned.save(tmp_path / "a.safetensors")
    again = vpeft.load(other, tmp_path / "a.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(again(images), expected)
