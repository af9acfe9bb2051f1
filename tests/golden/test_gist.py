"""GIST's tokens and losses restated, counted, and the part of the loss in a real training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.layers.class_labels import NeedsClassLabels
from vpeft.methods import GIST, LoRA


def by_hand(own: dict[str, Tensor], images: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The features of the class token and of g, both behind the final norm."""
    plain, g = base_vit(), own["trunk.insert_tokens.tokens"]
    changes = {}
    for i in range(3):
        w, b, v, c = (
            own[f"blocks.{i}.attn_branch.parallel.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias")
        )

        def change(y, x, w=w, b=b, v=v, c=c):  # type: ignore[no-untyped-def]
            return y + scale * (F.gelu(x @ w.T + b) @ v.T + c)

        changes |= {f"blocks.{i}.attn_branch": change, f"blocks.{i}.mlp_branch": change}
    model = ViTByHand(plain, changes)
    patch = plain.patch_embed.proj
    x = F.conv2d(images, patch.weight, patch.bias, stride=patch.stride).flatten(2).transpose(1, 2)
    x = torch.cat([plain.cls_token.expand(len(x), -1, -1), x], dim=1) + plain.pos_embed
    x = torch.cat([x[:, :1], g.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for number in range(3):
        x = model.block(number, x)
    x = plain.norm(x)
    return x[:, 0], x[:, 1]


def test_features_and_loss_equal_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), GIST(), num_classes=5, show=False).eval()
    randomise(tuned, 0.2)
    own, images, labels = dict(tuned.trainable()), images_for(base_vit(), 3), torch.tensor([0, 3, 1])
    outputs = tuned(images)
    extra = tuned.extra_loss(outputs, lambda other: F.cross_entropy(other, labels))
    assert extra is not None
    cls, gist = by_hand(own, images, 0.1)
    W, b = own["head.weight"], own["head.bias"]
    z_c, z_g = cls @ W.T + b, gist @ W.T + b
    assert torch.allclose(outputs, z_c, atol=1e-5)
    p, q = F.softmax(z_c / 3.0, dim=-1), F.softmax(z_g / 3.0, dim=-1)
    kl = (p * (p.log() - q.log())).sum() / 3 + (q * (q.log() - p.log())).sum() / 3
    expected = 0.5 * F.cross_entropy(z_g, labels) + 0.75 * kl
    assert torch.allclose(extra, expected, atol=1e-5)
    loss, wanted = (F.cross_entropy(z, labels) + part for z, part in ((outputs, extra), (z_c, expected)))
    names, parameters = zip(*own.items(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    for name, a, c in zip(names, found, torch.autograd.grad(wanted, parameters), strict=True):
        assert torch.allclose(a, c, atol=1e-5 * float(c.abs().max() + 1e-3), rtol=1e-4), name
    assert tuned.extra_loss(outputs, lambda other: F.cross_entropy(other, labels)) is None  # once for each pass


def test_counts() -> None:
    assert trained(GIST(bottleneck=0)) == 768
    assert trained(GIST()) == 12 * (2 * 768 * 4 + 4 + 768) + 768 == 83_760
    assert trained(LoRA(targets=("q", "v")), GIST(bottleneck=0)) == 294_912 + 768


def test_starts_as_the_code_does() -> None:
    """timm's initialiser visits the authors' adapter: weights N(0, 0.02), truncated, biases zero; g is U(-1/2, 1/2)."""
    own = dict(vpeft.tune(base_vit(), GIST(bottleneck=64), show=False).trainable())
    for i in range(3):
        for name in ("down", "up"):
            weight, bias = (own[f"blocks.{i}.attn_branch.parallel.{name}.{n}"].detach() for n in ("weight", "bias"))
            assert abs(float(weight.std()) - 0.02) < 0.002 and float(weight.abs().max()) > 0.05
            assert not bias.any()
    token = own["trunk.insert_tokens.tokens"].detach().abs()
    assert 0.35 < float(token.max()) <= 0.5


def test_joins_the_loss_of_training() -> None:
    """A step of the training loop moves the token as a step by hand does."""
    from vpeft.batch import Batch
    from vpeft.training.machine import accelerator
    from vpeft.training.optimisation import Optimisation
    from vpeft.training.step import Stepper
    from vpeft.training.train_state import TrainState

    images, labels = images_for(base_vit(), 4), torch.tensor([0, 1, 2, 3])
    task = vpeft.tasks.Classification(labels=list("abcd"))
    moved = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        method = GIST(dropout=0.0, weight=weight, interaction=1.5 * weight)
        tuned = vpeft.tune(base_vit(), method, task=task, show=False)
        settings = Optimisation(lr=0.1, optimiser="sgd", epochs=1, batch=4, warmup=0, weight_decay=0.0)
        before = tuned.trainable()
        start = {name: value.detach().clone() for name, value in before}
        outputs = tuned(images)
        loss = F.cross_entropy(outputs, labels)
        extra = tuned.extra_loss(outputs, lambda other: F.cross_entropy(other, labels))
        gradients = torch.autograd.grad(loss + (0 if extra is None else extra), [p for _, p in tuned.trainable()])
        step = Stepper(tuned, settings, accelerator("fp32", "cpu"), 1, task, None)
        for _ in step.asking(Batch(images, labels), TrainState(), alone=True):
            pass
        for (name, value), gradient in zip(tuned.trainable(), gradients, strict=True):
            assert torch.allclose(value, start[name] - 0.1 * gradient, atol=1e-5), name
        moved.append(
            dict(tuned.trainable())["trunk.insert_tokens.tokens"].detach() - start["trunk.insert_tokens.tokens"]
        )
    assert not torch.allclose(moved[0], moved[1])


def test_refuses_windows_and_heads_of_another_kind() -> None:
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), GIST(), show=False)
    tuned = vpeft.tune(base_vit(), GIST(), head=torch.nn.Linear(48, 2), show=False)
    outputs = tuned(images_for(base_vit()))
    with pytest.raises(NeedsClassLabels, match="predictions of the classes"):
        tuned.extra_loss({"a": outputs}, lambda other: other.sum())
