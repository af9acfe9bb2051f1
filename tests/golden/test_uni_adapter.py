"""UniAdapter restated and counted: on one tower, and with a half that both towers of a CLIP share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.clip_by_hand import ClipByHand, class_ids, equal_widths, open_clip_model, pictures
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.golden.two_towers import NAMES, require_equal, tuned_with
from tests.models import images_for
from vpeft.heads.class_names import ClassNames
from vpeft.method import BadField
from vpeft.methods import UniAdapter


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), UniAdapter(bottleneck=6, scale=0.3), show=False)
    randomise(tuned)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}
    for i in range(3):
        t = {
            n: own[f"blocks.{i}.mlp_branch.parallel.{n}"]
            for n in ("norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")
        }

        def change(y, x, t=t):  # type: ignore[no-untyped-def]
            inner = F.layer_norm(x, (48,), t["norm.weight"], t["norm.bias"], 1e-5)
            return y + 0.3 * (F.relu(inner @ t["down.weight"].T + t["down.bias"]) @ t["up.weight"].T + t["up.bias"])

        changes[f"blocks.{i}.mlp_branch"] = change
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name


def test_counts_and_starts() -> None:
    # the card counts three up projections and a second norm for three modes; the image has one of each
    whole = 768 * 512 + 512 + 3 * (512 * 768 + 768) + 4 * 768
    assert whole == 1_578_752
    assert trained(UniAdapter(bottleneck=512)) == 12 * (whole - 2 * (512 * 768 + 768) - 2 * 768)
    up = vpeft.tune(base_vit(), UniAdapter(), show=False).adapter().get_submodule("blocks.0.mlp_branch.parallel.up")
    assert 0.01 < float(up.weight.detach().std()) < 0.03
    assert vpeft.tune(base_vit(), UniAdapter(start="identity"), show=False).verify().identity


@pytest.mark.parametrize("tower", ["image", "text", "*"])
def test_towers_share_the_first_half(tower: str) -> None:
    tuned = tuned_with(equal_widths(), {tower: UniAdapter(bottleneck=4, scale=0.3)})
    t = dict(tuned.trainable())
    towers = ("image", "text") if tower == "*" else (tower,)
    assert len(t) == 3 * (6 if len(towers) == 1 else 8)

    def change(name: str, number: int):  # type: ignore[no-untyped-def]
        first, own = (f"{one}.blocks.{number}.mlp_branch.parallel" for one in (towers[0], name))

        def changed(out: Tensor, x: Tensor) -> Tensor:
            inner = F.layer_norm(x, (32,), t[f"{first}.norm.weight"], t[f"{first}.norm.bias"], 1e-5)
            inner = F.relu(inner @ t[f"{first}.down.weight"].T + t[f"{first}.down.bias"])
            return out + 0.3 * (inner @ t[f"{own}.up.weight"].T + t[f"{own}.up.bias"])

        return changed

    changes = {f"{name}.blocks.{number}.mlp_branch": change(name, number) for name in towers for number in range(3)}
    plain = ClipByHand(equal_widths(), changes)
    require_equal(tuned, plain.logits(pictures(), class_ids()), tuned(pictures()))


def test_the_texts_half_starts_at_zero_and_widths_must_agree() -> None:
    head = ClassNames.of_ids(NAMES, class_ids())
    tuned = vpeft.tune(equal_widths(), {"*": UniAdapter(bottleneck=4)}, head=head)
    t = dict(tuned.trainable())
    assert not t["text.blocks.0.mlp_branch.parallel.up.weight"].any()
    assert t["image.blocks.0.mlp_branch.parallel.up.weight"].any()
    with pytest.raises(BadField, match="need one width; here they have image 32, text 24"):
        vpeft.tune(open_clip_model(), {"*": UniAdapter()}, head=head)
