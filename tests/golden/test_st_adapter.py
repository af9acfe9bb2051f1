"""ST-Adapter against its authors' numbers and a restatement, one token after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import VIT_B, trained_on_frames
from tests.golden.parity import GRADIENT, OUTPUT, base_vit, vectors
from tests.models import tiny_swin, tiny_vit
from vpeft.backbones.frame_reader import FrameReader
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import STAdapter

PARTS = {"down": "fc1", "conv": "conv", "up": "fc2"}
SITES = {"before": "adapter_pre_attn", "stream1.after": "adapter_pre_mlp"}


def reference_keys() -> dict[str, str]:
    """Our trained tensors by the names that the authors' code gives them."""
    return {
        f"blocks.{block}.{ours}.{part}.{kind}": f"transformer.resblocks.{block}.{theirs}.{its}.{kind}"
        for block in range(3)
        for ours, theirs in SITES.items()
        for part, its in PARTS.items()
        for kind in ("weight", "bias")
    }


def loaded(stored: dict[str, Tensor]) -> TunedModel:
    tuned = vpeft.tune(FrameReader(base_vit(), 3), STAdapter(bottleneck=8), verify=False, show=False).eval()
    ours, keys = dict(tuned.trainable()), reference_keys()
    assert set(ours) == set(keys)
    with torch.no_grad():
        for key, theirs in keys.items():
            ours[key].copy_(stored[f"param/{theirs}"])
    return tuned


def test_equals_the_authors_code() -> None:
    stored = vectors("st_adapter")
    tuned = loaded(stored)
    last: list[Tensor] = []
    norm: nn.Module = tuned.backbone.image_model.norm
    norm.register_forward_pre_hook(lambda _m, args: last.append(args[0]))
    tuned.features(stored["input/video"])
    # the authors average the class tokens of the frames before the norm
    y = norm.forward(last[0][:, 0].unflatten(0, (2, 3)).mean(dim=1))
    assert (y - stored["y"]).abs().max() <= OUTPUT
    (y * vectors("inputs")["direction_vit"]).sum().backward()
    for key, parameter in tuned.trainable():
        expected = stored[f"grad/{reference_keys()[key]}"]
        grad = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        error = (grad - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= GRADIENT, f"gradient of {key} differs by {error:.1e} of its size"


def test_one_block_and_one_adapter_equal_the_authors_code() -> None:
    stored = vectors("st_adapter")
    tuned = loaded(stored)
    layer = tuned.adapter().get_submodule("blocks.0.before")
    found = layer(stored["input/tokens"], grid=(4, 4), frames=3)
    assert (found - stored["output/adapter_tokens"]).abs().max() <= OUTPUT
    found = tuned.backbone.image_model.blocks[0](stored["input/tokens"])
    assert (found - stored["output/block_tokens"]).abs().max() <= OUTPUT


def by_hand(own: dict[str, Tensor], clip: Tensor) -> Tensor:
    """The formula for one clip (T, H, W, D), one cell after the other."""
    kernel, out = own["conv.weight"][:, 0], clip.clone()
    z = clip @ own["down.weight"].T + own["down.bias"]
    sizes, reach = clip.shape[:3], [k // 2 for k in kernel.shape[1:]]
    for t in range(sizes[0]):
        for h in range(sizes[1]):
            for w in range(sizes[2]):
                total = own["conv.bias"].clone()
                for dt in range(-reach[0], reach[0] + 1):
                    for dh in range(-reach[1], reach[1] + 1):
                        for dw in range(-reach[2], reach[2] + 1):
                            at = (t + dt, h + dh, w + dw)
                            if all(0 <= place < size for place, size in zip(at, sizes, strict=True)):
                                total = total + z[at] * kernel[:, dt + reach[0], dh + reach[1], dw + reach[2]]
                out[t, h, w] = clip[t, h, w] + total @ own["up.weight"].T + own["up.bias"]
    return out


@pytest.mark.parametrize("kernel", ["3x1x1", "3x3x3", "1x3x3"])
def test_equals_a_restatement_for_frames_and_for_whole_clips(kernel: str) -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(FrameReader(tiny_vit(), 3), STAdapter(bottleneck=4, kernel=kernel), show=False)  # type: ignore[arg-type]
    randomise(tuned)
    layer = tuned.adapter().get_submodule("blocks.1.before")
    own = {name: p.detach() for name, p in layer.named_parameters()}
    clips = torch.randn(2, 3, 2, 5, 48)
    expected = torch.stack([by_hand(own, clip) for clip in clips])
    with torch.no_grad():
        frames = layer(clips.flatten(0, 1), grid=(2, 5), frames=3)
        assert torch.allclose(frames.unflatten(0, (2, 3)), expected, atol=1e-5)
        token = torch.randn(6, 1, 48)
        rows = layer(torch.cat([token, clips.flatten(2, 3).flatten(0, 1)], dim=1), grid=(2, 5), frames=3)
        assert torch.equal(rows[:, :1], token)
        assert torch.allclose(rows[:, 1:].unflatten(0, (2, 3)).reshape(expected.shape), expected, atol=1e-5)
        whole = layer(clips.flatten(1, 3), grid=(3, 2, 5), frames=1)
        assert torch.allclose(whole.reshape(expected.shape), expected, atol=1e-5)
        assert torch.allclose(layer(clips, grid=(3, 2, 5), frames=1), expected, atol=1e-5)


def test_counts() -> None:
    assert trained_on_frames(STAdapter(), frames=8) == 14_220_288
    assert trained_on_frames(STAdapter(sites=("mlp",)), frames=8) == 7_110_144
    assert trained_on_frames(STAdapter(blocks=6), frames=8, model=VIT_B) == 14_220_288 // 2


def test_images_are_refused_and_the_sentence_says_what_to_do() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"needs clips.*frames=8"):
        vpeft.tune(tiny_vit(), STAdapter(), show=False)


def test_frames_of_one_clip_see_one_another_and_those_of_others_do_not() -> None:
    for make in (tiny_vit, tiny_swin):
        tuned = vpeft.tune(FrameReader(make(), 4), STAdapter(bottleneck=4), num_classes=3, show=False).eval()
        randomise(tuned)
        clips = tuned.description.inputs.example(2)
        with torch.no_grad():
            before = tuned(clips)
            mixed = clips.clone()
            mixed[1] = mixed[1, :, torch.tensor([2, 0, 3, 1])]
            after = tuned(mixed)
        assert torch.allclose(after[0], before[0], atol=1e-5)
        assert not torch.allclose(after[1], before[1], atol=1e-3)  # the order of frames matters
