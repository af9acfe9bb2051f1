"""Properties are computed from the edits: each of them on methods that differ in it, and memory on real tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from tests.models import images_for, tiny_vit

import vpeft
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.points import MissingPlace
from vpeft.methods import all_methods
from vpeft.taxonomy.properties import (
    BACKBONES,
    Properties,
    default_properties,
    kind_of_place,
    on_meta,
    properties_of,
    relative_memory,
    stored,
)
from vpeft.taxonomy.survey import SURVEY, answers, computed, disagreements
from vpeft.training.memory import saved_bytes

M = all_methods()


def of(name: str, **fields: object) -> Properties:
    return properties_of(M[name](**fields), memory=0.6)


def test_lora() -> None:
    found = of("lora", rank=8)
    assert found.places == ("blocks.*.attn.q", "blocks.*.attn.v") and found.verbs == ("parallel",)
    assert found.parameters == 12 * 2 * 2 * 8 * 768
    assert found.adds_modules and found.mergeable and not found.latency and found.keeps_structure and found.identity
    assert found.reach == "full" and found.memory == 0.6


@pytest.mark.parametrize(
    ("name", "adds", "keeps", "latency", "reach"),
    [
        ("linear_probe", False, True, False, "none"),
        ("full_finetuning", False, True, False, "full"),
        ("bitfit", False, True, False, "full"),
        ("partial_k", False, True, False, "from block 11"),
        ("adaptformer", True, False, True, "full"),
        ("repadapter", True, True, False, "full"),
        ("vpt_deep", True, True, True, "full"),
        ("visual_prompting_pixel", True, True, True, "full"),
        ("prefix_tuning", True, True, True, "full"),
        ("attnscale", True, False, True, "full"),
        ("lst", True, True, True, "none"),
        ("dtl", True, False, True, "from block 6"),
    ],
)
def test_each_property_tells_methods_apart(name: str, adds: bool, keeps: bool, latency: bool, reach: str) -> None:
    found = of(name)
    assert (found.adds_modules, found.keeps_structure, found.latency, found.reach) == (adds, keeps, latency, reach)


def test_settings_count() -> None:
    assert not of("sct", site="attn").mergeable and of("sct", site="mlp").mergeable


def test_what_is_read_is_not_where_it_acts() -> None:
    found = of("e3va")
    assert set(found.reads) == {"blocks.*.attn_branch", "blocks.*.mlp_branch"}
    assert found.places == ("norm",)


def test_places_lose_their_numbers() -> None:
    assert kind_of_place("blocks.11.attn.q") == "blocks.*.attn.q"
    assert kind_of_place("blocks.3") == "blocks.*" and kind_of_place("norm") == "norm"


def test_memory_on_the_meta_device_is_what_real_tensors_keep() -> None:
    def measured(device: str) -> int:
        model = tiny_vit()
        images = images_for(model, batch=4).to(device)
        tuned = vpeft.tune(model.to(device), M["adaptformer"](), num_classes=5, verify=False, show=False).to(device)
        return saved_bytes(tuned.train(), images)

    real, meta = measured("cpu"), measured("meta")
    # Attention keeps a little more where the processor's kernel returns its statistics.
    assert real == pytest.approx(meta, rel=0.1)


def test_memory_orders_what_is_known() -> None:
    probe, side, lora = (relative_memory(on_meta(M[name]())) for name in ("linear_probe", "lst", "lora"))
    assert probe < 0.05 < side < 0.5 < lora < 1


def test_what_is_stored_has_the_fields_of_today() -> None:
    names = {field.name for field in dataclasses.fields(Properties)}
    assert stored() and all(set(one) == names for one in stored().values())
    assert stored()["full_finetuning"]["memory"] == 1


def test_a_disagreement_is_a_cell_that_differs() -> None:
    folds = of("repadapter")
    found = {(one.aspect, one.survey) for one in disagreements([folds])}
    assert found == {("SP", False), ("IE", False)}
    assert not disagreements([of("adaptformer")])
    assert {one.aspect for one in disagreements([dataclasses.replace(of("adaptformer"), memory=0.4)])} == {"ME"}


def test_families_without_a_line_in_the_survey_are_computed_but_not_compared() -> None:
    probe = of("linear_probe")
    assert "baseline" not in SURVEY and not disagreements([probe])
    assert answers(probe)["NAM"] and computed([probe])["baseline"]["NAM"] == (1, 1)


def test_random_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    of("bitfit")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_method_for_other_families_is_shown_on_the_first_backbone_that_has_its_places() -> None:
    class OnlyInWindows(M["lora"]):  # type: ignore[misc, valid-type]
        """A stand-in that refuses what has no stages of different width."""

        def edits(self, backbone: Backbone) -> Iterator[Edit]:
            if len(backbone.stages) < 2:
                raise MissingPlace("There are no stages.")
            yield from super().edits(backbone)

    class Nowhere(M["lora"]):  # type: ignore[misc, valid-type]
        """A stand-in that refuses everything."""

        def edits(self, backbone: Backbone) -> Iterator[Edit]:
            raise MissingPlace(f"{backbone.facts.family} will not do.")

    assert of("lora").backbone == BACKBONES[0]
    assert properties_of(OnlyInWindows(), memory=0.6).backbone == BACKBONES[1]
    with pytest.raises(MissingPlace, match="timm_vit will not do"):
        properties_of(Nowhere())


def test_what_is_stored_in_an_older_form_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"name": "lora", "memory": 0.123}
    monkeypatch.setattr("vpeft.taxonomy.properties.stored", lambda: {"lora": old})
    assert default_properties("lora").memory == pytest.approx(0.69, abs=0.05)
