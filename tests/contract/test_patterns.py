"""Which methods stand for all in the fast tests: every pattern on every family, nobody left out, taking turns."""

from __future__ import annotations

import vpeft
from tests.contract.patterns import covering, edit_pattern, fast_cells, one_cell_each, patterns_of, plain_patterns_of
from tests.models import tiny_vit
from vpeft.method import Method
from vpeft.methods import GPS, LST, Adapter, AdaptFormer, FullFinetuning, LoRA, VPTDeep

PATTERNS = {
    name: frozenset(patterns) for name, patterns in {"a": "xy", "b": "yz", "c": "xyz", "d": "w", "e": ""}.items()
}


def of(method: Method) -> frozenset[str]:
    return patterns_of(method, list(method.edits(vpeft.describe(tiny_vit()))))


def test_a_pattern_has_no_sizes_and_no_formulas() -> None:
    assert of(LoRA(rank=2)) == of(LoRA(rank=8, start="orthogonal"))
    assert of(AdaptFormer(bottleneck=4)) == of(AdaptFormer(bottleneck=8))


def test_place_verb_layer_and_hooks_tell_patterns_apart() -> None:
    methods = (LoRA(), LoRA(targets=("fc1",)), LoRA(dropout=0.1), Adapter(), AdaptFormer(), VPTDeep(), LST(), GPS())
    assert len({of(method) for method in methods}) == len(methods)
    assert "has prepare" in of(GPS()) and "is not restored" in of(FullFinetuning())
    (lora, *_) = LoRA(targets=("q",)).edits(vpeft.describe(tiny_vit()))
    assert edit_pattern(lora) == "Projection q parallel merges weight_delta"


def test_the_plain_pattern_is_the_kind_of_place_and_the_verb() -> None:
    edits = list(VPTDeep().edits(vpeft.describe(tiny_vit())))
    assert plain_patterns_of(VPTDeep(), edits) == {"Span insert_tokens"}
    assert plain_patterns_of(LoRA(), list(LoRA().edits(vpeft.describe(tiny_vit())))) == {"Projection parallel"}


def test_few_methods_have_every_pattern() -> None:
    assert covering(PATTERNS) == ["c", "d"]
    assert covering({name: PATTERNS[name] for name in "ab"}) == ["a", "b"]
    assert not covering({})


def test_methods_take_turns_over_the_families_and_refusals_are_no_cells() -> None:
    alike = {name: frozenset("x") for name in "abc"}
    assert fast_cells(["f", "g", "h"], alike, lambda name, family: False) == [("a", "f"), ("b", "g"), ("c", "h")]
    cells = fast_cells(["f", "g"], PATTERNS, lambda name, family: (name, family) == ("c", "g"))
    for family in "fg":
        assert {one for name, place in cells if place == family for one in PATTERNS[name]} == set("wxyz")
    assert ("c", "g") not in cells


def test_each_method_has_a_cell_where_it_fits() -> None:
    refused = {("a", "f"), ("b", "f"), ("b", "g")}
    assert one_cell_each("abc", ["f", "g"], lambda *cell: cell in refused) == [("a", "g"), ("c", "f")]
