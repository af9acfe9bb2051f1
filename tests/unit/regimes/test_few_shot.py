"""Episodes, the nearest centroid restated, fresh starts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.unit.regimes.streams import CLASSES, backbone, draw, preprocessing
from vpeft.batch import Batch
from vpeft.cli import main
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.data.image_set import ImageSet
from vpeft.regimes.episodes import BadEpisodes, Episode, EpisodeSizes, episodes_of
from vpeft.regimes.few_shot import FewShot, NearestCentroid, interval
from vpeft.training.optimisation import Optimisation

SETTINGS = Optimisation(lr=0.1, optimiser="sgd", schedule="constant", warmup=0, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def images(folder: Path) -> ImageSet:
    return open_for_evaluation(DataConfig(source=str(folder)), None).prepared(preprocessing())


def sizes(**fields: int) -> EpisodeSizes:
    return EpisodeSizes.model_validate({"way": 3, "shot": 2, "queries": 3, **fields})


def stacked(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([images[i].input for i in range(len(images))]), torch.tensor(list(images.targets))


def test_episodes_are_a_function_of_their_number(images: ImageSet) -> None:
    first, again = (list(episodes_of(images, sizes(), 4, seed=3)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        names = [[item.name for item in part.items] for part in (one.support, one.queries)]
        assert names == [[item.name for item in part.items] for part in (other.support, other.queries)]
        assert not set(names[0]) & set(names[1])
        assert (
            list(one.support.targets) == [0, 0, 1, 1, 2, 2] and list(one.queries.targets) == [0] * 3 + [1] * 3 + [2] * 3
        )
        assert tuple(one.support.labels) == one.classes and set(one.classes) <= set(CLASSES)
    assert len({one.classes for one in first}) > 1
    assert [item.name for item in next(episodes_of(images, sizes(), 1, seed=4)).support.items] != [
        item.name for item in first[0].support.items
    ]


def test_ways_and_shots_vary(images: ImageSet) -> None:
    found = list(episodes_of(images, sizes(way=2, most_ways=4, shot=1, most_shots=3), 30))
    assert {len(one.classes) for one in found} == {2, 3, 4}
    shots = {list(one.support.targets).count(number) for one in found for number in range(len(one.classes))}
    assert shots == {1, 2, 3}


def test_more_classes_or_images_than_there_are(images: ImageSet) -> None:
    with pytest.raises(BadEpisodes, match="up to 7 classes with 2 support and 3 query images each, and 6 of the 6"):
        next(episodes_of(images, sizes(way=7), 1))
    with pytest.raises(BadEpisodes, match="and 0 of the 6 classes here have so many"):
        next(episodes_of(images, sizes(queries=5), 1))
    with pytest.raises(ValueError, match="not below"):
        sizes(most_ways=2)


def test_the_nearest_centroid_of_the_frozen_model(images: ImageSet) -> None:
    worker = FewShot(backbone, "linear_probe", "centroid", SETTINGS, steps=0)
    for episode in episodes_of(images, sizes(), 3):
        (support, numbers), (queries, truth) = stacked(episode.support), stacked(episode.queries)
        with torch.no_grad():
            given, asked = backbone()(support), backbone()(queries)
        right = 0
        for row, number in zip(asked, truth, strict=True):
            near = [F.cosine_similarity(row, given[numbers == label].mean(0), dim=0) for label in range(3)]
            right += int(torch.stack(near).argmax()) == int(number)
        assert worker.accuracy(episode) == pytest.approx(right / len(truth))


def test_the_loss_compares_with_the_means_of_the_batch() -> None:
    features, numbers = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    task = NearestCentroid(labels=("a", "b", "c"))
    found = task.loss(features, Batch(features, numbers))["cross_entropy"]
    means = [features[numbers == label].mean(0) for label in range(3)]
    scores = torch.stack([torch.stack([F.cosine_similarity(row, mean, dim=0) for mean in means]) for row in features])
    assert torch.allclose(found, F.cross_entropy(10 * scores, numbers), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "head"), [("ssf", "centroid"), ("ssf", "linear"), ("ett(ways=3, hidden=8)", "centroid")]
)
def test_each_episode_starts_afresh_and_learns(method: str, head: str, images: ImageSet) -> None:
    episodes: list[Episode] = list(episodes_of(images, sizes(), 2))
    worker, alone = (FewShot(backbone, method, head, SETTINGS, steps=4) for _ in range(2))
    after = []
    for one, given in ((worker, episodes), (alone, episodes[1:])):
        for episode in given:
            one.accuracy(episode)
        assert len(one._models) == 1, "nothing is attached twice"
        after.append(
            {name: value.clone() for tuned, _ in one._models.values() for name, value in tuned.adapter_state().items()}
        )
    assert all(torch.equal(after[1][name], value) for name, value in after[0].items())
    ((tuned, start),) = worker._models.values()
    assert any(not torch.equal(start[name], value) for name, value in after[0].items())
    support, numbers = stacked(episodes[1].support)
    task = NearestCentroid(labels=episodes[1].classes)
    with torch.no_grad():
        tuned.eval()
        learnt = tuned(support)
        tuned.load_adapter_state(start)
        before = tuned(support)
    if head == "centroid":
        losses = [float(task.loss(one, Batch(support, numbers))["cross_entropy"]) for one in (before, learnt)]
    else:
        losses = [float(F.cross_entropy(one, numbers)) for one in (before, learnt)]
    assert losses[1] < losses[0]


def test_the_interval_and_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean, half = interval([0.2, 0.4, 0.6, 0.8])
    assert mean == pytest.approx(0.5) and half == pytest.approx(1.96 * (0.2 / 3) ** 0.5 / 2)
    words = ["fewshot", "--data", str(folder), "--way", "3", "--shot", "1", "--queries", "2", "--episodes", "2"]
    words += ["--method", "dra", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "over 2 episodes" in capsys.readouterr().out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["accuracy"] == pytest.approx(sum(record["accuracies"]) / 2) and record["episodes"] == 2
    assert record["recipe"]["optimisation"]["schedule"] == "constant"
    assert main(["9" if word == "3" else word for word in words]) == 1
    assert "Lower --way" in capsys.readouterr().err
