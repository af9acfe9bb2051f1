"""The loop: it learns, repeats, divides batches, stops, keeps, and goes on."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import UnsuitableTargets
from vpeft.tasks.classification import Classification
from vpeft.training import machine
from vpeft.training.checkpoint import BadCheckpoint, read_checkpoint
from vpeft.training.evaluate import UnsuitableData, evaluate
from vpeft.training.fit import UnsuitableSettings, fit
from vpeft.training.interrupts import StopRequest
from vpeft.training.machine import UnsuitableMachine
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import EpochRecord, Result
from vpeft.training.schedule import rate_at

SHORT = Optimisation(epochs=2, batch=8, lr=3e-3)


def quickly(tuned: TunedModel, settings: Optimisation = SHORT, **more: Any) -> Result:
    return fit(tuned, Patches(24, noise=0.2), optimisation=settings, progress=False, **more)


def test_it_learns() -> None:
    tuned = tuned_vit()
    frozen = {name: value.clone() for name, value in tuned.backbone.state_dict().items()}
    before = evaluate(tuned, Patches(30, seed=9))
    result = fit(
        tuned, Patches(48), Patches(30, seed=9), epochs=12, optimisation=Optimisation(lr=5e-3, batch=8), progress=False
    )
    assert result.state == "done"
    assert result.val is not None
    assert result.val.top1 >= 0.9 > before.top1
    # in the same batches: the mean of the losses is a sum, whose last bit depends on its order
    assert result.val == evaluate(tuned, Patches(30, seed=9), batch=8)
    assert [record.epoch for record in result.history] == list(range(1, 13))
    assert result.steps == result.history[-1].step == 12 * 6
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.history[-1].val == result.val.values
    assert result.kept_epoch == 12
    assert result.images_per_second > 0
    assert all(torch.equal(value, frozen[name]) for name, value in tuned.backbone.state_dict().items())
    assert not tuned.training


def test_the_seed_decides_and_the_process_does_not() -> None:
    finals = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        tuned = tuned_vit()
        torch.manual_seed(noise)
        random.seed(noise)
        quickly(tuned, SHORT.model_copy(update={"seed": seed}), task=Classification(mixup=0.4))
        finals.append(weights(tuned))
    assert same(finals[0], finals[1])
    assert not same(finals[0], finals[2])


def test_the_random_numbers_of_the_process_go_on_as_if_nothing_was() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(2), random.random()
    tuned = tuned_vit()
    torch.manual_seed(5)
    random.seed(5)
    quickly(tuned, SHORT.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]


def test_validating_does_not_change_the_training() -> None:
    alone, watched = tuned_vit(), tuned_vit()
    quickly(alone)
    seen: list[EpochRecord] = []

    def look(tuned: TunedModel, record: EpochRecord) -> None:
        torch.rand(10)
        seen.append(record)

    quickly(watched, val=Patches(9, noise=1.0), after_epoch=look)
    assert same(weights(alone), weights(watched))
    assert [record.epoch for record in seen] == [1, 2]


def test_the_first_step_is_adamw_by_hand() -> None:
    # No noise, no dropout, one batch: AdamW's first step moves each weight by rate * sign(gradient), up to eps.
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=3, show=False, verify=False)
    data = Patches(6)
    images = torch.stack([image for image, _ in data])
    start = weights(tuned)
    smoothed = nn.functional.cross_entropy(tuned(images), torch.tensor(data.targets), label_smoothing=0.1)
    smoothed.backward()
    slope = tuned.head.weight.grad.clone()  # type: ignore[union-attr]
    tuned.zero_grad()
    settings = Optimisation(epochs=1, batch=6, lr=1e-3, head_lr=1e-2, weight_decay=0.5, warmup=0)
    result = fit(tuned, data, optimisation=settings, task=Classification(label_smoothing=0.1), progress=False)
    assert result.history[0].train_loss == pytest.approx(smoothed.item(), rel=1e-5)
    expected = start["head.weight"] * (1 - 1e-2 * 0.5) - 1e-2 * slope / (slope.abs() + 1e-8)
    torch.testing.assert_close(weights(tuned)["head.weight"], expected, rtol=1e-4, atol=1e-6)
    # The bias is not decayed; it started at zero, so only its sign shows.
    assert weights(tuned)["head.bias"].abs().max() == pytest.approx(1e-2, rel=1e-3)


def test_parts_make_the_same_step() -> None:
    def plain() -> TunedModel:
        torch.manual_seed(0)
        return vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=3, show=False, verify=False)

    whole, divided = plain(), plain()
    # 22 images: the last batch of an epoch has 6, in parts of 2, 2, 1 and 1.
    for tuned, accumulate in ((whole, 1), (divided, 4)):
        settings = Optimisation(epochs=2, batch=8, accumulate=accumulate)
        fit(tuned, Patches(22), optimisation=settings, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(divided)[name], value, rtol=1e-3, atol=2e-5)


def test_clipping_bounds_the_gradient() -> None:
    tuned = tuned_vit()
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *given: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        result = quickly(tuned, Optimisation(epochs=1, batch=8, clip=0.01))
    assert len(norms) == 3
    assert max(norms) <= 0.01 * 1.001
    assert result.history[0].gradient_norm > 0.02  # recorded before clipping


def test_bf16_trains_with_weights_in_fp32_and_fp32_works_after_it() -> None:
    tuned = tuned_vit()
    result = quickly(tuned, SHORT.model_copy(update={"precision": "bf16"}))
    assert result.state == "done"
    assert {parameter.dtype for _, parameter in tuned.trainable()} == {torch.float32}
    exact = tuned_vit()
    quickly(exact)
    assert not same(weights(tuned), weights(exact))


def test_early_stopping_keeps_the_last_epoch_unless_the_best_is_asked_for() -> None:
    def run(keep: str) -> tuple[TunedModel, Result, list[dict[str, Tensor]]]:
        tuned = tuned_vit()
        after: list[dict[str, Tensor]] = []
        settings = Optimisation.model_validate(
            {"epochs": 12, "batch": 8, "lr": 0.05, "early_stopping": 2, "keep": keep}
        )
        result = fit(
            tuned,
            Patches(24),
            Patches(12, seed=8, noise=3.0),
            optimisation=settings,
            progress=False,
            after_epoch=lambda now, record: after.append(weights(now)),
        )
        return tuned, result, after

    tuned, result, after = run("last")
    tops = [record.val["top1"] for record in result.history if record.val is not None]
    assert result.best_epoch == 1 + tops.index(max(tops))
    assert len(tops) == result.best_epoch + 2 < 12
    assert result.reason is not None
    assert "validation top1 has not improved in 2 validations" in result.reason
    assert same(weights(tuned), after[-1])
    assert result.kept_epoch == len(tops)

    tuned, result, after = run("best")
    assert result.kept_epoch == result.best_epoch
    assert same(weights(tuned), after[result.kept_epoch - 1])  # type: ignore[operator]
    assert result.val is not None
    assert result.val.top1 == max(tops)


def test_methods_prepare_once_advance_each_step_and_add_their_penalty() -> None:
    calls: dict[str, Any] = {"prepared": [], "progress": []}

    class Watching(vpeft.methods.LoRA):  # type: ignore[misc, name-defined]
        @property
        def reads_data(self) -> bool:
            return True

        def prepare(self, tuned: TunedModel, batches: Any) -> None:
            torch.rand(100)
            calls["prepared"].append([(tuple(images.shape), labels.dtype) for images, labels in batches])

        def penalty(self, tuned: TunedModel) -> Tensor:
            return 1000.0 + 0.0 * sum(parameter.sum() for _, parameter in tuned.trainable())

        def advance(self, tuned: TunedModel, progress: float) -> None:
            calls["progress"].append(progress)

    tuned = vpeft.tune(tiny_vit(), Watching(rank=2), num_classes=3, show=False, verify=False)
    result = fit(tuned, Patches(24), optimisation=SHORT, progress=False)
    assert calls["prepared"] == [[((8, 3, 32, 32), torch.int64)] * 3]
    assert calls["progress"] == pytest.approx([step / 6 for step in range(7)])
    assert 1000 < result.history[0].train_loss < 1010


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    tuned = tuned_vit()
    first = quickly(tuned, out=tmp_path)
    again = tuned_vit(seed=5)
    second = quickly(again, out=tmp_path)
    assert same(weights(tuned), weights(again))
    assert second.resumed_at == second.steps == first.steps
    assert second.history == first.history
    assert Result.model_validate_json((tmp_path / "result.json").read_text()) == second
    assert not list(tmp_path.glob("*.partial"))
    anew = tuned_vit(seed=5)
    assert quickly(anew, out=tmp_path, resume=False).resumed_at is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_next_call_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    class Interrupting(Patches):
        left = 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    settings, task = SHORT.model_copy(update={"checkpoint_every": 0}), Classification(mixup=0.3)
    whole = tuned_vit()
    fit(whole, Patches(24, noise=0.2), Patches(6), optimisation=settings, task=task, progress=False)
    # A shell that starts tests in the background has them ignore some signals.
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    handlers = signal.getsignal(number)
    tuned = tuned_vit()
    data = Interrupting(24, noise=0.2)
    stopped = fit(tuned, data, Patches(6), optimisation=settings, task=task, out=tmp_path, progress=False)
    assert (stopped.state, stopped.steps, stopped.history) == ("stopped", 2, [])
    assert stopped.reason is not None
    assert number.name in stopped.reason
    assert signal.getsignal(number) == handlers
    signal.signal(number, before)
    later = tuned_vit(seed=7)
    val = Patches(6)
    result = fit(later, Patches(24, noise=0.2), val, optimisation=settings, task=task, out=tmp_path, progress=False)
    assert (result.state, result.resumed_at) == ("done", 2)
    assert same(weights(whole), weights(later))


def test_a_signal_that_the_process_ignores_as_under_nohup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_folder_ctrl_c_is_what_it_always_was() -> None:
    class Interrupting(Patches):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    # a process started in the background is born with Ctrl-C ignored; this test is about one that is not
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tuned_vit(), Interrupting(8), epochs=1, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    quickly(tuned_vit(), out=tmp_path)
    with pytest.raises(BadCheckpoint, match=r"optimisation\.lr was 0\.003 and is 0\.5.*resume=False"):
        quickly(tuned_vit(), SHORT.model_copy(update={"lr": 0.5}), out=tmp_path)
    with pytest.raises(BadCheckpoint, match="images was 24 and is 20"):
        fit(tuned_vit(), Patches(20), optimisation=SHORT, out=tmp_path, progress=False)
    other = tuned_vit()
    with torch.no_grad():
        other.backbone.blocks[0].norm1.weight.add_(1e-3)
    with pytest.raises(BadCheckpoint, match="frozen_weights was"):
        quickly(other, out=tmp_path)
    with pytest.raises(BadCheckpoint, match="identity|data was 'a' and is 'b'|data was None and is 'b'"):
        quickly(tuned_vit(), out=tmp_path, identity={"data": "b"})


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    quickly(tuned_vit(), out=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="Delete it to start afresh"):
        quickly(tuned_vit(), out=tmp_path)
    tuned_vit().save(path)
    with pytest.raises(BadCheckpoint, match="no training checkpoint"):
        read_checkpoint(path)


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(UnsuitableSettings, match="early_stopping needs validation images"):
        quickly(tuned_vit(), SHORT.model_copy(update={"early_stopping": 1}))
    with pytest.raises(UnsuitableSettings, match='keep = "best"'):
        quickly(tuned_vit(), SHORT.model_copy(update={"keep": "best"}))
    with pytest.raises(UnsuitableData, match="no images to train on"):
        fit(tuned_vit(), Patches(0), progress=False)
    with pytest.raises(UnsuitableTargets, match="wants a head with 5 outputs, and the model's has 3"):
        fit(tuned_vit(), Patches(10, classes=5), progress=False)


def test_taken_up_between_the_last_step_and_the_end_of_its_epoch(tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    class Broken(Patches):
        """Cannot be validated on."""

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise Crash

    settings = SHORT.model_copy(update={"checkpoint_steps": 3})
    whole, later = tuned_vit(), tuned_vit(seed=4)
    expected = quickly(whole, settings, val=Patches(6))
    with pytest.raises(Crash):
        quickly(tuned_vit(), settings, val=Broken(6), out=tmp_path)
    result = quickly(later, settings, val=Patches(6), out=tmp_path)
    assert result.resumed_at == 3
    times = {"seconds", "images_per_second"}
    assert [r.model_dump(exclude=times) for r in result.history] == [
        r.model_dump(exclude=times) for r in expected.history
    ]
    assert same(weights(whole), weights(later))


def test_the_rate_in_the_record_is_that_of_the_last_step() -> None:
    rates = [record.lr for record in quickly(tuned_vit(), SHORT.model_copy(update={"warmup": 0.5})).history]
    assert rates == pytest.approx([3e-3, rate_at(5, 3e-3, SHORT.model_copy(update={"warmup": 0.5}), 3)])


def test_what_this_machine_cannot_do_is_said() -> None:
    with pytest.raises(UnsuitableMachine, match='"fp16" needs an accelerator'):
        quickly(tuned_vit(), SHORT.model_copy(update={"precision": "fp16", "device": "cpu"}))
    assert quickly(tuned_vit(), SHORT.model_copy(update={"deterministic": True, "device": "cpu"})).device == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("emulated", [True, False])
def test_emulated_bf16_is_said(
    emulated: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "bf16_is_emulated", lambda device: emulated and device.type == "cpu")
    for precision in ("fp32", "bf16"):
        settings = SHORT.model_copy(update={"precision": precision, "device": "cpu", "epochs": 1})
        fit(tuned_vit(), Patches(8, noise=0.2), optimisation=settings)
        assert ("no bf16 instructions" in capsys.readouterr().err) is (emulated and precision == "bf16")


def test_what_is_emulated_follows_from_the_device_and_its_instructions() -> None:
    assert not machine.bf16_is_emulated(torch.device("cuda"))
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "avx2" in (text := flags.read_text()):
        assert machine.bf16_is_emulated(torch.device("cpu")) or "avx512" in text
