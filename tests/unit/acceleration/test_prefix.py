"""Records of the frozen part: when they are refused, and what is on the disk."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches
from vpeft.acceleration.apply import Accelerated, accelerate
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.prefix_store import FACTS, Spec, Store
from vpeft.acceleration.same_images import why_not_the_same
from vpeft.atomic import DiskFull
from vpeft.data.image_set import ArraySet
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import LinearProbe, LoRA, PartialK

PLAIN = Situation(Patches(12), None, 3, 5, nullcontext)


def tuned_with(method: Method, **options: Any) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(**options), method, num_classes=3, show=False, verify=False).train()


def outcome(tuned: TunedModel, situation: Situation) -> Accelerated:
    return accelerate(tuned, "frozen_prefix", situation=situation)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"epochs": 1}, {}, "single epoch"),
        ({"mixes": "mixup combines images"}, {}, "mixup"),
        ({"train": Patches(12, noise=0.1)}, {}, "draws random numbers"),
        ({}, {"drop_path_rate": 0.2}, "drop_path1 is random or gathers statistics"),
        ({"gib": 1e-7}, {}, "raise prefix_gib"),
    ],
)
def test_it_is_refused_with_the_reason(changes: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    tuned = tuned_with(PartialK(k=1), **options)
    classes = [type(module) for module in tuned.modules()]
    made = outcome(tuned, replace(PLAIN, **changes))
    assert made.prefix is None
    assert reason in made.lines()[0]
    assert [type(module) for module in tuned.modules()] == classes


def test_nothing_is_frozen_before_the_first_block() -> None:
    made = outcome(tuned_with(LoRA(rank=2)), PLAIN)
    assert made.lines() == ["- frozen_prefix: trained places begin before or in the first block"]


def test_the_numbers_of_records_stand_for_images() -> None:
    tuned = tuned_with(PartialK(k=2))
    made = outcome(tuned, replace(PLAIN, val=Patches(7, seed=9)))
    records = made.prefix
    assert records is not None and records.val is not None
    assert torch.equal(
        records.images(torch.tensor([2, 12])), torch.stack([Patches(12)[2][0], Patches(7, seed=9)[0][0]])
    )
    assert [records.val[i][1] for i in range(7)] == [Patches(7)[i][1] for i in range(7)]
    numbers = torch.tensor([3, 0, 15])
    assert torch.equal(records(numbers), tuned(records.images(numbers)))
    made.close()


class Flipping(Patches):
    """A set that flips in turn, and draws nothing that a generator would show."""

    turn = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        Flipping.turn += 1
        image, label = super().__getitem__(index)
        return (image.flip(-1) if Flipping.turn % 3 == 0 else image), label


def test_images_that_change_are_found_out() -> None:
    assert why_not_the_same(Patches(12)) is None
    assert "draws random numbers" in str(why_not_the_same(Patches(12, noise=0.1)))
    assert "not the same" in str(why_not_the_same(Flipping(12)))
    pixels = torch.randint(0, 255, (4, 40, 40, 3), dtype=torch.uint8).numpy()
    prepared = Preprocessing(size=(32, 32))
    assert why_not_the_same(ArraySet(pixels, [0, 1, 0, 1], transform=prepared.transform())) is None
    assert "Flip" in str(why_not_the_same(ArraySet(pixels, [0, 1, 0, 1], transform=prepared.augmented("flip"))))
    state = torch.get_rng_state()
    why_not_the_same(Patches(12, noise=0.1))
    assert torch.equal(torch.get_rng_state(), state)


def test_records_on_disk_are_found_again_and_checked(tmp_path: Path) -> None:
    kept = replace(PLAIN, folder=tmp_path, identity={"data": "d1", "preprocessing": "p"})
    first = outcome(tuned_with(PartialK(k=1)), kept)
    assert "kept in" in first.lines()[0] and first.prefix is not None
    first.close()
    (folder,) = tmp_path.iterdir()
    again = outcome(tuned_with(PartialK(k=1)), kept)
    assert "found in" in again.lines()[0]
    again.close()
    other = outcome(tuned_with(PartialK(k=1)), replace(kept, identity={"data": "d2", "preprocessing": "p"}))
    assert "kept in" in other.lines()[0]  # of other images: made anew, in another folder
    other.close()
    # rows that are not what the model gives are never used
    path = folder / "0.bin"
    path.write_bytes(bytes(path.stat().st_size))
    spoilt = outcome(tuned_with(PartialK(k=1)), kept)
    assert spoilt.prefix is not None and "kept in" in spoilt.lines()[0]  # made anew in their place
    assert path.read_bytes().strip(b"\0")
    spoilt.close()


def test_a_half_written_or_foreign_folder_is_not_found(tmp_path: Path) -> None:
    specs = [Spec((3,), torch.float32)]
    store = Store.on_disk(tmp_path, 2, specs, {"weights": "a"})
    store.put(0, [torch.ones(2, 3)])
    assert Store.find(tmp_path, 2, specs, {"weights": "a"}) is None
    store.finish()
    found = Store.find(tmp_path, 2, specs, {"weights": "a"})
    assert found is not None and torch.equal(found.rows(torch.tensor([1]))[0], torch.ones(1, 3))
    assert Store.find(tmp_path, 2, specs, {"weights": "b"}) is None
    (folder,) = tmp_path.iterdir()
    (folder / "0.bin").write_bytes(b"short")
    assert Store.find(tmp_path, 2, specs, {"weights": "a"}) is None
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, "weights": "c"}))
    assert Store.find(tmp_path, 2, specs, {"weights": "a"}) is None
    left = Store.on_disk(tmp_path, 2, specs, {"weights": "z"})
    left.discard()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_without_knowing_the_images_nothing_is_kept_on_disk(tmp_path: Path) -> None:
    made = outcome(tuned_with(LinearProbe()), replace(PLAIN, folder=tmp_path))
    assert "kept in memory" in made.lines()[0]
    assert not list(tmp_path.iterdir())


def test_a_stored_row_that_changed_is_noticed(tmp_path: Path) -> None:
    specs = [Spec((3,), torch.float32), Spec((2, 2), torch.float16)]
    store = Store.on_disk(tmp_path, 40, specs, {"weights": "a"})
    store.put(0, [torch.ones(40, 3), torch.ones(40, 2, 2, dtype=torch.float16)])
    store.finish()
    (rows,) = tmp_path.glob("*/1.bin")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:160] + bytes(8) + whole[168:])
    assert Store.find(tmp_path, 40, specs, {"weights": "a"}) is None
    rows.write_bytes(whole)
    assert Store.find(tmp_path, 40, specs, {"weights": "a"}) is not None
    (rows.parent / "store.json").write_text("[" * 10_000)
    assert Store.find(tmp_path, 40, specs, {"weights": "a"}) is None


def test_a_full_disk_is_said_before_anything_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskFull, match=rf"disk of {tmp_path} is full: cached outputs of the frozen part need .* MiB"):
        Store.on_disk(tmp_path, 10, [Spec((3,), torch.float32)], {"weights": "a"})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    specs = [Spec((3,), torch.float32)]
    (tmp_path / ".gone.0123.partial").mkdir()
    living = Store.on_disk(tmp_path, 2, specs, {"weights": "a"})
    Store.on_disk(tmp_path, 2, specs, {"weights": "b"}).discard()
    assert len(list(tmp_path.iterdir())) == 1
    living.put(0, [torch.ones(2, 3)])
    living.finish()
    assert Store.find(tmp_path, 2, specs, {"weights": "a"}) is not None
