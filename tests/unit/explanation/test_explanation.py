"""What an adapter has changed: single edits, features by block, roll-out, occlusion, and the page of all that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.batch import Sample
from vpeft.explanation.occlusion import occluded, said_of
from vpeft.explanation.rollout import RollOut, rolled_out
from vpeft.explanation.similarity import cka_by_block, linear_cka
from vpeft.explanation.single_edits import attribution, without_edits
from vpeft.methods import get
from vpeft.task import Prediction, get_task

METHODS: dict[str, Any] = {
    "layers": get("lora")(rank=2, targets=("q", "v")),
    "weights": get("dora")(rank=2, targets=("fc1",)),
    "tokens": get("vpt_deep")(tokens=2),
    "own parameters": get("ln_tune")(),
}


def tuned_with(method: Any) -> vpeft.TunedModel:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), method, num_classes=3, show=False, verify=False).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tuned


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_that_is_off_does_nothing_and_comes_back(name: str) -> None:
    tuned, images = tuned_with(METHODS[name]), images_for(tiny_vit(), 2)
    edits = tuned.adapter().edits
    with torch.no_grad():
        before = tuned(images)
        with tuned.disable():
            frozen = tuned.features(images)
        with without_edits(tuned, range(len(edits))):
            torch.testing.assert_close(tuned.features(images), frozen)
        for number in (0, len(edits) - 1):
            with without_edits(tuned, [number]):
                assert not torch.allclose(tuned(images), before, atol=1e-5)
        assert torch.equal(tuned(images), before)


def test_a_low_rank_edit_that_is_off_is_one_whose_factor_is_zero() -> None:
    tuned, images = tuned_with(METHODS["layers"]), images_for(tiny_vit(), 2)
    with torch.no_grad():
        with without_edits(tuned, [1]):
            off = tuned(images)
        layer: Any = tuned.adapter().edits[1].layer
        for parameter in layer.parameters():
            parameter.zero_()
        torch.testing.assert_close(off, tuned(images))


def test_attribution_states_changes_and_scores_of_every_edit() -> None:
    tuned, images = tuned_with(METHODS["layers"]), images_for(tiny_vit(), 4)
    task = get_task("classification")(labels=("a", "b", "c"))
    samples = [Sample(image, number % 3, str(number)) for number, image in enumerate(images)]
    found = attribution(tuned, task, [task.collate(samples[:2]), task.collate(samples[2:])])
    assert [one.places for one in found.lacks] == [(key,) for key in tuned.adapter().keys]
    with torch.no_grad():
        whole = tuned(images)
        with without_edits(tuned, [2]):
            lacking = tuned(images)
    assert found.lacks[2].change == pytest.approx(float((whole - lacking).norm() / whole.norm()), rel=1e-3)
    right = torch.tensor([0, 1, 2, 0])
    assert found.score == pytest.approx(float((whole.argmax(1) == right).float().mean()))
    assert found.lacks[2].score == pytest.approx(float((lacking.argmax(1) == right).float().mean()))
    assert found.without_all.change and found.without_all.change > 0


def test_linear_cka_is_the_formula_of_the_paper() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=draw), torch.randn(20, 7, generator=draw)
    centre = torch.eye(20) - 1 / 20
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert linear_cka(x, y) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())), rel=1e-5)
    turned, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw))
    assert linear_cka(x, 3 * x @ turned + 1) == pytest.approx(1.0)


@pytest.mark.parametrize("name", METHODS)
def test_features_are_compared_block_by_block(name: str) -> None:
    tuned, images = tuned_with(METHODS[name]), images_for(tiny_vit(), 8)
    found = dict(cka_by_block(tuned, [images[:4], images[4:]]))
    assert list(found) == [block.name for block in tuned.description.blocks]
    assert all(0 <= value < 1 for value in found.values())
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.zero_()  # of low-rank layers; other methods have no such start
    if name == "layers":
        assert [value for _, value in cka_by_block(tuned, [images])] == pytest.approx([1.0] * len(found))


def by_hand(model: nn.Module, images: Tensor) -> Tensor:
    """Roll-out of timm's ViT from its own modules."""
    vit: Any = model
    with torch.no_grad():
        x = vit._pos_embed(vit.patch_embed(images))
        whole = torch.eye(x.shape[1])
        for block in vit.blocks:
            attn, h = block.attn, block.norm1(x)
            q, k, _ = attn.qkv(h).reshape(len(h), h.shape[1], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1).mean(1)
            whole = (weights + torch.eye(x.shape[1])) / 2 @ whole
            x = block(x)
    side = round((x.shape[1] - 1) ** 0.5)
    return whole[:, 0, 1:].unflatten(1, (side, side))


