"""torch's MultiheadAttention with edits, against the same attention written out; no fused kernel passes them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.families import EVERY
from tests.families.torchvision_models import swin, swin_v2
from tests.models import images_for
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit as PlacedEdit
from vpeft.backbones.places import Attention
from vpeft.injection.merge import CannotMerge
from vpeft.methods import SSF, BitFit, LoRA, Method, PrefixTuning, VPTDeep

Edit = Callable[[str, Tensor], Tensor]
BLOCK = 1


def vit() -> nn.Module:
    """The same weights at each call."""
    torch.manual_seed(0)
    return EVERY["torchvision_vit"]()


def by_hand(model: nn.Module, images: Tensor, edit: Edit, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """torchvision's ViT with nothing of torch's attention but its tensors; `edit(name, values)` acts in one block."""
    x = model.conv_proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1) + model.encoder.pos_embedding
    for number, block in enumerate(model.encoder.layers):
        act = edit if number == BLOCK else lambda _name, values: values
        inner, heads = block.self_attention, block.self_attention.num_heads
        h = F.linear(block.ln_1(x), act("weight", inner.in_proj_weight), act("bias", inner.in_proj_bias))
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in act("qkv", h).chunk(3, -1))
        if number == BLOCK and prefix is not None:
            k, v = (torch.cat([more.expand(len(x), -1, -1, -1), t], 2) for more, t in zip(prefix, (k, v), strict=True))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + act("proj", F.linear(mixed, inner.out_proj.weight, inner.out_proj.bias))
        x = x + block.mlp(block.ln_2(x))
    return model.encoder.ln(x)[:, 0]


def only(tuned: vpeft.TunedModel) -> dict[str, Tensor]:
    """The adapter's tensors of one block, moved off their start; those of other blocks at rest."""
    torch.manual_seed(4)
    with torch.no_grad():
        for key, tensor in tuned.trainable():
            if f"blocks.{BLOCK}.attn" in key:
                tensor.add_(torch.randn_like(tensor) * 0.3)
            elif key.endswith("scale"):
                tensor.fill_(1.0)
            elif key.endswith(("shift", ".B")):
                tensor.zero_()
    return {
        key.split("attn.")[-1]: value for key, value in tuned.adapter_state().items() if f"blocks.{BLOCK}.attn." in key
    }


class PrefixOfOneBlock(PrefixTuning):
    """Prefixes in one block only."""

    def edits(self, backbone: Backbone) -> Iterator[PlacedEdit]:
        yield from (e for e in super().edits(backbone) if e.place.name == f"blocks.{BLOCK}.attn.core")


def _lora(t: dict[str, Tensor]) -> Edit:
    def edit(name: str, values: Tensor) -> Tensor:
        if name != "weight":
            return values
        zero = torch.zeros(48, 48)
        return values + torch.cat([t["q.parallel.B"] @ t["q.parallel.A"], zero, t["v.parallel.B"] @ t["v.parallel.A"]])

    return edit


def _ssf(t: dict[str, Tensor]) -> Edit:
    return lambda name, h: h * t[f"{name}.after.scale"] + t[f"{name}.after.shift"] if name in ("qkv", "proj") else h


