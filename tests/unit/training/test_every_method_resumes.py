"""Every method: a run that crashes and is taken up by a fresh model ends like one that did not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vpeft
from tests.contract.matrix import cell_or_refusal
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, weights
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import method_names
from vpeft.tasks.classification import Classification
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

SETTINGS = Optimisation(epochs=3, batch=8, lr=1e-3, checkpoint_steps=2)
TASK = Classification(mixup=0.3)


class Crash(Exception):
    """Stands for a kill within this process."""


class Crashing(Patches):
    """Falls over in the middle of the fourth batch, after the checkpoint of the first epoch's end."""

    left = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.left -= 1
        if self.left == 0:
            raise Crash
        return super().__getitem__(index)


def tuned(name: str, seed: int) -> TunedModel:
    cell, refusal = cell_or_refusal(name, "timm_vit")  # with the fields that suit a tiny model
    assert cell is not None, refusal
    torch.manual_seed(0)
    model = tiny_vit(drop_path_rate=0.2)
    torch.manual_seed(seed)
    return vpeft.tune(model, cell.method, num_classes=3, show=False, verify=False)


@pytest.mark.parametrize("name", [name for name in method_names() if cell_or_refusal(name, "timm_vit")[0] is not None])
def test_it_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    whole = tuned(name, 0)
    fit(whole, Patches(22, noise=0.3), optimisation=SETTINGS, task=TASK, progress=False)

    broken = Crashing(22, noise=0.3)
    # Methods that look at the data first use up one epoch of accesses before the first step.
    prepares = any(method.reads_data for method in tuned(name, 0).methods())
    broken.left = 22 + 4 + (22 if prepares else 0)
    with pytest.raises(Crash):
        fit(tuned(name, 0), broken, optimisation=SETTINGS, task=TASK, out=tmp_path, progress=False)

    later = tuned(name, 0)
    result = fit(later, Patches(22, noise=0.3), optimisation=SETTINGS, task=TASK, out=tmp_path, progress=False)
    assert result.resumed_at == 3
    assert same(weights(whole), weights(later))
    assert result.steps == 9
