"""Frozen weights in eight or four bits: what is rounded, what it saves, what adapters and files make of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.models import FAMILIES, tiny_vit
from vpeft.acceleration.apply import accelerate
from vpeft.injection.adapter_file import BadAdapterFile, read_manifest
from vpeft.injection.merge import CannotMerge
from vpeft.injection.quantise import CannotQuantise, Quantised, levels, quantise
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.weights_digest import weights_digest
from vpeft.methods import get
from vpeft.training.memory import saved_bytes

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vit()


def tuned_with(name: str = "lora", family: str = "timm_vit", **fields: object) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(FAMILIES[family](), get(name)(**fields), num_classes=3, show=False, verify=False)


def quantised_linears(tuned: TunedModel) -> list[Quantised]:
    return [module for module in tuned.modules() if isinstance(module, Quantised)]


def test_the_levels_are_those_of_the_paper() -> None:
    # Printed in appendix E of QLoRA.
    stated = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302]
    stated += [0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    assert torch.allclose(levels(), torch.tensor(stated), atol=1e-6)


@pytest.mark.parametrize(("kind", "bits", "step"), [("int8", 8, 0.5 / 127), ("nf4", 4, 0.16)])
def test_each_weight_is_the_nearest_that_there_is(kind: str, bits: int, step: float) -> None:
    plain, tuned = tuned_with(), tuned_with()
    said = quantise(tuned, kind)
    assert said.startswith(f"12 frozen linear layers in {kind}: 0.3 MiB are now 0.")
    pairs = [
        (module, plain.get_submodule(key)) for key, module in tuned.named_modules() if isinstance(module, Quantised)
    ]
    assert len(pairs) == 12
    for module, was in pairs:
        weight = was.weight
        assert isinstance(weight, Tensor)
        largest = weight.abs().amax(1, keepdim=True) if kind == "int8" else weight.abs().max()
        assert bool(((module.weight - weight).abs() <= step * largest * 1.001).all())
        assert module.codes.numel() * 8 <= weight.numel() * bits + 8 * 64
        assert torch.equal(module.made(torch.float32), module.weight)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_outputs_and_gradients_are_those_of_the_rounded_weights_and_nothing_more_is_kept(kind: str) -> None:
    tuned, twin = tuned_with(rank=2).train(), tuned_with(rank=2).train()
    with torch.no_grad():
        for model in (tuned, twin):
            for number, (_, parameter) in enumerate(model.trainable()):
                generator = torch.Generator().manual_seed(number)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    quantise(tuned, kind)
    for key, module in tuned.named_modules():
        if isinstance(module, Quantised):
            twin.get_submodule(key).weight.data.copy_(module.weight)  # type: ignore[operator, union-attr]
    out, expected = tuned(IMAGES), twin(IMAGES)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for (_, one), (_, other) in zip(tuned.trainable(), twin.trainable(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert saved_bytes(tuned, IMAGES) <= saved_bytes(twin, IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tuned(IMAGES), twin(IMAGES))
        # a rounded weight is made in bf16 for the product, and not held
        assert saved_bytes(tuned, IMAGES) < saved_bytes(twin, IMAGES)


@pytest.mark.parametrize(
    ("name", "family"),
    [("bitfit", "timm_vit"), ("ssf", "timm_swin"), ("adaptformer", "timm_convnext"), ("vpt_deep", "timm_vit")],
)
def test_other_methods_learn_on_it(name: str, family: str) -> None:
    tuned = tuned_with(name, family).train()
    quantise(tuned, "nf4")
    assert quantised_linears(tuned)
    side = tuned.description.facts.image_size[0]
    tuned(torch.randn(2, 3, side, side)).square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for key, p in tuned.trainable() if not key.startswith("head"))
    made = accelerate(tuned, "auto,low_memory,recompute_blocks")
    assert any(outcome.applied for outcome in made.outcomes), made.lines()
    made.close()
    assert len(quantised_linears(copy.deepcopy(tuned))) == len(quantised_linears(tuned))


def test_a_file_says_it_and_loading_rounds_again(tmp_path: Path) -> None:
    tuned = tuned_with()
    digest = weights_digest(tuned.description, tuned)
    quantise(tuned, "int8")
    path = tuned.save(tmp_path / "a.safetensors", labels=["x", "y", "z"])
    manifest = read_manifest(path)
    assert (manifest.quantised, manifest.base_digest) == ("int8", digest)
    again = vpeft.load(backbone(), path)
    assert again.quantised == "int8" and torch.equal(again(IMAGES), tuned.eval()(IMAGES))
    whole = vpeft.load(backbone(), path, check=False)
    assert whole.quantised is None and not torch.equal(whole(IMAGES), again(IMAGES))
    whole.merge()
    other = backbone()
    nn.init.zeros_(other.blocks[0].attn.qkv.weight)  # type: ignore[union-attr, operator, arg-type, index]
    with pytest.raises(BadAdapterFile, match="was made on"):
        vpeft.load(other, path)


def test_what_cannot_be_done_is_said() -> None:
    tuned = tuned_with()
    with pytest.raises(CannotQuantise, match="There is no kind of quantisation 'int4'"):
        quantise(tuned, "int4")
    quantise(tuned, "int8")
    with pytest.raises(CannotQuantise, match="are int8 already"):
        quantise(tuned, "nf4")
    with pytest.raises(CannotMerge, match="would be lost in the rounding"):
        tuned.merge()
    with pytest.raises(vpeft.VpeftError, match="attach every adapter before quantising"):
        tuned.attach(get("bitfit")(), name="second")
    with pytest.raises(CannotQuantise, match="has no frozen linear layer"):
        quantise(tuned_with("full_finetuning"), "int8")
    merged = tuned_with()
    merged.merge()
    with pytest.raises(CannotQuantise, match="Unmerge it first"):
        quantise(merged, "int8")


def test_a_weight_that_is_read_by_hand_is_the_rounded_one() -> None:
    tuned = tuned_with()
    quantise(tuned, "nf4")
    module = quantised_linears(tuned)[0]
    x = torch.randn(3, module.in_features)
    assert torch.equal(F.linear(x, module.weight, module.bias), module(x))
