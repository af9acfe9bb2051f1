"""Gradient checkpointing as an acceleration: the same bits, with the others, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import FAMILIES, tiny_vit
from tests.unit.training.material import Patches, tuned_vit
from vpeft.acceleration.apply import accelerate
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.training.fit import fit
from vpeft.training.memory import saved_bytes
from vpeft.training.optimisation import Optimisation


def tuned_with(name: str, family: str = "timm_vit") -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(FAMILIES[family](), get(name)(), num_classes=3, show=False, verify=False).train()


def weights_after(tuned: TunedModel, choice: str) -> dict[str, Tensor]:
    settings = Optimisation(epochs=2, batch=6, accumulate=2, acceleration=choice)
    fit(tuned, Patches(12), Patches(6, seed=5), optimisation=settings, progress=False)
    return {name: tensor.clone() for name, tensor in tuned.adapter_state().items()}


def test_a_run_with_dropout_and_drop_path_ends_with_the_same_bits() -> None:
    plain, other = (weights_after(tuned_vit(), choice) for choice in ("off", "recompute_blocks"))
    assert all(torch.equal(value, other[name]) for name, value in plain.items())


def test_it_goes_with_the_others() -> None:
    # In parts of a batch, with the last block for one token, changes added in place, and norms made again.
    made = accelerate(tuned_with("lora"), "auto,low_memory,recompute_blocks")
    names = [outcome.name for outcome in made.outcomes if outcome.applied]
    assert names == ["class_token_only", "fused_low_rank", "low_memory", "recompute_blocks"], made.lines()
    one, two = (weights_after(tuned_with("lora"), f"auto,low_memory{more}") for more in ("", ",recompute_blocks"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("name", "family"), [("lora", "timm_vit"), ("vpt_deep", "timm_swin"), ("dtl", "timm_vit"), ("ssf", "timm_convnext")]
)
def test_gradients_are_the_same_bits_and_little_is_kept(name: str, family: str) -> None:
    tuned = tuned_with(name, family)
    side = tuned.description.facts.image_size[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))

    def gradients() -> list[Tensor | None]:
        for _, parameter in tuned.trainable():
            parameter.grad = None
        torch.manual_seed(0)
        tuned(images).square().sum().backward()
        return [parameter.grad for _, parameter in tuned.trainable()]

    before, classes = saved_bytes(tuned, images), [type(module) for module in tuned.modules()]
    plain = gradients()
    made = accelerate(tuned, "recompute_blocks")
    assert made.outcomes[0].applied and made.outcomes[0].bit_equal, made.lines()
    assert saved_bytes(tuned, images) < 0.7 * before
    for one, other in zip(plain, gradients(), strict=True):
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))
    made.close()
    assert [type(module) for module in tuned.modules()] == classes
    assert saved_bytes(tuned, images) == before


def test_what_is_kept_is_the_input_of_each_block() -> None:
    tuned = tuned_with("bitfit")
    made = accelerate(tuned, "recompute_blocks")
    images, unit = torch.randn(4, 3, 32, 32), 4 * 17 * 48 * 4
    # three inputs, of which the first is the embedding; behind the blocks the norm and the head keep theirs
    assert 3 * unit <= saved_bytes(tuned, images) <= 5 * unit + 64 * 1024
    made.close()


def test_where_nothing_is_kept_it_is_left_out() -> None:
    made = accelerate(tuned_with("linear_probe"), "recompute_blocks")
    assert made.lines() == ["- recompute_blocks: it would not reduce the bytes that are saved for the backward pass"]


def test_the_backbones_own_switch_is_left_alone() -> None:
    model: nn.Module = tiny_vit()
    model.set_grad_checkpointing()  # type: ignore[operator]
    tuned = vpeft.tune(model, get("lora")(), num_classes=3, show=False, verify=False).train()
    made = accelerate(tuned, "recompute_blocks")
    assert made.lines() == ["- recompute_blocks: the backbone's own checkpointing is enabled already"]


def test_a_block_that_needs_what_another_read_is_refused_by_name() -> None:
    from vpeft.injection.operations import NothingRead, Slot

    tuned = tuned_with("lora")
    slot, block = Slot(), tuned.description.blocks[1].exit
    assert block is not None
    first = tuned.description.blocks[0].exit
    assert first is not None
    handles = [
        first.module.register_forward_hook(lambda _m, _a, out: setattr(slot, "value", out)),
        block.module.attn.register_forward_hook(lambda _m, _a, out: out + slot.take()),
    ]
    made = accelerate(tuned, "recompute_blocks")
    assert not made.outcomes[0].applied
    assert "An edit wanted a tensor that was not read before it" in made.lines()[0]
    assert issubclass(NothingRead, vpeft.VpeftError)
    for handle in handles:
        handle.remove()
