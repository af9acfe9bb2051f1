"""A training in a process of its own, to be killed from outside: `python -m tests.e2e.training_process FOLDER SEED`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from tests.unit.training.material import Patches, tuned_vit
from vpeft.tasks.classification import Classification
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result

# Dropout, drop path, mixup and noise on each image all draw; checkpoints fall in the middle of epochs of 5 steps.
SETTINGS = Optimisation(epochs=6, batch=8, lr=3e-3, clip=1.0, keep="best", checkpoint_steps=3)
TASK = Classification(mixup=0.4, label_smoothing=0.1)


class Slow(Patches):
    """So slow that a kill from outside lands between any two lines of the loop."""

    delay = 0.004

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(self.delay)
        return super().__getitem__(index)


def train(out: Path | None, start: int, delay: float = 0.0) -> tuple[dict[str, torch.Tensor], Result]:
    """Train; `start` seeds the adapter's first weights, which a resumed run must not depend on."""
    torch.set_num_threads(1)
    tuned = tuned_vit(seed=start)
    data = Slow(37, noise=0.5)
    data.delay = delay
    result = fit(tuned, data, Patches(12, seed=8, noise=1.0), optimisation=SETTINGS, task=TASK, out=out, progress=False)
    return {name: tensor.clone() for name, tensor in tuned.adapter_state().items()}, result


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), delay=0.004)
