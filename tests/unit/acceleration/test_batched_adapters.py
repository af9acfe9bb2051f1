"""Several runs whose steps are one pass through one backbone: the numbers of single runs, and truly one pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, weights
from vpeft.acceleration.batched_adapters import Batched
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method, get
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result
from vpeft.training.together import fit_together

LORA, ADAPTFORMER, SSF = get("lora")(rank=2), get("adaptformer")(bottleneck=4), get("ssf")()
VPT, LST, BITFIT = get("vpt_deep")(tokens=3), get("lst")(), get("bitfit")()
BATCHED = "batched_adapters"


def made(method: Method, seed: int = 0) -> TunedModel:
    torch.manual_seed(0)
    base = tiny_vit()
    torch.manual_seed(seed)
    return vpeft.tune(base, method, num_classes=3, show=False, verify=False)


def settings(**given: Any) -> Optimisation:
    return Optimisation.model_validate({"epochs": 2, "batch": 4, "warmup": 0, "acceleration": BATCHED, **given})


def losses(result: Result) -> list[float]:
    return [record.train_loss for record in result.history]


class Passes:
    """Counts the passes through any of some backbones in training, copies of them included."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        plain = type(tiny_vit()).forward_features

        def counted(model: Any, images: Tensor, *more: Any, **kwargs: Any) -> Any:
            self.count += model.training and torch.is_grad_enabled()
            return plain(model, images, *more, **kwargs)

        monkeypatch.setattr(type(tiny_vit()), "forward_features", counted)


def trained(
    methods: Sequence[Method], its: Sequence[Optimisation], together: bool, **more: Any
) -> tuple[list[TunedModel], list[Result]]:
    models, images = [made(method, number) for number, method in enumerate(methods)], Patches(10)
    if together:
        runs = [Run(tuned, one) for tuned, one in zip(models, its, strict=True)]
        return models, fit_together(runs, images, images, **more)
    results = [fit(tuned, images, images, optimisation=one, **more) for tuned, one in zip(models, its, strict=True)]
    return models, results


def agree(methods: Sequence[Method], its: Sequence[Optimisation]) -> None:
    """Losses and what the trained models say are those of single runs."""
    alone, singles = trained(methods, its, together=False, progress=False)
    models, results = trained(methods, its, together=True, progress=False)
    images = torch.stack([Patches(10)[i][0] for i in range(10)])
    for one, other, single, result in zip(alone, models, singles, results, strict=True):
        assert result.state == "done" and result.steps == single.steps
        assert losses(result) == pytest.approx(losses(single), rel=1e-4)
        with torch.no_grad():
            expected = one(images)
            assert torch.allclose(other(images), expected, atol=1e-3 * float(expected.abs().max()))


def test_unlike_runs_have_the_numbers_of_single_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Other methods, rates, seeds, orders of images, batch sizes and lengths; AdaptFormer with its dropout."""
    methods = (LORA, ADAPTFORMER, SSF, LST, LORA)
    agree(methods, [settings(lr=1e-3 * 2**k, seed=k, batch=3 + k % 2, epochs=2 + k % 3) for k in range(5)])
    trained(methods[:2], [settings(epochs=1)] * 2, together=True)
    assert capsys.readouterr().err.count(f"+ {BATCHED}: 2 runs take their steps in one pass through the backbone") == 2


def test_there_is_one_pass_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images in batches of four, two epochs: six steps of three runs; the rest are trials."""
    passes = Passes(monkeypatch)
    trained((LORA, LORA, SSF), [settings(), settings(lr=1e-2), settings(seed=4)], together=True, progress=False)
    first = passes.count
    trained(
        (LORA, LORA, SSF), [settings(epochs=4), settings(epochs=4), settings(epochs=4)], together=True, progress=False
    )
    assert passes.count - 2 * first == 6, "six more steps, whatever the trials took"


def test_prompts_go_beside_equally_many(capsys: pytest.CaptureFixture[str]) -> None:
    agree((VPT, VPT, LORA, LORA), [settings(lr=1e-2), settings(), settings(), settings(seed=2)])
    trained((VPT, VPT, LORA), [settings(epochs=1)] * 3, together=True)
    said = capsys.readouterr().err
    assert said.count(f"+ {BATCHED}: 2 runs") == 2
    assert f"run 3/3  - {BATCHED}: no other run has edits" in said


