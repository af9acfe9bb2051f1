"""A run with accelerations gives the losses and the weights of the run without, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vpeft
from tests.contract.matrix import cell_or_refusal
from tests.models import tiny_vit
from tests.unit.training.material import Patches
from vpeft.acceleration.names import NAMES
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import all_methods, get
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result

SETTINGS = Optimisation(epochs=3, batch=6, lr=2e-3)
EVERYTHING = "auto,low_memory"
# One for each way in which an acceleration can act: what is expected to be in use.
CASES: dict[str, tuple[str, dict[str, object], set[str]]] = {
    "whole trunk": ("linear_probe", {}, {"frozen_prefix"}),
    "statistics behind the trunk": ("linear_probe", {"batch_norm": True}, {"frozen_prefix"}),
    "reads of the trunk": ("lst", {}, {"frozen_prefix"}),
    "keys and values": ("synqt", {"dropout": 0.0, "drop_path": 0.0}, {"frozen_prefix"}),
    "last block": ("partial_k", {"k": 1}, {"frozen_prefix", "class_token_only", "low_memory"}),
    "reads before writes": ("dtl", {}, {"frozen_prefix", "low_memory"}),
    "low rank": ("lora", {"rank": 2}, {"class_token_only", "fused_low_rank", "low_memory"}),
    "scaled low rank": (
        "lora",
        {"rank": 2, "alpha": 3.0, "targets": ("qkv", "fc1")},
        {"class_token_only", "fused_low_rank", "low_memory"},
    ),
    "scale and shift": ("ssf", {}, {"class_token_only", "fused_scale_shift"}),
    "prompts": ("vpt_deep", {"tokens": 3}, {"class_token_only", "key_value_prompts", "low_memory"}),
}


def tuned_with(name: str, fields: dict[str, object]) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), get(name)(**fields), num_classes=3, show=False, verify=False)


def trained(tuned: TunedModel, choice: str, **more: object) -> tuple[Result, dict[str, Tensor]]:
    settings = SETTINGS.model_copy(update={"acceleration": choice, **more})
    result = fit(tuned, Patches(18), Patches(8, seed=5), optimisation=settings, progress=False)
    return result, {name: tensor.clone() for name, tensor in tuned.adapter_state().items()}


def alike(plain: tuple[Result, dict[str, Tensor]], other: tuple[Result, dict[str, Tensor]], tolerance: float) -> None:
    """Losses of all epochs, and the distance of all weights relative to their length; 0.0 means bit by bit.

    One by one the weights cannot be compared: AdamW divides a gradient by its own size, so where the true gradient is
    zero (a bias of keys) its rounding alone moves the weight.
    """
    losses = [[record.train_loss for record in result.history] for result, _ in (plain, other)]
    assert other[1].keys() == plain[1].keys()
    if tolerance == 0.0:
        assert losses[0] == losses[1]
        assert all(torch.equal(value, other[1][name]) for name, value in plain[1].items())
        return
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    one, two = (torch.cat([v.flatten().float() for v in weights.values()]) for _, weights in (plain, other))
    assert float((one - two).norm() / one.norm()) <= tolerance


def test_a_token_that_only_the_loss_reads_keeps_its_queries() -> None:
    plain = trained(tuned_with("gist", {"dropout": 0.0}), "off")
    alike(plain, trained(tuned_with("gist", {"dropout": 0.0}), EVERYTHING), 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_the_plain_run(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, fields, expected = CASES[case]
    plain = tuned_with(name, fields)
    before = [type(module) for module in plain.modules()]
    fast = tuned_with(name, fields)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in fast.modules()]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    one = trained(plain, "off")
    settings = SETTINGS.model_copy(update={"acceleration": EVERYTHING})
    result = fit(fast, Patches(18), Patches(8, seed=5), optimisation=settings)
    said = capsys.readouterr().err
    used = {word for word in NAMES if f"+ {word}: " in said}
    assert used == expected, said
    # BatchNorm sums a record, which lies row behind row, in another order than a slice of the tokens.
    exact = used <= {"frozen_prefix", "low_memory"} and not fields.get("batch_norm")
    alike(one, (result, dict(fast.adapter_state())), 0.0 if exact else 1e-3)
    # nothing is left: classes, hooks and attributes are those of the plain model, and outputs too
    assert [type(module) for module in fast.modules()] == before
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in fast.modules()] == hooks
    assert not [key for module in fast.backbone.modules() for key in module.__dict__ if "vpeft_pre" in key]
    plain.load_adapter_state(fast.adapter_state())
    assert torch.equal(plain(images), fast(images))


def test_low_memory_gives_the_same_bits() -> None:
    runs = [
        trained(tuned_with("lora", {"rank": 2}), choice) for choice in ("fused_low_rank", "fused_low_rank,low_memory")
    ]
    alike(runs[0], runs[1], 0.0)


@pytest.mark.parametrize("choice", ["fused_low_rank", "class_token_only", "fused_low_rank,low_memory"])
def test_in_bfloat16_gradients_agree_to_its_rounding(choice: str) -> None:
    from vpeft.acceleration.apply import accelerate
    from vpeft.acceleration.equivalence import PerturbedParameters, behaviour, difference, two_images

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    tuned = tuned_with("lora", {"rank": 2}).train()
    with PerturbedParameters(tuned), autocast():
        plain = behaviour(tuned, two_images(tuned))
    made = accelerate(tuned, choice, autocast=autocast, precision="bf16")
    assert all(outcome.applied for outcome in made.outcomes), made.lines()
    with PerturbedParameters(tuned), autocast():
        fast = behaviour(tuned, two_images(tuned))
    made.close()
    assert difference(plain, fast)[0] < 0.05


def test_a_run_is_taken_up_again_bit_by_bit(tmp_path: Path) -> None:
    expected = trained(tuned_with("vpt_deep", {"tokens": 3}), EVERYTHING)
    images, val = Patches(18), Patches(8, seed=5)
    settings = SETTINGS.model_copy(update={"acceleration": EVERYTHING, "checkpoint_steps": 2})

    class Enough(Exception):
        pass

    def stop(_: TunedModel, record: object) -> None:
        raise Enough

    tuned = tuned_with("vpt_deep", {"tokens": 3})
    with pytest.raises(Enough):
        fit(tuned, images, val, optimisation=settings, out=tmp_path, progress=False, after_epoch=stop)
    # the failed run has left the model as it was
    assert not any("Leading" in type(module).__name__ for module in tuned.modules())
    again = tuned_with("vpt_deep", {"tokens": 3})
    result = fit(again, images, val, optimisation=settings, out=tmp_path, progress=False)
    assert result.resumed_at == 2
    alike(expected, (result, dict(again.adapter_state())), 0.0)


def test_low_memory_keeps_much_less() -> None:
    from vpeft.acceleration.apply import accelerate
    from vpeft.training.memory import saved_bytes

    tuned = tuned_with("lora", {"rank": 2}).train()
    images = torch.randn(4, 3, 32, 32)
    plain = saved_bytes(tuned, images)
    made = accelerate(tuned, "fused_low_rank,low_memory")
    less = saved_bytes(tuned, images)
    made.close()
    assert saved_bytes(tuned, images) == plain
    assert less < 0.7 * plain


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    from vpeft.acceleration.apply import accelerate

    tuned = tuned_with("lora", {"rank": 2}).train()
    made = accelerate(tuned, "fused_low_rank")
    loss = tuned(torch.randn(2, 3, 32, 32)).square().sum()
    weight = next(p for name, p in tuned.trainable() if name.endswith(".A"))
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    made.close()


def test_what_would_draw_other_random_numbers_is_refused() -> None:
    from vpeft.acceleration.apply import accelerate

    # Eight units with p = 0.1: the masks of two images are the same often enough to hide it from the numbers.
    made = accelerate(tuned_with("adapter", {}).train(), "class_token_only")
    assert made.lines() == ["- class_token_only: it would draw other random numbers: dropout acts on what it skips"]


@pytest.mark.slow
@pytest.mark.parametrize("name", all_methods())
def test_every_method_trains_alike(name: str) -> None:
    cell, _ = cell_or_refusal(name, "timm_vit")
    if cell is None:
        pytest.skip("needs another backbone")
    fields = cell.method.model_dump()
    plain = trained(tuned_with(name, fields), "off")
    alike(plain, trained(tuned_with(name, fields), EVERYTHING), 1e-2)
