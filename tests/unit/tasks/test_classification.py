"""Classification against numbers worked out by hand, in plain Python, or by scikit-learn."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics
from tests.models import tiny_swin, tiny_vit
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from vpeft import describe
from vpeft.batch import Batch
from vpeft.heads.attentive import AttentiveHead
from vpeft.heads.linear import LinearHead
from vpeft.task import BadOption, Leading, Task, UnsuitableTargets, get_task
from vpeft.tasks.classification import Classification, TooFewLabels

LABELS = ["ant", "bee", "cat"]


class Data:
    """Class numbers that are told, and inputs that must never be loaded for it."""

    def __init__(self, targets: Any, labels: list[str] | None = None) -> None:
        self.targets = targets
        if labels is not None:
            self.labels = labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("A target was looked for by loading an image.")


def _draw(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and class numbers; the first classes are more frequent."""
    draw = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(count, classes, generator=draw),
        (torch.rand(count, generator=draw) ** 2 * classes).long(),
    )


def _scores(task: Classification, outputs: Tensor, targets: Tensor, size: int = 16) -> dict[str, Any]:
    metric = task.metric()
    for first in range(0, len(outputs), size):
        rows = slice(first, first + size)
        metric.update(outputs[rows], Batch(None, targets[rows]))
    found: dict[str, Any] = metric.compute()
    return found


# -- options -----------------------------------------------------------------------------------------------------------


def test_is_a_task() -> None:
    task = Classification(LABELS)
    assert isinstance(task, Task) and get_task("classification") is Classification
    assert (task.name, task.labels, task.leading) == ("classification", tuple(LABELS), Leading("top1"))


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_labels(labels: list[str]) -> None:
    with pytest.raises(TooFewLabels, match="two or more different"):
        Classification(labels)


def test_options_go_through_json() -> None:
    task = Classification(LABELS, class_weights=(1.0, 2.0, 3.0), head_kind="mlp(hidden=9)", mixup=0.2, temperature=1.5)
    assert Classification(**json.loads(json.dumps(task.model_dump(mode="json")))) == task


