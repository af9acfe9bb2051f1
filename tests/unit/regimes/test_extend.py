"""New classes for an adapter: old rows untouched, means and trained rows, what is forgotten, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vpeft
from tests.unit.regimes.streams import CLASSES, backbone, draw, opened, preprocessing, setting, stream_of
from vpeft.bench.ledger import open_ledger
from vpeft.cli import main
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ImageSet
from vpeft.data.problems import DataError
from vpeft.data.used_images import UsedImages
from vpeft.head import BadHead, make_head
from vpeft.heads.random_projection import RandomProjectionHead
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.continual import learn_stream
from vpeft.regimes.extend import CannotExtend, extend, sums_of
from vpeft.regimes.learner import make_learner
from vpeft.regimes.ridge import RIDGES, solution
from vpeft.tasks.classification import Classification

OLD, NEW = CLASSES[:4], CLASSES[4:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("classes")
    return draw(root / "old", OLD), draw(root / "new", NEW)


@pytest.fixture(scope="module")
def adapters(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter files of four classes, with a prototype head and with a linear one."""
    found = {}
    for text in ("simple_cil", "joint(method=lora(rank=2))"):
        out = tmp_path_factory.mktemp("run")
        outcome = learn_stream(make_learner(text), stream_of(folders[0]), setting(2, 6), out=out, say=lambda _: None)
        assert outcome.adapter is not None
        found[text.partition("(")[0]] = outcome.adapter
    return found


def old_images(folder: Path) -> ImageSet:
    held = opened(folder).test
    assert held is not None
    return held.prepared(preprocessing()).relabelled(OLD)


