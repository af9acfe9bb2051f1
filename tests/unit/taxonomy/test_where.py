"""The filter: what it lets through, what it refuses, and how it says so."""

from __future__ import annotations

import pytest

from vpeft.taxonomy.where import BadFilter, Filter

LORA = {
    "name": "lora",
    "mergeable": True,
    "memory": 0.7,
    "year": 2022,
    "places": ("blocks.*.attn.q", "blocks.*.attn.v"),
}
LST = {"name": "lst", "mergeable": False, "memory": 0.3, "year": 2022, "places": ("outlet",)}


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("mergeable", {"lora"}),
        ("not mergeable", {"lst"}),
        ("mergeable and memory < 0.5", set()),
        ("mergeable or memory < 0.5", {"lora", "lst"}),
        ("0.2 < memory <= 0.3", {"lst"}),
        ("0.2 < memory < 0.3", set()),
        ("year >= 2022 and name != 'lst'", {"lora"}),
        ("'attn' in places", {"lora"}),
        ("'attn' not in places", {"lst"}),
        ("'o' in name", {"lora"}),
        ("not (mergeable == True) and memory > -1", {"lst"}),
        ("  mergeable  ", {"lora"}),
    ],
)
def test_it_lets_through(text: str, passing: set[str]) -> None:
    passes = Filter(text, LORA)
    assert {str(one["name"]) for one in (LORA, LST) if passes(one)} == passing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memoryy < 0.5", "knows no 'memoryy'. Did you mean 'memory'"),
        ("mergeable and memoryy < 0.5", "memoryy"),
        ("mergeable or memoryy < 0.5", "memoryy"),
        ("memory <", "cannot be read"),
        ("", "cannot be read"),
        ("memory = 1", "cannot be read"),
        ("name < 3", "the one is text, the other a number"),
        ("memory < 'half'", "the other text"),
        ("3 in places", "the one is a number"),
        ("-name", "only a number"),
        ("name is 'lora'", "write `==`"),
        ("__import__('os').system('true')", "no part of it"),
        ("name.upper() == 'LORA'", "no part of it"),
        ("[x for x in places]", "no part of it"),
        ("memory + 1 < 2", "no part of it"),
        ("(memory := 1)", "no part of it"),
        ("lambda: 1", "no part of it"),
        ("f'{name}'", "no part of it"),
        ("9 ** 9 ** 9", "no part of it"),
        ("None", "no part of it"),
        ("not " * 5000 + "mergeable", "are the most"),
        ("(" * 400 + "mergeable" + ")" * 80, "cannot be read"),
    ],
)
def test_it_refuses_before_any_record_is_read(text: str, says: str) -> None:
    with pytest.raises(BadFilter) as caught:
        Filter(text, LORA)
    assert says in str(caught.value)
