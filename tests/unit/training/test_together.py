"""Several runs in one pass: each ends bit by bit as it does alone, and what is frozen is computed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vpeft
from tests.models import tiny_vit
from tests.unit.data.pictures import pixels
from tests.unit.training.material import Patches, same, weights
from vpeft.acceleration.shared_trunk import SharedRecords
from vpeft.batch import Batch
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ArraySet, ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.tasks.classification import Classification
from vpeft.training.batches import Samples
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import UnsuitableSettings, fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result
from vpeft.training.together import fit_together

PROBE, LAST, SIDE = vpeft.methods.LinearProbe(), vpeft.methods.PartialK(k=1), vpeft.methods.LST()
EVERYWHERE = vpeft.methods.LoRA(rank=2, dropout=0.2)


def made(method: Method, classes: int = 3) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), method, num_classes=classes, show=False, verify=False)


class Counting:
    """Counts images that enter a model's stem."""

    def __init__(self, models: list[TunedModel]) -> None:
        self.images = 0
        for tuned in models:
            tuned.backbone.patch_embed.register_forward_pre_hook(self._count)  # type: ignore[union-attr]

    def _count(self, _: Any, args: tuple[torch.Tensor]) -> None:
        self.images += len(args[0])


def plain(result: Result) -> list[dict[str, Any]]:
    """The history without times."""
    return [record.model_dump(exclude={"seconds", "images_per_second"}) for record in result.history]


def compare(
    methods: list[Method], settings: list[Optimisation], train: Callable[[], Samples], val: Patches | None
) -> int:
    """Train alone and together; returns how many images the trunks of those trained together saw."""
    alone = []
    for method, its in zip(methods, settings, strict=True):
        tuned = made(method)
        result = fit(tuned, train(), val, optimisation=its, progress=False)
        alone.append((plain(result), result.val, weights(tuned)))
    models = [made(method) for method in methods]
    counting = Counting(models)
    state = torch.get_rng_state()
    results = fit_together(
        [Run(tuned, its) for tuned, its in zip(models, settings, strict=True)], train(), val, progress=False
    )
    assert torch.equal(torch.get_rng_state(), state)
    for (history, scores, learnt), result, tuned in zip(alone, results, models, strict=True):
        assert result.state == "done"
        assert plain(result) == history
        assert result.val == scores
        assert same(weights(tuned), learnt)
    return counting.images


def settings_of(**given: Any) -> Optimisation:
    return Optimisation.model_validate({"epochs": 3, "batch": 8, "acceleration": "frozen_prefix", **given})


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from here on, in order."""
    decoded: list[str] = []
    plain = ImageSet.image

    def image(its: ImageSet, index: int) -> Any:
        decoded.append(str(its.path(index)))
        return plain(its, index)

    monkeypatch.setattr(ImageSet, "image", image)
    return decoded


def test_runs_side_by_side_decode_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        file = tmp_path / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(file.name, 40)).save(file)
    config = DataConfig(source=str(tmp_path), val_fraction=0, test_fraction=0, augmentation="flip")
    images = open_data(config).prepared(Preprocessing(size=(32, 32), resize="squash")).train
    decoded = counted(monkeypatch)
    both = "frozen_prefix,decoded_images"
    several, models = [settings_of(lr=lr, acceleration=both) for lr in (1e-3, 1e-2)], [made(PROBE), made(PROBE)]
    fit_together([Run(*pair) for pair in zip(models, several, strict=True)], images, progress=False)
    assert len(decoded) < 2 * 9  # each once, and a sample that proves it
    alone = made(PROBE)
    fit(alone, images, optimisation=several[1], progress=False)
    assert same(weights(alone), weights(models[1]))


def test_runs_without_records_decode_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are the same in every epoch, of which runs with gradients everywhere can have no records."""
    for number in range(12):
        file = tmp_path / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(file.name, 40)).save(file)
    config = DataConfig(source=str(tmp_path), val_fraction=0.25, test_fraction=0)
    data = open_data(config).prepared(Preprocessing(size=(32, 32), resize="squash"))
    decoded = counted(monkeypatch)
    several = [settings_of(lr=lr, acceleration="decoded_images", epochs=4) for lr in (1e-3, 1e-2)]
    models = [made(EVERYWHERE), made(EVERYWHERE)]
    fit_together([Run(*pair) for pair in zip(models, several, strict=True)], data.train, data.val, progress=False)
    assert len(decoded) < 2 * 12  # each once, and samples that prove it
    alone = made(EVERYWHERE)
    fit(alone, data.train, data.val, optimisation=several[1], progress=False)
    assert same(weights(alone), weights(models[1]))


def test_runs_on_the_same_images_share_records() -> None:
    different = [
        settings_of(lr=1e-3),
        settings_of(lr=1e-2, seed=4, clip=1.0),
        settings_of(lr=3e-3, epochs=5, schedule="linear", weight_decay=0.1),
        settings_of(lr=3e-3, keep="best"),
    ]
    one = compare([PROBE], different[:1], lambda: Patches(21), Patches(9, seed=5))
    four = compare([PROBE] * 4, different, lambda: Patches(21), Patches(9, seed=5))
    assert one < 70  # records of 30 images, and the sample that proves them
    assert four < 30 + 4 * (one - 30) + 1


def test_batches_that_change_are_computed_once() -> None:
    several = [settings_of(lr=lr) for lr in (1e-3, 1e-2, 3e-2)]
    seen = compare([PROBE] * 3, several, lambda: Patches(24, noise=0.1), Patches(9, seed=5))
    # 24 images in each of three epochs, 9 for validation, and the proofs of each run: not three times as many
    assert 81 <= seen < 81 + 3 * 40


