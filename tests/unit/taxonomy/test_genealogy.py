"""The genealogy is drawn from data: a box for each method, a line for each descent, years from left to right."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from vpeft.methods import all_methods
from vpeft.taxonomy.facts import facts_of
from vpeft.taxonomy.genealogy import Ancestor, ancestors, appeared, genealogy

SVG = "{http://www.w3.org/2000/svg}"
OLD = Ancestor("old", "adapter", 2019.1)
YOUNG = Ancestor("young", "adapter", 2021.9, ("old",))
OTHER = Ancestor("other", "prompt", 2021.0, ("old", "young"))
BASE = Ancestor("base", "baseline", None)
OWN = {name: kind for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """name -> left, top, right, bottom of its box."""
    found = {}
    for shape, text in pairwise(ElementTree.fromstring(svg)):
        if shape.tag == f"{SVG}rect" and text.tag == f"{SVG}text" and shape.get("rx") == "5":
            x, y, w, h = (float(shape.get(key, "")) for key in ("x", "y", "width", "height"))
            found[str(text.text)] = (x, y, x + w, y + h)
    return found


def lines(svg: str) -> list[ElementTree.Element]:
    return [path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if "C" in path.get("d", "")]


def test_a_box_for_each_and_a_line_for_each_descent() -> None:
    svg = genealogy([YOUNG, OTHER, OLD, BASE])
    at = boxes(svg)
    assert set(at) == {"old", "young", "other", "base"}
    assert at["base"][2] < at["old"][0] < at["other"][0] < at["young"][0]
    assert at["old"][1] == at["young"][1] < at["other"][1], "a lane for each family"
    assert len(lines(svg)) == 3
    assert "4 methods" in svg and ">2019<" in svg and ">2022<" in svg and ">2018<" not in svg


def test_a_line_leads_from_edge_to_edge() -> None:
    (line,) = lines(genealogy([OLD, YOUNG]))
    at = boxes(genealogy([OLD, YOUNG]))
    numbers = [float(number) for number in re.findall(r"[\d.]+", line.get("d", ""))]
    assert numbers[0] == pytest.approx(at["old"][2], abs=0.1) and numbers[-2] == pytest.approx(at["young"][0], abs=0.1)


def test_no_two_boxes_overlap() -> None:
    at = list(boxes(genealogy(ancestors(OWN))).values())
    assert len(at) == len(OWN)
    for number, (left, top, right, bottom) in enumerate(at):
        for x1, y1, x2, y2 in at[number + 1 :]:
            assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top


def test_the_date_is_that_of_the_first_version() -> None:
    dated = {one.name: one.year for one in ancestors(OWN)}
    assert dated["lora"] == pytest.approx(2021 + 5.5 / 12, abs=1e-3)  # arXiv 2106.09685, ICLR 2022
    assert dated["lorand"] == 2023.5 and dated["linear_probe"] is None
    assert appeared(OWN["noah"]) == pytest.approx(2022 + 5.5 / 12, abs=1e-3)  # in a journal of 2024


def test_each_method_s_parents_are_those_of_its_facts() -> None:
    svg = genealogy(ancestors(OWN))
    assert len(lines(svg)) == sum(len(facts_of(name).builds_on) for name in OWN)


def test_nothing_to_draw_is_a_picture_still() -> None:
    assert "0 methods" in genealogy([])
