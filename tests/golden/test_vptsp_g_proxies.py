"""VPTSP-G's proxies against a plain restatement: two passes, the recurrence class by class, the loss of all proxies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.batch import Batch
from vpeft.layers.class_labels import NeedsClassLabels
from vpeft.layers.semantic_proxies import SemanticProxies
from vpeft.method import BadField
from vpeft.methods import VPTSPG
from vpeft.task import get_task
from vpeft.training.optimisation import Optimisation

LABELS = tuple("abcde")
FIELDS: dict[str, Any] = {"tokens": 4, "step": 1, "class_tokens": 3, "class_step": 2, "dimensions": 16, "mix": 0.3}


def learning(**fields: Any) -> tuple[Any, Any, Any]:
    """A plain model, the tuned one, and the task."""
    torch.manual_seed(0)
    plain = tiny_vit()
    task = get_task("retrieval")(labels=LABELS, loss="none", dimensions=16)
    torch.manual_seed(1)
    tuned = vpeft.tune(copy.deepcopy(plain), VPTSPG(**{**FIELDS, **fields}), task=task, show=False).train()
    return plain, tuned, task


def feature(model: Any, images: Tensor, prompts: Callable[[int], Tensor | None]) -> Tensor:
    x = model._pos_embed(model.patch_embed(images))
    for index, block in enumerate(model.blocks):
        more = prompts(index)
        count = 0 if more is None else more.shape[1]
        x = block(x if more is None else torch.cat([more, x], dim=1))[:, count:]
    return model.norm(x)[:, 0]


def restated(
    plain: Any, state: dict[str, Tensor], memory: Tensor, images: Tensor, numbers: list[int], fields: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The loss and the memory afterwards, image by image."""
    biased = copy.deepcopy(plain)
    own = {name: value for name, value in state.items() if ".unfreeze." in name}

    def run(prompts: Callable[[int], Tensor | None]) -> Tensor:
        return torch.func.functional_call(Whole(biased, prompts), biases(biased, own), (images,))

    def shared(index: int) -> Tensor | None:
        found = state.get(f"blocks.{index}.insert_tokens.tokens")
        return None if found is None else found.expand(len(images), -1, -1)

    def of_class(index: int) -> Tensor | None:
        found = state.get(f"blocks.{index}.insert_tokens.class_tokens")
        return None if found is None else torch.stack([found[number] for number in numbers])

    f = F.layer_norm(run(shared), (48,), state["head.norm.weight"], state["head.norm.bias"])
    e = F.normalize(f @ state["head.linear.weight"].T + state["head.linear.bias"], dim=1)
    p = {name.removeprefix("outlet.tap."): value for name, value in state.items() if name.startswith("outlet.tap.")}
    g = F.layer_norm(run(of_class), (48,), p["norm.weight"], p["norm.bias"])
    s = F.normalize(g @ p["linear.weight"].T + p["linear.bias"], dim=1)
    (w_iz, w_ir, w_in), (w_hz, w_hr, w_hn) = p["of_input"].split(16, dim=1), p["of_state"].split(16, dim=1)
    b_z, b_r, b_n = p["bias"].split(16)
    act = torch.tanh if fields.get("recurrence") == "tanh" else torch.relu
    rows = dict(enumerate(memory))
    for c in set(numbers):
        h = memory[c]
        for t in [t for t, number in enumerate(numbers) if number == c]:
            z = torch.sigmoid(s[t] @ w_iz + h @ w_hz + b_z)
            r = torch.sigmoid(s[t] @ w_ir + h @ w_hr + b_r)
            n = act(s[t] @ w_in + r * (h @ w_hn) + b_n)
            h = (1 - z) * n + z * h
        rows[c] = h
    beta = FIELDS["mix"]
    if fields.get("proxies") == "batch":
        compared = {c: beta * p["free"][c] + (1 - beta) * rows[c] for c in set(numbers)}
    else:
        compared = {c: beta * p["free"][c] + (1 - beta) * row / row.norm() for c, row in rows.items()}
    pos, neg = [], []
    for c, proxy in compared.items():
        cosines = e @ (proxy / proxy.norm())
        near = [torch.exp(-32 * (cosines[t] - 0.1)) for t, number in enumerate(numbers) if number == c]
        far = [torch.exp(32 * (cosines[t] + 0.1)) for t, number in enumerate(numbers) if number != c]
        pos.append(torch.log(1 + sum(near, torch.zeros(()))))
        neg.append(torch.log(1 + sum(far, torch.zeros(()))))
    after = torch.stack([rows[c] / rows[c].norm() for c in range(5)])
    return torch.stack(pos).mean() + torch.stack(neg).mean(), after.detach()


class Whole(torch.nn.Module):
    def __init__(self, model: Any, prompts: Callable[[int], Tensor | None]) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts

    def forward(self, images: Tensor) -> Tensor:
        return feature(self.model, images, self.prompts)


