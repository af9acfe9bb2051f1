"""The contract with accelerations on: what a method promises about a training step holds in its faster form too.

Checks about files, merging, copies and detaching are left out: accelerations are taken off before any of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.contract import checks
from tests.contract.checks import Cell, hold
from tests.contract.matrix import cell_or_refusal
from tests.contract.refusals import difference, kind_of
from tests.models import FAMILIES
from vpeft.acceleration.apply import accelerate
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import all_methods


def ignores_neighbours(cell: Cell) -> None:
    """A sample's output does not depend on the rest of its batch; in training mode, but without what draws."""
    tuned = cell.trained().train()
    for module in tuned.modules():
        if "Drop" in type(module).__name__ or isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    images, before = cell.images(3), torch.get_rng_state()
    together, alone = tuned(images)[:1], tuned(images[:1])
    if not torch.equal(torch.get_rng_state(), before):
        return  # dropout inside an attention, which no module shows
    assert torch.allclose(together, alone, atol=1e-5, rtol=1e-5), (together - alone).abs().max()


OF_A_STEP = (
    checks.every_tensor_learns,
    checks.backbone_is_untouched,
    ignores_neighbours,
    checks.survives_checkpointing,
    checks.runs_in_bfloat16,
    checks.plan_tells_the_truth,
)


@dataclass(frozen=True)
class Accelerated(Cell):
    """A cell whose tuned models are accelerated."""

    def tuned(self, model: nn.Module | None = None, *more: Method, verify: bool = False) -> TunedModel:
        tuned = super().tuned(model, *more, verify=verify)
        accelerate(tuned.train(), "auto,low_memory")
        return tuned

    def twin(self) -> TunedModel:
        """Another one, trained anew: a copy would share what an acceleration keeps."""
        return self.trained()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", all_methods())
def test_a_step_keeps_its_promises_with_accelerations(name: str, family: str) -> None:
    cell, refusal = cell_or_refusal(name, family)
    assert not (changed := difference("methods", name, family, refusal and kind_of(refusal))), changed
    if cell is None:
        pytest.skip("needs another backbone")
    broken = []
    for check in OF_A_STEP:
        torch.manual_seed(0)
        try:
            hold(check, Accelerated(cell.method, cell.family))
        except Exception as error:
            broken.append(f"{check.__name__}: {error}")
    assert not broken
