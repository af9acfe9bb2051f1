"""Convpass against its authors' numbers, with other tokens and other families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.families.video_models import frames, swin3d
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.layers.convolution import ConvolutionalBypass
from vpeft.methods import Convpass


def test_equals_the_authors_code() -> None:
    mapping = {}
    for block in range(3):
        for site in ("attn", "mlp"):
            for part in ("down", "conv", "up"):
                for kind in ("weight", "bias"):
                    key = f"blocks.{block}.adapter_{site}.adapter_{part}.{kind}"
                    mapping[f"blocks.{block}.{site}_branch.parallel.{part}.{kind}"] = lambda t, key=key: t[key]
    reproduce("convpass", "vit", Convpass(scale=0.5), mapping)


def bypass(own: dict[str, Tensor], x: Tensor, first: int, grid: tuple[int, int], scale: float) -> Tensor:
    """The formula once more, one pixel after the other."""
    q = lambda v: v * torch.sigmoid(1.702 * v)  # noqa: E731
    z = q(x @ own["down.weight"].T + own["down.bias"])
    out = torch.empty_like(z)
    height, width = grid
    for n in range(z.shape[1]):
        total = own["conv.bias"].expand(len(z), -1)
        if n < first:
            total = total + z[:, n] @ own["conv.weight"][:, :, 1, 1].T
        else:
            row, column = divmod(n - first, width)
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= row + dy < height and 0 <= column + dx < width:
                        near = z[:, first + (row + dy) * width + column + dx]
                        total = total + near @ own["conv.weight"][:, :, 1 + dy, 1 + dx].T
        out[:, n] = total
    return scale * (q(out) @ own["up.weight"].T + own["up.bias"])


def own_tensors(tuned: vpeft.TunedModel, place: str) -> dict[str, Tensor]:
    return {k.split("parallel.")[1]: p.detach() for k, p in tuned.trainable() if k.startswith(f"{place}.parallel.")}


@pytest.mark.parametrize("registers", [0, 2])
def test_block_equals_a_restatement_outside_layer_scale(registers: int) -> None:
    model = tiny_vit(init_values=0.3, reg_tokens=registers, img_size=(32, 48), dynamic_img_size=False)
    tuned = vpeft.tune(model, Convpass(hidden=4, scale=2.0), show=False)
    randomise(tuned)
    block, x = tuned.backbone.blocks[1], torch.randn(2, 1 + registers + 24, 48)
    first, grid = 1 + registers, (4, 6)
    with torch.no_grad():
        z = F.layer_norm(x, (48,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
        with tuned.disable():
            attn = block.ls1(block.attn(z))
        h = x + attn + bypass(own_tensors(tuned, "blocks.1.attn_branch"), z, first, grid, 2.0)
        z = F.layer_norm(h, (48,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
        h = h + block.ls2(block.mlp(z)) + bypass(own_tensors(tuned, "blocks.1.mlp_branch"), z, first, grid, 2.0)
        assert torch.allclose(block(x), h, atol=1e-4)


def test_swin_bypasses_see_the_whole_map_not_windows() -> None:
    tuned = vpeft.tune(tiny_swin(), Convpass(sites=("attn",), hidden=3), show=False)
    randomise(tuned)
    block, x = tuned.backbone.layers[0].blocks[1], torch.randn(2, 16, 16, 24)
    with torch.no_grad():
        z = F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
        beside = bypass(own_tensors(tuned, "blocks.1.attn_branch"), z.reshape(2, 256, 24), 0, (16, 16), 1.0)
        # what enters norm2 with and without the bypass differs by the bypass alone
        seen: list[Tensor] = []
        handle = block.norm2.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        block(x)
        with tuned.disable():
            block(x)
        handle.remove()
        assert torch.allclose(seen[0] - seen[1], beside.reshape(seen[0].shape), atol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(Convpass()) == 327_552
    assert trained(Convpass(sites=("attn",))) == 163_776
    for xavier in (False, True):
        tuned = vpeft.tune(base_vit(), Convpass(xavier=xavier), show=False)
        kernel = tuned.adapter().get_parameter("blocks.0.attn_branch.parallel.conv.weight")
        eye = torch.zeros(8, 8, 3, 3)
        eye[:, :, 1, 1] = torch.eye(8)
        assert torch.equal(kernel, eye) is not xavier


def test_bypasses_have_a_drop_path_of_their_own() -> None:
    tuned = vpeft.tune(tiny_vit(drop_path_rate=0.5), Convpass(dropout=0.0), show=False).train()
    randomise(tuned)
    layer = tuned.adapter().get_submodule("blocks.2.mlp_branch.parallel")
    assert layer.drop_path.drop_prob == 0.5
    out = layer(torch.randn(64, 17, 48), grid=(4, 4))
    dropped = (out == 0).flatten(1).all(dim=1)
    assert 10 < int(dropped.sum()) < 54


def test_attention_is_asked_for_by_name() -> None:
    with pytest.raises(vpeft.MissingPlace, match="'attn'"):
        vpeft.tune(tiny_convnext(), Convpass(), show=False)
    assert (
        vpeft.tune(tiny_convnext(), Convpass(sites=("mlp",)), show=False).features(images_for(tiny_convnext())).ndim
        == 2
    )


@pytest.mark.parametrize("kind", ["frames", "clips", "maps"])
def test_over_time_the_kernel_meets_the_steps_before_and_after(kind: str) -> None:
    """A kernel whose middle step is zero mixes the neighbours in time, for all three ways in which clips come."""
    layer = ConvolutionalBypass(6, 2, time=3)
    own = {name: p.detach() for name, p in layer.named_parameters()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        layer.conv.weight[:, :, 1] = 0.0
        clips = torch.randn(2, 4, 3, 5, 6)
        if kind == "frames":
            token = torch.zeros(8, 1, 6)
            rows = torch.cat([token, clips.flatten(0, 1).flatten(1, 2)], dim=1)
            out = layer(rows, grid=(3, 5), frames=4)[:, 1:].reshape(clips.shape)
        elif kind == "clips":
            out = layer(clips.flatten(1, 3), grid=(4, 3, 5), frames=1).reshape(clips.shape)
        else:
            out = layer(clips, grid=(4, 3, 5), frames=1)
        q = lambda v: v * torch.sigmoid(1.702 * v)  # noqa: E731
        z = q(clips @ own["down.weight"].T + own["down.bias"]).movedim(-1, 2)  # (B, T, h, H, W)
        none = torch.zeros_like(z[:, :1])
        before, after = torch.cat([none, z[:, :-1]], dim=1), torch.cat([z[:, 1:], none], dim=1)
        mixed = torch.stack(
            [
                F.conv2d(before[:, t], own["conv.weight"][:, :, 0], own["conv.bias"], padding=1)
                + F.conv2d(after[:, t], own["conv.weight"][:, :, 2], padding=1)
                for t in range(4)
            ],
            dim=1,
        )
        expected = q(mixed).movedim(2, -1) @ own["up.weight"].T + own["up.bias"]
    assert torch.allclose(out, expected, atol=1e-4)


def test_over_time_needs_clips() -> None:
    with pytest.raises(vpeft.MissingPlace, match="needs clips"):
        vpeft.tune(tiny_vit(), Convpass(time=3), show=False)
    for make in (frames, swin3d):
        tuned = vpeft.tune(make(), Convpass(time=3), num_classes=2, show=False)
        assert tuned(tuned.description.inputs.example(2)).shape == (2, 2)