@pytest.mark.parametrize(
    "options", [{"smoothing": 0.1}, {"label_smoothing": 1.0}, {"class_weights": [1, 0]}, {"loss_kind": "hinge"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        Classification(**options)


def test_labels_come_from_the_data() -> None:
    assert Classification().bind(Data([0, 1], LABELS)).labels == tuple(LABELS)
    assert Classification(["x", "y"]).bind(Data([0, 1], LABELS)).labels == ("x", "y")
    assert Classification().bind(Data([0, 1])).labels == ()


def test_head() -> None:
    backbone, labels = describe(tiny_vit()), [str(number) for number in range(200)]
    torch.manual_seed(0)
    head = Classification(labels).head(backbone, 384)
    assert isinstance(head, LinearHead) and head.weight.shape == (200, 384)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert head.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not head.bias.any()
    # The same random numbers as a plain layer that is started so.
    torch.manual_seed(0)
    plain = torch.nn.Linear(384, 200)
    torch.nn.init.trunc_normal_(plain.weight, std=0.02)
    assert torch.equal(head.weight, plain.weight)


def test_another_head() -> None:
    head = Classification(LABELS, head_kind="attentive(queries=2)").head(describe(tiny_swin()), 48)
    assert isinstance(head, AttentiveHead) and len(head.queries) == 2 and head.out.out_features == 3


# -- loss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss(smoothing: float) -> None:
    outputs = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    target = torch.tensor([0, 1])
    expected = 0.0
    for row, right in zip(outputs.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        for index, value in enumerate(row):
            share = (1 - smoothing) * (index == right) + smoothing / 3
            expected -= share * math.log(math.exp(value) / total) / 2
    task = Classification(LABELS, label_smoothing=smoothing)
    assert task.loss(outputs, Batch(None, target)).keys() == {"cross_entropy"}
    assert task.loss(outputs, Batch(None, target))["cross_entropy"].item() == pytest.approx(expected, rel=1e-6)
    shares = functional.one_hot(target, 3).float()
    assert task.loss(outputs, Batch(None, shares))["cross_entropy"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs_to_the_bit(smoothing: float) -> None:
    outputs, target = _draw(40, 7)
    given = Classification(label_smoothing=smoothing).loss(outputs.bfloat16(), Batch(None, target))["cross_entropy"]
    assert given.dtype == torch.float32
    assert given.equal(functional.cross_entropy(outputs.bfloat16().float(), target, label_smoothing=smoothing))


def test_class_weights() -> None:
    outputs, target = _draw(40, 3)
    each = functional.cross_entropy(outputs, target, reduction="none")
    listed = Classification(LABELS, class_weights=(1.0, 5.0, 0.5))
    weights = torch.tensor([1.0, 5.0, 0.5])[target]
    torch.testing.assert_close(
        listed.loss(outputs, Batch(None, target))["cross_entropy"], (each * weights).sum() / weights.sum()
    )
    balanced = Classification(LABELS, class_weights="balanced").bind(Data(target.tolist(), LABELS))
    by_class = [each[target == k].mean().item() for k in range(3)]
    found = balanced.loss(outputs, Batch(None, target))["cross_entropy"].item()
    assert found == pytest.approx(sum(by_class) / 3, rel=1e-5)
    counts = Counter(target.tolist())
    assert balanced.weights == pytest.approx([40 / (3 * counts[k]) for k in range(3)])


def test_focal_loss() -> None:
    outputs, target = _draw(20, 4)
    shares = outputs.softmax(1)[torch.arange(20), target]
    expected = (-((1 - shares) ** 3) * shares.log()).mean()
    task = Classification(loss_kind="focal", gamma=3.0)
    torch.testing.assert_close(task.loss(outputs, Batch(None, target))["focal"], expected)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 3.0, 0.3)}])
@pytest.mark.parametrize("mixed", [False, True])
def test_focal_loss_without_focus_is_cross_entropy(options: dict[str, Any], mixed: bool) -> None:
    outputs, target = _draw(20, 3)
    batch = Batch(None, functional.one_hot(target, 3) * 0.7 + 0.1 if mixed else target)
    focal = Classification(LABELS, loss_kind="focal", gamma=0.0, **options).loss(outputs, batch)["focal"]
    torch.testing.assert_close(focal, Classification(LABELS, **options).loss(outputs, batch)["cross_entropy"])


# -- mixing ------------------------------------------------------------------------------------------------------------


def test_mixup_draws_what_torchvision_draws() -> None:
    images, target = torch.randn(8, 3, 6, 6), torch.arange(8) % 3
    torch.manual_seed(4)
    expected_images, expected = v2.MixUp(alpha=0.4, num_classes=3)(images, target)
    after = torch.rand(1)
    torch.manual_seed(4)
    mixed = Classification(LABELS, mixup=0.4).augment(Batch(images, target))
    assert mixed.inputs.equal(expected_images) and mixed.targets.equal(expected)
    assert torch.rand(1).equal(after)


def test_mixing_before_the_number_of_classes_is_known() -> None:
    """The loss of a model with more classes than a batch holds is what it is with all of them known."""
    images, target, outputs = torch.randn(8, 3, 6, 6), torch.arange(8) % 3, torch.randn(8, 5)
    losses = []
    for labels in ((), ("a", "b", "c", "d", "e")):
        torch.manual_seed(4)
        task = Classification(labels=labels, mixup=0.4, label_smoothing=0.1)
        losses.append(task.loss(outputs, task.augment(Batch(images, target)))["cross_entropy"])
    assert losses[0].equal(losses[1])


def test_cutmix_and_both() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 6, 6)
    target = torch.arange(8)
    torch.manual_seed(0)
    cut = Classification(labels=tuple("abcdefgh"), cutmix=1.0).augment(Batch(images, target))
    for image, shares in zip(cut.inputs, cut.targets, strict=True):
        # Each pixel is of one image, and the target says how many are of which.
        assert image.eq(image.round()).all()
        torch.testing.assert_close(torch.stack([(image[0] == k).float().mean() for k in range(8)]), shares)
    kinds = Counter[str]()
    both = Classification(labels=tuple("abcdefgh"), cutmix=1.0, mixup=1.0, cutmix_share=0.25)
    for _ in range(200):
        kinds["cut" if both.augment(Batch(images, target)).inputs.frac().eq(0).all() else "mixed"] += 1
    assert 25 <= kinds["cut"] <= 80


