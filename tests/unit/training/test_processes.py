"""One run in two processes: gradients, order, files, scores and restarts are those of one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from tests.processes import in_processes
from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.batch import Batch
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import all_methods
from vpeft.tasks.classification import Classification
from vpeft.training.batches import Batches, Share
from vpeft.training.evaluate import evaluate
from vpeft.training.fit import fit
from vpeft.training.gradient_sum import GradientSum
from vpeft.training.loop import CHECKPOINT
from vpeft.training.optimisation import Optimisation
from vpeft.training.processes import LostProcess, ProcessesDiffer, UnsuitableLaunch, join
from vpeft.training.result import Result, Scores

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

# A last batch of 1, which is too small for two processes; no dropout, so that one process has the same numbers.
PLAIN = Optimisation(epochs=2, batch=6, lr=3e-3, clip=1.0, keep="best", device="cpu", acceleration="off")
IMAGES, VALIDATION = 19, 11


def still_vit(seed: int = 0) -> TunedModel:
    torch.manual_seed(0)
    model = tiny_vit()
    torch.manual_seed(seed)
    return vpeft.tune(model, vpeft.methods.LoRA(rank=2), num_classes=3, show=False, verify=False)


def trained(out: Path | None, settings: Optimisation = PLAIN, seed: int = 0, **more: Any) -> tuple[Any, Result]:
    tuned = more.pop("tuned", None) or still_vit(seed)
    train, val = Patches(IMAGES), Patches(VALIDATION, seed=8, noise=0.0)
    result = fit(tuned, train, val, optimisation=settings, out=out, progress=False, **more)
    return weights(tuned), result


def close(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 2e-5) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=within, rtol=1e-4) for k in one)


def times_apart(result: Result) -> list[dict[str, Any]]:
    return [record.model_dump(exclude={"seconds", "images_per_second"}) for record in result.history]


def test_a_run_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        # Each process begins with another adapter; the first one's counts.
        return trained(tmp_path / "two", seed=rank)

    (first, result), (second, _) = in_processes(2, tmp_path / "work", work)
    expected, alone = trained(None)
    assert same(first, second)
    assert close(first, expected)
    assert [record.step for record in result.history] == [4, 8]
    for there, here in zip(result.history, alone.history, strict=True):
        assert there.train_loss == pytest.approx(here.train_loss, abs=1e-5)
        assert there.train == pytest.approx(here.train, abs=1e-5)
        assert there.val == pytest.approx(here.val, abs=1e-5)
    assert result.val is not None and alone.val is not None
    assert result.val.count == VALIDATION
    assert result.val.details["confusion"] == alone.val.details["confusion"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [CHECKPOINT, "result.json"]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_it_goes_on_with_another_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    stopping = PLAIN.model_copy(update={"checkpoint_steps": 1})

    class Enough(Exception):
        pass

    def stop(model: TunedModel) -> None:
        counted[0] += 1
        if counted[0] == 6:  # within the second epoch; the checkpoint is of the step before
            raise Enough

    counted = [0]

    def begin(rank: int) -> None:
        with pytest.raises(Enough):
            trained(tmp_path / "run", stopping, after_step=stop)

    def finish(rank: int) -> Any:
        return trained(tmp_path / "run", stopping, seed=5)

    if before == 1:
        begin(0)
    else:
        in_processes(before, tmp_path / "before", begin)
    found, result = finish(0) if after == 1 else in_processes(after, tmp_path / "after", finish)[0]
    assert result.resumed_at == 5
    assert close(found, trained(None)[0])


def test_a_killed_process_ends_the_run_which_then_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """With dropout, drop path, mixup and noise on each image: everything that draws."""
    settings = Optimisation(epochs=2, batch=8, lr=3e-3, checkpoint_steps=2, device="cpu")
    task = Classification(mixup=0.4)

    def train(out: Path, seed: int, after_step: Callable[[TunedModel], None] | None = None) -> dict[str, Tensor]:
        tuned = tuned_vit(seed=seed)
        data, val = Patches(21, noise=0.5), Patches(9, seed=8)
        fit(tuned, data, val, optimisation=settings, task=task, out=out, progress=False, after_step=after_step)
        return weights(tuned)

    def killed(rank: int) -> str:
        counted = [0]

        def count(model: TunedModel) -> None:
            counted[0] += 1
            if counted[0] == 4 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(LostProcess) as told:
            train(tmp_path / "run", 0, count)
        (tmp_path / f"told_{rank}.txt").write_text(str(told.value))
        return ""

    with pytest.raises(AssertionError):
        in_processes(2, tmp_path / "killed", killed)
    assert "Another process of this run has ended" in (tmp_path / "told_0.txt").read_text()
    assert "continues from its last checkpoint" in (tmp_path / "told_0.txt").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "failed"
    again = in_processes(2, tmp_path / "again", lambda rank: train(tmp_path / "run", 3))
    whole = in_processes(2, tmp_path / "whole", lambda rank: train(tmp_path / "other", 0))
    assert same(again[0], whole[0]) and same(again[1], whole[0])


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        def ask(model: TunedModel) -> None:
            if rank == 1 and not asked:
                asked.append(True)
                os.kill(os.getpid(), signal.SIGTERM)

        asked: list[bool] = []
        return trained(tmp_path / "run", after_step=ask)[1]

    first, second = in_processes(2, tmp_path / "work", work)
    assert first.state == second.state == "stopped"
    assert first.steps == second.steps == 2  # it is said with the next step
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_only_what_trains_is_sent(tmp_path: Path) -> None:
    """Counted by what is handed to torch.distributed, in this library and in any other."""

    def count(method: str) -> tuple[int, int, int]:
        torch.manual_seed(0)
        tuned = vpeft.tune(tiny_vit(), vpeft.methods.get(method)(), num_classes=3, show=False, verify=False)
        sent = [0]
        reduce = torch.distributed.all_reduce

        def counting(tensor: Tensor, *args: Any, **named: Any) -> Any:
            sent[0] += tensor.numel() * tensor.element_size()
            return reduce(tensor, *args, **named)

        torch.distributed.all_reduce = counting
        steps: list[int] = []
        settings = Optimisation(epochs=1, batch=8, device="cpu", acceleration="off")
        fit(tuned, Patches(16), optimisation=settings, progress=False, after_step=lambda _: steps.append(sent[0]))
        trained = sum(p.numel() * p.element_size() for _, p in tuned.trainable())
        whole = sum(p.numel() * p.element_size() for p in tuned.backbone.parameters())
        return steps[1] - steps[0], trained, whole

    def work(rank: int) -> list[tuple[int, int, int]]:
        return [count(method) for method in ("lora", "adaptformer", "bitfit")]

    for counts in in_processes(2, tmp_path, work):
        for sent, trained_bytes, whole in counts:
            assert trained_bytes < sent <= 1.05 * trained_bytes
            assert sent < whole


def _loss(tuned: TunedModel, images: Tensor) -> Tensor:
    return tuned(images).square().mean()


def _random_weights(tuned: TunedModel) -> TunedModel:
    """Adapters often begin at zero, where half of their gradients are zero too."""
    torch.manual_seed(1)
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.05)
    return tuned.eval()


FAMILIES: tuple[Callable[[], nn.Module], ...] = (tiny_vit, tiny_swin, tiny_convnext)


def gradients_agree(methods: list[str], folder: Path) -> dict[tuple[str, str], str]:
    """(family, method) -> "refused", or the name of a tensor whose gradient differs between two processes and one."""
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def differs(model: Callable[[], nn.Module], name: str, rank: int, dtype: torch.dtype) -> str | None:
        rows = Share(rank, 2)(len(images))
        torch.manual_seed(0)
        try:
            tuned = vpeft.tune(model().to(dtype), vpeft.methods.get(name)(), num_classes=3, show=False, verify=False)
            _loss(_random_weights(tuned), images.to(dtype)).backward()
        except vpeft.VpeftError:  # not for this family, or a border that is wider than these images
            return "refused"
        expected = {key: None if p.grad is None else p.grad.clone() for key, p in tuned.trainable()}
        tuned.zero_grad()
        loss = _loss(tuned, images[rows.start : rows.stop].to(dtype))
        loss.backward()
        GradientSum(tuned.trainable(), join("cpu"), torch.device("cpu"))(len(rows), loss.item(), {}, False)
        for key, parameter in tuned.trainable():
            one, other = expected[key], parameter.grad
            if (one is None) != (other is None):
                return key
            # relative to the largest gradient of the tensor, as sums are in another order
            if one is not None and other is not None and (one - other).abs().max() > 1e-6 * (1 + 10 * one.abs().max()):
                return key
        return None

    def work(rank: int) -> dict[tuple[str, str], str]:
        wrong: dict[tuple[str, str], str] = {}
        for model, name in product(FAMILIES, methods):
            found = differs(model, name, rank, torch.float32)
            if found not in (None, "refused"):  # a sum that cancels; in double precision only a mistake is left
                found = differs(model, name, rank, torch.float64)
            if found is not None:
                wrong[model.__name__, name] = found
        return wrong

    first, second = in_processes(2, folder, work, patience=1200)
    return {**first, **second}


def test_gradients_of_some_methods(tmp_path: Path) -> None:
    assert gradients_agree(["lora", "bitfit", "ssf"], tmp_path) == {}


@pytest.mark.slow
def test_gradients_of_every_method(tmp_path: Path) -> None:
    names = [*all_methods()]
    found = gradients_agree(names, tmp_path)
    refused = [cell for cell, why in found.items() if why == "refused"]
    assert {cell: why for cell, why in found.items() if why != "refused"} == {}
    assert len(refused) < len(names) * len(FAMILIES) / 2


def test_a_tensor_that_one_process_alone_uses_and_one_that_none_uses(tmp_path: Path) -> None:
    def work(rank: int) -> list[list[float] | None]:
        parameters = {name: nn.Parameter(torch.ones(2)) for name in ("both", "second", "none")}
        summed = GradientSum(parameters.items(), join("cpu"), torch.device("cpu"))
        found: list[list[float] | None] = []
        for step in range(3):
            for parameter in parameters.values():
                parameter.grad = None
            used = parameters["both"] + (parameters["second"] if rank == 1 and step > 0 else 0)
            (used.sum() * (rank + 1)).backward()
            summed(1, 0.0, {}, False)
            found = [None if p.grad is None else p.grad.tolist() for p in parameters.values()]
        return found

    for found in in_processes(2, tmp_path, work):
        assert found == [[1.5, 1.5], [1.0, 1.0], None]


def test_processes_with_different_models_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        torch.manual_seed(rank)
        tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=3, show=False, verify=False)
        with pytest.raises(ProcessesDiffer) as told:
            fit(tuned, Patches(8), optimisation=PLAIN.model_copy(update={"keep": "last"}), progress=False)
        return str(told.value)

    for told in in_processes(2, tmp_path, work):
        assert "different frozen weights" in told


def test_shares_of_every_batch_are_the_batches_of_one_process() -> None:
    data = Patches(19)
    whole = [*Batches(data, 6, seed=4).epoch(3)]
    for count in (2, 3, 4):
        shares = [Batches(data, 6, seed=4, share=Share(number, count)) for number in range(count)]
        read = [[*one.epoch(3)] for one in shares]
        for number, batch in enumerate(whole):
            parts = [one[number] for one in read]
            sizes = [one.samples_read(number) for one in shares]
            assert sum(sizes) == len(batch)
            assert all(len(part) == max(1, size) for part, size in zip(parts, sizes, strict=True))
            together = torch.cat([part.inputs for part, size in zip(parts, sizes, strict=True) if size])
            assert torch.equal(together, batch.inputs)


def test_scores_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Also with fewer samples than processes could share."""
    counts = (1, 3, 4, 11)

    def scores() -> list[Scores]:
        return [evaluate(still_vit(), Patches(count), batch=2) for count in counts]

    def work(rank: int) -> list[Scores]:
        join("cpu")
        return scores()

    alone = scores()
    for found in in_processes(2, tmp_path, work):
        for count, there, here in zip(counts, found, alone, strict=True):
            assert there.count == count
            assert there.values == pytest.approx(here.values, abs=1e-6)
            assert there.details["confusion"] == here.details["confusion"]


def test_batch_statistics_are_averaged(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm2d(3))
        summed = GradientSum([], join("cpu"), torch.device("cpu"))
        batch = Batch(torch.full((2, 3, 4, 4), float(rank + 1)))
        model(batch.inputs)
        layer = model[0]
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
        summed.average([layer.running_mean], 0.5)
        return layer.running_mean

    for mean in in_processes(2, tmp_path, work):
        assert torch.allclose(mean, torch.full((3,), 0.15))


def test_a_launcher_that_says_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UnsuitableLaunch, match="MASTER_ADDR is not set"):
        join("cpu")
