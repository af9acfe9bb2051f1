"""VPT-Shallow and VPT-Deep against the authors' numbers, restatements, and the paper's counts."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn

import vpeft
from tests.golden.parity import reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from tests.unit.backbones.test_swin_tokens import windows_of_one_image
from vpeft.methods import Method, VPTDeep, VPTShallow


def test_shallow_equals_the_authors_code() -> None:
    mapping = {"trunk.insert_tokens.tokens": lambda t: t["transformer.prompt_embeddings"]}
    reproduce("vpt_shallow", "vit", VPTShallow(tokens=5), mapping)


def test_deep_equals_the_authors_code() -> None:
    mapping = {"blocks.0.insert_tokens.tokens": lambda t: t["transformer.prompt_embeddings"]}
    for i in (1, 2):
        mapping[f"blocks.{i}.insert_tokens.tokens"] = lambda t, i=i: t["transformer.deep_prompt_embeddings"][i - 1]
    reproduce("vpt_deep", "vit", VPTDeep(tokens=5), mapping)


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("project", [None, 7])
def test_deep_equals_a_restatement_on_vit(pool: str, pooled: bool, project: int | None) -> None:
    plain = tiny_vit(global_pool=pool, fc_norm=False)
    images = images_for(plain)
    method = VPTDeep(tokens=4, pooled=pooled, project=project, blocks=(0, 2))
    tuned = vpeft.tune(copy.deepcopy(plain), method, show=False)
    state = {key: torch.nn.init.normal_(value) for key, value in tuned.trainable()}
    x = plain._pos_embed(plain.patch_embed(images))
    for index, block in enumerate(plain.blocks):
        prompts = state.get(f"blocks.{index}.insert_tokens.tokens")
        if prompts is None:
            x = block(x)
            continue
        if project is not None:
            prompts = prompts @ state["blocks.0.insert_tokens.project.weight"].T
            prompts = prompts + state["blocks.0.insert_tokens.project.bias"]
        x = block(torch.cat([x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]], dim=1))
        if index < 2 or not pooled:
            x = torch.cat([x[:, :1], x[:, 5:]], dim=1)
    x = plain.norm(x)
    expected = x[:, 1:].mean(dim=1) if pool == "avg" else x[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_deep_equals_a_restatement_on_swin(pooled: bool) -> None:
    plain = tiny_swin()
    images = images_for(plain, 3)
    tuned = vpeft.tune(copy.deepcopy(plain), VPTDeep(tokens=3, pooled=pooled), show=False)
    prompts = [torch.nn.init.normal_(value) for _, value in tuned.trainable()]
    rows = []
    for image in images:
        grid, left = plain.patch_embed(image[None])[0], iter(prompts)
        for layer in plain.layers:
            grid = layer.downsample(grid[None])[0]
            for block in layer.blocks:
                grid, own = windows_of_one_image(block, grid, next(left))
        flat = grid.reshape(-1, 48)
        rows.append(plain.norm(torch.cat([own, flat]) if pooled else flat).mean(dim=0))
    assert torch.allclose(tuned.features(images), torch.stack(rows), atol=2e-5)


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("vit_base_patch16_224", VPTShallow(tokens=100), 76_800),
        ("vit_base_patch16_224", VPTDeep(tokens=10), 92_160),
        ("vit_base_patch16_224", VPTDeep(tokens=50), 460_800),
        ("vit_base_patch16_224", VPTDeep(tokens=10, project=64), 12 * 10 * 64 + 64 * 768 + 768),
        ("swin_base_patch4_window7_224", VPTShallow(tokens=10), 1_280),
        ("swin_base_patch4_window7_224", VPTDeep(tokens=10), 120_320),
    ],
)
def test_counts(model: str, method: Method, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


@pytest.mark.parametrize(("init", "bound"), [("vpt", math.sqrt(6 / (3 * 64 + 48))), ("bench", math.sqrt(6 / 48))])
def test_start_is_uniform_in_the_papers_bound(init: str, bound: float) -> None:
    tuned = vpeft.tune(tiny_vit(), VPTShallow(tokens=200, init=init), show=False)
    ((_, tokens),) = tuned.trainable()
    assert 0.98 * bound < tokens.abs().max() <= bound
    assert abs(float(tokens.detach().std()) - bound / math.sqrt(3)) < 0.03 * bound


def test_swin_starts_every_stage_with_the_first_ones_bound() -> None:
    tuned = vpeft.tune(tiny_swin(), VPTDeep(tokens=100), show=False)
    bound = math.sqrt(6 / (3 * 4 + 24))
    assert all(0.97 * bound < tokens.abs().max() <= bound for _, tokens in tuned.trainable())


def test_dropout_is_drawn_for_each_sample_and_block() -> None:
    tuned = vpeft.tune(tiny_vit(), VPTDeep(tokens=10, dropout=0.5), show=False).train()
    layers = [tuned.adapter().get_submodule(f"blocks.{i}.insert_tokens") for i in range(3)]
    drawn = torch.cat([layer(torch.zeros(2, 1, 1)) == 0 for layer in layers])
    assert 0.4 < drawn.float().mean() < 0.6
    assert not any(torch.equal(drawn[i], drawn[j]) for i in range(6) for j in range(i))
    tuned.eval()
    assert torch.equal(layers[0](torch.zeros(2, 1, 1))[1], layers[0].tokens)


def test_gradients_stop_below_the_first_prompted_block() -> None:
    tuned = vpeft.tune(tiny_vit(), VPTDeep(tokens=2, blocks=(2,)), show=False)
    assert tuned.plan().reach == "from block 2"
    outputs: list[Tensor] = []
    tuned.backbone.blocks[1].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    tuned.features(images_for(tiny_vit())).sum().backward()
    assert not outputs[0].requires_grad


@pytest.mark.parametrize("method", [VPTShallow(tokens=2), VPTDeep(tokens=2)])
def test_a_convolutional_backbone_is_refused(method: Method) -> None:
    model: nn.Module = tiny_convnext()
    with pytest.raises(vpeft.MissingPlace, match="cannot insert_tokens"):
        vpeft.tune(model, method)