def test_mixing_is_off_unless_asked_for() -> None:
    batch = Batch(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
    assert Classification(LABELS).augment(batch) is batch and Classification(LABELS).augments is None
    assert Classification(LABELS, mixup=0.2, cutmix=1.0).augments == (
        "mixup or CutMix mixes the images of a batch and their labels"
    )


def test_mixing_needs_one_tensor_of_inputs() -> None:
    with pytest.raises(UnsuitableTargets, match="mixup = 0"):
        Classification(LABELS, mixup=0.2).augment(Batch([torch.zeros(3, 2, 2)], torch.tensor([0])))


def test_monitor_counts_the_hardest_class_of_mixed_targets() -> None:
    outputs = torch.tensor([[3.0, 1, 0], [0, 1, 0], [0, 1, 2]])
    assert Classification(LABELS).monitor(outputs, Batch(None, torch.tensor([0, 2, 2])))["top1"] == 2
    shares = torch.tensor([[0.6, 0.4, 0], [0.3, 0.1, 0.6], [0.4, 0, 0.6]])
    assert Classification(LABELS).monitor(outputs, Batch(None, shares))["top1"] == 2


# -- sampling ----------------------------------------------------------------------------------------------------------

SKEWED = [0] * 50 + [1] * 9 + [2]


def test_balanced_sampling() -> None:
    task, data, shuffled = Classification(LABELS, sampling="balanced"), Data(SKEWED), list(range(60))
    order = task.order(data, shuffled, 5)
    assert Counter(SKEWED[index] for index in order) == {0: 20, 1: 20, 2: 20}
    of_bees = Counter(index for index in order if SKEWED[index] == 1)
    assert len(of_bees) == 9 and set(of_bees.values()) == {2, 3}
    assert order == task.order(data, shuffled, 5) != task.order(data, shuffled, 6)
    labels = [SKEWED[index] for index in order]
    assert labels != sorted(labels)


def test_balanced_sampling_where_the_number_does_not_divide() -> None:
    order = Classification(sampling="balanced").order(Data(SKEWED[:-2]), list(range(58)), 0)
    assert sorted(Counter(SKEWED[index] for index in order).values()) == [29, 29]
    order = Classification(sampling="balanced").order(Data([0, 1, 2, 2, 2]), list(range(5)), 0)
    assert sorted(Counter([0, 1, 2, 2, 2][index] for index in order).values()) == [1, 2, 2]


def test_weighted_sampling() -> None:
    data, shuffled = Data(SKEWED * 50), list(range(3000))
    counts = Counter(SKEWED[index % 60] for index in Classification(sampling="weighted").order(data, shuffled, 5))
    assert all(850 < counts[k] < 1150 for k in range(3))
    task = Classification(LABELS, sampling="weighted", class_weights=(1.0, 1.0, 50.0))
    counts = Counter(SKEWED[index % 60] for index in task.order(data, shuffled, 5))
    # In proportion 50 : 9 : 50.
    assert 1250 < counts[0] < 1500 and 150 < counts[1] < 350 and 1250 < counts[2] < 1500
    assert len(task.order(data, shuffled, 5)) == 3000


def test_usual_sampling_sees_each_once() -> None:
    shuffled = [2, 0, 1]
    assert Classification().order(Data([0, 1, 0]), shuffled, 5) is shuffled


# -- scores ------------------------------------------------------------------------------------------------------------


def test_mean_per_class_ignores_classes_without_images() -> None:
    """ant 1 of 1, bee 1 of 2, none of cat: 0.75. Counting cat, which one bee is taken for, would give 0.5."""
    logits = functional.one_hot(torch.tensor([0, 1, 2]), 3).float()
    scores = _scores(Classification(LABELS), logits, torch.tensor([0, 1, 1]))
    assert scores["mean_per_class"] == pytest.approx(0.75)
    assert scores["top1"] == pytest.approx(2 / 3)
    assert scores["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_of_batches_are_those_of_before_to_the_bit(classes: int) -> None:
    """The formulas of the evaluation before there were tasks, batch by batch."""
    outputs, target = _draw(97, classes)
    confusion, loss = torch.zeros(classes, classes, dtype=torch.int64), 0.0
    for first in range(0, 97, 16):
        some, wanted = outputs[first : first + 16], target[first : first + 16]
        confusion += torch.bincount(wanted * classes + some.argmax(1), minlength=classes**2).view(classes, classes)
        loss += functional.cross_entropy(some.double(), wanted, reduction="sum").item()
    right, present = confusion.diagonal(), confusion.sum(1)
    shares = right[present > 0].double() / present[present > 0].double()
    scores = _scores(Classification(labels=tuple(map(str, range(classes)))), outputs, target)
    assert scores["top1"] == int(right.sum()) / 97
    assert scores["mean_per_class"] == float(shares.mean())
    assert scores["loss"] == loss / 97
    assert scores["confusion"] == confusion.tolist()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    outputs, target = _draw(97, classes)
    scores, said = _scores(Classification(), outputs, target), outputs.argmax(1)
    assert scores["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(target, said, average="macro"))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(target, said, zero_division=0)
    assert len(scores["per_class"]) == classes
    for k, row in enumerate(scores["per_class"]):
        assert row["label"] == str(k) and row["samples"] == support[k]
        assert (row["precision"] or 0, row["recall"], row["f1"]) == pytest.approx((precision[k], recall[k], f1[k]))
    assert ("top5" in scores) == (classes > 5) and ("auroc" in scores) == (classes == 2)
    if classes > 5:
        assert scores["top5"] == pytest.approx(sklearn_metrics.top_k_accuracy_score(target, outputs, k=5))
    if classes == 2:
        assert scores["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(target, outputs.softmax(1)[:, 1]))
    json.dumps(scores)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_calibration_error(temperature: float) -> None:
    outputs, target = _draw(200, 4)
    sure, said = (outputs.double() / temperature).softmax(1).max(1)
    expected = 0.0
    for number in range(15):
        inside = (sure > number / 15) & (sure <= (number + 1) / 15)
        if inside.any():
            gap = (said[inside] == target[inside]).double().mean() - sure[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert _scores(Classification(temperature=temperature), outputs, target)["ece"] == pytest.approx(expected, abs=1e-6)


def test_auroc_needs_both_classes() -> None:
    assert "auroc" not in _scores(Classification(["a", "b"]), torch.randn(4, 2), torch.ones(4, dtype=torch.int64))


def test_metric_starts_afresh() -> None:
    metric = Classification(LABELS).metric()
    metric.update(torch.eye(3), Batch(None, torch.tensor([1, 2, 0])))
    assert metric.compute()["top1"] == 0
    metric.reset()
    metric.update(torch.eye(3), Batch(None, torch.tensor([0, 1, 2])))
    scores = metric.compute()
    assert (scores["top1"], sum(map(sum, scores["confusion"]))) == (1, 3)
    sure = torch.eye(3)[0].softmax(0)[0].item()
    assert scores["ece"] == pytest.approx(1 - sure)


def test_scores_of_two_processes_are_those_of_one(tmp_path: Any) -> None:
    """Each of two processes sees half of the samples, and both state the scores of all."""
    import torch.multiprocessing as multiprocessing

    outputs, target = _draw(60, 2)
    # Forked, as importing torch anew takes longer than all other tests here.
    multiprocessing.start_processes(_half, (str(tmp_path), outputs, target), 2, start_method="fork")  # type: ignore[no-untyped-call]
    whole = _scores(Classification(["a", "b"]), outputs, target)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["confusion"] == whole["confusion"]
        for name in ("top1", "mean_per_class", "loss", "macro_f1", "ece", "auroc"):
            assert found[name] == pytest.approx(whole[name], rel=1e-6)


def _half(rank: int, folder: str, outputs: Tensor, target: Tensor) -> None:
    from pathlib import Path

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(rank * 30, rank * 30 + 30)
    scores = _scores(Classification(["a", "b"]), outputs[rows], target[rows])
    Path(folder, f"{rank}.json").write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


# -- temperature and predictions ---------------------------------------------------------------------------------------


def test_temperature() -> None:
    """Labels are drawn from softmax(logits); logits that are three times too large want a temperature of three."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 4, generator=draw)
    target = torch.multinomial(logits.softmax(1), 1, generator=draw).squeeze(1)
    batches = [(3 * logits[i : i + 500], Batch(None, target[i : i + 500])) for i in range(0, 20000, 500)]
    task = Classification(calibrate=True).calibrated(lambda: batches)
    assert task.temperature == pytest.approx(3, rel=0.05)
    before, after = (_scores(one, 3 * logits, target, 500) for one in (Classification(), task))
    assert after["ece"] < 0.02 < before["ece"] and after["loss"] < before["loss"]
    assert (after["top1"], after["confusion"]) == (before["top1"], before["confusion"])


def test_temperature_is_left_alone_unless_asked_for() -> None:
    def fail() -> Any:
        raise AssertionError("The validation samples were run for nothing.")

    task = Classification(LABELS)
    assert task.calibrated(fail) is task


def test_predictions() -> None:
    outputs = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    first, second = Classification(LABELS, temperature=2.0).predictions(outputs, Batch(None, None, ("x.png", "y.png")))
    assert (first.id, second.id) == ("x.png", "y.png")
    assert [row["label"] for row in first.rows] == ["bee", "cat", "ant"]
    exponentials = [math.exp(value / 2) for value in (3, 2, 1)]
    assert [row["probability"] for row in first.rows] == pytest.approx([e / sum(exponentials) for e in exponentials])
    assert second.rows[0]["label"] == "cat"


def test_report() -> None:
    scores = _scores(Classification(LABELS), torch.eye(3)[[0, 2, 2, 2]], torch.tensor([0, 1, 1, 2]))
    (_, columns, rows), (_, _, mistakes) = Classification(LABELS).report(scores)
    assert columns == ("label", "samples", "precision", "recall", "f1")
    assert rows[1] == ["bee", 2, None, 0.0, 0.0] and rows[2] == ["cat", 1, pytest.approx(1 / 3), 1.0, 0.5]
    assert mistakes == [["bee", "cat", 2]]
    assert Classification(LABELS).report({}) == []


# -- targets of another kind -------------------------------------------------------------------------------------------

IMAGES = torch.zeros(8, 3, 4, 4)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TensorDataset(IMAGES, torch.rand(8) * 2.9), r"the number .*real numbers .*regression.*labels.long\(\)"),
        (TensorDataset(IMAGES, (torch.arange(24).view(8, 3) % 2).float()), "zeros and ones.*multilabel"),
        (TensorDataset(IMAGES, (torch.arange(8) % 3)[:, None]), r"shape \(8, 1\).*labels.squeeze\(1\)"),
        (TensorDataset(IMAGES, torch.zeros(8, 4, 4, dtype=torch.int64)), "a map of .*semantic_segmentation"),
        (TensorDataset(IMAGES, torch.rand(8, 3)), "a vector of 3 numbers.*regression"),
        (Subset(TensorDataset(IMAGES, torch.rand(8)), [0, 2]), "real numbers"),
        ([(IMAGES[i], "cat") for i in range(8)], "the word 'cat'.*class number"),
        ([(IMAGES[i], 0.5) for i in range(8)], "the number 0.5.*regression"),
        ([(IMAGES[i], [0, 1, 1]) for i in range(8)], "zeros and ones.*multilabel"),
        ([(IMAGES[i], None) for i in range(8)], "no target"),
        ([{"pixel_values": IMAGES[i], "label": i % 3} for i in range(8)], "mapping with the keys pixel_values, label"),
        ([IMAGES[i] for i in range(8)], r"Give pairs \(input, target\)"),
        ([(Image.new("RGB", (4, 4)), i % 3) for i in range(8)], "PIL images.*ToTensor"),
        (DataLoader(TensorDataset(IMAGES, torch.arange(8) % 3), 4), "A DataLoader was given"),
        (Data([0, 1, 7]), "A label is 7, but there are 3 labels"),
        (Data([0, 1, -1]), "A label is -1, but there are 3 labels"),
        (Data(np.array([0.5, 1.5])), "real numbers"),
        (Data([0, 1, 2], ["ant", "cat", "bee"]), "Class 1 is 'bee' in what is learnt, and 'cat' in this data set"),
    ],
)
def test_targets_that_do_not_fit(data: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said):
        Classification(LABELS).check(data)


@pytest.mark.parametrize(
    "data",
    [
        Data([0, 1, 2]),
        Data([0, 1, 2], LABELS),
        Data(np.array([0, 1, 2], dtype=np.uint8)),
        Data(torch.tensor([2, 1, 0], dtype=torch.int16)),
        Data([torch.tensor(1), np.int64(2), 0]),
        TensorDataset(IMAGES, torch.arange(8) % 3),
        [(IMAGES[0], 1), (IMAGES[1], 2)],
    ],
)
def test_targets_that_fit(data: Any) -> None:
    Classification(LABELS).check(data)


def test_one_class() -> None:
    task = Classification().bind(Data([0, 0], ["ant"]))
    with pytest.raises(TooFewLabels, match="two or more"):
        task.check(Data([0, 0], ["ant"]))
    with pytest.raises(UnsuitableTargets, match="one output.*always 0.*regression"):
        Classification().check_batch(torch.zeros(2, 1), Batch(None, torch.zeros(2, dtype=torch.int64)))


def test_what_needs_the_classes_of_all_samples_says_so() -> None:
    class Silent:
        def __len__(self) -> int:
            return 3

    with pytest.raises(UnsuitableTargets, match="class_weights = 'balanced' and sampling = 'weighted'.*`targets`"):
        Classification(class_weights="balanced", sampling="weighted").check(Silent())
    Classification().check(Silent())
    with pytest.raises(UnsuitableTargets, match="2 class weights for 3 labels"):
        Classification(LABELS, class_weights=(1.0, 2.0)).check(Data([0, 1, 2]))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 4]), "A label is 4, but the model has 3 classes.*num_classes.*at least 5"),
        (torch.tensor([0.0, 1.5]), "real numbers"),
        (torch.tensor([[0.0, 1, 1], [1, 0, 0]]), "multilabel"),
        (["cat", "dog"], "the word 'cat'"),
        (None, "no target"),
    ],
)
def test_targets_of_a_batch(targets: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said):
        Classification(LABELS).check_batch(torch.zeros(2, 3), Batch(IMAGES[:2], targets))


def test_a_batch_that_fits() -> None:
    Classification(LABELS).check_batch(torch.zeros(2, 3), Batch(IMAGES[:2], torch.tensor([0, 2])))
    mixed = Classification(LABELS, mixup=0.2)
    mixed.check_batch(torch.zeros(2, 3), mixed.augment(Batch(IMAGES[:2], torch.tensor([0, 2]))))
    with pytest.raises(UnsuitableTargets, match=r"outputs \(samples, classes\)"):
        mixed.check_batch(torch.zeros(2, 3, 4, 4), Batch(IMAGES[:2], torch.tensor([0, 2])))


def test_class_numbers_of_every_whole_type_become_int64() -> None:
    samples = [(IMAGES[0], torch.tensor(1, dtype=torch.uint8)), (IMAGES[1], torch.tensor(2, dtype=torch.uint8))]
    assert Classification().collate(samples).targets.dtype == torch.int64
    assert Classification().collate([(IMAGES[0], 0.5)]).targets.dtype == torch.float32
