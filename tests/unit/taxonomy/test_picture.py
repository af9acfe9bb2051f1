"""The picture is drawn from the plan: what the plan has is marked, nothing else is."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from vpeft.methods import all_methods
from vpeft.taxonomy.picture import SHAPES, drawn_as, picture
from vpeft.taxonomy.properties import on_meta, properties_of, stored

M = all_methods()


def drawn(name: str, **fields: object) -> str:
    method = M[name](**fields)
    tuned = on_meta(method)
    return picture(tuned.plan(), properties_of(method, memory=0.0, tuned=tuned).reads, f"{name} <drawn>")


def texts(svg: str) -> list[str]:
    return [str(one.text) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def badges(svg: str) -> dict[int, int]:
    """number -> how often it stands in the picture and its key."""
    found: dict[int, int] = {}
    for text in texts(svg):
        if text.isdigit():
            found[int(text)] = found.get(int(text), 0) + 1
    return found


def test_one_mark_for_each_place_and_one_in_the_key() -> None:
    svg = drawn("lora", rank=4, targets=("q", "v"))
    assert badges(svg) == {1: 3}
    key = [text for text in texts(svg) if "trained" in text]
    assert len(key) == 1 and "attn.q, attn.v" in key[0] and "in 12 blocks; 147,456 trained" in key[0]


def test_marks_stand_at_the_place() -> None:
    svg = drawn("repadapter")
    for place in ("blocks.*.norm1", "blocks.*.norm2"):
        shape = SHAPES[place]
        assert re.search(rf'<circle cx="{shape.x + shape.w - 6:g}" cy="{shape.y:g}"', svg)
    q = SHAPES["blocks.*.attn.q"]
    assert not re.search(rf'<circle cx="{q.x + q.w - 6:g}" cy="{q.y:g}"', svg)


def test_what_is_only_read_is_marked_as_read() -> None:
    said = texts(drawn("e3va"))
    assert "reads what leaves attn_branch, mlp_branch" in said


def test_nothing_to_mark_is_said() -> None:
    svg = drawn("linear_probe")
    assert not badges(svg) and any("the head alone trains" in text for text in texts(svg))
    assert ElementTree.fromstring(svg)[0].text == "linear_probe <drawn>"


@pytest.mark.parametrize("name", sorted(stored()))
def test_every_place_of_every_method_has_a_shape(name: str) -> None:
    missing = {drawn_as(place) for place in (*stored()[name]["places"], *stored()[name]["reads"])} - set(SHAPES)
    assert not missing