def test_a_prototype_head_gains_means_and_old_rows_stay(
    folders: tuple[Path, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    tuned = vpeft.load(backbone(), adapters["simple_cil"])
    before = {name: value.clone() for name, value in tuned.adapter_state().items()}
    data = opened(folders[1])
    found = extend(
        tuned, data, preprocessing(), optimisation=setting().optimisation, old=old_images(folders[0]), out=tmp_path
    )
    assert found.labels == (*OLD, *NEW) and found.new is not None and found.forgetting is not None
    assert found.old_before is not None and found.old_after is not None and found.old_before > 0.8
    weight = tuned.adapter_state()["head.weight"]
    assert torch.equal(weight[:4], before["head.weight"])
    plain = data.train.prepared(preprocessing())
    images = torch.stack([plain[i].input for i in range(len(plain))])
    numbers = torch.tensor(list(plain.targets))
    with torch.no_grad():
        features = backbone()(images)
    means = torch.stack([features[numbers == number].mean(0) for number in range(2)])
    assert torch.allclose(weight[4:], means, atol=1e-5)
    assert found.adapter is not None
    again = vpeft.load(backbone(), found.adapter)
    assert again.task.labels == (*OLD, *NEW) and torch.equal(again.adapter_state()["head.weight"], weight)


@pytest.mark.parametrize("learnt", ["head", "all"])
def test_a_linear_head_gains_trained_rows(learnt: str, folders: tuple[Path, Path], adapters: dict[str, Path]) -> None:
    tuned = vpeft.load(backbone(), adapters["joint"])
    before = {name: value.clone() for name, value in tuned.adapter_state().items()}
    found = extend(
        tuned,
        opened(folders[1]),
        preprocessing(),
        optimisation=setting(epochs=8).optimisation,
        old=old_images(folders[0]),
        learnt=learnt,  # type: ignore[arg-type]
    )
    after = tuned.adapter_state()
    for name, value in before.items():
        rows = after[name][:4] if name.startswith("head.") else after[name]
        assert torch.equal(rows, value) == (learnt == "head" or name.startswith("head.") or name.endswith("scale")), (
            name
        )
    images = opened(folders[1]).train.prepared(preprocessing())
    with torch.no_grad():
        scores = tuned(torch.stack([images[i].input for i in range(len(images))]))
    assert (scores[:, 4:].argmax(1) == torch.tensor(list(images.targets))).all()
    assert found.old_after is not None and found.adapter is None
    assert all(parameter.requires_grad for _, parameter in tuned.adapter().owned())


def growing(kind: str) -> TunedModel:
    return vpeft.tune(
        backbone(), vpeft.methods.LoRA(rank=2), head=lambda b, width: make_head(kind, b, width, 4), show=False
    )


@pytest.mark.parametrize("kind", ["linear", "cosine", "prototype", "random_projection(projection=9)"])
def test_growing_heads_are_exact(kind: str) -> None:
    tuned = growing(kind)
    small, features = tuned.head, torch.randn(5, 48)
    assert isinstance(small, vpeft.Head)
    large = small.grown(7)
    assert torch.equal(large(features)[:, :4], small(features)) or torch.allclose(
        large(features)[:, :4], small(features), atol=1e-7
    )
    for name, value in small.state_dict().items():
        there = large.state_dict()[name]
        assert torch.equal(there[:4] if value.dim() else there, value)
    assert large.settings == {**small.settings, "outputs": 7}
    for count in (4, 3):
        with pytest.raises(BadHead, match="grows to more outputs"):
            small.grown(count)


def test_what_cannot_be_extended(folders: tuple[Path, Path]) -> None:
    settings = setting().optimisation
    tuned = growing("mlp")
    tuned.task = Classification(OLD)
    with pytest.raises(BadHead, match=r"'mlp' cannot take further outputs. Heads that can: cosine, linear, prototype"):
        extend(tuned, opened(folders[1]), preprocessing(), optimisation=settings)
    tuned = growing("linear")
    with pytest.raises(CannotExtend, match="Only a classifier"):
        extend(tuned, opened(folders[1]), preprocessing(), optimisation=settings)
    tuned.task = Classification(OLD)
    with pytest.raises(CannotExtend, match="knows 'ant', 'bee', 'cat', 'dog' already"):
        extend(tuned, opened(folders[0]), preprocessing(), optimisation=settings)
    data = opened(folders[1])
    with pytest.raises(CannotExtend, match="has 1 training image"):
        extend(tuned, replace(data, train=data.train.subset([0])), preprocessing(), optimisation=settings)
    tuned = growing("random_projection(projection=9)")
    tuned.task = Classification(OLD)
    with pytest.raises(BadHead, match="state.safetensors of its stream"):
        extend(tuned, opened(folders[1]), preprocessing(), optimisation=settings)


def test_ranpac_is_extended_by_its_sums(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The sums are those of a stream that had all classes, and the head solves them."""
    learner = make_learner("ranpac(method=none, projection=12)")
    old = learn_stream(learner, stream_of(folders[0]), setting(2), out=tmp_path / "a", say=lambda _: None)
    assert old.adapter is not None
    sums = sums_of(old.adapter)
    assert sums is not None and sums["cross"].shape == (12, 4)
    tuned = vpeft.load(backbone(), old.adapter)
    data = opened(folders[1])
    found = extend(
        tuned, data, preprocessing(), optimisation=setting().optimisation, sums=sums, out=tmp_path / "b",
        old=old_images(folders[0]),
    )  # fmt: skip
    assert found.adapter is not None and found.new is not None and found.forgetting is not None
    after = sums_of(found.adapter)
    assert after is not None
    plain = data.train.prepared(preprocessing())
    with torch.no_grad():
        features = backbone()(torch.stack([plain[i].input for i in range(len(plain))]))
        assert isinstance(tuned.head, RandomProjectionHead)
        hidden = tuned.head.hidden(features).double()
    targets = torch.zeros(len(plain), 6, dtype=torch.float64)
    targets[range(len(plain)), [4 + number for number in plain.targets]] = 1
    assert torch.allclose(after["gram"], sums["gram"] + hidden.T @ hidden, rtol=1e-4)
    assert torch.allclose(after["cross"][:, :4], sums["cross"]) and after["cross"].shape == (12, 6)
    assert torch.allclose(after["cross"][:, 4:], (hidden.T @ targets)[:, 4:], rtol=1e-4)
    solved = [solution(after["gram"], after["cross"], ridge) for ridge in RIDGES]
    weight = tuned.adapter_state()["head.weight"]
    assert any(one is not None and torch.allclose(one.T.float(), weight, atol=1e-6) for one in solved)
    # the new file can be extended in its turn, and sums of another adapter are refused
    again = vpeft.load(backbone(), found.adapter)
    more = opened(draw(tmp_path / "more", ("gnu", "hen")))
    with pytest.raises(BadHead, match="belong to another adapter"):
        extend(again, more, preprocessing(), optimisation=setting().optimisation, sums=sums)
    assert extend(again, more, preprocessing(), optimisation=setting().optimisation, sums=after).labels[4:6] == NEW


@pytest.mark.parametrize("kind", ["simple_cil", "joint"])
def test_one_new_class_is_enough(kind: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = draw(tmp_path / "one", NEW[:1])
    tuned = vpeft.load(backbone(), adapters[kind])
    before = tuned.adapter_state()["head.weight"].clone()
    config = DataConfig(source=str(folder), val_fraction=0, test_fraction=0.34)
    with pytest.raises(DataError, match="at least two"):
        open_data(config)
    data = open_data(config, fewest_classes=1)
    found = extend(tuned, data, preprocessing(), optimisation=setting(epochs=20).optimisation)
    assert found.labels == (*OLD, NEW[0]) and found.new is not None and found.new > 0.5
    assert torch.equal(tuned.adapter_state()["head.weight"][:4], before)


@pytest.mark.filterwarnings("default::vpeft.data.problems.DataWarning")
def test_the_commands(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ["--data.val-fraction", "0", "--data.test-fraction", "0.34", "--device", "cpu"]
    words = ["continual", "--data", str(folders[0]), "--increment", "2", "--method", "simple_cil", *split]
    words += ["--order-seed", "-1"]
    assert main([*words, "--out", str(tmp_path / "cl"), "--ledger", str(tmp_path / "ledger")]) == 0
    said = capsys.readouterr().out
    (record,) = open_ledger(tmp_path / "ledger")
    told = json.loads((tmp_path / "cl" / "run.json").read_text())
    assert record.scores is not None and record.suite == "continual"
    assert record.scores.value == told["accuracy"]["metrics"]["last"] == record.history[-1]["accuracy"]
    assert record.identity.methods[0].name == "simple_cil" and record.identity.task.endswith("B-0 Inc-2")
    # the same run again is the same record, another order of the classes another one
    assert main([*words, "--out", str(tmp_path / "cl"), "--ledger", str(tmp_path / "ledger")]) == 0
    words[words.index("-1")] = "3"
    assert main([*words, "--out", str(tmp_path / "other"), "--ledger", str(tmp_path / "ledger")]) == 0
    assert len(open_ledger(tmp_path / "ledger")) == 2
    said += capsys.readouterr().out
    assert "task 2 of 2" in said and "forgetting" in said and "backward transfer" in said
    adapter = str(tmp_path / "cl" / "adapter.safetensors")
    words = ["extend", adapter, "--data", str(folders[1]), "--old", str(folders[0]), *split[:4], "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "more")]) == 0
    said, warned = capsys.readouterr()
    assert "16 of the 24 images were used in training and are left out" in warned
    assert "2 new classes, 6 in all: elk, fox" in said and "forgetting" in said
    manifest = vpeft.read_manifest(tmp_path / "more" / "adapter.safetensors")
    assert manifest.labels == [*OLD, *NEW]
    assert manifest.extra["used_images"]["train"]["count"] == 16 + 8
    used = UsedImages.model_validate(manifest.extra["used_images"])
    before = UsedImages.model_validate(vpeft.read_manifest(adapter).extra["used_images"])
    assert before.train._numbers < used.train._numbers and len(used.train._numbers) == 24
    assert main(["continual", "--data", str(folders[0])]) == 1
    assert "--method NAME (learners: aper," in capsys.readouterr().err
    assert main(["extend", adapter, "--data", str(folders[0]), "--out", str(tmp_path / "x")]) == 1
    assert "already" in capsys.readouterr().err
