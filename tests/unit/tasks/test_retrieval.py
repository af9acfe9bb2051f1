"""The task retrieval: losses by name, proxies with a rate of their own that no file holds, splits, scores, resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from tests.models import tiny_vit
from torch.nn import functional

import vpeft
from vpeft.batch import Batch, Sample
from vpeft.data.image_set import ArraySet
from vpeft.data.items import ArrayPicture, Item
from vpeft.head import get_head
from vpeft.injection.load_adapter import start_from
from vpeft.methods import LinearProbe, LoRA
from vpeft.task import BadOption, NoGallery, UnsuitableTargets, get_task
from vpeft.tasks.metric_learning import MissingLibrary, UnknownPart, learnt_by, parts_of, sampled
from vpeft.training.evaluate import evaluate
from vpeft.training.optimisation import Optimisation
from vpeft.training.step import NothingToLearn

LABELS = tuple("abcdef")


class Tiny:
    """Class k is a bright column k, with noise."""

    labels = list(LABELS)

    def __init__(self, count: int = 24) -> None:
        draw = torch.Generator().manual_seed(2)
        self.targets = [index % 6 for index in range(count)]
        self.images = 0.3 * torch.randn(count, 3, 32, 32, generator=draw)
        for image, number in zip(self.images, self.targets, strict=True):
            image[..., 5 * number : 5 * number + 4] += 2

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], self.targets[index], str(index))


def task_with(**options: Any) -> Any:
    return get_task("retrieval")(dimensions=16, **options).bind(Tiny())


def tuned_for(task: Any, method: Any = None) -> Any:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), method or LoRA(rank=2), task=task, show=False)


@pytest.mark.parametrize(
    ("text", "library"),
    [
        ("multi_similarity", losses.MultiSimilarityLoss()),
        ("nt_xent(temperature=0.2)", losses.NTXentLoss(temperature=0.2)),
        ("triplet_margin(margin=0.1)", losses.TripletMarginLoss(margin=0.1)),
        ("contrastive", losses.ContrastiveLoss()),
    ],
)
def test_a_loss_is_the_library_s(text: str, library: Any) -> None:
    task = task_with(loss=text)
    points = functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    numbers = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    (found,) = task.loss(points, Batch(torch.zeros(8, 3, 4, 4), numbers)).values()
    assert torch.allclose(found, library(points, numbers))
    mined = task_with(loss=text, miner="multi_similarity").loss(points, Batch(torch.zeros(8, 1), numbers))
    assert torch.allclose(*mined.values(), library(points, numbers, miners.MultiSimilarityMiner()(points, numbers)))


@pytest.mark.parametrize("text", ["proxy_anchor(alpha=16)", "proxy_nca", "soft_triple", "arc_face", "p2s_grad"])
def test_what_a_loss_learns_lives_in_the_head_and_trains(text: str) -> None:
    task = task_with(loss=text)
    tuned = tuned_for(task, LinearProbe()).train()
    outputs = tuned(Tiny().images[:12])
    numbers = torch.tensor(Tiny().targets[:12])
    (found,) = task.loss(outputs, Batch(Tiny().images[:12], numbers)).values()
    found.backward()
    proxies = {name: p for name, p in tuned.trainable() if name.startswith("head.loss.")}
    assert proxies and all(p.grad is not None and p.grad.any() for p in proxies.values())
    names = {"proxy_anchor(alpha=16)": losses.ProxyAnchorLoss(6, 16, alpha=16), "proxy_nca": losses.ProxyNCALoss(6, 16)}
    if text in names:
        library = names[text]
        library.load_state_dict({"proxies": proxies["head.loss.proxies"].detach()})
        assert torch.allclose(found, library(outputs["embeddings"], numbers))


def test_every_loss_miner_and_sampler_that_can_be_named_is_found() -> None:
    assert {"proxy_anchor", "multi_similarity", "nt_xent", "triplet_margin", "p2s_grad", "vic_reg"} <= {
        *parts_of("loss")
    }
    assert {"multi_similarity", "batch_hard", "triplet_margin"} <= {*parts_of("miner")}
    assert {*parts_of("sampler")} == {"m_per_class"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "proxy_anker"}, "proxy_anchor"),
        ({"loss": "proxy_anchor(alfa=3)"}, "alpha"),
        ({"loss": "proxy_anchor(num_classes=3)"}, "no setting"),
        ({"miner": "multi"}, "no miner"),
        ({"sampler": "m_per_class"}, "needs m"),
        ({"loss": "ranked_list(margin=1)"}, "needs Tn"),
    ],
)
def test_wrong_words_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownPart, match=said):
        get_task("retrieval")(**options)


def test_a_task_of_a_file_makes_nothing_and_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = "sub_center_arc_face(sub_centers=1000000000000)"
    assert get_task("retrieval")(loss=huge).loss_kind == huge
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    task = get_task("retrieval")(loss="proxy_anchor", labels=LABELS, dimensions=16)
    (found,) = task.predictions(torch.eye(1, 16), Batch(torch.zeros(1, 1), None, ("a",)))
    assert found.values["embedding"][0] == 1.0
    with pytest.raises(MissingLibrary, match=r"pip install 'vpeft\[retrieval\]'"):
        tuned_for(task)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(BadOption, match="rise"):
        get_task("retrieval")(recall_at=(2, 1))
    with pytest.raises(UnsuitableTargets, match="each class"):
        tuned_for(get_task("retrieval")(loss="proxy_anchor"))
    with pytest.raises(BadOption, match="cannot keep"):
        tuned_for(task_with(loss="proxy_anchor", head="linear"))
    with pytest.raises(UnknownPart, match="training mode"):
        task_with(loss="proxy_anchor").loss(torch.eye(6, 16), Batch(torch.zeros(6, 1), torch.arange(6)))
    with pytest.raises(NoGallery, match="retrieval"):
        get_task("classification")(labels=("a", "b")).nearest(None, Batch(torch.zeros(1)), None, [], 1)
    with pytest.raises(UnsuitableTargets, match="number"):
        task_with().check_batch(torch.eye(2, 16), Batch(torch.zeros(2, 1), torch.rand(2)))
    with pytest.raises(UnsuitableTargets, match="one embedding"):
        task_with().check_batch(torch.zeros(3, 16), Batch(torch.zeros(2, 1), torch.arange(2)))


def test_the_rate_of_proxies_is_their_own() -> None:
    tuned = tuned_for(task_with(loss="proxy_anchor", loss_rate=50))
    assert tuned.rate_factors() == {"head.loss.proxies": 50.0}


def test_a_file_leaves_proxies_out_and_answers_alike(tmp_path: Path) -> None:
    task = task_with(loss="proxy_anchor")
    tuned = tuned_for(task)
    assert "head.loss.proxies" in tuned.adapter_state()
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), tuned.save(tmp_path / "a.safetensors"))
    assert "head.loss.proxies" not in again.adapter_state()
    assert again.manifest.parameters == sum(
        value.numel() for key, value in tuned.adapter_state().items() if "proxies" not in key
    )
    images = Tiny().images[:3]
    assert torch.equal(again.eval()(images), tuned.eval()(images))
    assert again.task == task
    # as the start of another training: everything but the proxies is taken
    other = tuned_for(task)
    with torch.no_grad():
        for _, parameter in other.trainable():
            parameter.add_(0.1)
    before = other.adapter_state()["head.loss.proxies"].clone()
    assert "its head included" in start_from(other, tmp_path / "a.safetensors")
    assert torch.equal(other.eval()(images), tuned(images))
    assert torch.equal(other.adapter_state()["head.loss.proxies"], before)


def test_the_sampler_is_the_library_s_and_repeats_itself() -> None:
    numbers = [index % 6 for index in range(30)]
    state = np.random.get_state()[1].copy()
    found = sampled("m_per_class(m=2)", numbers, 30, seed=5)
    assert (np.random.get_state()[1] == state).all()
    assert found == sampled("m_per_class(m=2)", numbers, 30, seed=5) != sampled("m_per_class(m=2)", numbers, 30, seed=6)
    classes = [numbers[index] for index in found]
    assert len(found) == 30 and classes[::2] == classes[1::2] and sorted(classes[:12:2]) == list(range(6))


def fitted(task: Any, folder: Path | None = None, stop_after: int | None = None, resume: bool = True) -> Any:
    class Enough(Exception):
        pass

    def count(_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            raise Enough

    steps = 0
    tuned, data = tuned_for(task), Tiny()
    settings = Optimisation(
        epochs=8, batch=8, lr=5e-3, weight_decay=0, warmup=0, device="cpu", checkpoint_steps=2, schedule="constant"
    )
    try:
        vpeft.fit(
            tuned, task.dataset(data, True), task.dataset(data, False), task=task, optimisation=settings, out=folder,
            progress=False, after_step=count, resume=resume,
        )  # fmt: skip
    except Enough:
        return None
    return tuned


def test_it_learns_and_goes_on_bit_equal_after_a_kill(tmp_path: Path) -> None:
    options = {"loss": "proxy_anchor", "sampler": "m_per_class(m=2)", "loss_rate": 20.0}
    task = task_with(**options)
    before = evaluate(tuned_for(task), task.dataset(Tiny(), False), task=task).values
    whole = fitted(task, tmp_path / "whole")
    after = evaluate(whole, task.dataset(Tiny(), False), task=task).values
    assert after["map_at_r"] > before["map_at_r"] + 0.1, (before, after)
    assert fitted(task, tmp_path / "killed", stop_after=5) is None
    again = fitted(task, tmp_path / "killed")
    for name, value in whole.adapter_state().items():
        assert torch.equal(value, again.adapter_state()[name]), name


def test_no_loss_at_all_is_said() -> None:
    with pytest.raises(NothingToLearn, match="loss"):
        fitted(task_with(loss="none"))


def array_set(roles: tuple[str, ...] = (), twins: bool = False) -> ArraySet:
    """Eight images of two classes; images 0 and 4 are one picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    pixels[4] = pixels[0]
    made = ArraySet(pixels, [0, 0, 1, 1, 0, 0, 1, 1], ["x", "y"])
    items = [Item(f"{i}", made.items[i].label, ArrayPicture(pixels, i), None, *roles[i : i + 1]) for i in range(8)]
    made.items = tuple(items)
    return made


