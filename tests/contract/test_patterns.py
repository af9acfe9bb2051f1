"""Which methods stand for all in the fast tests: every pattern on every family, nobody left out, taking turns."""

from __future__ import annotations

import vpeft
from tests.contract.patterns import all_patterns, cells_for_every_pattern, covering, one_cell_each, pattern_of
from tests.models import tiny_vit
from vpeft.method import Method
from vpeft.methods import LST, Adapter, AdaptFormer, LoRA, PrefixTuning, VPTDeep

PATTERNS = {
    name: frozenset(patterns) for name, patterns in {"a": "xy", "b": "yz", "c": "xyz", "d": "w", "e": ""}.items()
}


def of(method: Method) -> set[str]:
    return {pattern_of(edit) for edit in method.edits(vpeft.describe(tiny_vit()))}


def test_a_pattern_is_the_kind_of_place_and_the_verb() -> None:
    assert of(LoRA(rank=2)) == of(LoRA(rank=8, start="orthogonal")) == {"Projection parallel"}
    assert of(AdaptFormer()) == {"Span parallel"} and of(Adapter()) == {"Span after"}
    assert of(VPTDeep()) == {"Span insert_tokens"} and of(PrefixTuning()) == {"Attention extend"}
    assert "Place after" in of(LST())


def test_patterns_of_a_method_are_those_on_all_three_families() -> None:
    assert all_patterns()["lora"] == {"Projection parallel", "Projection reparametrize"}  # the latter on convolutions
    assert all_patterns()["vpt_deep"] == {"Span insert_tokens"}


def test_few_methods_have_every_pattern() -> None:
    assert covering(PATTERNS) == ["c", "d"]
    assert covering({name: PATTERNS[name] for name in "ab"}) == ["a", "b"]
    assert covering(PATTERNS, frozenset("xyw")) == ["b"]
    assert not covering({}) and not covering(PATTERNS, frozenset("wxyz"))


def test_methods_take_turns_over_the_families_and_refusals_are_no_cells() -> None:
    alike = {name: frozenset("x") for name in "abc"}
    found = cells_for_every_pattern(["f", "g", "h"], alike, lambda name, family: False)
    assert found == [("a", "f"), ("b", "g"), ("c", "h")]
    assert cells_for_every_pattern(["f", "g", "h"], alike, lambda *cell: False, [("c", "g")]) == [
        ("a", "f"),
        ("c", "h"),
    ]
    cells = cells_for_every_pattern(["f", "g"], PATTERNS, lambda name, family: (name, family) == ("c", "g"))
    for family in "fg":
        assert {one for name, place in cells if place == family for one in PATTERNS[name]} == set("wxyz")
    assert ("c", "g") not in cells


def test_each_method_has_a_cell_where_it_fits_and_families_take_turns() -> None:
    refused = {("a", "f"), ("b", "f"), ("b", "g")}
    assert one_cell_each("abc", ["f", "g"], lambda *cell: cell in refused) == [("a", "g"), ("c", "f")]
    assert one_cell_each("abc", ["f", "g"], lambda *cell: False) == [("a", "f"), ("b", "g"), ("c", "f")]
