"""A whole stream: records, going on after a kill, batch independence, files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import vpeft
from tests.unit.regimes.streams import CLASSES, backbone, draw, opened, preprocessing, setting, stream_of
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes import continual
from vpeft.regimes.continual import ADAPTER, RECORD, STATE, ContinualRecipe, learn_stream, run_continual
from vpeft.regimes.learner import Features, all_learners, make_learner
from vpeft.regimes.stream import Stream, domain_stream
from vpeft.training.checkpoint import BadCheckpoint, read_checkpoint

# Every learner with small options, and the methods that know of tasks.
TEXTS = (
    "sequential(method=lora(rank=2), head=cosine)",
    "joint",
    "lwf(method=lora(rank=2))",
    "simple_cil",
    "ranpac(method=ssf, projection=30)",
    "aper(method=adaptformer(bottleneck=2))",
    "lae(method=lora(rank=2), decay=0.9)",
    "ease(method=adaptformer(bottleneck=2))",
    "sema(bottleneck=2, descriptor=4, expandable=1, descriptor_epochs=1, threshold=0)",
    "l2p(pool=4, length=1, top_k=2)",
    "dualprompt(tasks=3)",
    "coda_prompt(components=2, tasks=3, length=2)",
    "inflora(rank=2, tasks=3)",
)
FAST = ("sequential", "ranpac", "lae", "dualprompt", "inflora")


class Killed(Exception):
    """Stands for a kill between two tasks."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return stream_of(draw(tmp_path_factory.mktemp("classes"), each=3))


def test_every_learner_is_tried() -> None:
    assert {text.partition("(")[0] for text in TEXTS} >= set(all_learners())


def dies(line: str) -> None:
    if line.startswith("task 2"):
        raise Killed


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=() if text.startswith(FAST) else pytest.mark.slow) for text in TEXTS]
)
def test_a_killed_stream_ends_bit_equal_and_images_stand_alone(text: str, stream: Stream, tmp_path: Path) -> None:
    whole, cut = (setting(3, epochs=1, acceleration="off") for _ in range(2))
    first = learn_stream(make_learner(text), stream, whole, out=tmp_path / "whole", say=lambda _: None)
    with pytest.raises(Killed):
        learn_stream(make_learner(text), stream, cut, out=tmp_path / "cut", say=dies)
    torch.manual_seed(99)  # what was drawn meanwhile does not matter
    again = learn_stream(make_learner(text), stream, cut, out=tmp_path / "cut", say=lambda _: None)
    assert again.matrix == first.matrix and again.within == first.within
    states = [read_checkpoint(tmp_path / name / STATE).tensors for name in ("whole", "cut")]
    assert states[0].keys() == states[1].keys()
    for group, named in states[0].items():
        for name, tensor in named.items():
            assert torch.equal(states[1][group][name], tensor), (group, name)
    images = torch.stack([task.judged[0].input for task in stream.tasks])
    model = first.learning.model.eval()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        assert together.shape == (3, 6) and torch.allclose(together, alone, atol=1e-5)
        if first.adapter is not None:
            loaded = vpeft.load(backbone(), tmp_path / "whole" / ADAPTER).eval()
            assert torch.allclose(loaded(images), together, atol=1e-6)
            assert loaded.task.labels == CLASSES
    assert (first.adapter is None) == (text.startswith(("lae", "ease")))


