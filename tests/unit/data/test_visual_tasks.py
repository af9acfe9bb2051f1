"""Maps painted as pictures and read back, copies of rare pairs, and sentences of pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.visual_sequences import CODES, TOKENS
from torch import Tensor

from vpeft.backbones.picture_codec import PocketVq
from vpeft.batch import Sample
from vpeft.data.problems import DataError
from vpeft.data.visual_sentences import VisualSentences, kinds_of
from vpeft.data.visual_tasks import NOISE, augmentation, classes_of, painted_classes, palette, visual_task


class Drawn:
    """`count` images with masks of three classes and depths; every image is told apart by its first pixel."""

    labels = ("mask/a", "mask/b", "mask/c", "depth/depth")
    seed = 3

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 16, 16, generator=generator)
        maps = {"mask": torch.randint(3, (16, 16), generator=generator), "depth": torch.full((16, 16), 2.0)}
        return Sample(image, maps, f"n{index}")


def codec() -> PocketVq:
    torch.manual_seed(0)
    return PocketVq(side=8, patch=4, codes=CODES, width=8, depth=1).eval()


def sentences(count: int = 6, training: bool = True, pairs: int = 3, **options: Any) -> VisualSentences:
    tasks = [visual_task(name) for name in ("mask", "denoise")]
    return VisualSentences(Drawn(count), tasks, codec(), pairs=pairs, classes=3, training=training, **options)


@pytest.mark.parametrize("classes", [1, 2, 8, 26, 150])
def test_classes_come_back_from_their_colours(classes: int) -> None:
    numbers = torch.arange(classes).repeat(2)[None].expand(3, -1)
    painted = painted_classes(numbers, classes)
    assert torch.equal(classes_of(painted[None], classes)[0], numbers)
    assert len(torch.unique(palette(classes), dim=0)) == classes
    assert float(torch.pdist(torch.cat([palette(classes), torch.zeros(1, 3)])).min()) > 0
    ignored = painted_classes(torch.full((2, 2), 255), classes)
    assert float(ignored.abs().max()) == 0


def test_near_is_light_and_unknown_is_black() -> None:
    depth = torch.tensor([[1.0, 40.0], [float("nan"), 100.0]])
    _, answer = visual_task("depth").pair(torch.rand(3, 2, 2), {"depth": depth}, 2, 1, "a")
    assert torch.allclose(answer[0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    middle = torch.full((2, 2), 40.0**0.5)
    _, answer = visual_task("depth").pair(torch.rand(3, 2, 2), {"depth": middle}, 2, 1, "a")
    assert torch.allclose(answer, torch.full((3, 2, 2), 0.5), atol=1e-6)


def test_noise_depends_on_the_name_and_the_copy_alone() -> None:
    image, task = torch.full((3, 32, 32), 0.5), visual_task("denoise")
    one, other = (task.pair(image, {}, 32, 1, "a")[0] for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, task.pair(image, {}, 32, 1, "b")[0])
    assert not torch.equal(one, task.pair(image, {}, 32, 1, "a", copy=1)[0])
    assert abs(float((one - image).std()) - NOISE) < 0.02


def test_a_hole_is_grey_and_the_answer_is_whole() -> None:
    image = torch.rand(3, 20, 20) * 0.4
    shown, answer = visual_task("inpaint").pair(image, {}, 20, 1, "a")
    changed = (shown != answer).any(0)
    assert int(changed.sum()) == 64 and bool((shown[:, changed] == 0.5).all())


def test_copies_are_the_image_its_mirror_six_crops_and_then_random_ones() -> None:
    planes = torch.arange(64.0).reshape(1, 8, 8)
    assert torch.equal(augmentation(0).of(planes), planes)
    assert torch.equal(augmentation(1).of(planes), planes.flip(-1))
    crops = [augmentation(number) for number in range(2, 14)]
    assert len({(one.left, one.top) for one in crops}) == 6
    assert [one.mirrored for one in crops] == [False, True] * 6
    assert all(one.of(planes).shape == (1, 6, 6) for one in crops[:8])
    later = [augmentation(number) for number in range(14, 40)]
    assert len(set(later)) == len(later)
    assert all(0 <= one.left < one.right <= 1.001 and 0 <= one.top < one.bottom <= 1.001 for one in later)


def test_image_and_map_are_changed_alike() -> None:
    mask = torch.randint(3, (16, 16), generator=torch.Generator().manual_seed(0))
    image = painted_classes(mask, 3)
    for copy in range(20):
        shown, answer = visual_task("mask").pair(image, {"mask": mask}, 8, 3, "a", copy)
        assert torch.allclose(shown, answer, atol=1e-6)


def test_normals_turn_with_the_mirror() -> None:
    vectors = torch.zeros(3, 4, 4)
    vectors[0] = 1.0
    pair = [visual_task("normals").pair(torch.rand(3, 4, 4), {"normals": vectors}, 4, 1, "a", n)[1] for n in (0, 1)]
    assert torch.equal(pair[0][0], torch.ones(4, 4)) and torch.equal(pair[1][0], torch.zeros(4, 4))


def test_a_sentence_is_pairs_of_one_task_with_the_own_pair_last() -> None:
    made = sentences(training=False)
    code, one = codec(), Drawn(6)[2]
    sample = made[2]
    task = visual_task("mask")
    pair = torch.stack(task.pair(one.input, one.target, 8, 3, "n2"))
    assert sample.input.shape == (3 * 2 * TOKENS,)
    assert torch.equal(sample.input[-2 * TOKENS :], code.encode(pair).flatten())
    assert torch.allclose(sample.target["answer"], pair[1])
    assert sample.target["numbers"].shape == (8, 8) and int(sample.target["task"]) == 0
    before = sample.input.reshape(3, -1)[:2]
    of_task = made.tokens[:6].flatten(1)
    assert all(any(torch.equal(row, other) for other in of_task) for row in before)
    assert not any(torch.equal(row, sample.input[-2 * TOKENS :]) for row in before)
    assert torch.equal(made[2].input, sample.input)
    assert int(made[8].target["task"]) == 1 and bool((made[8].target["numbers"] == 255).all())


def test_examples_of_training_change_with_the_epoch_and_those_of_scores_do_not() -> None:
    for training in (True, False):
        made = sentences(count=12, training=training)
        first = [made[index].input for index in range(12)]
        made.set_epoch(1)
        same = [torch.equal(made[index].input, before) for index, before in enumerate(first)]
        assert all(same) != training
        assert all(torch.equal(made[i].input[-2 * TOKENS :], one[-2 * TOKENS :]) for i, one in enumerate(first))


def rows_of(made: VisualSentences, task: int) -> list[Tensor]:
    return [tokens for tokens, row in zip(made.tokens, made.rows, strict=True) if row[0] == task]


def test_rare_tasks_are_repeated_or_get_other_copies() -> None:
    limits = {"denoise": 2}
    assert sentences(limits=limits).counts() == {"mask": 6, "denoise": 2}
    repeated, augmented = (sentences(limits=limits, balance=how) for how in ("repeat", "augment"))
    assert repeated.counts() == augmented.counts() == {"mask": 6, "denoise": 6}
    assert len(torch.unique(torch.stack(rows_of(repeated, 1)), dim=0)) == 2
    assert len(torch.unique(torch.stack(rows_of(augmented, 1)), dim=0)) > 3
    assert len(set(augmented.rows)) == 12 and len(set(repeated.rows)) == 8
    assert {row[1] for row in augmented.rows if row[0] == 1} == {row[1] for row in repeated.rows if row[0] == 1}
    assert torch.equal(torch.stack(rows_of(augmented, 0)), torch.stack(rows_of(repeated, 0)))
    # scores see all images
    assert sentences(training=False, limits=limits, balance="augment").counts() == {"mask": 6, "denoise": 6}


def test_a_lone_image_is_its_own_example() -> None:
    made = sentences(count=1, training=False)
    assert torch.equal(made[0].input.reshape(3, -1)[0], made[0].input.reshape(3, -1)[2])


def test_the_maps_that_tasks_need() -> None:
    assert kinds_of([visual_task("mask"), visual_task("denoise"), visual_task("depth")]) == "mask+depth"
    assert kinds_of([visual_task("denoise")]) == "label"
    with pytest.raises(DataError, match="denoise"):
        visual_task("denoize")
    with pytest.raises(DataError, match="images"):
        sentences(count=0)
