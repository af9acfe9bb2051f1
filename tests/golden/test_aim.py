"""AIM against a restatement with plain tensors, and its counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.families.transformers_models import clip
from tests.golden.by_hand import randomise
from tests.golden.counts import trained_on_frames
from tests.models import tiny_swin, tiny_vit
from vpeft.backbones.frame_reader import FrameReader
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import AIM, LoRA

DIM = 768


def tensors(tuned: TunedModel, place: str) -> dict[str, Tensor]:
    """The trained tensors below a place."""
    return {key.removeprefix(f"{place}."): p.detach() for key, p in tuned.trainable() if key.startswith(f"{place}.")}


def adapter(own: dict[str, Tensor], v: Tensor) -> Tensor:
    hidden = F.gelu(v @ own["down.weight"].T + own["down.bias"])
    return hidden @ own["up.weight"].T + own["up.bias"]


def attention(block: nn.Module, z: Tensor) -> Tensor:
    """Plain self-attention of (B, N, D), from the weights."""
    heads = block.attn.num_heads
    qkv = z @ block.attn.qkv.weight.T + block.attn.qkv.bias
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    mixed = ((q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return mixed @ block.attn.proj.weight.T + block.attn.proj.bias


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, layer.eps)


def by_hand(model: nn.Module, tuned: TunedModel, clips: Tensor, adapters: int, scale: float) -> Tensor:
    """The feature of clips (B, C, T, H, W)."""
    batch, _, frames = clips.shape[:3]
    rows = []
    for number in range(batch):
        patch = model.patch_embed.proj
        images = clips[number].transpose(0, 1)
        x = F.conv2d(images, patch.weight, patch.bias, stride=patch.stride).flatten(2).transpose(1, 2)
        x = torch.cat([model.cls_token.expand(frames, -1, -1), x], dim=1) + model.pos_embed
        x = x + tensors(tuned, "embedding.after")["embedding"][:, None]
        for index, block in enumerate(model.blocks):
            time = tensors(tuned, f"blocks.{index}.before")
            z = norm(block.norm1, x)
            if adapters == 2:
                own = {key.removeprefix("before."): value for key, value in time.items() if key.startswith("before.")}
                z = z + adapter(own, z)
            own = {key.removeprefix("adapter."): value for key, value in time.items() if key.startswith("adapter.")}
            moved = torch.stack([attention(block, z[None, :, token])[0] for token in range(z.shape[1])], dim=1)
            x = x + adapter(own, moved)
            h = attention(block, norm(block.norm1, x))
            x = x + h + adapter(tensors(tuned, f"blocks.{index}.attn.after"), h)
            y = norm(block.norm2, x)
            beside = adapter(tensors(tuned, f"blocks.{index}.mlp.parallel.0"), y)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(y))) + scale * beside
        last = tensors(tuned, "norm.unfreeze")
        rows.append(F.layer_norm(x, (x.shape[-1],), last["weight"], last["bias"], model.norm.eps)[:, 0].mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("adapters", [1, 2])
def test_equals_a_restatement(adapters: int) -> None:
    torch.manual_seed(0)
    model, plain = tiny_vit(), tiny_vit()
    plain.load_state_dict(model.state_dict())
    method = AIM(temporal_adapters=adapters, scale=0.7)  # type: ignore[arg-type]
    tuned = vpeft.tune(FrameReader(model, 3), method, show=False).eval()
    randomise(tuned)
    clips = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(tuned.features(clips), by_hand(plain, tuned, clips, adapters, 0.7), atol=2e-4)


def test_counts() -> None:
    """The adapters are the card's; the embedding of each frame and the final norm train beside them."""
    beside = 8 * DIM + 2 * DIM
    assert trained_on_frames(AIM(), frames=8) == 10_651_392 + beside
    assert trained_on_frames(AIM(temporal_adapters=2), frames=8) == 14_201_856 + beside
    assert trained_on_frames(AIM(temporal=False), frames=8) == 10_651_392 * 2 // 3 + beside


def test_frames_see_one_another_through_attention_over_time_alone() -> None:
    for temporal in (True, False):
        tuned = vpeft.tune(FrameReader(tiny_vit(), 4), AIM(temporal=temporal), show=False).eval()
        randomise(tuned)
        clips = tuned.description.inputs.example(2)
        other = clips.clone()
        other[1, :, 0] += 1.0
        with torch.no_grad():
            before, after = (tuned.description.at_outlet(one).unflatten(0, (2, 4)) for one in (clips, other))
        assert torch.allclose(before[0], after[0], atol=1e-5)
        assert not torch.allclose(before[1, 0], after[1, 0], atol=1e-3)
        assert torch.allclose(before[1, 1:], after[1, 1:], atol=1e-5) is not temporal


def test_changes_inside_the_attention_act_over_time_as_they_do_when_they_are_merged() -> None:
    tuned = vpeft.tune(FrameReader(tiny_vit(), 3), LoRA(rank=2), show=False).eval()
    randomise(tuned)
    attn, over_time = tuned.description.blocks[1].attn, torch.randn(5, 3, 48)
    with torch.no_grad():
        before = attn.run(over_time)
        tuned.merge()
        merged = attn.run(over_time)
        tuned.unmerge()
        with tuned.disable():
            frozen = attn.run(over_time)
    assert torch.allclose(before, merged, atol=1e-5)
    assert not torch.allclose(before, frozen, atol=1e-3)


def test_another_number_of_frames_gets_interpolated_embeddings() -> None:
    tuned = vpeft.tune(FrameReader(clip(), 4), AIM(), show=False).eval()
    layer = tuned.adapter().get_submodule("embedding.after")
    with torch.no_grad():
        layer.embedding.copy_(torch.arange(4.0)[:, None].expand(4, 24))
        out = layer(torch.zeros(8, 1, 24), frames=8)[:, 0, 0]
    assert torch.equal(out.round(decimals=4), torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert tuned.features(torch.randn(1, 3, 8, 32, 32)).shape == (1, 24)


def test_windows_and_whole_clips_are_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"blocks\.0.*over time.*temporal=False"):
        vpeft.tune(FrameReader(tiny_swin(), 2), AIM(), show=False)
    assert vpeft.tune(FrameReader(tiny_swin(), 2), AIM(temporal=False), show=False).plan().trainable > 0
    with pytest.raises(vpeft.MissingPlace, match="needs clips"):
        vpeft.tune(tiny_vit(), AIM(), show=False)
