"""The same method objects serve every task, on three unlike backbones and at two image sizes; every family carries
every task's own head and every kind of head, or refuses it as the stored table says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

import vpeft
from tests.contract import refusals
from tests.contract.matrix import cell_or_refusal
from tests.contract.refusals import difference, kind_of
from tests.contract.task_cells import (
    HEADS,
    LEARNT,
    TaskCell,
    alone,
    attach_default_head,
    attach_head,
    attaches_learns_reloads_and_predicts,
    map_lies_as_the_image_lies,
    refusal_of,
)
from tests.families import EVERY
from tests.models import ANY_SIZE
from vpeft.head import all_heads
from vpeft.injection.verify import DeadPlace
from vpeft.layers.class_labels import NeedsClassLabels
from vpeft.method import Method, all_methods
from vpeft.methods import LST, SSF, AdaptFormer, BitFit, LinearProbe, LoRA, Mona, RepAdapter, VPTDeep

# One object each, used for every task, backbone and size.
FOUR: tuple[Method, ...] = (LoRA(), Mona(), VPTDeep(), LST())
# On what layers give, beside the MLP, on own parameters, in a form that merges, and the head alone.
FIVE: tuple[Method, ...] = (SSF(), AdaptFormer(), BitFit(), RepAdapter(), LinearProbe())

# Heads of seconds: the fast suite has detection with four methods, the slow one all.
SECONDS = {"detection", "instance_segmentation", "semantic_segmentation with upernet", *HEADS}


def marked(names: Iterable[str]) -> list[Any]:
    """The names, those of heads that take seconds marked as slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SECONDS else name for name in names]


# These choose what they train by the class of each image, so classification alone serves them.
BY_CLASS = {"gps", "sct", "gist", "pae", "tip_adapter"}


def run(method: Method, task: str, family: str, size: tuple[int, int]) -> None:
    """A cell holds, or the table says that the family lacks a place for the method, or that this task's head reads
    nothing that the method changes."""
    missing = unread = None
    try:
        attaches_learns_reloads_and_predicts(TaskCell(method, task, family, size))
    except vpeft.MissingPlace as refusal:
        missing = kind_of(refusal)
        if refusals.stored().get("tasks", {}).get(task, {}).get(family) == missing:
            pytest.skip(f"the task is refused: {missing}")
        if alone(method, family):
            missing, unread = None, missing
    except NeedsClassLabels:
        assert method.name in BY_CLASS and task != "classification", f"{method.name} on {task}"
        pytest.skip("it chooses what it trains by class, and this task has none")
    except DeadPlace as refusal:
        unread = kind_of(refusal)
    changed = difference("methods", method.name, family, missing)
    if missing is None and changed is None:
        changed = difference("methods for tasks", f"{method.name} for {task}", family, unread)
    assert changed is None, changed
    if missing or unread:
        pytest.skip(f"refused: {missing or unread}")


@pytest.mark.parametrize("method", FOUR, ids=lambda method: method.name)
@pytest.mark.parametrize("family", ANY_SIZE)
def test_detection_is_served_by_four_methods(family: str, method: Method) -> None:
    run(method, "detection", family, ANY_SIZE[family][1][0])


@pytest.mark.parametrize("size", [0, 1], ids=["size", "taller"])
@pytest.mark.parametrize("method", FOUR, ids=lambda method: method.name)
@pytest.mark.parametrize("task", marked(LEARNT))
@pytest.mark.parametrize("family", ANY_SIZE)
def test_the_same_objects_serve_every_task_at_two_sizes(family: str, task: str, method: Method, size: int) -> None:
    run(method, task, family, ANY_SIZE[family][1][size])


@pytest.mark.parametrize("method", FIVE, ids=lambda method: method.name)
@pytest.mark.parametrize("task", marked(LEARNT))
@pytest.mark.parametrize("family", ANY_SIZE)
def test_unlike_methods_serve_every_task(family: str, task: str, method: Method) -> None:
    run(method, task, family, ANY_SIZE[family][1][0])


@pytest.mark.cells
@pytest.mark.parametrize("name", all_methods())
@pytest.mark.parametrize("task", LEARNT)
@pytest.mark.parametrize("family", ANY_SIZE)
def test_every_method_serves_every_task(family: str, task: str, name: str) -> None:
    cell, refusal = cell_or_refusal(name, family)
    if cell is None:
        pytest.skip(f"refused: {refusal}")
    run(cell.method, task, family, ANY_SIZE[family][1][0])


@pytest.mark.parametrize("task", marked(LEARNT))
@pytest.mark.parametrize("family", EVERY)
def test_every_family_carries_the_head_of_every_task(family: str, task: str) -> None:
    as_stored("tasks", task, family, refusal_of(attach_default_head, family, task))


@pytest.mark.parametrize("kind", marked(all_heads()))
@pytest.mark.parametrize("family", EVERY)
def test_every_family_carries_every_head(family: str, kind: str) -> None:
    as_stored("heads", kind, family, refusal_of(attach_head, family, kind))


@pytest.mark.parametrize("family", EVERY)
def test_a_map_lies_as_the_image_lies(family: str) -> None:
    try:
        map_lies_as_the_image_lies(family)
    except vpeft.MissingPlace as refusal:
        as_stored("heads", "linear_map", family, refusal)


def as_stored(part: refusals.Part, name: str, family: str, refusal: vpeft.VpeftError | None) -> None:
    changed = difference(part, name, family, refusal and kind_of(refusal))
    assert changed is None, changed
    assert refusal is None or len(str(refusal)) > 40, refusal


def test_the_table_names_only_tasks_and_heads_that_exist() -> None:
    both = [f"{method} for {task}" for method in all_methods() for task in LEARNT]
    assert not refusals.stale("tasks", LEARNT, EVERY), refusals.UPDATE
    assert not refusals.stale("heads", all_heads(), EVERY), refusals.UPDATE
    assert not refusals.stale("methods for tasks", both, ANY_SIZE), refusals.UPDATE