def test_queries_and_gallery_are_kept_apart() -> None:
    roles = ("query", "gallery") * 4
    task = get_task("retrieval")(dimensions=4, recall_at=(1, 2))
    sought = task.dataset(array_set(roles), False)
    assert [one.tolist() for one in sought.targets[:3]] == [[0, 1, 0], [0, 2, 1], [1, 1, 2]]
    metric = task.metric()
    points = functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(4)), dim=1)
    # a query that equals another query finds nothing by that: queries are not in the gallery
    points[4] = points[0]
    metric.update(points, Batch(torch.zeros(8, 1), torch.stack(sought.targets)))
    found = metric.compute()
    asked, offered = points[::2], points[1::2]
    numbers = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    best = (asked @ offered.T).argmax(1)
    assert float(found["recall_at_1"]) == pytest.approx(float((numbers[1::2][best] == numbers[::2]).double().mean()))
    assert found["of"] == {"queries": 4, "alone": 0}


def test_copies_are_left_out_if_asked() -> None:
    points = functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(4)), dim=1)
    points[4] = points[0]
    scores = {}
    for copies in ("count", "leave_out"):
        task = get_task("retrieval")(dimensions=4, copies=copies)
        sought, metric = task.dataset(array_set(), False), task.metric()
        targets = torch.stack([torch.as_tensor(one) for one in sought.targets])
        metric.update(points, Batch(torch.zeros(8, 1), targets))
        scores[copies] = metric.compute()
    assert scores["count"]["map_at_r"] > scores["leave_out"]["map_at_r"]


