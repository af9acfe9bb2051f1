"""DAM-VP restated, counted, and its clusters beside scikit-learn's, which the authors use."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import DAMVP


def frame(own, number):  # type: ignore[no-untyped-def]
    delta = torch.zeros(3, 32, 32)
    delta[:, :4], delta[:, 28:] = own["up"][number], own["down"][number]
    delta[:, 4:28, :4], delta[:, 4:28, 28:] = own["left"][number], own["right"][number]
    return delta


def test_each_image_has_the_border_of_its_cluster() -> None:
    model, images = base_vit(), images_for(base_vit(), 12)
    tuned = vpeft.tune(copy.deepcopy(model), DAMVP(width=4, clusters=3), show=False).eval()
    own = {key.rpartition(".")[2]: p for key, p in tuned.trainable()}
    assert all(torch.equal(p[0], p[2]) for p in own.values())  # all start as one
    randomise(tuned)
    tuned.prepare([(images[:7], None), (images[7:], None)])
    features, means = model(images), tuned.adapter().get_submodule("pixels.before").means
    nearest = torch.cdist(features, means).argmin(1)
    assert len(nearest.unique()) == 3
    own = {key: p.detach().clone().requires_grad_() for key, p in own.items()}
    expected = model(images + torch.stack([frame(own, n) for n in nearest]))
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn(12, 48, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key.rpartition(".")[2]].grad, atol=1e-4)


@pytest.mark.parametrize("share", [None, 0.7, 1e-3])
def test_clusters_as_scikit_learn_does(share: float | None) -> None:
    clustering = pytest.importorskip("sklearn.cluster").AgglomerativeClustering
    model, images = base_vit(), images_for(base_vit(), 20)
    features = model(images).detach()
    threshold = None if share is None else share * float(torch.pdist(features).mean())
    fitted = clustering(4 if share is None else None, linkage="average", distance_threshold=threshold)
    labels = torch.from_numpy(fitted.fit(features.numpy()).labels_)
    expected = [features[labels == label].mean(0) for label in labels.unique()]
    tuned = vpeft.tune(model, DAMVP(width=4, clusters=4, threshold=threshold, samples=20), num_classes=2, show=False)
    head = tuned.head.weight.detach().clone()
    tuned.prepare([(images, None), (images + 1, None)])
    (method,) = tuned.methods()
    means = tuned.adapter().get_submodule("pixels.before").means
    assert method.clusters == len(means) == len(expected) == {None: 4, 1e-3: 20}.get(share, len(expected))
    assert all((means - one).abs().amax(1).min() < 1e-4 for one in expected)
    assert torch.equal(tuned.head.weight, head)


def test_counts_reloads_and_needs_images(tmp_path: Path) -> None:
    assert trained(DAMVP(clusters=5)) == 5 * 69_840
    tuned = vpeft.tune(base_vit(), DAMVP(width=4, clusters=2), num_classes=3, show=False).eval()
    images = images_for(base_vit(), 6)
    tuned.prepare([(images, None)])
    randomise(tuned)
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "a.safetensors", labels=list("abc"))).eval()
    assert torch.equal(again(images), tuned(images))
    with pytest.raises(vpeft.VpeftError, match="fewer than two"):
        tuned.prepare([])
    with pytest.raises(vpeft.MissingPlace, match="no room for a border of 16"):
        vpeft.tune(base_vit(), DAMVP(width=16), show=False)
