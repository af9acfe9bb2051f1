"""The same promises on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.training.material import Patches, same, tuned_vit, weights
from tests.unit.training.test_every_method_resumes import Crash, Crashing
from vpeft.tasks.classification import Classification
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_goes_on_bit_by_bit(precision: str, tmp_path: Path) -> None:
    task = Classification(mixup=0.3)
    settings = Optimisation.model_validate(
        {"epochs": 3, "batch": 8, "clip": 1.0, "precision": precision, "checkpoint_steps": 2}
    )
    whole = tuned_vit()
    result = fit(whole, Patches(22, noise=0.3), optimisation=settings, task=task, progress=False)
    assert result.device.startswith("cuda")
    assert result.peak_memory.accelerator
    broken = Crashing(22, noise=0.3)
    broken.left = 26
    with pytest.raises(Crash):
        fit(tuned_vit(), broken, optimisation=settings, task=task, out=tmp_path, progress=False)
    later = tuned_vit(seed=3)
    fit(
        later,
        Patches(22, noise=0.3),
        optimisation=settings,
        task=task,
        out=tmp_path,
        progress=False,
    )
    assert same(weights(whole), weights(later))
