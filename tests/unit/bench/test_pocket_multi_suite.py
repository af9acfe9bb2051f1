"""pocket-multi: five tasks on one set of pictures and all together, with equal samples, heads and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpeft.bench.suites.pocket_multi import PARTS, SUITE, TOGETHER, task_of


@pytest.fixture(scope="module")
def together() -> object:
    return SUITE.task(TOGETHER)


def test_all_tasks_are_read_together(together: object) -> None:
    task = together
    data = task.train.dataset(task.labels, None, 0)
    assert (len(data), task.val.size) == (400, 200)
    target = data[0].target
    assert set(target) == {"mask", "depth", "normals", "edges", "saliency"}
    known = torch.isfinite(target["depth"])
    assert bool(known.all())
    # what stands out is what is neither floor nor wall
    assert torch.equal(target["saliency"] == 1, target["mask"] >= 2)
    assert bool((target["normals"].norm(dim=0) - 1).abs().max() < 1e-5)
    bound = task_of(TOGETHER).bind(data)
    assert bound.parts["semantic"].labels[:2] == ("floor", "wall")


@pytest.mark.parametrize("name", ["normals", "semantic"])
def test_a_task_alone_has_the_same_targets(name: str, together: object) -> None:
    alone = SUITE.task(name)
    kind = task_of(name).target_kind
    one = alone.train.dataset(alone.labels, None, 0)[3].target
    whole = together.train.dataset(together.labels, None, 0)[3].target
    assert np.allclose(one.numpy(), whole[kind].numpy())
    assert alone.digest != together.digest
    assert task_of(name).leading.name == f"{name}/{task_of(name).parts[name].leading.name}"


def test_the_tiers_have_a_task_for_each_and_all() -> None:
    assert set(SUITE.groups) == {*PARTS, TOGETHER}
    assert SUITE.tiers["full"].seeds == 3
