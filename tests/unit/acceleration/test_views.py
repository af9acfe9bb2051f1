"""Views: an augmented run goes through a few versions of each image, and their records give the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.data.pictures import pixels
from tests.unit.training.material import Patches
from vpeft.acceleration.views import NoViews, Views
from vpeft.data.image_set import ArraySet
from vpeft.data.preprocessing import Preprocessing
from vpeft.methods import PartialK
from vpeft.training.batches import Batches
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation


def photos(policy: str = "crop", seed: int = 0) -> ArraySet:
    import numpy as np

    stack = np.stack([pixels(str(number), 40) for number in range(10)])
    prepared = Preprocessing(size=(32, 32)).augmented(policy)
    return ArraySet(stack, [number % 2 for number in range(10)], transform=prepared, seed=seed)


def ended(choice: str, views: int | None, **more: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), PartialK(k=1), num_classes=2, show=False, verify=False)
    settings = Optimisation(epochs=4, batch=4, acceleration=choice, views=views, **more)  # type: ignore[arg-type]
    fit(tuned, photos(), None, optimisation=settings, identity={"data": "d"})
    return {name: tensor.clone() for name, tensor in tuned.adapter_state().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_records_of_views_end_with_the_bits_of_the_plain_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = ended("off", 2)
    assert same(plain, ended("frozen_prefix", 2, prefix_folder=tmp_path))
    assert "+ frozen_prefix: everything before blocks.2 of 20 images" in capsys.readouterr().err
    assert same(plain, ended("frozen_prefix", 2, prefix_folder=tmp_path))
    assert f"found in {tmp_path}" in capsys.readouterr().err
    # other draws are other records, and as many views as epochs are ordinary augmentation
    assert not same(plain, ended("frozen_prefix", 2, prefix_folder=tmp_path, seed=1))
    assert f"kept in {tmp_path}" in capsys.readouterr().err
    ordinary = ended("off", None)
    assert same(ordinary, ended("frozen_prefix", 4)) and not same(ordinary, plain)


def test_epochs_go_through_the_views_in_turn() -> None:
    batches = Batches(photos(), 10, seed=3, views=2)
    shuffled = [
        torch.stack(sorted(next(iter(batches.epoch(e))).inputs, key=lambda t: float(t.sum()))) for e in range(4)
    ]
    assert torch.equal(shuffled[0], shuffled[2]) and torch.equal(shuffled[1], shuffled[3])
    assert not torch.equal(shuffled[0], shuffled[1])


def test_views_are_items_of_one_set() -> None:
    views = Views(photos(), [7, 9])
    plain = photos()
    plain.set_epoch(9)
    assert len(views) == 20 and torch.equal(views[13][0], plain[3][0]) and views[13][1] == plain[3][1]
    assert views.identity == {"views": [7, 9], "seed": 0}


def test_without_them_augmented_images_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    ended("frozen_prefix", None)
    assert "- frozen_prefix: RandomCropResized may treat an image differently each time" in capsys.readouterr().err


def test_other_sets_are_refused_unless_nothing_is_drawn() -> None:
    tuned = vpeft.tune(tiny_vit(), PartialK(k=1), num_classes=3, show=False, verify=False)
    settings = Optimisation(epochs=2, batch=6, views=2)
    with pytest.raises(NoViews, match="a function of the epoch and the image"):
        fit(tuned, Patches(12, noise=0.1), None, optimisation=settings, progress=False)
    fit(tuned, Patches(12), None, optimisation=settings, progress=False)
    assert "views" not in Optimisation().numerics() and settings.numerics()["views"] == 2
