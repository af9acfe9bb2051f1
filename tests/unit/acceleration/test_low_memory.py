"""Masks as bits and frozen weights that are cast once: the same bits, and fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.models import tiny_vit
from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.bit_masks import DroppedBits, PositiveBits, packed, unpacked
from vpeft.acceleration.patches import mixed
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.training.fit import fit
from vpeft.training.memory import SavedForBackward, saved_bytes
from vpeft.training.optimisation import Optimisation

from ..training.material import Patches


def tuned_with(name: str, **fields: object) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), get(name)(**fields), num_classes=3, show=False, verify=False).train()


def bfloat() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("count", [1, 8, 13, 4096])
def test_bits_come_back(count: int) -> None:
    mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.4
    bits = packed(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-count // 8)
    assert torch.equal(unpacked(bits, mask.shape), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_and_dropout_are_the_same_bits_and_keep_bits(dtype: torch.dtype) -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    slope = torch.randn(6, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    for module, mixin in (
        (nn.ReLU(), PositiveBits),
        (nn.ReLU(inplace=True), PositiveBits),
        (nn.Dropout(0.3), DroppedBits),
    ):
        found: list[tuple[Tensor, Tensor]] = []
        for kind in (type(module), mixed(mixin, type(module))):
            module.__class__ = kind
            torch.manual_seed(3)
            with SavedForBackward(module, [x]) as saved:
                out = module(x * 1.0)
            after = torch.rand(1)  # the generator stands where it stood
            found.append((torch.cat([out.detach().flatten(), after.to(dtype)]), torch.autograd.grad(out, x, slope)[0]))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert saved.bytes == 38  # 300 elements; the product with 1.0 keeps nothing
        module.eval()
        assert torch.equal(module(x.detach().clone()), F.relu(x) if isinstance(module, nn.ReLU) else x)


def test_a_run_with_relu_and_dropout_keeps_less_and_ends_with_the_same_bits() -> None:
    images = torch.randn(4, 3, 32, 32)
    ends, kept = [], []
    for choice in ("off", "low_memory"):
        tuned = tuned_with("adaptformer", bottleneck=48, dropout=0.1)
        made = accelerate(tuned, choice)
        kept.append(saved_bytes(tuned, images))
        assert choice == "off" or "6 masks are saved as bits" in made.lines()[0], made.lines()
        made.close()
        settings = Optimisation(epochs=1, batch=6, acceleration=choice)
        fit(tuned, Patches(12), None, optimisation=settings, progress=False)
        ends.append({name: tensor.clone() for name, tensor in tuned.adapter_state().items()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    # beside norms and GELUs: ReLU's output and dropout's factor, for three blocks
    assert kept[0] - kept[1] > 3 * 2 * (4 * 17 * 48 * 4) * 0.9


@pytest.mark.parametrize(("name", "others"), [("lora", ""), ("lora", "fused_low_rank,low_memory,"), ("bitfit", "")])
def test_frozen_weights_are_cast_once_with_the_same_bits(name: str, others: str) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, kept = [], []
    for choice in (others or "off", f"{others}frozen_precision"):
        tuned = tuned_with(name)
        digest = [value.clone() for value in tuned.state_dict().values()]
        made = accelerate(tuned, choice, autocast=bfloat, precision="bf16")
        assert all(outcome.applied for outcome in made.outcomes), made.lines()
        with bfloat(), SavedForBackward(tuned, [images]) as saved:
            logits = tuned(images)
        kept.append(saved.bytes)
        logits.float().square().sum().backward()
        with bfloat(), torch.no_grad():
            tuned.eval()
            found.append([logits, tuned(images), *(p.grad for _, p in tuned.trainable() if p.grad is not None)])
        made.close()
        assert all(torch.equal(one, two) for one, two in zip(digest, tuned.state_dict().values(), strict=True))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    blocks = sum(p.numel() for key, p in tuned.backbone.named_parameters() if "blocks" in key and p.ndim == 2)
    assert kept[0] - kept[1] >= (0.9 if name == "lora" else 0.5) * 2 * blocks  # the copies were held until the backward


def test_in_fp32_nothing_is_cast() -> None:
    made = accelerate(tuned_with("lora"), "frozen_precision")
    assert made.lines() == ["- frozen_precision: the weights are in the precision of the forward pass"]
