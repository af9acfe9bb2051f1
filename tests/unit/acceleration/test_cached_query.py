"""Kept queries: the same trained bits, one frozen pass for each image, and when they are refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from tests.unit.data.pictures import write_classes
from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.cached_query import KnownQueries
from vpeft.acceleration.prefix_cache import Situation
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import L2P, CODAPrompt, DualPrompt, LoRA
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

METHODS = (
    L2P(pool=4, length=2, top_k=2),
    DualPrompt(shared_blocks=(0,), task_blocks=(1,)),
    CODAPrompt(components=2, tasks=2, length=4, blocks=(0, 1)),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures of two classes."""
    return write_classes(tmp_path_factory.mktemp("photos"), a=6, b=5)


def opened(photos: Path, **fields: Any) -> Datasets:
    config = DataConfig(source=str(photos), val_fraction=0.3, test_fraction=0.0, **fields)
    return open_data(config).prepared(Preprocessing(size=(32, 32)))


def made(method: Method) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), method, num_classes=2, show=False, verify=False)


def trained(method: Method, data: Datasets, choice: str) -> tuple[dict[str, torch.Tensor], int, Any]:
    """The trained tensors, how many images the frozen model saw for queries, and the result."""
    tuned, seen = made(method), list[int]()
    tuned.adapter()
    plain = tuned._query

    def counted(inputs: tuple[Any, ...], named: Any) -> torch.Tensor:
        seen.append(len(inputs[0]))
        return plain(inputs, named)

    object.__setattr__(tuned, "_query", counted)
    settings = Optimisation(epochs=3, batch=4, lr=1e-2, seed=1, acceleration=choice, device="cpu")
    result = fit(tuned, data.train, data.val, optimisation=settings, progress=False)
    return dict(tuned.adapter_state()), sum(seen), result


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.name)
def test_the_same_bits_from_one_frozen_pass_of_each_image(method: Method, photos: Path) -> None:
    data = opened(photos)
    assert data.val is not None
    plain, often, expected = trained(method, data, "off")
    cached, once, found = trained(method, data, "cached_query")
    assert plain.keys() == cached.keys()
    assert all(torch.equal(plain[name], cached[name]) for name in plain)
    assert [one.train_loss for one in found.history] == [one.train_loss for one in expected.history]
    assert found.val.values == expected.val.values
    images = len(data.train) + len(data.val)
    # two arrangements of the sample; each image once; the rest is what `off` sees besides training and validation
    assert once < often - images and once <= 2 * images + 8


def test_it_is_part_of_auto_and_says_what_it_does(photos: Path) -> None:
    data = opened(photos)
    situation = Situation(data.train, data.val, 3, 4, nullcontext)
    tuned = made(METHODS[0]).train()
    with accelerate(tuned, "auto", situation=situation) as used:
        assert any(line.startswith("+ cached_query: the frozen model's feature of 11 images") for line in used.lines())
        assert tuned._queries is not None
    assert tuned._queries is None


def refused(method: Method, situation: Situation) -> str:
    with accelerate(made(method).train(), "cached_query", situation=situation) as used:
        (line,) = used.lines()
    return line


def test_refusals_name_the_reason(photos: Path) -> None:
    data = opened(photos)
    situation = Situation(data.train, data.val, 3, 4, nullcontext)
    assert "does not read the frozen model's own feature" in refused(LoRA(rank=1), situation)
    assert "single epoch" in refused(METHODS[0], replace(situation, epochs=1))
    assert "mixup" in refused(METHODS[0], replace(situation, mixes="mixup"))
    flipped = Situation(opened(photos, augmentation="flip").train, None, 3, 4, nullcontext)
    assert "may treat an image differently each time" in refused(METHODS[0], flipped)
    tuned = made(METHODS[0]).train()
    block: Any = tuned.description.blocks[0].exit
    block.module.add_module("drop", nn.Dropout(0.5))
    with accelerate(tuned, "cached_query", situation=situation) as used:
        assert "is random or gathers statistics" in used.lines()[0]


def test_a_batch_with_an_unknown_image_is_computed() -> None:
    kept, calls = KnownQueries(["a", "b", "c"]), list[int]()

    def compute(count: int) -> torch.Tensor:
        calls.append(count)
        return torch.arange(count)[:, None] + 10.0 * len(calls)

    first = kept.query(("a", "b"), lambda: compute(2))
    assert torch.equal(kept.query(("b", "a"), lambda: compute(2)), first.flip(0)) and calls == [2]
    assert kept.query(("a", "x"), lambda: compute(2))[0] == 20.0
    assert kept.query((), lambda: compute(3)).shape == (3, 1) and len(kept) == 2
    assert torch.equal(kept.query(("c", "a"), lambda: compute(2)), torch.tensor([[40.0], [41.0]]))
