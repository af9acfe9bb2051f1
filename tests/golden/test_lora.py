"""LoRA against loralib's numbers, an independent restatement, and Hugging Face peft."""

from __future__ import annotations

import pytest
import timm
import torch

import vpeft
from tests.golden.parity import base_vit, reproduce
from tests.models import tiny_vit
from vpeft.methods import LoRA


def test_equals_the_authors_code() -> None:
    mapping = {}
    for block in range(3):
        key, D, r = f"blocks.{block}.attn.qkv", 48, 4
        for letter, part in (("q", 0), ("v", 1)):
            ours = f"blocks.{block}.attn.{letter}.parallel"
            mapping[f"{ours}.A"] = lambda t, key=key, part=part: t[f"{key}.lora_A"][part * r : (part + 1) * r]
            mapping[f"{ours}.B"] = lambda t, key=key, part=part: t[f"{key}.lora_B"][part * D : (part + 1) * D]
    reproduce("lora", "vit", LoRA(rank=4, alpha=6), mapping)


def test_equals_a_restatement_on_one_projection() -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2, alpha=6, targets=("fc2",)), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    layer = tuned.adapter().get_submodule("blocks.1.mlp.fc2.parallel")
    fc2 = tuned.backbone.blocks[1].mlp.fc2
    x = torch.randn(2, 17, 192)
    expected = x @ fc2.weight.T + fc2.bias + 3.0 * (x @ layer.A.T) @ layer.B.T
    assert torch.allclose(fc2(x), expected, atol=1e-5)


@pytest.mark.parametrize("targets", [("qkv",), ("proj", "fc1", "fc2"), ("qkv", "proj", "fc1", "fc2")])
def test_equals_hugging_face_peft(targets: tuple[str, ...]) -> None:
    peft = pytest.importorskip("peft")
    ours = vpeft.tune(base_vit(), LoRA(rank=4, alpha=8, targets=targets), show=False)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[f"blocks.*.{t}" for t in targets])
    config.target_modules = rf"blocks\.\d+\.(attn|mlp)\.({'|'.join(targets)})"
    theirs = peft.get_peft_model(base_vit(), config).eval()
    pairs = []
    for key, parameter in ours.trainable():
        name = key.replace(".parallel.", ".lora_").replace("lora_A", "lora_A.default.weight")
        name = f"base_model.model.{name.replace('lora_B', 'lora_B.default.weight')}"
        twin = theirs.get_parameter(name)
        torch.nn.init.normal_(parameter, std=0.3)
        twin.data.copy_(parameter.data)
        pairs.append((parameter, twin))
    x = torch.randn(2, 3, 32, 32)
    y, z = ours.features(x), theirs(x)
    assert torch.allclose(y, z, atol=1e-6, rtol=1e-6)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    for parameter, twin in pairs:
        assert torch.allclose(parameter.grad, twin.grad, rtol=1e-5, atol=1e-6 * float(twin.grad.abs().max()))


def test_without_targets_a_transformer_has_q_and_v_as_before() -> None:
    """The same edits, keys and draws as with the targets written out, which older adapter files do."""
    made = []
    for method in (LoRA(rank=2), LoRA(rank=2, targets=("q", "v"))):
        model = tiny_vit()
        torch.manual_seed(3)
        made.append(vpeft.tune(model, method, num_classes=2))
    one, other = made
    assert one.adapter().keys == [f"blocks.{i}.attn.{part}.parallel" for i in range(3) for part in "qv"]
    assert one.adapter().keys == other.adapter().keys
    for (key, tensor), (twin_key, twin) in zip(one.trainable(), other.trainable(), strict=True):
        assert key == twin_key and torch.equal(tensor, twin)


NETS = {
    "resnet18": {"zero_init_last": False},
    "convnext_atto": {},
    "efficientnet_b0": {},
    "mixer_s32_224": {},
}


@pytest.mark.parametrize("name", NETS)
def test_without_targets_every_linear_and_convolution_of_other_blocks(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **NETS[name])
    tuned = vpeft.tune(model, LoRA(rank=2), num_classes=3)
    blocks = tuned.description.blocks
    assert len(tuned.adapter().edits) == sum(len(block.projections) for block in blocks) > len(blocks)
    inside = {id(module) for block in blocks for module in block.exit.module.modules()}
    assert all(id(edit.place.module) in inside for edit in tuned.adapter().edits)
    assert "conv" in str(tuned.plan()) or "mlp" in str(tuned.plan())


def test_zeros_of_a_random_start_are_named() -> None:
    torch.manual_seed(0)
    with pytest.raises(vpeft.VpeftError, match=r"no gradient.*are all zero, as in a randomly.*zero_init_last=False"):
        vpeft.tune(timm.create_model("resnet18", num_classes=0), LoRA(rank=2), num_classes=3)


def test_lora_plus_trains_B_faster_than_A() -> None:
    from vpeft.training.groups import make_optimiser
    from vpeft.training.optimisation import Optimisation

    method = LoRA(rank=2, targets=("q", "v"), rate_ratio=16.0)
    tuned = vpeft.tune(tiny_vit(), method, num_classes=2, show=False)
    optimiser = make_optimiser(tuned.trainable(), Optimisation(lr=1e-3), tuned.rate_factors())
    rates = {name: group["peak_lr"] for group in optimiser.param_groups for name in group["names"]}
    assert {name.rpartition(".")[2] for name, rate in rates.items() if rate == 16e-3} == {"B"}
    assert all((rate == 16e-3) == name.endswith(".B") for name, rate in rates.items())
    assert "rate_ratio" in method.model_dump() and LoRA(**method.model_dump()) == method
    # runs and files from before this field was there have the same fields as now
    assert "rate_ratio" not in LoRA().model_dump() and LoRA(**LoRA().model_dump()) == LoRA()
