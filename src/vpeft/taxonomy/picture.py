"""Where a method acts, as an SVG of a ViT and of one of its blocks, drawn from the plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

from vpeft.injection.plan import Plan, PlanRow

from .properties import kind_of_place

WIDTH = 860
_TOP_OF_KEY = 414
_COLOURS = {
    "before": "#b5541c",
    "after": "#b3261e",
    "parallel": "#1f5fbf",
    "wrap": "#7a4bb3",
    "replace": "#7a4bb3",
    "insert_tokens": "#157a4a",
    "tap": "#5b6b7a",
    "reads": "#5b6b7a",
    "reparametrize": "#8a6d00",
    "extend": "#157a4a",
    "unfreeze": "#a8327d",
}
_SAYS = {
    "before": "changes what enters",
    "after": "changes what leaves",
    "parallel": "adds a branch beside",
    "wrap": "stands around",
    "replace": "takes the place of",
    "insert_tokens": "inserts tokens into",
    "tap": "reads, on the side",
    "reads": "reads what leaves",
    "reparametrize": "changes the weight of",
    "extend": "joins queries, keys and values of",
    "unfreeze": "trains",
}


@dataclass(frozen=True)
class _Shape:
    """A place in the drawing: a filled box, or the outline of a span; `label` stands inside or at its corner.

    One that is `rare` is drawn only where a method acts on it or reads it.
    """

    x: float
    y: float
    w: float
    h: float
    label: str
    outline: bool = False
    rare: bool = False


_B = "blocks.*"
# Outlines first, from the largest to the smallest, so that boxes stand on top.
SHAPES: dict[str, _Shape] = {
    "backbone": _Shape(8, 6, 844, 392, "", outline=True),
    "trunk": _Shape(334, 26, 178, 54, "", outline=True),
    "stages.*": _Shape(338, 30, 170, 46, "", outline=True),
    _B: _Shape(20, 112, 820, 276, "block", outline=True),
    f"{_B}.attn_branch": _Shape(60, 140, 414, 186, "attention branch", outline=True),
    f"{_B}.attn": _Shape(160, 160, 304, 158, "attn", outline=True),
    f"{_B}.attn.qkv": _Shape(172, 180, 76, 130, "qkv", outline=True),
    f"{_B}.mlp_branch": _Shape(518, 140, 282, 186, "MLP branch", outline=True),
    f"{_B}.mlp": _Shape(616, 160, 174, 158, "mlp", outline=True),
    "pixels": _Shape(24, 36, 80, 34, "pixels"),
    "patch": _Shape(124, 36, 80, 34, "patch"),
    "embedding": _Shape(224, 36, 90, 34, "embedding"),
    "norm": _Shape(532, 36, 70, 34, "norm"),
    "outlet": _Shape(622, 36, 96, 34, "outlet"),
    "logits": _Shape(738, 36, 90, 34, "logits"),
    f"{_B}.norm1": _Shape(76, 224, 64, 36, "norm1"),
    f"{_B}.attn.q": _Shape(182, 202, 56, 28, "q"),
    f"{_B}.attn.k": _Shape(182, 238, 56, 28, "k"),
    f"{_B}.attn.v": _Shape(182, 274, 56, 28, "v"),
    f"{_B}.attn.core": _Shape(268, 212, 90, 60, "softmax"),
    f"{_B}.attn.proj": _Shape(386, 224, 64, 36, "proj"),
    f"{_B}.skip1": _Shape(240, 342, 70, 26, "skip"),
    f"{_B}.stream1": _Shape(474, 342, 26, 26, "+"),
    f"{_B}.norm2": _Shape(532, 224, 64, 36, "norm2"),
    f"{_B}.mlp.fc1": _Shape(630, 224, 56, 36, "fc1"),
    f"{_B}.mlp.fc2": _Shape(722, 224, 56, 36, "fc2"),
    f"{_B}.skip2": _Shape(624, 342, 70, 26, "skip"),
    f"{_B}.stream2": _Shape(800, 342, 26, 26, "+"),
    "clips": _Shape(24, 78, 80, 26, "clips", rare=True),
    "query": _Shape(622, 78, 96, 26, "query", rare=True),
    f"{_B}.act": _Shape(684, 272, 40, 28, "act", rare=True),
}
_LINES = (
    "M104 53H124 M204 53H224 M314 53H334 M512 53H532 M602 53H622 M718 53H738",  # the model
    "M28 355H240 M310 355H474 M500 355H624 M694 355H800 M826 355H836",  # the residual stream
    "M48 355V242H76 M140 242H182 M150 242V216H182 M150 242V252H182 M150 242V288H182",  # into q, k, v
    "M238 216H254V232H268 M238 252H268 M238 288H254V262H268 M358 242H386 M450 242H487V342",  # attention
    "M510 355V242H532 M596 242H630 M686 242H722 M778 242H813V342",  # MLP
)


@dataclass
class _Group:
    """Edits with one verb and one kind of layer: they share a number in the drawing and a line in the key."""

    verb: str
    layer: str
    places: list[str] = field(default_factory=list)
    blocks: set[int] = field(default_factory=set)
    parameters: int = 0


def picture(plan: Plan, reads: Iterable[str], title: str) -> str:
    """An SVG with numbered marks where the edits of `plan` are, and a key.

    Args:
        plan: of an adapter on a ViT.
        reads: kinds of places that are read besides, as in `Properties.reads`.
        title: said to those who cannot see it.
    """
    groups = _groups(plan.rows)
    if seen := [place for place in reads if not any(g.verb == "tap" and place in g.places for g in groups)]:
        groups.append(_Group("reads", "", [kind_of_place(place) for place in seen]))
    height = _TOP_OF_KEY + 26 * max(len(groups), 1) + 14
    marks: dict[str, list[tuple[int, str]]] = {}
    for number, group in enumerate(groups, 1):
        for place in group.places:
            marks.setdefault(drawn_as(place), []).append((number, _COLOURS[group.verb]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<path d="{" ".join(_LINES)}" fill="none" stroke="#9aa5b1" stroke-width="1.5"/>',
        *(_outline(shape, marks.get(name, [])) for name, shape in SHAPES.items() if shape.outline),
        *(_box(shape, marks.get(name, [])) for name, shape in SHAPES.items() if _is_box(name, marks)),
        '<text x="423" y="57" text-anchor="middle" fill="#1d2733">blocks</text>',
        *(_badges(SHAPES[name], marked) for name, marked in marks.items() if name in SHAPES),
        *(_line_of_key(number, group) for number, group in enumerate(groups, 1)),
    ]
    if not groups:
        said = "Nothing inside is changed: the head alone trains."
        parts.append(f'<text x="32" y="{_TOP_OF_KEY + 10}" fill="#1d2733">{said}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _is_box(name: str, marks: Mapping[str, object]) -> bool:
    return not SHAPES[name].outline and (name in marks or not SHAPES[name].rare)


def drawn_as(place: str) -> str:
    """The shape for a kind of place: what enters a place is marked at the place; the end of the trunk at its frame."""
    place = place.removesuffix(".input")
    between = {"end": "trunk", "patch_norm": "patch"}
    return "stages.*" if place.startswith("stages.*.downsample") else between.get(place, place)


def _groups(rows: Iterable[PlanRow]) -> list[_Group]:
    found: dict[tuple[str, str], _Group] = {}
    for row in rows:
        layer = "" if row.verb == "unfreeze" else row.layer
        group = found.setdefault((row.verb, layer), _Group(row.verb, layer))
        kind = kind_of_place(row.place)
        if kind not in group.places:
            group.places.append(kind)
        if inside := re.match(r"blocks\.(\d+)", row.place):
            group.blocks.add(int(inside[1]))
        group.parameters += row.parameters
    return list(found.values())


def _outline(shape: _Shape, marked: list[tuple[int, str]]) -> str:
    colour, width = (marked[0][1], 2.5) if marked else ("#c3ccd6", 1)
    tint = f'{marked[0][1]}" fill-opacity="0.06' if marked else "none"
    frame = (
        f'<rect x="{shape.x}" y="{shape.y}" width="{shape.w}" height="{shape.h}" rx="8"'
        f' fill="{tint}" stroke="{colour}" stroke-width="{width}" stroke-dasharray="5 4"/>'
    )
    grey = colour if marked else "#6b7784"
    label = f'<text x="{shape.x + 12}" y="{shape.y + 15}" font-size="11" fill="{grey}">{shape.label}</text>'
    return frame + (label if shape.label else "")


def _box(shape: _Shape, marked: list[tuple[int, str]]) -> str:
    colour, fill = (marked[0][1], marked[0][1]) if marked else ("#9aa5b1", "#f3f5f8")
    ink = "#ffffff" if marked else "#1d2733"
    round_ = shape.h / 2 if shape.label == "+" else 5
    return (
        f'<rect x="{shape.x}" y="{shape.y}" width="{shape.w}" height="{shape.h}" rx="{round_:g}"'
        f' fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
        f'<text x="{shape.x + shape.w / 2:g}" y="{shape.y + shape.h / 2 + 4.5:g}" text-anchor="middle" fill="{ink}">'
        f"{shape.label}</text>"
    )


def _badges(shape: _Shape, marked: list[tuple[int, str]]) -> str:
    """Numbers on the upper edge, the last one at the right corner."""
    return "".join(
        _badge(shape.x + shape.w - 6 - 20 * place, shape.y, number, colour)
        for place, (number, colour) in enumerate(reversed(marked))
    )


def _badge(x: float, y: float, number: int, colour: str) -> str:
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="9.5" fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle" font-size="11" font-weight="600" fill="{colour}">'
        f"{number}</text>"
    )


def _line_of_key(number: int, group: _Group) -> str:
    y = _TOP_OF_KEY + 26 * (number - 1) + 8
    places = [place.removeprefix("blocks.*.") if place != "blocks.*" else "the block" for place in group.places]
    said = f"{_SAYS[group.verb]} {', '.join(places)}"
    if group.layer:
        said += f": {group.layer}"
    if group.blocks:
        said += f"; in {len(group.blocks)} block{'s' * (len(group.blocks) != 1)}"
    if group.parameters:
        said += f"; {group.parameters:,} trained"
    size = 13 if len(said) <= 118 else 11
    if len(said) > 140:
        said = said[:136].rsplit(" ", 1)[0] + " ..."
    return (
        _badge(34, y, number, _COLOURS[group.verb])
        + f'<text x="54" y="{y + 4.5:g}" font-size="{size}" fill="#1d2733">{escape(said)}</text>'
    )