def test_the_record_has_the_matrix_and_what_it_follows_from(stream: Stream, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = learn_stream(make_learner("simple_cil"), stream, setting(3), out=tmp_path, say=said.append)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["accuracy"]["values"][0][1:] == [None, None]
    assert record["accuracy"]["metrics"] == outcome.matrix.metrics()
    assert record["stream"]["notation"] == "B-0 Inc-2" and record["learner"]["keeps"] == "statistics"
    model = outcome.learning.model.eval()
    right, within, total = 0, 0, 0
    for task in stream.tasks:
        for index in range(len(task.judged)):
            sample = task.judged[index]
            scores = model(sample.input[None])[0]
            right += int(scores.argmax()) == sample.target
            within += int(scores[task.first : task.end].argmax()) + task.first == sample.target
            total += 1
    assert outcome.matrix.pooled(2) == pytest.approx(right / total)
    assert outcome.within.pooled(2) == pytest.approx(within / total)
    assert [line[:11] for line in said] == ["task 1 of 3", "task 2 of 3", "task 3 of 3"]
    for picture in ("matrix.png", "curve.png"):
        assert (tmp_path / picture).stat().st_size > 1000


def test_another_run_does_not_go_on_from_a_state(stream: Stream, tmp_path: Path) -> None:
    learn_stream(make_learner("simple_cil"), stream, setting(3), out=tmp_path, say=lambda _: None)
    with pytest.raises(BadCheckpoint, match="seed was 0 and is 1"):
        learn_stream(make_learner("simple_cil"), stream, setting(3, seed=1), out=tmp_path, say=lambda _: None)


def test_domains_have_forward_transfer(tmp_path: Path) -> None:
    folders = [draw(tmp_path / str(shift), CLASSES[:3], each=3, shift=shift) for shift in (0, 0 + 2)]
    stream = domain_stream([opened(folder) for folder in folders], preprocessing())
    outcome = learn_stream(make_learner("simple_cil"), stream, setting(2), say=lambda _: None)
    assert outcome.matrix.values[0][1] is not None
    assert outcome.matrix.metrics()["forward_transfer"] == pytest.approx(outcome.matrix.values[0][1] - 1 / 3)
    tuned = outcome.learning.for_file()
    assert tuned is not None
    images = [torch.stack([task.plain[i].input for i in range(len(task.plain))]) for task in stream.tasks]
    numbers = torch.tensor([number for task in stream.tasks for number in task.plain.targets])
    with torch.no_grad():
        found = Features(tuned, None)(torch.cat(images))
    means = torch.stack([found[numbers == number].mean(0) for number in range(3)])
    assert torch.allclose(dict(tuned.head.named_parameters())["weight"], means, atol=1e-5)  # type: ignore[union-attr]


def test_a_recipe_runs_on_the_shipped_backbone(tmp_path: Path) -> None:
    recipe = ContinualRecipe.model_validate(
        {
            "method": "simple_cil",
            "data": {"source": str(draw(tmp_path / "six", each=4)), "val_fraction": 0, "test_fraction": 0.25},
            "increment": 3,
            "order_seed": -1,
            "out": tmp_path / "out",
            "optimisation": {"device": "cpu"},
        }
    )
    outcome = run_continual(recipe, say=lambda _: None)
    assert len(outcome.matrix.values) == 2 and outcome.matrix.pooled(1) > 0.8
    assert vpeft.read_manifest(tmp_path / "out" / ADAPTER).labels == list(CLASSES)


@pytest.mark.parametrize("text", ["l2p(pool=4, length=1, top_k=2)", "dualprompt(tasks=3)"])
def test_queries_of_judged_images_are_computed_once_with_the_same_bits(
    text: str, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    plain = TunedModel._query

    def counted(self: TunedModel, inputs: tuple[Any, ...], named: Any) -> torch.Tensor:
        counts[-1] += 0 if self.training else len(inputs[0])
        return plain(self, inputs, named)

    monkeypatch.setattr(TunedModel, "_query", counted)
    found = []
    for keeps in (True, False):
        if not keeps:
            monkeypatch.setattr(continual, "keeping", lambda *_: nullcontext())
        counts.append(0)
        outcome = learn_stream(make_learner(text), stream, setting(3, epochs=1, acceleration="off"), say=lambda _: None)
        found.append(outcome)
    assert found[0].matrix == found[1].matrix and found[0].within == found[1].within
    assert all(
        torch.equal(tensor, found[1].learning.state()[group][name])
        for group, named in found[0].learning.state().items()
        for name, tensor in named.items()
    )
    sizes = [len(task.judged) for task in stream.tasks]
    # after task t tasks 0 to t are judged; kept, each image is seen once
    assert counts[1] - counts[0] == sum((len(sizes) - number - 1) * size for number, size in enumerate(sizes))
