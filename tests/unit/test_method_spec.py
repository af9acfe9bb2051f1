"""Names with fields, from text and back."""

import subprocess
import sys

import pytest

from vpeft.method_spec import BadMethodSpec, MethodSpec, parse, parse_all, parse_one, text_of


@pytest.mark.parametrize(
    ("text", "label", "methods"),
    [
        ("lora", "lora", [("lora", {})]),
        ("Linear-Probe", "linear_probe", [("linear_probe", {})]),
        ("lora(rank=4)", "lora(rank=4)", [("lora", {"rank": 4})]),
        ("lora( scale = 0.1 , rank=4 )", "lora(rank=4, scale=0.1)", [("lora", {"rank": 4, "scale": 0.1})]),
        ('lora(targets=["q", "v"])+ssf', "lora(targets=[q, v])+ssf", [("lora", {"targets": ["q", "v"]}), ("ssf", {})]),
        ("lora(targets=[q, v])", "lora(targets=[q, v])", [("lora", {"targets": ["q", "v"]})]),
        (
            "adapter(kind=houlsby, bias=true)",
            "adapter(bias=true, kind=houlsby)",
            [("adapter", {"kind": "houlsby", "bias": True})],
        ),
        ('x(name="a,b(c")', 'x(name="a,b(c")', [("x", {"name": "a,b(c"})]),
        ("x(where=True, targets=None)", "x(targets=None, where=true)", [("x", {"where": True, "targets": None})]),
    ],
)
def test_texts_that_are_understood(text: str, label: str, methods: list[tuple[str, dict[str, object]]]) -> None:
    found = parse(text)
    assert found.label == label
    assert [(method.name, method.fields) for method in found.methods] == methods


def test_heads_and_optimisers_are_written_the_same_way() -> None:
    assert parse_one("mlp(hidden=512)") == MethodSpec(name="mlp", fields={"hidden": 512})
    assert parse_one("SGD(momentum=0.9, nesterov=true)", "optimiser").fields == {"momentum": 0.9, "nesterov": True}
    with pytest.raises(BadMethodSpec, match="'sgd momentum' is not an optimiser"):
        parse_one("sgd momentum", "optimiser")


@pytest.mark.parametrize(
    "fields",
    [
        {"a": "true", "b": "None", "c": "nan", "d": "inf"},
        {"text": 'a "quoted, (word" \\ and \\"', "line": "two\nlines", "empty": "", "umlaut": "grün"},
        {"rate": 1e-05, "large": 1e22, "whole": 2.0, "minus": -3},
        {"nested": [["q", "v"], [1, 2]], "nothing": []},
        {"table": {"kind": "true", "sizes": [1, 2], "deep": {"x": "y"}}},
        {"none": None, "yes": True},
    ],
    ids=["words that mean something else", "quotes", "numbers", "lists", "tables", "none"],
)
def test_text_is_read_back_to_the_same(fields: dict[str, object]) -> None:
    specs = (MethodSpec(name="lora", fields=fields), MethodSpec(name="ssf"))
    again = parse(text_of(specs)).methods
    assert again == specs
    assert [type(value) for value in again[0].fields.values()] == [
        type(value) for _, value in sorted(fields.items())
    ], "a number stays of its kind"
    assert parse_one(text_of(specs[0])) == specs[0]


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
        ("lora(rank=[1 2])", "is not a value"),
        ("lora(day=2026-01-01)", "is not a value"),
        ("4lora", "is not a method"),
        ("lora rank", "is not a method"),
        ("", "No method"),
    ],
)
def test_texts_that_are_not(text: str, complaint: str) -> None:
    with pytest.raises(BadMethodSpec, match=complaint):
        parse(text)


def test_nothing_and_repeats_are_refused() -> None:
    with pytest.raises(BadMethodSpec, match="No method"):
        parse_all([" , "])
    with pytest.raises(BadMethodSpec, match="more than once: lora"):
        parse_all(["lora,ssf,lora"])


def test_what_has_no_text_is_refused() -> None:
    with pytest.raises(BadMethodSpec, match="object has no text"):
        text_of(MethodSpec(name="lora", fields={"x": object()}))


def test_reading_a_text_needs_only_pydantic() -> None:
    """Not through the package's door, which may load more: the file itself names nothing heavy."""
    code = (
        "import importlib.util, pathlib, sys, types\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "package = types.ModuleType('vpeft'); package.__path__ = [str(root)]; sys.modules['vpeft'] = package\n"
        "import vpeft.method_spec\n"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'timm', 'transformers'}))\n"
    )
    import vpeft.method_spec

    root = vpeft.method_spec.__file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words_joined_by_plus_are_one_value() -> None:
    found = parse_one("detection(augment=flip+photometric, epochs=4)", "task")
    assert found.fields == {"epochs": 4, "augment": "flip+photometric"}
    assert parse_one(text_of(found), "task") == found
    assert [one.name for one in parse("lora(rank=4)+ssf").methods] == ["lora", "ssf"]
