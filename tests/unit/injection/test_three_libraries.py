"""One adapter, three libraries: made on timm's ViT, loaded into torchvision's and transformers' copies of its weights.

The conversion of the weights stands here in full: that two models hold the same weights is a fact of this test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.injection.adapter_file import BadAdapterFile
from vpeft.injection.other_layout import relaid
from vpeft.methods import SSF, AdaptFormer, BitFit, LoRA, Method, PrefixTuning, VPTDeep

WIDTH, DEPTH, HEADS = 48, 3, 4
METHODS = {
    "lora": LoRA(rank=2),
    "lora on every projection": LoRA(rank=2, targets=("all",)),
    "ssf": SSF(),
    "adaptformer": AdaptFormer(bottleneck=4),
    "vpt_deep": VPTDeep(tokens=3),
    "prefix_tuning": PrefixTuning(),
    "bitfit": BitFit(),
}


def timm_model() -> nn.Module:
    torch.manual_seed(5)
    return tiny_vit(num_heads=HEADS)


def torchvision_model() -> nn.Module:
    """torchvision keeps the three projections in one matrix, as timm does, inside torch's attention."""
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, 4 * WIDTH)
    model.heads = nn.Identity()
    source = timm_model().state_dict()
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.ln": "norm",
    }
    for i in range(DEPTH):
        ours, theirs = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
        names |= {
            f"{ours}.ln_1": f"{theirs}.norm1",
            f"{ours}.ln_2": f"{theirs}.norm2",
            f"{ours}.self_attention.out_proj": f"{theirs}.attn.proj",
            f"{ours}.self_attention.in_proj_weight": f"{theirs}.attn.qkv.weight",
            f"{ours}.self_attention.in_proj_bias": f"{theirs}.attn.qkv.bias",
            f"{ours}.mlp.0": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.3": f"{theirs}.mlp.fc2",
        }
    return _filled(model, names, source)


def transformers_model() -> nn.Module:
    """transformers has a projection each for q, k and v: the rows of timm's, one third after the other."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False)
    source = timm_model().state_dict()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    own = model.state_dict()
    layers = sorted({key.split(".0.")[0] for key in own if ".0." in key and "layer" in key}, key=len)[0]
    for i in range(DEPTH):
        theirs = f"blocks.{i}"
        for kind in ("weight", "bias"):
            parts = source[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            source |= {f"{theirs}.{letter}.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        for key in (key.rpartition(".")[0] for key in own if key.startswith(f"{layers}.{i}.")):
            names[key] = f"{theirs}.{_role(key.removeprefix(f'{layers}.{i}.'))}"
    return _filled(model, names, source)


def _role(key: str) -> str:
    """timm's name of a layer inside a block, by what the layer's own name says."""
    roles = {
        "q": ("query", "q_proj"),
        "k": ("key", "k_proj"),
        "v": ("value", "v_proj"),
        "attn.proj": ("attention.output.dense", "o_proj"),
        "mlp.fc1": ("intermediate.dense", "fc1"),
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "mlp.fc2": ("output.dense", "fc2"),
    }
    return next(role for role, ends in roles.items() if any(key.endswith(end) for end in ends))


def _filled(model: nn.Module, names: dict[str, str], source: dict[str, Tensor]) -> nn.Module:
    """`model` with the tensors of `source` under the names of whole tensors or of modules; every one must be there."""
    state = {}
    for key in model.state_dict():
        module, _, kind = key.rpartition(".")
        state[key] = source[names[key]] if key in names else source[f"{names[module]}.{kind}"]
    model.load_state_dict(state)
    return model.eval()


TWINS = {"torchvision": torchvision_model, "transformers": transformers_model}


def trained(method: Method) -> vpeft.TunedModel:
    torch.manual_seed(2)
    tuned = vpeft.tune(timm_model(), method, num_classes=5, show=False).eval()
    with torch.no_grad():
        for parameter in dict(tuned.trainable()).values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tuned


@pytest.mark.parametrize("library", TWINS)
@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_gives_the_same_outputs_in_another_library(name: str, library: str, tmp_path: Path) -> None:
    tuned, twin = trained(METHODS[name]), TWINS[library]()
    images = images_for(timm_model(), 3)
    with tuned.disable():
        assert torch.allclose(tuned.features(images), vpeft.describe(twin).pooled(images), atol=1e-5)
    path = tuned.save(tmp_path / "a.safetensors", labels=list("abcde"))
    there = vpeft.load(twin, path, other_library=True).eval()
    expected = tuned(images)
    assert (there(images) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)
    assert there.plan().trainable >= tuned.plan().trainable
    again = there.save(tmp_path / "b.safetensors", labels=list("abcde"))
    back = vpeft.load(timm_model(), again, other_library=True).eval()
    assert (back(images) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)
    before, after = tuned.adapter_state(), back.adapter_state()
    assert before.keys() == after.keys() and all(value.equal(after[key]) for key, value in before.items())


def test_another_layout_is_taken_only_when_asked_and_only_for_the_same_weights(tmp_path: Path) -> None:
    path = trained(LoRA(rank=2)).save(tmp_path / "a.safetensors")
    with pytest.raises(BadAdapterFile, match="as torchvision lays them out, pass other_library=True"):
        vpeft.load(torchvision_model(), path)
    with pytest.raises(BadAdapterFile, match="check=False forbids it"):
        vpeft.load(torchvision_model(), path, other_library=True, check=False)
    other = torchvision_model()
    with torch.no_grad():
        other.encoder.layers[1].mlp[0].bias[3] += 0.05
    with pytest.raises(BadAdapterFile, match="does not hold the same weights: its features .* differ by"):
        vpeft.load(other, path, other_library=True)
    torch.manual_seed(6)
    with pytest.raises(BadAdapterFile, match="with weights") as refused:
        vpeft.load(tiny_vit(num_heads=HEADS), path, other_library=True)
    assert "other_library" not in str(refused.value), "the same library with other weights is never another layout"


def test_three_unequal_shared_factors_do_not_join() -> None:
    three = {f"blocks.0.attn.{letter}.parallel.A": torch.full((2, 4), float(i)) for i, letter in enumerate("qkv")}
    own = {"blocks.0.attn.qkv.parallel.A": torch.zeros(2, 4)}
    assert relaid(three, own).keys() == three.keys()
