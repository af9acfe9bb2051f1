"""Contenders from text."""

import pytest

from vpeft.bench.contender import BadContender, parse, parse_all


@pytest.mark.parametrize(
    ("text", "label", "methods"),
    [
        ("lora", "lora", [("lora", {})]),
        ("Linear-Probe", "linear_probe", [("linear_probe", {})]),
        ("lora(rank=4)", "lora(rank=4)", [("lora", {"rank": 4})]),
        ("lora( scale = 0.1 , rank=4 )", "lora(rank=4, scale=0.1)", [("lora", {"rank": 4, "scale": 0.1})]),
        ('lora(targets=["q", "v"])+ssf', "lora(targets=[q, v])+ssf", [("lora", {"targets": ["q", "v"]}), ("ssf", {})]),
        (
            "adapter(kind=houlsby, bias=true)",
            "adapter(bias=true, kind=houlsby)",
            [("adapter", {"kind": "houlsby", "bias": True})],
        ),
        ('x(name="a,b(c")', "x(name=a,b(c)", [("x", {"name": "a,b(c"})]),
    ],
)
def test_texts_that_are_understood(text: str, label: str, methods: list[tuple[str, dict[str, object]]]) -> None:
    found = parse(text)
    assert found.label == label
    assert [(method.name, method.fields) for method in found.methods] == methods


def test_lists_with_commas() -> None:
    assert [one.label for one in parse_all(["lora(rank=4, scale=1),ssf", "bitfit"])] == [
        "lora(rank=4, scale=1)",
        "ssf",
        "bitfit",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lora(rank)", "is not a field"),
        ("lora(rank=)", "is not a field"),
        ("lora(rank=4", "not closed"),
        ("lora(rank=4,rank=8)", "given twice"),
        ("lora(rank=1 2)", "is not a value"),
        ("4lora", "is not a method"),
        ("lora rank", "is not a method"),
    ],
)
def test_texts_that_are_not(text: str, complaint: str) -> None:
    with pytest.raises(BadContender, match=complaint):
        parse(text)


def test_nothing_and_repeats_are_refused() -> None:
    with pytest.raises(BadContender, match="No method"):
        parse_all([" , "])
    with pytest.raises(BadContender, match="more than once: lora"):
        parse_all(["lora,ssf,lora"])
