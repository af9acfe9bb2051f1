"""Protocols of streams: the published order of classes, what they fix, and how images are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.regimes.streams import CLASSES, draw
from vpeft.regimes import continual
from vpeft.regimes.continual import ContinualRecipe, run_continual
from vpeft.regimes.stream import BadStream
from vpeft.regimes.stream_protocols import StreamProtocol, UnknownProtocol, stream_protocol, stream_protocols


def recipe(protocol: str, **fields: Any) -> ContinualRecipe:
    return ContinualRecipe.model_validate(
        {"protocol": protocol, "method": "simple_cil", "data": {"source": "photos"}, **fields}
    )


def test_the_order_is_the_published_one() -> None:
    """The beginning of CIFAR-100's order by seed 1993, as iCaRL's and PILOT's logs have it."""
    assert stream_protocol("cifar100-b0-inc10@pilot").order[:12] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89)
    assert stream_protocol("vtab-b0-inc10@pilot").order == tuple(range(50))
    for one in stream_protocols().values():
        assert sorted(one.order) == list(range(one.classes))
        assert one.domains or one.classes % one.fields["increment"] == 0


def test_both_kinds_differ_in_how_images_are_given_alone() -> None:
    for name, pilot in stream_protocols().items():
        if not name.endswith("@pilot"):
            continue
        own = stream_protocol(name.replace("@pilot", "@1"))
        assert {k for k, v in pilot.fields.items() if own.fields[k] != v} == {"inputs", "data"}


def test_a_protocol_fills_in_and_fixes() -> None:
    made = recipe("imagenet-r-b0-inc20@pilot")
    assert (made.increment, made.order_seed, made.inputs, made.data.augmentation) == (20, 1993, "unit", "wide")
    assert made.backbone == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert recipe("imagenet-r-b0-inc20@pilot", backbone="pocket_vit").backbone == "pocket_vit"
    with pytest.raises(ValidationError, match="fixes increment"):
        recipe("imagenet-r-b0-inc20@pilot", increment=10)
    with pytest.raises(ValidationError, match=r"fixes data\.augmentation"):
        recipe("imagenet-r-b0-inc20@pilot", data={"source": "photos", "augmentation": "none"})
    with pytest.raises(UnknownProtocol, match="imagenet-r-b0-inc20@pilot"):
        recipe("imagenet-r-b0-inc20@pilt")


def test_images_are_given_from_zero_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "classes")
    small = StreamProtocol("tiny@pilot", len(CLASSES), {**stream_protocol("cub-b0-inc10@pilot").fields, "increment": 3})
    monkeypatch.setattr(continual, "stream_protocol", lambda _: small)
    data = {"source": str(folder), "val_fraction": 0, "test_fraction": 0.34}
    outcome = run_continual(recipe("tiny@pilot", backbone="pocket_vit", data=data), say=lambda _: None)
    stated = outcome.record["preprocessing"]
    assert (stated["mean"], stated["std"], stated["crop_pct"]) == ([0.0] * 3, [1.0] * 3, 0.875)
    assert outcome.record["stream"]["notation"] == "B-0 Inc-3" and outcome.record["recipe"]["protocol"] == "tiny@pilot"
    with pytest.raises(ValidationError, match="fixes domains"):
        recipe("domainnet-di6@1", domains=("more",))
    wrong = draw(tmp_path / "fewer", CLASSES[:4])
    with pytest.raises(BadStream, match="has 6 classes"):
        run_continual(recipe("tiny@pilot", backbone="pocket_vit", data={**data, "source": str(wrong)}))
