"""A method that follows the data sees each epoch's batches before the epoch, once, and disturbs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, weights
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import BitFit
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

SETTINGS = Optimisation(epochs=3, batch=8, lr=1e-2, checkpoint_steps=1)


class Looks(BitFit):
    """BitFit that sums what it sees, and draws random numbers."""

    seen: ClassVar[list[tuple[int, float]]] = []

    def begin_epoch(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        images = torch.cat([images for images, _ in batches])
        self.seen.append((len(images), float(images.double().sum())))
        torch.rand(3)
        tuned.eval()


class Stops(Patches):
    """Falls over at one access."""

    left = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.left -= 1
        if self.left == 0:
            raise KeyError("stop")
        return super().__getitem__(index)


def tuned(method: Method) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(drop_path_rate=0.2), method, num_classes=3, show=False, verify=False)


def test_each_epoch_is_seen_once_and_training_stays_bit_equal(tmp_path: Path) -> None:
    plain, looking = tuned(BitFit()), tuned(Looks())
    fit(plain, Patches(20, noise=0.3), optimisation=SETTINGS, progress=False)
    Looks.seen.clear()
    fit(looking, Patches(20, noise=0.3), optimisation=SETTINGS, progress=False)
    assert same(weights(plain), weights(looking))
    whole = list(Looks.seen)
    assert [count for count, _ in whole] == [20, 20, 20]
    assert len({total for _, total in whole}) == 3  # each epoch draws its own noise

    Looks.seen.clear()
    data = Stops(20, noise=0.3)
    data.left = 20 + 20 + 20 + 12  # the first epoch, seen and trained on; the second, seen; in its second batch
    with pytest.raises(KeyError, match="stop"):
        fit(tuned(Looks()), data, optimisation=SETTINGS, out=tmp_path, progress=False)
    assert len(Looks.seen) == 2
    later = tuned(Looks())
    assert fit(later, Patches(20, noise=0.3), optimisation=SETTINGS, out=tmp_path, progress=False).resumed_at == 4
    assert Looks.seen == whole  # the second epoch is not seen again
    assert same(weights(plain), weights(later))
