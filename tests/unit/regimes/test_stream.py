"""Streams of classes and of domains, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.regimes.streams import CLASSES, draw, opened, preprocessing, stream_of
from vpeft.regimes.stream import BadStream, class_groups, class_order, class_stream, domain_stream, joined


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("classes"))


def test_the_order_is_that_of_numpys_seed() -> None:
    names = [str(number) for number in range(100)]
    np.random.seed(1993)
    expected = np.random.permutation(100)
    assert class_order(names, 1993) == tuple(str(number) for number in expected)
    assert class_order(names, None) == tuple(names)
    assert class_order(names, 0) != class_order(names, 1)


@pytest.mark.parametrize(
    ("count", "increment", "first", "sizes"),
    [(100, 10, 0, [10] * 10), (100, 10, 50, [50] + [10] * 5), (26, 10, 0, [10, 10, 6]), (7, 3, 2, [2, 3, 2])],
)
def test_sizes_of_the_tasks(count: int, increment: int, first: int, sizes: list[int]) -> None:
    names = [str(number) for number in range(count)]
    groups = class_groups(names, increment, first, 3)
    assert [len(group) for group in groups] == sizes
    assert sorted(name for group in groups for name in group) == sorted(names)


@pytest.mark.parametrize(
    ("increment", "first", "said"), [(0, 0, "at least one"), (6, 0, "nothing is left"), (2, 9, "9")]
)
def test_sizes_that_do_not_fit(increment: int, first: int, said: str) -> None:
    with pytest.raises(BadStream, match=said):
        class_groups(CLASSES, increment, first)


def test_each_task_has_its_own_classes_in_the_order_of_the_stream(folder: Path) -> None:
    stream = class_stream(opened(folder), preprocessing(), increment=2, order_seed=5)
    assert stream.labels == class_order(CLASSES, 5)
    assert stream.facts["notation"] == "B-0 Inc-2"
    for number, task in enumerate(stream.tasks):
        assert (task.first, task.end, task.seen) == (2 * number, 2 * number + 2, 2 * number + 2)
        assert set(task.train.targets) == set(task.judged.targets) == {task.first, task.first + 1}
        names = {item.label for item in task.train.items}
        assert names == set(stream.labels[task.first : task.end])
        assert task.train.labels == list(stream.labels_at(number)) and task.judged.labels == list(stream.labels)
        assert [item.name for item in task.plain.items] == [item.name for item in task.train.items]
        assert not {item.name for item in task.train.items} & {item.name for item in task.judged.items}
    together = joined(stream.tasks[:2])
    assert sorted(set(together.targets)) == [0, 1, 2, 3] and together.labels == list(stream.labels[:4])


def test_overlapping_and_unknown_classes_are_refused(folder: Path) -> None:
    data = opened(folder)
    with pytest.raises(BadStream, match="'bee' is in task 0 and in task 1"):
        class_stream(data, preprocessing(), groups=[("ant", "bee"), ("bee", "cat")])
    with pytest.raises(BadStream, match="which the data lack. Did you mean 'cat'"):
        class_stream(data, preprocessing(), groups=[("ant", "bee"), ("cats",)])
    with pytest.raises(BadStream, match="two tasks or more"):
        class_stream(data, preprocessing(), groups=[("ant", "bee")])
    with pytest.raises(BadStream, match="alone"):
        class_stream(data, preprocessing(), groups=[("ant",), ("bee", "cat")])


def test_a_task_of_one_image_is_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "few", CLASSES[:3])
    for index in range(6):
        (folder / "cat" / f"{index}.png").unlink()
    draw(tmp_path / "one", ("cat",), each=2)
    for split, name in (("train", "0.png"), ("test", "1.png")):
        for label in ("ant", "bee"):
            (tmp_path / "split" / split / label).mkdir(parents=True, exist_ok=True)
            for index in range(3):
                picture = folder / label / f"{index + 3 * (split == 'test')}.png"
                picture.rename(tmp_path / "split" / split / label / picture.name)
        (tmp_path / "split" / split / "cat").mkdir(parents=True)
        (tmp_path / "one" / "cat" / name).rename(tmp_path / "split" / split / "cat" / name)
    with pytest.raises(BadStream, match=r"Task 1 \(cat\) has 1 training image; a task needs two"):
        class_stream(opened(tmp_path / "split"), preprocessing(), groups=[("ant", "bee"), ("cat",)])


def test_domains_have_the_same_classes(folder: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other", CLASSES, shift=40)
    stream = domain_stream([opened(folder), opened(other)], preprocessing())
    assert [(task.first, task.end, task.seen) for task in stream.tasks] == [(0, 6, 6)] * 2
    assert stream.labels == CLASSES and stream.tasks[1].name == str(other)
    with pytest.raises(BadStream, match="two data sets"):
        domain_stream([opened(folder)], preprocessing())
    with pytest.raises(BadStream, match="differs .* in fox"):
        domain_stream([opened(folder), opened(draw(tmp_path / "less", CLASSES[:5]))], preprocessing())


def test_a_missing_split_is_said(folder: Path) -> None:
    with pytest.raises(BadStream, match=r"no val split to judge by; set data.val_fraction"):
        class_stream(opened(folder), preprocessing(), increment=2, judge="val")
    assert len(stream_of(folder).tasks) == 3
