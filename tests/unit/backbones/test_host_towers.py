"""Towers that live in whole models only: each place is executed, of the declared width and layout; VPT goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.host_models import HOSTS, SIDE
from vpeft.backbones.places import Norm, Place, Projection
from vpeft.backbones.points import Layout
from vpeft.injection.hooks import Wiring
from vpeft.injection.operations import Operation
from vpeft.methods import SSF, LoRA, VPTDeep, VPTShallow

pytest.importorskip("transformers")

TOWERS = ("rt_detr_v2", "d_fine", "rf_detr", "eomt", "eomt_dinov3", "dpt", "sam2")
DIMENSIONS = {Layout.TOKENS: 3, Layout.MAP: 4, Layout.CHANNELS_FIRST: 4, Layout.VECTOR: 2}


class Look(Operation):
    """Shows a test what passes a point."""

    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__("watch", 0)
        self.show = show

    def act(self, hidden: Tensor) -> Tensor:
        self.show(hidden)
        return hidden


@pytest.mark.parametrize("name", TOWERS)
def test_each_place_of_a_tower_is_executed_with_its_width_and_layout(name: str) -> None:
    backbone = vpeft.describe(HOSTS[name].make())
    seen: Counter[str] = Counter()
    problems: list[str] = []

    def watch(place: Place, side: str, tensor: Tensor) -> None:
        seen[f"{place.name} {side}"] += 1
        layout = place.layout
        if side == "in" and isinstance(place, Projection) and place.is_conv:
            layout = Layout.CHANNELS_FIRST
        width = place.width_in if side == "in" else place.width
        rows = place.rows if isinstance(place, Projection) else None
        if place.name in ("logits", "outlet") or (isinstance(place, Norm) and "_norm" in place.name):
            return
        channels = tensor.shape[1] if layout is Layout.CHANNELS_FIRST else tensor.shape[-1]
        if channels != width and rows is None:
            problems.append(f"{place.name} {side}: {tuple(tensor.shape)} is not {width} wide")
        if tensor.dim() != DIMENSIONS[layout]:
            problems.append(f"{place.name} {side}: {tuple(tensor.shape)} is not {layout.value}")

    wiring = Wiring()
    wiring.switch.on = "watch"
    ends = [
        (place, side, point)
        for place in backbone.places()
        for side, point in (("in", place.enter), ("out", place.exit))
        if point is not None and place.name not in ("logits", "outlet")
    ]
    for place, side, point in ends:
        wiring.at(point, Look(partial(watch, place, side)))
    tuned = vpeft.TunedModel(backbone).eval()
    features = tuned.features(torch.rand(2, 3, SIDE, SIDE))
    assert features.shape == (2, backbone.facts.width)
    assert not problems, problems
    assert {f"{place.name} {side}" for place, side, _ in ends} == set(seen)
    # the masks of EoMT's last blocks are made of normed sequences
    often = {key: count for key, count in seen.items() if count != 1 and not key.startswith("norm ")}
    assert not often, often


@pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])
def test_prompts_join_any_block_of_eomt_and_not_where_its_queries_join(name: str) -> None:
    host = HOSTS[name]
    tuned = vpeft.tune(host.make(), VPTDeep(tokens=2)).train()
    loss = host.loss(tuned)
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for _, p in tuned.trainable()]
    assert grads and all(grad is not None and bool(grad.any()) for grad in grads)
    with pytest.raises(vpeft.MissingPlace, match="queries join in front of the sequence"):
        vpeft.tune(host.make(), VPTShallow(tokens=2))


@pytest.mark.parametrize("name", ["rf_detr", "sam2", "dpt"])
def test_windows_and_maps_refuse_what_they_cannot_carry(name: str) -> None:
    if name == "dpt":  # a plain sequence, whose layers are read one by one
        host: Any = HOSTS[name]
        tuned = vpeft.tune(host.make(), VPTDeep(tokens=2)).train()
        host.loss(tuned).backward()
        return
    with pytest.raises(vpeft.MissingPlace, match="insert_tokens"):
        vpeft.tune(HOSTS[name].make(), VPTDeep(tokens=2))


@pytest.mark.parametrize("name", TOWERS)
def test_low_rank_updates_of_a_tower_merge(name: str) -> None:
    host = HOSTS[name]
    tuned = vpeft.tune(host.make(), LoRA(rank=2, targets=("all",))).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.02 * torch.randn_like(parameter))
        images = torch.rand(2, 3, SIDE, SIDE)
        before = tuned.features(images)
        after = tuned.merge().features(images)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_scales_and_shifts_act_in_eomt() -> None:
    host = HOSTS["eomt"]
    tuned = vpeft.tune(host.make(), SSF()).train()
    before = host.loss(tuned)
    before.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for _, p in tuned.trainable())