def test_different_methods_go_side_by_side() -> None:
    """Probe and side network read different things of the trunk; the last needs gradients everywhere."""
    mixed: list[Method] = [PROBE, SIDE, LAST, EVERYWHERE, SIDE]
    several = [settings_of(lr=1e-3, accumulate=2, epochs=2) for _ in mixed]
    compare(mixed, several, lambda: Patches(13, noise=0.1), Patches(5, seed=5))


def test_other_seeds_and_views_have_other_batches() -> None:
    several = [
        settings_of(seed=seed, epochs=2, views=views) for seed, views in ((0, None), (0, None), (7, None), (0, 1))
    ]
    drawn = torch.randint(
        0, 255, (16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    turned = Preprocessing(size=(32, 32)).augmented("flip")
    compare([LAST] * 4, several, lambda: ArraySet(drawn, [i % 3 for i in range(16)], transform=turned), None)


def test_everything_that_saves_work_is_as_in_a_run_alone() -> None:
    compare([LAST, LAST], [settings_of(acceleration="auto", lr=lr) for lr in (1e-3, 1e-2)], lambda: Patches(16), None)
    compare([LAST, PROBE], [settings_of(acceleration="off") for _ in "12"], lambda: Patches(16), None)


class Broken(Classification):
    """A loss that is not a number from its third step on."""

    _steps: int = 0

    def loss(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        self._steps += 1
        return {"broken": outputs.mean() * (float("nan") if self._steps > 2 else 1.0)}


def test_a_failure_ends_one_run_alone() -> None:
    good, bad = made(PROBE), made(PROBE)
    runs = [Run(bad, settings_of(), task=Broken()), Run(good, settings_of())]
    results = fit_together(runs, Patches(16, noise=0.1), progress=False)
    assert [result.state for result in results] == ["failed", "done"]
    assert "not finite" in str(results[0].reason)
    assert results[0].steps == 2
    again = made(PROBE)
    fit(again, Patches(16, noise=0.1), optimisation=settings_of(), progress=False)
    assert same(weights(good), weights(again))


class Enough(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_runs_go_on_from_where_each_was(tmp_path: Path, noise: float) -> None:
    def runs(folder: Path, after: Any = None) -> list[Run]:
        return [
            Run(made(LAST), settings_of(lr=1e-3), folder / "a"),
            Run(made(LAST), settings_of(lr=1e-2), folder / "b", after_epoch=after),
        ]

    def kill(tuned: TunedModel, record: Any) -> None:
        if record.epoch == 2:  # the first run has its second epoch on the disk, this one its first
            raise Enough

    images, whole = Patches(16, noise=noise), runs(tmp_path / "whole")
    fit_together(whole, images, progress=False)
    with pytest.raises(Enough):
        fit_together(runs(tmp_path / "cut", kill), images, progress=False)
    resumed = runs(tmp_path / "cut")
    results = fit_together(resumed, images, progress=False)
    assert results[1].resumed_at == 2
    for one, other in zip(whole, resumed, strict=True):
        assert same(weights(one.tuned), weights(other.tuned))
    written = json.loads((tmp_path / "cut" / "b" / "result.json").read_text())
    assert written["state"] == "done"


def test_records_of_another_part_or_set_are_not_taken() -> None:
    shared, images = SharedRecords(), Patches(16)

    def trained(method: Method, of: Patches, **given: Any) -> tuple[int, dict[str, torch.Tensor]]:
        tuned = made(method)
        fit(tuned, of, optimisation=settings_of(**given), progress=False, shared=shared)
        return len(shared._shelved), weights(tuned)

    assert trained(PROBE, images)[0] == 1
    assert trained(PROBE, images, seed=5)[0] == 1
    assert trained(LAST, images)[0] == 2
    assert trained(PROBE, images, batch=4)[0] == 3
    assert trained(PROBE, Patches(16))[0] == 4
    before = shared.bytes
    shared.make_room(0, before - 1)
    assert len(shared._shelved) == 3


def test_a_shared_part_of_other_weights_is_another_part() -> None:
    shared, images = SharedRecords(), Patches(16)
    for weight in (0.0, 1e-3):
        tuned = made(PROBE)
        with torch.no_grad():
            tuned.backbone.get_parameter("blocks.0.mlp.fc1.weight").add_(weight)
        alone = made(PROBE)
        alone.backbone.load_state_dict(tuned.backbone.state_dict())
        fit(tuned, images, optimisation=settings_of(), progress=False, shared=shared)
        fit(alone, images, optimisation=settings_of(), progress=False)
        assert same(weights(tuned), weights(alone))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    tuned, images = made(PROBE), Patches(16)
    with pytest.raises(UnsuitableSettings, match="no runs"):
        fit_together([], images)
    with pytest.raises(UnsuitableSettings, match="same model"):
        fit_together([Run(tuned), Run(tuned)], images)
    with pytest.raises(UnsuitableSettings, match="some have none"):
        fit_together([Run(tuned, out=tmp_path), Run(made(PROBE))], images)
    with pytest.raises(UnsuitableSettings, match="same folder"):
        fit_together([Run(tuned, out=tmp_path), Run(made(PROBE), out=tmp_path)], images)
    other = made(PROBE)
    assert other.head is not None and tuned.head is not None
    other.head.weight = tuned.head.weight
    with pytest.raises(UnsuitableSettings, match="same tensor"):
        fit_together([Run(tuned), Run(other)], images)