def test_training_has_the_classes_that_it_has_and_no_more() -> None:
    images = array_set().relabelled(["w", "x", "y", "z"])
    train = get_task("retrieval")().dataset(images, True)
    assert train.labels == ["x", "y"] and set(train.targets) == {0, 1}


def test_neighbours_are_by_cosine_and_never_the_query_itself() -> None:
    task = get_task("retrieval")(dimensions=2)
    gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    (found,) = task.nearest(gallery[:1], Batch(torch.zeros(1, 1), None, ("a",)), gallery, ["a", "b", "c"], 5)
    assert [row["image"] for row in found.rows] == ["b", "c"]
    assert found.rows[0]["similarity"] == pytest.approx(0.6)


def test_the_head_starts_as_it_says() -> None:
    torch.manual_seed(0)
    head = get_head("embedding")(12, 5, start="orthogonal")
    assert torch.allclose(head.linear.weight @ head.linear.weight.T, torch.eye(5), atol=1e-5)
    found = head.eval()(torch.randn(3, 12))
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-6)
    with pytest.raises(vpeft.VpeftError, match="orthogonal"):
        get_head("embedding")(12, 5, start="zeros")


def test_learnt_tensors_start_as_the_library_starts_them() -> None:
    torch.manual_seed(3)
    found = learnt_by("proxy_anchor", 4, 8)["proxies"]
    torch.manual_seed(3)
    assert torch.equal(found, losses.ProxyAnchorLoss(4, 8).proxies.detach())
