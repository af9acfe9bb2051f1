"""Heads of class means and of random projections, restated; a head that reads the frozen model's own feature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import images_for, tiny_vit
from torch.nn import functional as F

import vpeft
from vpeft.backbones.features import Feature, Features
from vpeft.head import BadHead
from vpeft.heads.prototype import PrototypeHead
from vpeft.heads.random_projection import RandomProjectionHead
from vpeft.methods import AdaptFormer, LoRA


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_vit()


def test_prototypes_compare_directions() -> None:
    head, own, frozen = PrototypeHead(14, 3, ("query", "outlet")), torch.randn(4, 8), torch.randn(4, 6)
    means = torch.randn(2, 14)
    head.set_rows(1, means)
    found = head(Features({"outlet": Feature(own), "query": Feature(frozen)}))
    both = torch.cat([frozen, own], dim=1)
    for row in range(4):
        for column, mean in enumerate(means, 1):
            assert torch.allclose(found[row, column], both[row] @ mean / both[row].norm() / mean.norm(), atol=1e-6)
    with pytest.raises(BadHead, match=r"not at \['norm'\]"):
        PrototypeHead(8, 3, ("norm",))


def test_a_random_projection_is_that_of_its_seed() -> None:
    head, features = RandomProjectionHead(6, 3, projection=20, seed=4), torch.randn(5, 6)
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(head(features), F.relu(features @ weight) @ head.weight.T, atol=1e-6)
    assert set(head.state_dict()) == {"weight"}
    again = RandomProjectionHead(**head.settings)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(features), head(features))


def test_a_head_reads_the_frozen_feature_beside_the_adapted_one(tmp_path: Path) -> None:
    tuned = vpeft.tune(
        model(),
        AdaptFormer(bottleneck=4),
        head=lambda backbone, width: PrototypeHead.on(backbone, width, 3, places=("query", "outlet")),
        show=False,
    ).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.3 * torch.randn_like(parameter))
    images = images_for(model(), 4)
    with torch.no_grad():
        frozen, adapted = model()(images), tuned.features(images)
        assert not torch.allclose(frozen, adapted, atol=0.01)
        head = tuned.head
        assert isinstance(head, PrototypeHead)
        both = F.normalize(torch.cat([frozen, adapted], dim=1), dim=1)
        expected = both @ F.normalize(head.weight, dim=1).T
        assert torch.allclose(tuned(images), expected, atol=1e-5)
        again = vpeft.load(model(), tuned.save(tmp_path / "a.safetensors")).eval()
        assert torch.equal(again(images), tuned(images))
        # images of one batch through adapters whose heads read it and whose heads do not
        tuned.attach(LoRA(rank=2), name="other", num_classes=3)
        alone = []
        for row, name in enumerate(("default", "other", "default", "other")):
            with tuned.enable(name):
                alone.append(tuned(images[row : row + 1]))
        with tuned.enable("default", "other", "default", "other"):
            assert torch.allclose(tuned(images), torch.cat(alone), atol=1e-5)
