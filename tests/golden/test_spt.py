"""SPT: the selection restated, the edits that follow from it, what they compute, and that they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.layers.sensitivity import allocate, candidates
from vpeft.methods import GPS, SPT, LoRA

BATCHES = [
    (torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)), torch.arange(4) % 3) for i in range(3)
]


def prepared(budget: float = 0.03, **fields: Any) -> vpeft.TunedModel:
    torch.manual_seed(5)
    tuned = vpeft.tune(base_vit(), SPT(budget=budget, rank=2, **fields), num_classes=3, show=False).eval()
    tuned.prepare(BATCHES)
    return tuned


def squares(head: torch.nn.Module, count: int = 3) -> dict[str, Tensor]:
    """Sum over batches of squared gradients on a model without anything attached, q, k and v apart."""
    plain = base_vit()
    total: dict[str, Tensor] = {}
    for images, labels in BATCHES[:count]:
        plain.zero_grad()
        F.cross_entropy(plain(images) @ head.weight.T + head.bias, labels).backward()
        for key, value in plain.named_parameters():
            total[key] = total.get(key, 0) + value.grad.square()
    found = {}
    for i in range(3):
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", total[f"blocks.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                found[f"blocks.{i}.attn.{letter}.{kind}"] = part
            for name in ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2"):
                found[f"blocks.{i}.{name}.{kind}"] = total[f"blocks.{i}.{name}.{kind}"]
    return found | {f"norm.{kind}": total[f"norm.{kind}"] for kind in ("weight", "bias")}


@pytest.mark.parametrize("module", ["lora", "adapter"])
def test_selection_equals_a_restatement(module: Literal["lora", "adapter"]) -> None:
    tuned = prepared(module=module)
    found = squares(tuned.head)
    budget = round(0.03 * sum(p.numel() for p in base_vit().parameters()))
    values = torch.cat([value.flatten() for value in found.values()])
    ranked, best = values.sort(descending=True).values, None
    for k in range(1, 80):
        threshold = ranked[-(-budget * k // 50) - 1]
        count, shares = 48, {}  # the class token
        for key, value in found.items():
            marks = int((value >= threshold).sum())
            if value.dim() == 2:
                out, came = value.shape
                size = 2 * (out + came) if module == "lora" else 4 * out + 2 + out
                shares[key] = "whole" if marks >= size / 10 else marks
            else:
                size = value.numel()
                shares[key] = "whole" if marks >= size / 5 else 0 if "norm" in key else marks
            count += size if shares[key] == "whole" else shares[key]
        if best is None or abs(count - budget) <= abs(best[0] - budget):
            best = count, {key: share for key, share in shares.items() if share}, threshold
    assert best is not None
    (method,) = tuned.methods()
    assert dict(method.allocation) == best[1]
    assert {"whole"} < set(map(str, best[1].values()))
    assert tuned.plan().trainable == best[0]
    for edit in tuned.adapter().edits:
        kind = {"reparametrize": "weight", "after": "bias"}.get(edit.verb)
        if kind and hasattr(edit.layer, "index"):
            marked = (found[f"{edit.place.name}.{kind}"].flatten() >= best[2]).nonzero()[:, 0]
            assert torch.equal(edit.layer.index.long(), marked), edit.place.name


def test_only_the_first_batches_count() -> None:
    few, all_three = prepared(batches=1), prepared()
    assert few.methods() != all_three.methods()
    again = prepared(batches=1)
    assert again.methods() == few.methods()


@pytest.mark.parametrize("module", ["lora", "adapter"])
def test_computes_what_it_says(module: Literal["lora", "adapter"]) -> None:
    tuned = prepared(module=module)
    randomise(tuned, 0.2)
    plain, own, changes = base_vit(), dict(tuned.trainable()), {}
    plain.cls_token.data.copy_(own["embedding.unfreeze.cls_token"].data)
    for key, value in own.items():
        if ".unfreeze." in key and "norm" in key:
            place, _, name = key.partition(".unfreeze.")
            plain.get_submodule(place).get_parameter(name).data.copy_(value.data)

    def linear(place: str, y: Tensor, x: Tensor) -> Tensor:
        """The frozen output and every change of one linear map, in the order of the equations."""
        here = [e for e in tuned.adapter().edits if e.place.name == place]
        for edit in (e for e in here if e.verb == "reparametrize"):
            delta = torch.zeros(y.shape[-1] * x.shape[-1])
            delta[edit.layer.index.long()] = edit.layer.values.detach()
            y = y + x @ delta.reshape(y.shape[-1], x.shape[-1]).T
        for edit in here:
            if hasattr(edit.layer, "shift"):
                y = y + edit.layer.shift
            elif edit.verb == "after" and hasattr(edit.layer, "index"):
                shift = torch.zeros(y.shape[-1])
                shift[edit.layer.index.long()] = edit.layer.values.detach()
                y = y + shift
        for edit in here:
            if hasattr(edit.layer, "A"):
                y = y + x @ edit.layer.A.T @ edit.layer.B.T
            elif hasattr(edit.layer, "inner"):
                y = y + adapter(edit.layer, x if place.endswith("proj") else y)
        return y

    def adapter(layer: torch.nn.Module, x: Tensor) -> Tensor:
        down, up = layer.inner.down, layer.inner.up
        return F.gelu(x @ down.weight.T + down.bias) @ up.weight.T + up.bias

    for i in range(3):

        def qkv(y: Tensor, x: Tensor, i: int = i) -> Tensor:
            parts = zip("qkv", y.chunk(3, dim=-1), strict=True)
            return torch.cat([linear(f"blocks.{i}.attn.{n}", part, x) for n, part in parts], dim=-1)

        changes[f"blocks.{i}.qkv"] = qkv
        for short, place in (("proj", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
            name = f"blocks.{i}.{place}"
            changes[f"blocks.{i}.{short}"] = lambda y, x, n=name: linear(n, y, x)
    images = images_for(plain)
    with torch.no_grad():
        expected = ViTByHand(plain, changes)(images)
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)
    if module == "lora":
        assert torch.allclose(tuned.merge().features(images), expected, atol=1e-4)
    else:
        assert not tuned.plan().mergeable


def test_starts_as_the_frozen_model_before_and_after() -> None:
    images = images_for(base_vit())
    for module in ("lora", "adapter"):
        tuned = prepared(module=module)
        assert torch.allclose(tuned.features(images), base_vit()(images), atol=1e-5)
        assert tuned.verify()
    assert not torch.allclose(prepared(start="released").features(images), base_vit()(images), atol=1e-3)


def test_selection_is_saved_and_never_made_twice(tmp_path: Path) -> None:
    tuned = prepared()
    randomise(tuned)
    images = images_for(base_vit())
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "spt.safetensors")).eval()
    assert torch.equal(again(images), tuned(images))
    assert again.methods() == tuned.methods()
    again.prepare([(x.flip(0) * 3, y) for x, y in BATCHES])
    assert again.methods() == tuned.methods()
    again.advance(0.0)


def test_training_without_a_selection_is_an_error() -> None:
    tuned = vpeft.tune(base_vit(), SPT(), num_classes=3, show=False)
    with pytest.raises(vpeft.VpeftError, match="prepare"):
        tuned.advance(0.0)
    with pytest.raises(vpeft.VpeftError, match="was given none"):
        tuned.prepare([])


def test_budget_without_data_lies_on_the_matrices() -> None:
    # 0.5 % of 85,798,656 numbers, rounded down for each of 72 matrices, and the class token
    assert abs(trained(SPT()) - 768 - round(0.005 * 85_798_656)) <= 72


def test_a_matrix_gets_its_module_from_a_tenth_of_its_parameters_on() -> None:
    found = candidates(vpeft.describe(tiny_vit()))
    first = next(one for one in found if one.name == "blocks.0.mlp.fc1.weight")
    values = [torch.zeros(one.size) for one in found]
    cost = 100
    values[found.index(first)][:9] = 1.0
    sparse = allocate(found, values, lambda _: cost, 9)
    assert sparse == {first.name: list(range(9))}
    values[found.index(first)][:10] = 1.0
    assert allocate(found, values, lambda _: cost, 60)[first.name] is None


def test_lives_beside_other_methods_and_keeps_their_tensors() -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(base_vit(), LoRA(rank=2), SPT(budget=0.03, rank=2), GPS(), num_classes=3, show=False)
    before = {key: value.clone() for key, value in tuned.adapter_state().items()}
    tuned.prepare(BATCHES)
    after = tuned.adapter_state()
    kept = [key for key in after if key.startswith("head.") or key.endswith("attn.q.parallel.A")]
    assert len(kept) == 5
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert [type(method) for method in tuned.methods()] == [LoRA, SPT, GPS]
    assert not any(p.requires_grad for key, p in tuned.backbone.named_parameters() if key.endswith("qkv.weight"))
    images = images_for(base_vit())
    assert torch.equal(tuned.detach()(images), base_vit()(images))


def test_acts_on_pointwise_layers_and_needs_some() -> None:
    tuned = vpeft.tune(tiny_convnext(), SPT(budget=0.05, rank=2), num_classes=3, show=False)
    size = tuned.description.facts.image_size
    tuned.prepare([(torch.randn(4, 3, *size), torch.arange(4) % 3)])
    assert tuned.verify()


def test_other_tasks_are_measured_by_their_own_loss() -> None:
    from vpeft.batch import Batch

    images, values = BATCHES[0][0], torch.randn(4, 2)
    task = vpeft.tasks.Regression(labels=("a", "b"))
    torch.manual_seed(1)
    tuned = vpeft.tune(base_vit(), SPT(budget=0.03, rank=2), task=task, show=False).eval()
    batch = Batch(images, values)
    plain, head = base_vit(), tuned.head
    outputs = plain(images) @ head.weight.T + head.bias
    torch.stack(list(tuned.task.loss(outputs, batch).values())).sum().backward()
    tuned.prepare([batch])
    sparse = [e for e in tuned.adapter().edits if e.verb == "reparametrize" and not e.place.rows]
    assert sparse
    for edit in sparse:
        squares = plain.get_submodule(edit.place.name).weight.grad.square().flatten()
        assert set(edit.layer.index.tolist()) == set(squares.topk(len(edit.layer.index)).indices.tolist())
