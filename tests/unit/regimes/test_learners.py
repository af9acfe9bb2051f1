"""Each learner against a plain restatement of its equations on a tiny stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit.regimes.streams import backbone, draw, setting, stream_of
from vpeft.data.image_set import ImageSet
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import BadField
from vpeft.regimes.learner import BadLearner, Learning, UnknownLearner, all_learners, make_learner
from vpeft.regimes.learners.ease import EASELearning
from vpeft.regimes.learners.lae import OFFLINE, LAELearning
from vpeft.regimes.learners.lwf import distance
from vpeft.regimes.learners.ranpac import RanPACLearning
from vpeft.regimes.learners.sema import SEMALearning
from vpeft.regimes.one_adapter import LoneClass, OneAdapter
from vpeft.regimes.ridge import RIDGES, chosen_ridge
from vpeft.regimes.stream import Stream


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return stream_of(draw(tmp_path_factory.mktemp("classes")))


def learnt(text: str, stream: Stream, tasks: int, **settings: Any) -> Any:
    """A learner after some tasks of the stream."""
    learner = make_learner(text)
    learning = learner.start(setting(len(stream.tasks), **settings))
    for task in stream.tasks[:tasks]:
        past = stream.tasks[: task.number] if learner.keeps == "images" else ()
        learning.learn(task, stream.labels_at(task.number), past)
    return learning


def images_of(images: ImageSet) -> tuple[Tensor, Tensor]:
    return torch.stack([images[index].input for index in range(len(images))]), torch.tensor(list(images.targets))


def scores(learning: Learning, images: Tensor) -> Tensor:
    model = learning.model.eval()
    with torch.no_grad():
        found: Tensor = model(images)
    return found


def features(tuned: TunedModel, images: Tensor, adapter: str | None) -> Tensor:
    with torch.no_grad(), tuned.disable() if adapter is None else tuned.enable(adapter):
        return tuned.features(images)


def class_means(values: Tensor, numbers: Tensor) -> Tensor:
    return torch.stack([values[numbers == number].mean(0) for number in range(int(numbers.max()) + 1)])


def of_all(stream: Stream, tasks: int) -> tuple[Tensor, Tensor]:
    """The training images of the first tasks and their classes."""
    parts = [images_of(task.plain) for task in stream.tasks[:tasks]]
    return torch.cat([images for images, _ in parts]), torch.cat([numbers for _, numbers in parts])


def test_simple_cil(stream: Stream) -> None:
    learning, model = learnt("simple_cil", stream, 2), backbone()
    images, numbers = of_all(stream, 2)
    with torch.no_grad():
        means, seen = class_means(model(images), numbers), model(images[::3])
    expected = F.normalize(seen, dim=1) @ F.normalize(means, dim=1).T
    assert torch.allclose(scores(learning, images[::3]), expected, atol=1e-5)


def test_aper(stream: Stream) -> None:
    learning = learnt("aper(method=adaptformer(bottleneck=4))", stream, 2, lr=1.0)
    images, numbers = of_all(stream, 2)
    both = torch.cat([features(learning.tuned, images, None), features(learning.tuned, images, "default")], dim=1)
    with torch.no_grad():
        assert torch.allclose(both[:, :48], backbone()(images), atol=1e-5)
    assert not torch.allclose(both[:, :48], both[:, 48:], atol=1e-3)
    expected = F.normalize(both, dim=1) @ F.normalize(class_means(both, numbers), dim=1).T
    assert torch.allclose(scores(learning, images), expected, atol=1e-5)


def test_ranpac(stream: Stream) -> None:
    learning: RanPACLearning = learnt("ranpac(method=ssf, projection=40)", stream, 2)
    gram, cross = np.zeros((40, 40)), np.zeros((40, 4))
    random: Any = learning.head.random
    for task in stream.tasks[:2]:
        images, numbers = images_of(task.plain)
        hidden = (features(learning.tuned, images, "default").double() @ random.double()).clamp(min=0).numpy()
        targets = np.eye(4)[numbers.numpy()]
        gram += hidden.T @ hidden
        cross += hidden.T @ targets
    order = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(learning.setting.seed_of(1, "ridge")))
    fit, rest = order[: int(0.8 * len(order))].numpy(), order[int(0.8 * len(order)) :].numpy()
    errors = {}
    for ridge in RIDGES[6:]:  # smaller ones are not solved to many digits with eight images
        weight = np.linalg.solve(hidden[fit].T @ hidden[fit] + ridge * np.eye(40), hidden[fit].T @ targets[fit])
        errors[ridge] = ((hidden[rest] @ weight - targets[rest]) ** 2).mean()
    best = min(errors, key=errors.__getitem__)
    chosen = chosen_ridge(torch.from_numpy(hidden), torch.from_numpy(targets), order)
    assert chosen == best
    weight = np.linalg.solve(gram + best * np.eye(40), cross)
    images, _ = of_all(stream, 2)
    seen = (features(learning.tuned, images, "default").double() @ random.double()).clamp(min=0).numpy()
    assert np.allclose(scores(learning, images).numpy(), seen @ weight, atol=1e-5)
    assert random.shape == (48, 40) and 0.9 < random.std() < 1.1


def test_ease(stream: Stream) -> None:
    learning: EASELearning = learnt("ease(method=adaptformer(bottleneck=4), alpha=0.3)", stream, 3)
    tuned = learning._tuned
    assert tuned is not None and list(tuned.adapters) == ["task_0", "task_1", "task_2"]
    images, numbers = of_all(stream, 3)
    spaces = [features(tuned, images, f"task_{j}") for j in range(3)]
    true = [class_means(space, numbers) for space in spaces]
    homes = [0, 0, 1, 1, 2, 2]
    means = [space.clone() for space in true]
    for space, new in ((1, [2, 3]), (2, [4, 5])):  # in the order in which the spaces came
        for old in range(new[0]):
            home = homes[old]
            similar = torch.stack([F.cosine_similarity(true[home][old], true[home][n], dim=0) for n in new]).softmax(0)
            means[space][old] = sum(similar[i] * true[space][n] for i, n in enumerate(new))
    expected = torch.zeros(len(images), 6)
    for c in range(6):
        for j in range(3):
            weight = 1.0 if j == homes[c] else 0.3 / 2
            expected[:, c] += weight * F.cosine_similarity(spaces[j], means[j][c][None], dim=1)
    assert torch.allclose(scores(learning, images), expected, atol=1e-5)


def test_lae(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Tensor]] = []
    follow = LAELearning.follow

    def noted(self: LAELearning, tuned: TunedModel) -> None:
        steps.append({key: value.clone() for key, value in tuned.adapter_state().items()})
        follow(self, tuned)

    monkeypatch.setattr(LAELearning, "follow", noted)
    first = learnt("lae(decay=0.7, frozen=0.5)", stream, 1)
    start = {key: value.clone() for key, value in first.tuned.adapter_state().items()}
    learning: LAELearning = learnt("lae(decay=0.7, frozen=0.5)", stream, 2)
    offline = learning.tuned.adapter_state(OFFLINE)
    assert len(steps) == 4 and offline  # two epochs of two batches of four
    for key, value in offline.items():
        assert all(torch.equal(step[key], start[key]) for step in steps[:2]), "the first epoch trains the head alone"
        expected = start[key]
        for step in steps:
            expected = 0.7 * expected + 0.3 * step[key]
        assert torch.allclose(value, expected, atol=1e-6), key
    assert any(not torch.equal(steps[-1][key], start[key]) for key in offline)
    images, _ = of_all(stream, 2)
    head = learning.head.eval()
    with torch.no_grad():
        both = [head(features(learning.tuned, images, name)).softmax(1) for name in ("default", OFFLINE)]
    assert torch.allclose(scores(learning, images), torch.maximum(*both), atol=1e-6)
    assert not torch.allclose(*both, atol=1e-4)


def test_distance_of_lwf() -> None:
    told, outputs = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (told / 2).softmax(1), (outputs / 2).softmax(1)
    assert torch.allclose(distance(outputs, told, 2.0), 4 * (p * (p / q).log()).sum(1).mean(), rtol=1e-5)
    assert float(distance(told, told, 2.0)) == pytest.approx(0, abs=1e-6)


def test_lwf_without_weight_is_sequential_and_with_it_remembers(stream: Stream) -> None:
    settings = {"lr": 0.05, "epochs": 6, "acceleration": "off"}
    plain = learnt("ssf", stream, 2, **settings)
    same, kept = (learnt(f"lwf(method=ssf, weight={w})", stream, 2, **settings) for w in (0, 2))
    for key, value in plain.tuned.adapter_state().items():
        assert torch.equal(same.tuned.adapter_state()[key], value), key
    before = learnt("ssf", stream, 1, **settings)
    images, _ = images_of(stream.tasks[1].plain)
    told = scores(before, images)
    drift = [float(distance(scores(one, images)[:, :2], told, 2.0)) for one in (plain, kept)]
    assert drift[1] < 0.8 * drift[0]


def test_sequential_keeps_the_rows_of_earlier_classes_bit_by_bit(stream: Stream) -> None:
    settings = {"optimiser": "adamw", "weight_decay": 0.5}
    one, two = (learnt("lora(rank=2)", stream, tasks, **settings) for tasks in (1, 2))
    for name in ("weight", "bias"):
        rows = [dict(learning.head.named_parameters())[name] for learning in (one, two)]
        assert torch.equal(rows[1][:2], rows[0]) and rows[1][2:].abs().sum() > 0
    own = learnt("sequential(method=lora(rank=2), classes=seen)", stream, 2, **settings)
    assert not torch.equal(own.head.weight[:2], one.head.weight)
    assert not torch.equal(two.tuned.adapter_state()["blocks.0.attn.q.parallel.B"], 0 * one.head.weight[0, 0])


def test_joint_forgets_the_order(stream: Stream) -> None:
    learning = learnt("joint", stream, 3)
    images, numbers = of_all(stream, 3)
    right = (scores(learning, images).argmax(1) == numbers).float().mean()
    sequential = learnt("lora(rank=2)", stream, 3)
    assert right > 0.9 > (scores(sequential, images).argmax(1) == numbers).float().mean()


def test_sema_grows_where_images_are_strange_and_touches_nothing_else(stream: Stream) -> None:
    text = "sema(bottleneck=4, descriptor=8, expandable=2, descriptor_epochs=3, threshold={})"
    one: SEMALearning = learnt(text.format(0), stream, 1)
    two: SEMALearning = learnt(text.format(0), stream, 2)
    assert [len(mixture.experts) for mixture in two.mixtures] == [1, 2, 2]
    before, after = one.tuned.adapter_state(), two.tuned.adapter_state()
    for key, value in before.items():
        if not key.startswith("head."):
            assert torch.equal(after[key], value), key
    assert any(
        after[key].abs().sum() > 0 for key in after.keys() - before.keys() if key.endswith("experts.1.up.weight")
    )
    for mixture in two.mixtures[1:]:
        for descriptor in mixture.descriptors:
            assert float(descriptor.std) != 1.0  # type: ignore[arg-type]
    calm: SEMALearning = learnt(text.format(1e9), stream, 2)
    assert [len(mixture.experts) for mixture in calm.mixtures] == [1, 1, 1]
    for key, value in before.items():
        if not key.startswith("head."):
            assert torch.equal(calm.tuned.adapter_state()[key], value), key
    assert not torch.equal(calm.head.weight[2:], 0 * calm.head.weight[2:])


def test_dualprompt_trains_the_prompt_of_the_task(stream: Stream) -> None:
    learning: OneAdapter = learnt("dualprompt(shared_blocks=[0], task_blocks=[1], tasks=3)", stream, 2)
    own = learning.tuned.adapter_state()
    place = "blocks.1.attn.core.extend.of_task"
    first = learnt("dualprompt(shared_blocks=[0], task_blocks=[1], tasks=3)", stream, 1).tuned.adapter_state()
    assert torch.equal(own[f"{place}.0"], first[f"{place}.0"])
    assert not torch.equal(own[f"{place}.1"], first[f"{place}.0"])
    assert int(own["blocks.1.attn.core.extend.keys.task"]) == 1


def test_names_are_found_and_mistakes_are_said(tmp_path: Path) -> None:
    for name, kind in all_learners().items():
        assert kind.name == name and kind.__module__ == f"vpeft.regimes.learners.{name}" and kind.__doc__
        assert all(field.description for field in kind.model_fields.values()), name
    assert make_learner("lora(rank=4)+ssf").model_dump()["method"] == "lora(rank=4)+ssf"
    with pytest.raises(UnknownLearner, match="Did you mean 'ranpac'"):
        make_learner("ranpak")
    with pytest.raises(BadLearner, match=r"no option 'projektion'. Did you mean 'projection'"):
        make_learner("ranpac(projektion=3)")
    with pytest.raises(BadLearner, match="aper is a learner"):
        make_learner("aper+lora")
    with pytest.raises(BadField, match="no hyper-parameter 'rang'"):
        make_learner("aper(method=lora(rang=3))")
    with pytest.raises(BadField, match=r"inflora\(tasks=3\)"):
        learnt("inflora(tasks=2)", stream_of(draw(tmp_path / "six")), 1)
    with pytest.raises(LoneClass, match="has one class"):
        learnt("lora", stream_of(draw(tmp_path / "three", ("ant", "bee", "cat")), increment=1, first=2), 2)
