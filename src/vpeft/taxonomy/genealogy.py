"""Which method builds on which, by year, as an SVG: drawn from the registry and from `builds_on` in the facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import get_args

from vpeft.method import Family, Method

from .facts import facts_of

_LEFT, _TOP, _RIGHT, _BOTTOM = 130, 66, 40, 40
_UNDATED = 140  # the column of what has no paper
_YEAR = 230  # pixels
_ROW, _BOX, _GAP, _LANE = 30, 22, 10, 16
_LETTER = 7.1  # width of a letter at the size of the names
_COLOURS: dict[str, str] = {
    "baseline": "#5b6b7a",
    "adapter": "#b5541c",
    "prompt": "#157a4a",
    "prefix": "#8a6d00",
    "side": "#0f7a86",
    "specification": "#a8327d",
    "reparameter": "#1f5fbf",
    "unified": "#7a4bb3",
}
_OTHER = "#5b6b7a"


@dataclass(frozen=True)
class Ancestor:
    """A method in the picture.

    Attributes:
        name, family: as registered.
        year: when the paper first appeared, as a fraction where its arXiv number tells the month; None: it has none.
        parents: the methods that it builds on.
    """

    name: str
    family: str
    year: float | None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Placed:
    x: float
    y: float
    width: float


def appeared(kind: type[Method]) -> float | None:
    """When a method's paper first appeared: 2021.46 for arXiv 2106.x, the middle of the year for other papers.

    A year of publication is no such date: a paper of 2022 may be in a journal of 2024.
    """
    number = re.fullmatch(r"(\d{2})(\d{2})\.\d{4,5}", kind.paper)
    if number is not None:
        return round(2000 + int(number[1]) + (int(number[2]) - 0.5) / 12, 3)
    return kind.year + 0.5 if kind.year else None


def ancestors(methods: Mapping[str, type[Method]]) -> list[Ancestor]:
    """What the picture shows of these methods; parents that are not among them are left out."""
    return [
        Ancestor(
            name,
            kind.family,
            appeared(kind),
            tuple(one.method for one in facts_of(name).builds_on if one.method in methods),
        )
        for name, kind in methods.items()
    ]


def genealogy(methods: Iterable[Ancestor]) -> str:
    """The picture: a lane for each family, years from left to right, a line from each method to those built on it."""
    nodes = sorted(methods, key=lambda one: (one.year or 0.0, one.name))
    dated = [one.year for one in nodes if one.year is not None]
    first, last = (int(min(dated)), int(max(dated)) + 1) if dated else (2020, 2021)
    lanes = [family for family in get_args(Family) if any(one.family == family for one in nodes)]
    families = {one.name: one.family for one in nodes}
    placed: dict[str, _Placed] = {}
    tops: dict[str, tuple[float, float]] = {}
    y = float(_TOP)
    for family in lanes:
        rows = _place([one for one in nodes if one.family == family], first, y, placed)
        tall = rows * _ROW + _LANE
        tops[family] = (y, tall)
        y += tall
    width = max(_x(last, first) + _RIGHT, *(one.x + one.width + _RIGHT for one in placed.values()), 400)
    height = y + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
        f' height="{height:g}" role="img" font-family="ui-sans-serif, system-ui, sans-serif" font-size="12">',
        "<title>Which method builds on which, by year</title>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        f'<text x="20" y="30" font-size="16" font-weight="600" fill="#1d2733">{len(nodes)} methods: which builds on'
        " which, by the month in which the paper first appeared</text>",
        *(_lane(family, *tops[family], width, shaded=number % 2 == 0) for number, family in enumerate(lanes)),
        *(_year_line(year, first, y) for year in range(first, last + 1)),
        *(
            _line(placed[parent], placed[one.name], _colour(families[parent]))
            for one in nodes
            for parent in one.parents
            if parent in placed
        ),
        *(_box(one, placed[one.name]) for one in nodes),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(nodes: Iterable[Ancestor], first: int, top: float, placed: dict[str, _Placed]) -> int:
    """Put the methods of a lane, in the order of their years, into the first row that has room; how many rows."""
    ends: list[float] = []
    for one in nodes:
        width = round(_LETTER * len(one.name) + 14, 1)
        x = _x(one.year, first)
        row = next((number for number, end in enumerate(ends) if end + _GAP <= x), len(ends))
        ends[row:] = [x + width, *ends[row + 1 :]]
        placed[one.name] = _Placed(x, top + _LANE / 2 + row * _ROW + (_ROW - _BOX) / 2, width)
    return max(len(ends), 1)


def _x(year: float | None, first: int) -> float:
    """The left edge for a date; what has none stands before the first year."""
    return round(_LEFT + _UNDATED + _YEAR * (year - first), 1) if year is not None else float(_LEFT)


def _colour(family: str) -> str:
    return _COLOURS.get(family, _OTHER)


def _lane(family: str, top: float, height: float, width: float, shaded: bool) -> str:
    ground = f'<rect x="0" y="{top:g}" width="{width:g}" height="{height:g}" fill="#f6f8fa"/>' if shaded else ""
    middle = top + height / 2 + 4
    label = f'<text x="20" y="{middle:g}" font-weight="600" fill="{_colour(family)}">{escape(family)}</text>'
    return ground + label


def _year_line(year: int, first: int, bottom: float) -> str:
    x = _x(year, first)
    return (
        f'<path d="M{x:g} {_TOP - 8}V{bottom:g}" stroke="#d5dce3" stroke-width="1"/>'
        f'<text x="{x + 4:g}" y="{_TOP - 12}" fill="#6b7784">{year}</text>'
    )


def _line(parent: _Placed, child: _Placed, colour: str) -> str:
    """From the right edge of the parent to the left edge of the child, or between their middles where these overlap."""
    x1, y1 = parent.x + parent.width, parent.y + _BOX / 2
    x2, y2 = child.x, child.y + _BOX / 2
    if x2 - x1 >= _GAP:
        bend = max(18.0, (x2 - x1) / 2)
        way = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    else:
        down = child.y >= parent.y
        x1, y1 = parent.x + parent.width / 2, parent.y + (_BOX if down else 0)
        x2, y2 = child.x + child.width / 2, child.y + (0 if down else _BOX)
        middle = (y1 + y2) / 2
        way = f"M{x1:g} {y1:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
    return f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-opacity="0.5"/>'


def _box(one: Ancestor, at: _Placed) -> str:
    colour = _colour(one.family)
    return (
        f'<rect x="{at.x:g}" y="{at.y:g}" width="{at.width:g}" height="{_BOX}" rx="5" fill="#ffffff" stroke="{colour}"'
        f' stroke-width="1.4"/><text x="{at.x + at.width / 2:g}" y="{at.y + 15:g}" text-anchor="middle"'
        f' fill="#1d2733">{escape(one.name)}</text>'
    )
