"""What the loop does for any task: optimisers by name, an average, more epochs, starting from an adapter, pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.training.average import MovingAverage
from vpeft.training.fit import fit
from vpeft.training.loop import CHECKPOINT
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import BadRecipe, Recipe

SHORT = Optimisation(epochs=2, batch=8, lr=3e-3)


def plain_vit(method: vpeft.Method | None = None) -> vpeft.TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), method or vpeft.methods.LoRA(rank=2), num_classes=3, verify=False)


def test_sgd_takes_the_step_that_its_formula_says() -> None:
    tuned, data = plain_vit(), Patches(6)
    images = torch.stack([image for image, _ in data])
    start = weights(tuned)
    nn.functional.cross_entropy(tuned(images), torch.tensor(data.targets)).backward()
    slope = tuned.head.weight.grad.clone()  # type: ignore[union-attr]
    tuned.zero_grad()
    settings = Optimisation(epochs=1, batch=6, lr=0.1, weight_decay=0.01, warmup=0, optimiser="SGD(momentum=0.9)")
    fit(tuned, data, optimisation=settings, progress=False)
    expected = start["head.weight"] - 0.1 * (slope + 0.01 * start["head.weight"])
    torch.testing.assert_close(weights(tuned)["head.weight"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "said"),
    [("adamv", "radam"), ("sgd(momentun=0.9)", "momentum"), ("sgd(lr=1)", "their own settings"), ("sgd(", "sgd")],
)
def test_a_wrong_optimiser_is_said_with_what_exists(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Optimisation(optimiser=text)


def test_an_average_is_validated_and_kept_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    average = MovingAverage([("w", parameter)], 0.9)
    expected = torch.zeros(2)
    for step in range(1, 30):
        with torch.no_grad():
            parameter += 1.0
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(average.values["w"], expected)

    averaged = SHORT.model_copy(update={"ema": 0.9, "checkpoint_steps": 1})
    smooth, raw = tuned_vit(), tuned_vit()
    result = fit(smooth, Patches(24), Patches(9), optimisation=averaged, progress=False)
    fit(raw, Patches(24), Patches(9), optimisation=SHORT, progress=False)
    assert not same(weights(smooth), weights(raw))
    assert result.val == vpeft.evaluate(smooth, Patches(9), batch=8)

    class Crash(Exception):
        pass

    class Crashing(Patches):
        left = 20

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            self.left -= 1
            if self.left == 0:
                raise Crash
            return super().__getitem__(index)

    with pytest.raises(Crash):
        fit(tuned_vit(), Crashing(24), Patches(9), optimisation=averaged, out=tmp_path, progress=False)
    later = tuned_vit(seed=5)
    again = fit(later, Patches(24), Patches(9), optimisation=averaged, out=tmp_path, progress=False)
    assert again.resumed_at == 2
    assert same(weights(later), weights(smooth))


def test_more_epochs_after_the_end_are_a_run_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tuned_vit()
    fit(first, Patches(24), optimisation=SHORT, out=tmp_path, progress=False)
    ended = weights(first)
    longer = SHORT.model_copy(update={"epochs": 3})
    second = tuned_vit(seed=4)
    result = fit(second, Patches(24), optimisation=longer, out=tmp_path)
    assert "ended after 2 epochs. Its weights are the start of a new run of 1 more" in capsys.readouterr().err
    assert (result.steps, result.optimisation.epochs, result.resumed_at) == (3, 1, None)
    by_hand = tuned_vit(seed=4)
    by_hand.load_adapter_state(ended)
    fit(by_hand, Patches(24), optimisation=SHORT.model_copy(update={"epochs": 1}), progress=False)
    assert same(weights(by_hand), weights(second))
    assert (tmp_path / "after_2_epochs.safetensors").exists() and (tmp_path / CHECKPOINT).exists()


def test_a_run_starts_from_another_adapter_with_its_head_or_a_new_one(tmp_path: Path) -> None:
    from vpeft.injection.adapter_file import BadAdapterFile
    from vpeft.injection.load_adapter import start_from

    first = plain_vit()
    fit(first, Patches(12), optimisation=SHORT, progress=False)
    file = first.save(tmp_path / "a.safetensors", labels=["a", "b", "c"])
    second = plain_vit()
    assert start_from(second, file).endswith("its head included")
    assert same(weights(second), weights(first))
    torch.manual_seed(1)
    other = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=5, verify=False)
    other.backbone.load_state_dict(first.backbone.state_dict())
    fresh = weights(other)["head.weight"]
    assert start_from(other, file).endswith("with a new head")
    inside = {name for name in weights(first) if not name.startswith("head.")}
    assert all(torch.equal(weights(other)[name], weights(first)[name]) for name in inside)
    assert torch.equal(weights(other)["head.weight"], fresh)
    with pytest.raises(BadAdapterFile, match="with the same method and settings"):
        start_from(plain_vit(vpeft.methods.LoRA(rank=4)), file)


def test_a_recipe_of_before_there_were_tasks_still_runs_and_a_wrong_option_is_named() -> None:
    old = {
        "backbone": "pocket_vit",
        "data": {"source": "digits"},
        "method": {"name": "lora", "rank": 4},
        "optimisation": {"epochs": 3, "label_smoothing": 0.1, "mixup": 0.0},
    }
    recipe = Recipe.from_mapping(old)
    assert recipe.task.build() == vpeft.tasks.Classification(label_smoothing=0.1)
    assert recipe == Recipe.from_mapping({**old, "method": "lora(rank=4)"})
    several = Recipe.from_mapping({**old, "method": "lora(rank=4)+ssf"})
    assert [method.name for method in several.methods] == ["lora", "ssf"]
    with pytest.raises(BadRecipe, match=r"task.label_smoothin for the task 'classification'.*label_smoothing"):
        Recipe.from_mapping({**old, "task": {"label_smoothin": 0.1}})
    with pytest.raises(BadRecipe, match="no task 'regresion'.*regression"):
        Recipe.from_mapping({**old, "task": "regresion"})


def test_several_heads_share_an_adapter_and_a_batch_names_its_task() -> None:
    torch.manual_seed(0)
    heads = {"colour": nn.Linear(48, 3), "shape": nn.Linear(48, 5)}
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), head=heads).eval()
    images = torch.randn(2, 3, 32, 32)
    both = tuned(images)
    assert {name: tuple(out.shape) for name, out in both.items()} == {"colour": (2, 3), "shape": (2, 5)}
    alone = tuned(images, batch=vpeft.Batch(images, task="shape"))
    assert torch.equal(alone, both["shape"])
    with pytest.raises(vpeft.VpeftError, match="no head for the task 'size'. It has: colour, shape"):
        tuned(images, batch=vpeft.Batch(images, task="size"))


def test_pairs_of_images_are_learnt_resumed_saved_and_predicted(tmp_path: Path) -> None:
    from vpeft.data.image_set import ArraySet
    from vpeft.data.preprocessing import Preprocessing

    generator = np.random.default_rng(0)
    colours = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]])
    classes = [number % 3 for number in range(24)]
    pixels = np.clip(colours[classes][:, None, None] + generator.integers(-15, 15, (24, 32, 32, 3)), 0, 255)
    images = ArraySet(pixels.astype(np.uint8), classes, transform=Preprocessing(size=(32, 32)).transform())
    task = vpeft.tasks.SameOrDifferent()
    pairs = task.dataset(images, True)
    assert [tuple(pair.input.shape) for pair in (pairs[0], pairs[1])] == [(2, 3, 32, 32)] * 2
    assert all((classes[i] == classes[pairs.seconds[i]]) == bool(same) for i, same in enumerate(pairs.targets))
    assert 8 <= sum(pairs.targets) <= 16

    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), task=task)
    settings = Optimisation(epochs=12, batch=8, lr=1e-2, accumulate=2)
    result = fit(tuned, pairs, pairs, optimisation=settings, progress=False)
    assert result.val is not None
    assert result.history[-1].train_loss < result.history[0].train_loss and result.val.accuracy > 0.9
    file = tuned.save(tmp_path / "pairs.safetensors")
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), file).eval()
    assert again.task == task
    batch = task.collate([pairs[0], pairs[1], pairs[3]])
    assert (len(batch), tuple(batch.inputs.shape)) == (3, (6, 3, 32, 32))
    assert torch.equal(again(batch.inputs, batch=batch), tuned.eval()(batch.inputs, batch=batch))
    said = task.predictions(again(batch.inputs).detach(), batch)
    assert [one.rows[0]["label"] == "same" for one in said] == [bool(value) for value in batch.targets]
    with pytest.raises(vpeft.VpeftError, match="Pairs are learnt, and single images are given"):
        fit(tuned, images, optimisation=settings, progress=False)


class Coloured:
    """Images (3, 32, 32), each in the colour of its class; names in `classes`, as torchvision's data sets have them."""

    def __init__(self, *classes: str, count: int = 24) -> None:
        self.classes = list(classes)
        self.targets = [i % len(classes) for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.zeros(3, 32, 32)
        image[("ant", "bee", "cat").index(self.classes[self.targets[index]])] = 2.0
        return image, self.targets[index]


def test_names_of_torchvision_are_kept_and_matched(tmp_path: Path) -> None:
    train, val = Coloured("ant", "bee", "cat"), Coloured("bee", "cat")
    tuned = plain_vit()
    result = fit(tuned, train, val, optimisation=Optimisation(epochs=8, batch=8, lr=1e-2), progress=False)
    assert result.val is not None and result.val.top1 == vpeft.evaluate(tuned, val).top1 == 1.0
    assert tuned.task.labels == ("ant", "bee", "cat")
    tuned.save(tmp_path / "a.safetensors")
    torch.manual_seed(0)  # the same backbone
    again = vpeft.load(tiny_vit(), tmp_path / "a.safetensors")
    assert vpeft.evaluate(again, val).top1 == 1.0
    strange = Coloured("bee", "cat")
    strange.classes = ["bee", "wasp"]
    with pytest.raises(vpeft.VpeftError, match="do not have: 'wasp'"):
        vpeft.evaluate(again, strange)


def test_a_head_with_other_outputs_than_labels_is_refused_before_the_first_step() -> None:
    with pytest.raises(vpeft.VpeftError, match=r"name 4 labels, class 0, .* 4 outputs, .* has 3\. .*num_classes=4"):
        fit(plain_vit(), Patches(8, classes=4, seed=1), optimisation=SHORT, progress=False)
    two_of_four = Patches(8, classes=2)
    two_of_four.labels = ["a", "b", "c", "d"]
    with pytest.raises(vpeft.VpeftError, match="4 labels"):
        fit(plain_vit(), two_of_four, optimisation=SHORT, progress=False)
