"""L2P restated: keys, prompts in front of the patches, the mean of the prompts, the part of the loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import L2P


def sequence(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    return torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed


def test_equals_a_restatement() -> None:
    method = L2P(pool=6, length=2, top_k=3, pull=0.5)
    tuned = vpeft.tune(base_vit(), method, show=False).eval()
    randomise(tuned, 0.4)
    own, model, images = dict(tuned.trainable()), base_vit(), images_for(base_vit(), 4)
    prompts, keys = own["trunk.insert_tokens.prompts"], own["trunk.insert_tokens.keys"]
    query = model(images).detach()
    similar = torch.stack([F.cosine_similarity(query, key[None], dim=1) for key in keys], dim=1)
    rows, chosen = [], []
    for image in range(4):
        best = sorted(range(6), key=similar[image].tolist().__getitem__, reverse=True)[:3]
        rows.append(torch.cat([prompts[m] for m in best]))
        chosen.append(similar[image, best].sum())
    x = sequence(model, images)
    x = torch.cat([x[:, :1], torch.stack(rows), x[:, 1:]], dim=1)
    for block in model.blocks:
        x = block(x)
    expected = model.norm(x)[:, 1:7].mean(1)
    assert torch.allclose(tuned.features(images), expected, atol=1e-5, rtol=1e-5)
    penalty = tuned.penalty()
    assert penalty is not None and torch.allclose(penalty, -0.5 * torch.stack(chosen).mean(), atol=1e-6)
    assert tuned.penalty() is None  # each pass is asked once


def test_the_backbones_own_feature_can_be_read() -> None:
    tuned = vpeft.tune(base_vit(), L2P(pool=2, length=1, top_k=1, feature="own"), show=False).eval()
    model, images = base_vit(), images_for(base_vit(), 2)
    own = dict(tuned.trainable())
    similar = F.normalize(model(images), dim=1) @ F.normalize(own["trunk.insert_tokens.keys"], dim=1).T
    x = sequence(model, images)
    x = torch.cat([x[:, :1], own["trunk.insert_tokens.prompts"][similar.argmax(1)], x[:, 1:]], dim=1)
    for block in model.blocks:
        x = block(x)
    assert torch.allclose(tuned.features(images), model.norm(x)[:, 0], atol=1e-5, rtol=1e-5)


def test_each_image_chooses_unless_the_batch_is_asked_to_vote() -> None:
    images = images_for(base_vit(), 6)
    for selection in ("image", "batch"):
        torch.manual_seed(0)
        method = L2P(pool=8, length=2, top_k=2, selection=selection)
        tuned = vpeft.tune(base_vit(), method, show=False).eval()
        with torch.no_grad():  # keys among the images' own features, so that images choose unlike ones
            own = dict(tuned.trainable())
            features = base_vit()(images)
            centred = features - features.mean(0)
            own["trunk.insert_tokens.keys"].copy_(torch.cat([centred, -centred[:2]]))
            together = tuned.features(images)
            alone = torch.cat([tuned.features(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=1e-5) == (selection == "image")


def test_counts_and_refuses() -> None:
    assert trained(L2P()) == 46_080
    with pytest.raises(vpeft.MissingPlace, match="not one sequence"):
        vpeft.tune(tiny_swin(), L2P(), show=False)