def test_what_cannot_go_together_says_why_and_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    unlike = [
        (BITFIT, {}),
        (LORA, {"accumulate": 2}),
        (get("snf")(), {}),
        (LORA, {"acceleration": f"low_memory,{BATCHED}"}),
    ]
    _, results = trained(
        [method for method, _ in unlike], [settings(epochs=1, **its) for _, its in unlike], together=True
    )
    said = capsys.readouterr().err
    assert f"run 1/4  - {BATCHED}: it trains tensors of the backbone itself" in said
    assert f"run 2/4  - {BATCHED}: its batches are taken in parts" in said
    assert f"run 3/4  - {BATCHED}: SNF adds a penalty" in said
    assert f"run 4/4  - {BATCHED}: low_memory saves memory" in said
    assert [result.state for result in results] == ["done"] * 4
    fit(made(LORA), Patches(4), optimisation=settings(epochs=1))
    assert f"- {BATCHED}: this is one run" in capsys.readouterr().err


def test_backbones_with_other_weights_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    models = [made(LORA), made(LORA)]
    with torch.no_grad():
        models[1].backbone.blocks[0].mlp.fc1.weight.mul_(1.01)  # type: ignore[union-attr, index]
    fit_together([Run(tuned, settings(epochs=1)) for tuned in models], Patches(6))
    assert capsys.readouterr().err.count(f"- {BATCHED}: no other run has edits") == 2


def test_the_models_are_their_own_afterwards() -> None:
    models, _ = trained((LORA, SSF), [settings(), settings()], together=True, progress=False)
    images = torch.stack([Patches(4)[i][0] for i in range(4)])
    with torch.no_grad():
        before = models[0](images)
        for _, parameter in models[1].trainable():
            parameter.zero_()
        assert torch.equal(models[0](images), before)
    assert not any(p.requires_grad for _, p in models[0].backbone.named_parameters())
    fit(models[0], Patches(6), optimisation=settings(acceleration="auto"), progress=False)


def test_a_run_that_fails_does_not_end_the_others() -> None:
    good, bad = made(LORA), made(SSF)
    with torch.no_grad():
        next(p for name, p in bad.trainable() if name.startswith("head")).fill_(float("inf"))
    results = fit_together([Run(good, settings()), Run(bad, settings())], Patches(10), progress=False)
    assert [result.state for result in results] == ["done", "failed"]
    assert "not finite" in (results[1].reason or "")
    alone = made(LORA)
    single = fit(alone, Patches(10), optimisation=settings(), progress=False)
    assert losses(results[0]) == pytest.approx(losses(single), rel=1e-4)


def test_out_of_memory_says_what_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Batched.__call__, 0

    def heavy(its: Batched, images: Any) -> Any:
        nonlocal calls
        calls += not any(len(one) == 2 for one in images.values())  # the trials take two images each
        if calls == 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return plain(its, images)

    monkeypatch.setattr(Batched, "__call__", heavy)
    its = [settings(drop_last=True), settings(drop_last=True, lr=1e-2)]
    _, results = trained((LORA, SSF), its, together=True, progress=False)
    assert [result.state for result in results] == ["failed", "failed"]
    assert all("leave out batched_adapters" in (result.reason or "") for result in results)
    assert all(result.steps == 2 for result in results)


def test_an_interrupted_round_goes_on(tmp_path: Path) -> None:
    """Stopped after the first epoch of one of them, and taken up again: the same numbers."""

    class Stop(Exception):
        pass

    def at_once(*_: object) -> None:
        raise Stop

    def runs(folder: str, after: Any = None) -> list[Run]:
        its = settings(epochs=3, checkpoint_steps=1)
        outs = [tmp_path / folder / name for name in "ab"]
        return [Run(made(method), its, out, after) for method, out in zip((LORA, ADAPTFORMER), outs, strict=True)]

    whole, cut = runs("whole"), runs("cut", at_once)
    done = fit_together(whole, Patches(10), progress=False)
    with pytest.raises(Stop):
        fit_together(cut, Patches(10), progress=False)
    again = runs("cut")
    resumed = fit_together(again, Patches(10), progress=False)
    assert all((result.resumed_at or 0) > 0 for result in resumed)
    for one, other, a, b in zip(whole, again, done, resumed, strict=True):
        assert losses(a) == losses(b)
        assert same(weights(one.tuned), weights(other.tuned))