@pytest.mark.parametrize(("method", "edit"), [(LoRA(rank=2), _lora), (SSF(), _ssf)], ids=["lora", "ssf"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_linear_edits_equal_the_attention_written_out(
    method: Method, edit: Callable[[dict[str, Tensor]], Edit], grad: bool
) -> None:
    """Also under no_grad in eval mode, where torch takes its fused kernel for a plain attention; and merged."""
    plain, images = vit(), images_for(vit())
    tuned = vpeft.tune(vit(), method, show=False).eval()
    act = edit(only(tuned))
    with torch.set_grad_enabled(grad):
        expected = by_hand(plain, images, act)
        assert torch.allclose(tuned(images), expected, atol=1e-5)
        assert not torch.allclose(tuned(images), plain(images), atol=1e-2)
        merged = tuned.merge()(images)
        assert torch.allclose(merged, expected, atol=1e-5)
    state = tuned.unmerge().backbone.state_dict()
    assert all(value.equal(state[key]) for key, value in vit().state_dict().items())


@torch.no_grad()
def test_prefixes_are_keys_and_values_of_the_attention() -> None:
    images = images_for(vit())
    tuned = vpeft.tune(vit(), PrefixOfOneBlock(), verify=False, show=False).eval()
    edit = tuned.adapter().edits[0]
    core = edit.place
    assert edit.layer is not None and isinstance(core, Attention)
    q = torch.zeros(1, core.heads, 17, core.head_width)
    _, k, v = edit.layer(q, q, q)
    extra = k.shape[2] - 17
    expected = by_hand(vit(), images, lambda _name, values: values, (k[:, :, :extra], v[:, :, :extra]))
    assert extra > 0 and torch.allclose(tuned(images), expected, atol=1e-5)


def test_bitfit_trains_the_joint_bias() -> None:
    images = images_for(vit())
    tuned = vpeft.tune(vit(), BitFit(), show=False).eval()
    key = f"blocks.{BLOCK}.attn.qkv.unfreeze.bias"
    shift = torch.randn(144, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dict(tuned.trainable())[key].add_(shift)
        expected = by_hand(vit(), images, lambda name, values: values + shift if name == "bias" else values)
        assert torch.allclose(tuned(images), expected, atol=1e-5)


@pytest.mark.skipif("open_clip_text" not in EVERY, reason="open_clip is not installed")
def test_prompts_keep_the_causal_mask() -> None:
    """A text's feature depends on its prompts, and on no token behind its end."""
    model = EVERY["open_clip_text"]()
    tuned = vpeft.tune(model, VPTDeep(tokens=3), show=False).eval()
    texts = images_for(model, 2)
    texts[:, 4] = 39  # the end of the text: the highest number
    texts[:, 5:] = 1
    later = texts.clone()
    later[:, 5:] = 7
    with torch.no_grad():
        before = tuned(texts)
        assert torch.allclose(tuned(later), before, atol=1e-6)
        for _, prompt in tuned.trainable():
            prompt.add_(torch.randn_like(prompt))  # not one number for all: the norm would take it out again
        assert not torch.allclose(tuned(texts), before, atol=1e-3)


@pytest.mark.parametrize("make", [swin, swin_v2])
def test_window_attention_of_torchvision_takes_lora_as_its_weight(make: Callable[[], nn.Module]) -> None:
    def again() -> nn.Module:
        torch.manual_seed(0)
        return make()

    images = images_for(again())
    tuned = vpeft.tune(again(), LoRA(rank=2, targets=("q", "k", "v", "proj")), show=False).eval()
    with torch.no_grad():
        for _, tensor in tuned.trainable():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
        expected = tuned(images)
        twin = again()
        twin.load_state_dict(tuned.merge().backbone.state_dict())
        assert torch.allclose(twin(images), expected, atol=1e-4)
        assert not torch.allclose(again()(images), expected, atol=1e-2)


def test_a_shift_of_keys_that_have_no_bias_is_not_merged() -> None:
    """Swin V2 leaves out the keys' rows of its bias: what SSF adds there has no form in the weights."""
    tuned = vpeft.tune(swin_v2(), SSF(), show=False)
    with pytest.raises(CannotMerge, match="ignores rows of the bias"):
        tuned.merge()


@pytest.mark.skipif("open_clip_text" not in EVERY, reason="open_clip is not installed")
def test_a_whole_clip_has_two_towers_and_its_text_tower_is_live() -> None:
    import open_clip

    from vpeft.backbones.families.open_clip_text import text_tower

    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
    torch.manual_seed(0)
    clip = open_clip.CLIP(24, vision, text).eval()
    assert list(vpeft.describe(clip).towers) == ["image", "text"]
    texts = vpeft.describe(text_tower(clip)).inputs.example
    before = clip.encode_text(texts(2))
    assert torch.allclose(text_tower(clip)(texts(2)), before, atol=1e-6)
    tuned = vpeft.tune(text_tower(clip), LoRA(rank=2), show=False).eval()
    with torch.no_grad():
        for _, tensor in tuned.trainable():
            tensor.add_(0.1)
    after = clip.encode_text(texts(2))
    assert torch.allclose(after, tuned(texts(2)), atol=1e-6) and not torch.allclose(after, before, atol=1e-4)
