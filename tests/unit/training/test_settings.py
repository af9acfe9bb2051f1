"""Optimisation, schedule and parameter groups."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.training.material import tuned_vit
from vpeft.settings import BadSettings
from vpeft.training.groups import NothingToTrain, is_decayed, make_optimiser
from vpeft.training.optimisation import Optimisation
from vpeft.training.schedule import rate_at, warmup_steps


def test_every_field_explains_itself() -> None:
    assert not [name for name, field in Optimisation.model_fields.items() if not field.description]


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(BadSettings, match="does not fit in 5 epochs"):
        Optimisation(epochs=5, warmup=10)
    with pytest.raises(BadSettings, match="cannot be computed in 8 parts"):
        Optimisation(batch=4, accumulate=8)


def test_numerics_leave_out_only_what_changes_no_bit() -> None:
    plain = Optimisation().numerics()
    others = {
        "checkpoint_every": 7,
        "checkpoint_steps": 3,
        # What rounds in another way is in a checkpoint's identity under its own name.
        "acceleration": "off",
        "prefix_gib": 1.5,
        "prefix_folder": Path("records"),
        "fit_memory": "8GB",  # what it changes, the parts of a batch, is told by `accumulate`
    }
    assert Optimisation.model_validate(others).numerics() == plain
    assert Optimisation(shard=True).numerics() == plain
    for name in set(Optimisation.model_fields) - set(others) - {"shard", "views", "ema", "optimiser", "milestones"}:
        assert name in plain
    # left out where it changes nothing, so that a run from before there were views is known again
    assert "views" not in plain and Optimisation(views=3).numerics()["views"] == 3


def test_an_unknown_acceleration_is_refused_with_those_there_are() -> None:
    assert Optimisation(acceleration="auto, low_memory").acceleration
    with pytest.raises(BadSettings, match="fused_low_rank"):
        Optimisation(acceleration="fused_lowrank")


def test_the_schedule_equals_its_formula() -> None:
    settings = Optimisation(epochs=10, warmup=0.2, min_lr=1e-4)
    rates = [rate_at(step, 1e-2, settings, 5) for step in range(50)]
    assert warmup_steps(settings, 5) == 10
    assert rates[:10] == pytest.approx([1e-2 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1e-2)
    assert rates[30] == pytest.approx((1e-2 + 1e-4) / 2)  # half of the way
    assert rates[49] == pytest.approx(1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * 39 / 40)) / 2)
    assert all(after < before for before, after in itertools.pairwise(rates[10:]))


def test_warm_up_in_epochs_and_the_other_schedules() -> None:
    assert warmup_steps(Optimisation(epochs=10, warmup=2), 7) == 14
    assert warmup_steps(Optimisation(epochs=10, warmup=0), 7) == 0
    constant = Optimisation(epochs=4, warmup=0, schedule="constant")
    assert {rate_at(step, 0.5, constant, 3) for step in range(12)} == {0.5}
    line = Optimisation(epochs=4, warmup=0, schedule="linear", min_lr=0)
    assert [rate_at(step, 1.0, line, 1) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_peak_below_the_floor_stays_where_it_is() -> None:
    settings = Optimisation(epochs=2, warmup=0, min_lr=1e-5)
    assert [rate_at(step, 1e-6, settings, 4) for step in range(8)] == [1e-6] * 8


def test_milestones_lower_the_rate_as_torch_does() -> None:
    settings = Optimisation(epochs=12, schedule="step", milestones=(8, 0.75), warmup=0.0, lr=1e-2)  # 0.75: 9 of 12
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1e-2)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[8 * 5, 9 * 5], gamma=0.1)
    for step in range(60):
        assert rate_at(step, 1e-2, settings, 5) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    for wrong in (
        {"milestones": (3,)},
        {"schedule": "step"},
        {"schedule": "step", "milestones": (9, 40), "epochs": 30},
    ):
        with pytest.raises(BadSettings, match="milestones"):
            Optimisation(**wrong)
    assert "milestones" not in Optimisation().numerics()


def test_biases_and_one_dimensional_tensors_are_not_decayed() -> None:
    assert is_decayed("blocks.0.attn.q.parallel.down.weight", nn.Parameter(torch.zeros(2, 3)))
    assert not is_decayed("norm.weight", nn.Parameter(torch.zeros(3)))
    assert not is_decayed("head.bias", nn.Parameter(torch.zeros(3)))
    assert not is_decayed("relative.bias", nn.Parameter(torch.zeros(3, 3)))
    assert not is_decayed("gate", nn.Parameter(torch.zeros(())))


def test_groups_hold_each_parameter_once_with_its_rate_and_decay() -> None:
    tuned = tuned_vit()
    optimiser = make_optimiser(tuned.trainable(), Optimisation(lr=1e-3, head_lr=1e-2, weight_decay=0.3))
    seen = {
        name: (group["peak_lr"], group["weight_decay"]) for group in optimiser.param_groups for name in group["names"]
    }
    assert seen.keys() == dict(tuned.trainable()).keys()
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(seen)
    assert seen["head.weight"] == (1e-2, 0.3)
    assert seen["head.bias"] == (1e-2, 0.0)
    adapter = {value for name, value in seen.items() if not name.startswith("head.")}
    assert adapter == {(1e-3, 0.3)}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(NothingToTrain, match="Attach a method"):
        make_optimiser([], Optimisation())


def test_a_method_may_state_other_rates_for_some_tensors() -> None:
    plain = tuned_vit()
    named, settings = list(plain.trainable()), Optimisation(lr=1e-3, weight_decay=0.3)
    assert plain.rate_factors() == {}
    before, after = (make_optimiser(named, settings, factors) for factors in (None, plain.rate_factors()))
    assert [g["names"] for g in before.param_groups] == [g["names"] for g in after.param_groups]
    assert [g["peak_lr"] for g in before.param_groups] == [g["peak_lr"] for g in after.param_groups]
    faster = make_optimiser(named, settings, {named[0][0]: 16.0})
    rates = {name: group["peak_lr"] for group in faster.param_groups for name in group["names"]}
    assert rates == {name: 16e-3 if name == named[0][0] else 1e-3 for name, _ in named}
    assert sum(len(group["params"]) for group in faster.param_groups) == len(named)