@pytest.mark.parametrize("name", METHODS)
def test_roll_out_is_that_of_the_paper_with_and_without_the_adapter(name: str) -> None:
    images = images_for(tiny_vit(), 2)
    tuned = tuned_with(METHODS[name])
    with torch.no_grad():
        before = tuned(images)
    frozen, adapted = RollOut(tuned)(images)
    expected = by_hand(tiny_vit().eval(), images)
    with tuned.disable(), torch.no_grad():
        plain = by_hand(tuned.backbone, images)
    torch.testing.assert_close(frozen, plain, rtol=1e-4, atol=1e-6)
    assert frozen.shape == expected.shape and not torch.allclose(frozen, adapted, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(tuned(images), before, rtol=1e-4, atol=1e-5)
    assert tuned.active == "default"


def test_roll_out_leaves_out_what_was_inserted() -> None:
    draw = torch.Generator().manual_seed(0)
    plain = torch.rand(1, 5, 5, generator=draw)
    # two tokens behind the prefix and three keys in front, of which nothing is kept
    more = torch.rand(1, 7, 10, generator=draw)
    kept = torch.tensor([0, 3, 4, 5, 6])
    more[:, kept[:, None], kept + 3] = plain
    torch.testing.assert_close(rolled_out([more], 1, (2, 2)), rolled_out([plain], 1, (2, 2)))


def test_occlusion_covers_each_part_once() -> None:
    image = torch.rand(3, 12, 12)
    parts = occluded(Sample(image, None, "x"), 4)
    changed = torch.stack([(part.input != image).any(0) for part in parts])
    assert len(parts) == 16 and (changed.sum(0) == 1).all()
    rows = ({"label": "a", "probability": 0.8}, {"label": "b", "probability": 0.2})
    other = Prediction("x", ({"label": "b", "probability": 0.7}, {"label": "a", "probability": 0.3}))
    found = said_of([Prediction("x", rows), *[other] * 4], 2)
    assert found is not None and found["answer"] == {"label": "a"}
    np.testing.assert_allclose(found["falls"], 0.5)


def test_the_page_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.serving.fleet import LABELS, made
    from vpeft.cli import main

    made(tmp_path, "lora", get("lora")(rank=2))
    for number, label in enumerate(LABELS * 2):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "data" / label / f"{number}.png")
    page, data = tmp_path / "page.html", str(tmp_path / "data")
    words = ["inspect", str(tmp_path / "lora.safetensors"), "--html", str(page), "--data", data, "--pictures", "2"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    text = page.read_text()
    assert len(said["edits"]) > 0 and all(one["change"] > 0 for one in said["edits"])
    assert 0 < min(one["value"] for one in said["cka"]) < 1
    assert text.count("data:image/png") == 8 and "http" not in text
    assert all(one["places"][0] in text for one in said["edits"])


def test_a_page_needs_one_adapter_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vpeft.cli import main

    assert main(["inspect", "a.safetensors", "--html", str(tmp_path / "x.html")]) == 1
    assert "--data" in capsys.readouterr().err
    assert main(["inspect", "a.safetensors", "--data", "folder"]) == 1
    assert "--html" in capsys.readouterr().err
