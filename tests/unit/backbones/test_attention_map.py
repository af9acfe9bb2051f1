"""Edits of the attention map force the step-by-step path, and without a change that path equals the fused one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.methods import Method, PrefixTuning


class Plain(nn.Module):
    """Patches nothing; counts how often each step is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q * self.factor, k, v


class Map(Plain):
    """Multiplies scores and weights, and remembers their shapes."""

    def __init__(self, on_scores: float, on_weights: float) -> None:
        super().__init__()
        self.on_scores, self.on_weights = on_scores, on_weights
        self.shapes: list[tuple[int, ...]] = []

    def scores(self, scores: Tensor) -> Tensor:
        return scores * self.on_scores

    def weights(self, weights: Tensor) -> Tensor:
        self.shapes.append(tuple(weights.shape))
        return weights * self.on_weights


class Core(Method):
    """One of the layers above in block 1."""

    on_scores: float | None = None
    on_weights: float = 1.0

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        layer = Plain() if self.on_scores is None else Map(self.on_scores, self.on_weights)
        yield backbone.blocks[1].attn.core.extend(layer)

    @property
    def starts_as_identity(self) -> bool:
        return False


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_without_a_change_the_output_is_the_same(make: type[nn.Module]) -> None:
    plain = make()
    images, before = images_for(plain), plain(images_for(plain))
    fused = vpeft.tune(copy.deepcopy(plain), Core(), show=False)
    assert torch.equal(fused.features(images), before)
    stepwise = vpeft.tune(copy.deepcopy(plain), Core(on_scores=1.0), show=False)
    assert (stepwise.features(images) - before).abs().max() <= 1e-6 * before.abs().max().clamp(min=1.0)
    for name in ("default", "other"):  # the map is asked for by the adapter that is on, and by no other
        if name == "other":
            stepwise.attach(Core(), name=name)
        layer = stepwise.adapter("default").get_submodule("blocks.1.attn.core.extend")
        assert isinstance(layer, Map)
        layer.shapes.clear()
        stepwise.features(images)
        assert len(layer.shapes) == (name == "default")


def test_shapes() -> None:
    for make, shape in ((tiny_vit, (2, 3, 17, 17)), (tiny_swin, (32, 2, 16, 16))):
        plain = make()
        tuned = vpeft.tune(plain, Core(on_scores=1.0), verify=False, show=False)
        images = torch.randn(2, 3, 32, 32)
        tuned.features(images)
        layer = tuned.adapter().get_submodule("blocks.1.attn.core.extend")
        assert isinstance(layer, Map)
        assert layer.shapes == [shape]


def test_scores_act_before_the_bias_and_weights_after_the_softmax() -> None:
    plain = tiny_swin()
    tuned = vpeft.tune(copy.deepcopy(plain), Core(on_scores=0.5, on_weights=3.0), show=False)
    block = plain.layers[0].blocks[1]
    attn = block.attn
    windows = torch.randn(16, 16, 24)
    q, k, v = attn.qkv(windows).reshape(16, 16, 3, 2, 12).permute(2, 0, 3, 1, 4)
    scores = 0.5 * (q @ k.transpose(-1, -2)) * 12**-0.5 + attn._get_rel_pos_bias() + block.attn_mask[:, None]
    out = attn.proj((3 * scores.softmax(-1) @ v).transpose(1, 2).reshape(16, 16, 24))
    assert torch.allclose(tuned.backbone.layers[0].blocks[1].attn(windows, block.attn_mask), out, atol=1e-5)


def vit_of(kind: type[nn.Module]) -> nn.Module:
    """A small timm ViT with blocks of this kind."""
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0, block_fn=kind
    ).eval()


def masks() -> list[tuple[Tensor | None, bool]]:
    torch.manual_seed(1)
    seen = torch.rand(17, 17) > 0.5
    return [(seen | torch.eye(17, dtype=torch.bool), False), (torch.randn(17, 17), False), (None, True)]


@pytest.mark.parametrize("kind", [Block, ParallelScalingBlock])
def test_masks_act_as_without_edits(kind: type[nn.Module]) -> None:
    """timm's blocks take a mask; with edits around attention that change nothing they still obey it."""
    plain = vit_of(kind)
    x = torch.randn(2, 17, 48)
    for change in (Core(), Core(on_scores=1.0)):
        tuned = vpeft.tune(copy.deepcopy(plain), change, show=False).eval()
        for mask, causal in masks():
            expected = plain.blocks[1](x, attn_mask=mask, is_causal=causal)
            found = tuned.backbone.blocks[1](x, attn_mask=mask, is_causal=causal)
            assert torch.allclose(found, expected, atol=1e-5)
            assert not torch.allclose(found, plain.blocks[1](x), atol=1e-3)


@pytest.mark.parametrize("kind", [Block, ParallelScalingBlock])
def test_further_keys_are_open_under_a_mask(kind: type[nn.Module]) -> None:
    """Prefix tuning under a mask that shows each token itself alone: the further keys and its own are left."""
    plain = vit_of(kind)
    tuned = vpeft.tune(plain, PrefixTuning(), verify=False, show=False).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn(parameter.shape))
    x, itself = torch.randn(1, 17, 48), torch.eye(17, dtype=torch.bool)
    alone = tuned.backbone.blocks[1](x, attn_mask=itself)
    other = x.clone()
    other[:, 1:] += torch.randn(16, 48)
    assert torch.allclose(tuned.backbone.blocks[1](other, attn_mask=itself)[:, 0], alone[:, 0], atol=1e-5)
    with tuned.disable():
        bare = tuned.backbone.blocks[1](x, attn_mask=itself)
    assert not torch.allclose(alone, bare, atol=1e-3)
