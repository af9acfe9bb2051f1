"""Scores of a classifier on some of its classes: the others give no answer, and lists and numbers name classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.data.pictures import write_classes
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.sources.imagenet_r import split_of_classes
from vpeft.regimes.restricted_classes import RestrictedClasses, UnknownClasses, class_lists, restricted
from vpeft.tasks.classification import Classification
from vpeft.tasks.regression import Regression
from vpeft.training.evaluate import evaluate

LABELS = ("ant", "bee", "cat", "dog", "eel")


class Prefers(nn.Module):
    """Scores of five classes that are the same for every image."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores, dtype=torch.float32))

    def forward(self, images: Tensor, batch: object = None) -> Tensor:
        return self.scores.expand(len(images), -1)


def images_of(folder: Path, **counts: int) -> ImageSet:
    source = str(write_classes(folder, **counts))
    return open_for_evaluation(DataConfig(source=source), None).prepared(Preprocessing(size=(16, 16)))


def test_answers_outside_of_the_data_are_left_out(tmp_path: Path) -> None:
    images = images_of(tmp_path, dog=3, bee=1)
    model, task = Prefers(9, 1, 8, 2, 7), Classification(LABELS)
    assert evaluate(model, images.relabelled(LABELS), task=task).values["top1"] == 0.0
    chosen, judging, there = restricted(model, task, images, "data")
    assert judging.labels == ("bee", "dog") and there.targets.count(1) == 3
    scores = evaluate(chosen, there, task=judging)
    assert scores.values["top1"] == 0.75 and scores.details["labels"] == ["bee", "dog"]
    assert torch.equal(chosen(torch.zeros(2, 3, 4, 4)), torch.tensor([[1.0, 2.0]] * 2))


def test_a_file_lists_more_classes_than_the_data_have(tmp_path: Path) -> None:
    images = images_of(tmp_path / "photos", dog=3, bee=1)
    file = tmp_path / "list.txt"
    file.write_text("dog\nbee\n\neel\n")
    weighed = Classification(LABELS, weights=(1.0, 2.0, 3.0, 4.0, 5.0))
    chosen, judging, there = restricted(Prefers(9, 1, 8, 2, 7), weighed, images, str(file))
    assert judging.labels == ("bee", "dog", "eel") and judging.weights == (2.0, 4.0, 5.0)
    assert evaluate(chosen, there, task=judging).values["top1"] == 0.0
    for text, said in (
        ("dog\n", "1 classes of the data are left out"),
        ("dog\nbee\nfox\n", "1 classes that the adapter"),
    ):
        file.write_text(text)
        with pytest.raises(UnknownClasses, match=said):
            restricted(Prefers(9, 1, 8, 2, 7), weighed, images, str(file))
    with pytest.raises(UnknownClasses, match="imagenet-a"):
        restricted(Prefers(9, 1, 8, 2, 7), weighed, images, "imagnet-a")


def test_labels_that_are_numbers_of_classes(tmp_path: Path) -> None:
    numbered = {"3": 3, "1": 1}
    chosen, judging, there = restricted(
        Prefers(0, 1, 0, 2, 0), Classification(LABELS), images_of(tmp_path / "a", **numbered), "numbers"
    )
    assert judging.labels == LABELS and evaluate(chosen, there, task=judging).values["top1"] == 0.75
    with pytest.raises(UnknownClasses, match="'7' is not the number of one of the adapter's 5 classes"):
        restricted(chosen, Classification(LABELS), images_of(tmp_path / "b", **{"7": 1, "1": 1}), "numbers")


def test_other_tasks_and_single_classes_are_refused(tmp_path: Path) -> None:
    images = images_of(tmp_path, dog=3)
    with pytest.raises(UnknownClasses, match="gives no score for each"):
        restricted(nn.Identity(), Regression(), images, "data")
    with pytest.raises(UnknownClasses, match="leaves 1 class"):
        restricted(nn.Identity(), Classification(LABELS), images, "data")


def test_the_lists_are_the_published_ones() -> None:
    lists = class_lists()
    assert {name: len(set(ids)) for name, ids in lists.items()} == {"imagenet-a": 200, "imagenet-r": 200}
    assert lists["imagenet-a"][:2] == ("n01498041", "n01531178") and lists["imagenet-a"][-1] == "n12267677"
    assert set(lists["imagenet-r"]) == set(split_of_classes())
    assert len(set(lists["imagenet-a"]) & set(lists["imagenet-r"])) == 86


def test_the_chosen_columns_move_with_the_model() -> None:
    made = RestrictedClasses(Prefers(0, 1, 2, 3, 4), [4, 0])
    assert not made.state_dict().keys() & {"columns"}
    assert made.to(torch.float64)(torch.zeros(1, 1)).dtype == torch.float64
