"""CLIP-Adapter and Tip-Adapter restated in plain tensors, and counted on CLIP ViT-B/16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.clip_by_hand import CLIPS, ClipByHand, class_ids, open_clip_model, pictures
from tests.golden.two_towers import NAMES, on_vit_b_16, require_equal, tuned_with
from vpeft.heads.class_names import ClassNames
from vpeft.layers.class_labels import NeedsClassLabels
from vpeft.methods import CLIPAdapter, TipAdapter

SHOTS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])


def few_shots() -> list[tuple[Tensor, Tensor]]:
    """Two images of each of five classes, in two batches."""
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    return [(images[:6], SHOTS[:6]), (images[6:], SHOTS[6:])]


@pytest.mark.parametrize("library", CLIPS)
@pytest.mark.parametrize("towers", [("image",), ("text",), ("image", "text")], ids="-".join)
def test_clip_adapter_equals_a_restatement(library: str, towers: tuple[str, ...]) -> None:
    method = CLIPAdapter(ratio=0.3, reduction=4)
    tuned = tuned_with(CLIPS[library](), {"*": method} if len(towers) == 2 else {towers[0]: method})
    t = dict(tuned.trainable())
    assert list(t) == [f"{tower}.outlet.after.{layer}.weight" for tower in towers for layer in ("down", "up")]

    def changed(tower: str):  # type: ignore[no-untyped-def]
        down, up = (t[f"{tower}.outlet.after.{layer}.weight"] for layer in ("down", "up"))

        def change(feature: Tensor, came: Tensor) -> Tensor:
            f = feature / feature.norm(dim=-1, keepdim=True) if tower == "text" else feature
            return 0.3 * F.relu(F.relu(f @ down.T) @ up.T) + 0.7 * f

        return change

    plain = ClipByHand(CLIPS[library](), {f"{tower}.outlet": changed(tower) for tower in towers})
    require_equal(tuned, plain.logits(pictures(), class_ids()), tuned(pictures()))


def test_clip_adapter_is_counted_and_needs_no_gradient_in_the_backbone() -> None:
    assert on_vit_b_16({"image": CLIPAdapter()}) == 131_072
    tuned = tuned_with(open_clip_model(), {"image": CLIPAdapter()})
    seen: list[bool] = []
    tuned.backbone.visual.transformer.register_forward_hook(  # type: ignore[union-attr]
        lambda module, args, out: seen.append(out.requires_grad)
    )
    tuned(pictures()).sum().backward()
    assert seen == [False]
    alone = vpeft.tune(vpeft.create_backbone("pocket_vit"), CLIPAdapter(), num_classes=3)
    assert [row.place for row in alone.plan().rows] == ["outlet"]


def cached(plain: ClipByHand, images: Tensor, keys: Tensor, alpha: float, beta: float) -> Tensor:
    """The class names' logits and the cache's, one image and one cached image at a time."""
    f = F.normalize(plain.image(images), dim=-1)
    rows = []
    for own, logits in zip(f, plain.logits(images, class_ids()), strict=True):
        votes = [logits[number] for number in range(5)]
        for key, label in zip(keys, SHOTS.tolist(), strict=True):
            votes[label] = votes[label] + alpha * torch.exp(-beta * (1 - own @ key))
        rows.append(torch.stack(votes))
    return torch.stack(rows)


@pytest.mark.parametrize("library", CLIPS)
def test_tip_adapter_equals_a_restatement(library: str) -> None:
    method = TipAdapter(alpha=1.5, beta=2.0, passes=1, train_keys=True)
    torch.manual_seed(3)
    head = ClassNames.of_ids(NAMES, class_ids())
    tuned = vpeft.tune(CLIPS[library](), {"image": method}, head=head).eval()
    with torch.no_grad():
        frozen = tuned(pictures())
    plain = ClipByHand(CLIPS[library]())
    assert torch.allclose(frozen, plain.logits(pictures(), class_ids()), atol=1e-4)  # the cache is empty
    tuned.prepare(few_shots())
    (now,) = tuned.methods()
    assert isinstance(now, TipAdapter) and (now.images, now.classes) == (10, 5)
    ((name, keys),) = tuned.trainable()
    assert name == "image.logits.after.keys" and keys.shape == (10, 16)
    expected = F.normalize(plain.image(torch.cat([images for images, _ in few_shots()])), dim=-1)
    assert torch.allclose(keys, expected, atol=1e-5)
    require_equal(tuned, cached(plain, pictures(), keys, 1.5, 2.0), tuned(pictures()))


def test_tip_adapter_trains_nothing_is_saved_and_fine_tunes_from_there(tmp_path: Path) -> None:
    head = ClassNames.of_ids(NAMES, class_ids())
    free = vpeft.tune(open_clip_model(), {"image": TipAdapter(passes=1)}, head=head).eval()
    free.prepare(few_shots())
    assert list(free.trainable()) == []
    best = TipAdapter.search_strengths(free, few_shots(), largest_alpha=200.0, largest_beta=200.0)
    assert best == 1.0  # the images of the cache find themselves
    with torch.no_grad():
        outputs = free(pictures())
    again = vpeft.load(open_clip_model(), free.save(tmp_path / "tip.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(again(pictures()), outputs)
    again.prepare([])  # a loaded adapter keeps its cache
    tuned = vpeft.tune(open_clip_model(), {"image": TipAdapter(passes=3, train_keys=True)}, head=head).eval()
    torch.manual_seed(5)
    tuned.prepare(few_shots())
    fresh = vpeft.tune(open_clip_model(), {"image": TipAdapter(passes=3)}, head=head).eval()
    torch.manual_seed(5)
    fresh.prepare(few_shots())
    with torch.no_grad():
        assert torch.equal(tuned(pictures()), fresh(pictures()))


def test_the_search_takes_the_strengths_that_are_best() -> None:
    head = ClassNames.of_ids(NAMES, class_ids())
    tuned = vpeft.tune(open_clip_model(), {"image": TipAdapter(passes=1)}, head=head).eval()
    tuned.prepare(few_shots())
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(20) % 5
    found = TipAdapter.search_strengths(tuned, [(images, labels)])
    with torch.no_grad():
        assert float((tuned(images).argmax(-1) == labels).float().mean()) == pytest.approx(found)
    cache = dict(tuned.adapter().named_buffers())
    plain = ClipByHand(open_clip_model())
    keys = F.normalize(plain.image(torch.cat([batch for batch, _ in few_shots()])), dim=-1)
    with torch.no_grad():
        for alpha, beta in ((0.1, 0.1), (1.0, 1.0), (2.8, 6.9)):
            other = cached(plain, images, keys, alpha, beta).argmax(-1)
            assert float((other == labels).float().mean()) <= found + 1e-6
    assert (
        0.1 <= float(cache["image.logits.after.alpha"]) < 3.0 and 0.1 <= float(cache["image.logits.after.beta"]) < 7.0
    )


def test_tip_adapter_says_what_it_needs() -> None:
    head = ClassNames.of_ids(NAMES, class_ids())
    with pytest.raises(vpeft.MissingPlace, match="put it on the image tower"):
        vpeft.tune(open_clip_model(), {"text": TipAdapter()}, head=head)
    tuned = vpeft.tune(open_clip_model(), {"image": TipAdapter(passes=1)}, head=head)
    with pytest.raises(vpeft.VpeftError, match="was given none"):
        tuned.prepare([])
    with pytest.raises(vpeft.VpeftError, match="call tuned.prepare"):
        TipAdapter.search_strengths(tuned, few_shots())
    with pytest.raises(NeedsClassLabels):
        tuned.prepare([(pictures(), torch.rand(3, 5))])