def biases(model: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained biases by their names in the plain model, found by their values."""
    found = {}
    left = dict(own)
    for name, value in model.named_parameters():
        if not name.endswith("bias"):
            continue
        match = next(key for key, one in left.items() if one.shape == value.shape and torch.equal(one, value))
        found[f"model.{name}"] = left.pop(match)
    assert not left
    return found


@pytest.mark.parametrize("fields", [{}, {"recurrence": "tanh"}, {"proxies": "batch"}, {"depth": 1, "class_depth": 2}])
def test_two_steps_equal_the_restatement(fields: dict[str, Any]) -> None:
    plain, tuned, task = learning(**fields)
    images = images_for(plain, 6)
    memory = tuned.adapter_state()["outlet.tap.memory"].clone()
    with torch.no_grad():  # off their starts, the biases excepted, by whose values they are found
        for name, value in tuned.trainable():
            if ".unfreeze." not in name:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))
    for numbers in ([0, 0, 3, 3, 1, 1], [3, 2, 3, 0, 3, 2]):  # in blocks, then mixed and of unequal counts
        batch = Batch(images, torch.tensor(numbers))
        outputs = tuned(images)
        assert task.loss(outputs, batch) == {}
        found = tuned.batch_loss(outputs, lambda batch=batch: batch)
        state = {name: value.detach().clone().requires_grad_() for name, value in tuned.trainable()}
        expected, memory = restated(plain, state, memory, images, numbers, fields)
        assert torch.allclose(found, expected, atol=1e-5), (found, expected)
        assert torch.allclose(tuned.adapter_state()["outlet.tap.memory"], memory, atol=1e-5)
        found.backward()
        expected.backward()
        for name, value in tuned.trainable():
            gradient = torch.zeros_like(value) if state[name].grad is None else state[name].grad
            own = torch.zeros_like(value) if value.grad is None else value.grad
            assert torch.allclose(own, gradient, atol=1e-4 * max(1.0, float(gradient.abs().max()))), name
            value.grad = None


def test_counts() -> None:
    """ViT-B on CUB: two heads, GRU without its unused vector of 512, free proxies, class prompts that are used."""
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
        task = get_task("retrieval")(labels=tuple(f"{n:03d}" for n in range(100)), loss="none")
        method = VPTSPG(tokens=20, class_tokens=5, class_depth=4, class_step=5, mix=0.4, biases=False)
        tuned = vpeft.tune(backbone, method, task=task, verify=False, show=False)
    sizes: dict[str, int] = {}
    for name, value in tuned.trainable():
        part = name.split(".")[-1] if "tap" not in name else name.split(".")[2]
        sizes[part if not name.startswith("head") else "head"] = (
            sizes.get(part if not name.startswith("head") else "head", 0) + value.numel()
        )
    head = 768 * 512 + 512 + 2 * 768
    assert sizes["tokens"] == 20 * 768 * 12 and sizes["class_tokens"] == 100 * 5 * 768
    assert sizes["head"] == head == sizes["norm"] + sizes["linear"]
    assert sizes["of_input"] + sizes["of_state"] + sizes["bias"] == 6 * 512**2 + 3 * 512
    assert sizes["free"] == 100 * 512
    assert tuned.rate_factors() == {"outlet.tap.free": 10.0}


def test_a_file_holds_what_answers_need(tmp_path: Path) -> None:
    _, tuned, _ = learning()
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), tuned.save(tmp_path / "a.safetensors"))
    kept = set(again.adapter_state())
    assert kept == {k for k in tuned.adapter_state() if "class_tokens" not in k and not k.startswith("outlet.tap")}
    (method,) = again.methods()
    assert method.class_tokens == 0 and method.classes is None and method.tokens == 4
    images = images_for(tiny_vit(), 3)
    assert torch.equal(again.eval()(images), tuned.eval()(images))


class Pictures:
    labels = list(LABELS)

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(2)
        self.targets = [index % 5 for index in range(20)]
        self.images = 0.3 * torch.randn(20, 3, 32, 32, generator=draw)
        for image, number in zip(self.images, self.targets, strict=True):
            image[..., 6 * number : 6 * number + 5] += 2

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def trained(folder: Path, stop_after: int | None = None, acceleration: str = "off") -> Any:
    class Enough(Exception):
        pass

    def count(_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            raise Enough

    steps = 0
    _, tuned, task = learning(biases=False, recurrence_dropout=0.2)
    task = task.model_copy(update={"sampler": "m_per_class(m=2)"})
    settings = Optimisation(
        epochs=3, batch=10, lr=1e-3, warmup=0, device="cpu", checkpoint_steps=1, acceleration=acceleration
    )
    try:
        result = vpeft.fit(
            tuned, Pictures(), task=task, optimisation=settings, out=folder, progress=False, after_step=count
        )
    except Enough:
        return None
    return tuned, result


def test_training_goes_on_bit_equal_after_a_kill_and_with_accelerations(tmp_path: Path) -> None:
    whole, result = trained(tmp_path / "whole")
    losses = [epoch.train_loss for epoch in result.history]
    assert losses[-1] < losses[0]
    assert trained(tmp_path / "killed", stop_after=3) is None
    again, _ = trained(tmp_path / "killed")
    for name, value in whole.adapter_state().items():
        assert torch.equal(value, again.adapter_state()[name]), name
    fast, _ = trained(tmp_path / "fast", acceleration="auto")
    for name, value in whole.adapter_state().items():
        assert torch.allclose(value, fast.adapter_state()[name], atol=2e-3), name


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(BadField, match="needs a task"):
        vpeft.tune(tiny_vit(), VPTSPG(class_tokens=3), num_classes=2)
    task = get_task("retrieval")(labels=LABELS, loss="none", dimensions=16)
    with pytest.raises(BadField, match="for 3 classes"):
        vpeft.tune(tiny_vit(), VPTSPG(class_tokens=3, classes=3), task=task)
    _, tuned, _ = learning()
    images = images_for(tiny_vit())
    with pytest.raises(BadField, match="16 numbers"):
        tuned.batch_loss(torch.zeros(2, 8), lambda: Batch(images, torch.tensor([0, 1])))
    with pytest.raises(NeedsClassLabels, match="class"):
        tuned.batch_loss(torch.zeros(2, 16), lambda: Batch(images, torch.rand(2, 3)))
    assert not any(isinstance(e.layer, SemanticProxies) for e in VPTSPG().edits(vpeft.describe(tiny_vit())))
