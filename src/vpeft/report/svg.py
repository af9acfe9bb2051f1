"""Pictures of a page: matplotlib's SVG as an element that takes the page's font and colours."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Colours of the picture on paper; in a page each becomes the variable of the same name, so that it follows the theme.
# The values are chosen to be told apart by a colour-blind eye and in print.
COLOURS = {
    "--ink": "#1c2430",
    "--faint": "#687385",
    "--line": "#dfe4ea",
    "--accent": "#0b6bcb",
    "--front": "#c2410c",
    "--paper": "#ffffff",
}


def style(more: Mapping[str, str] | None = None) -> Any:
    """matplotlib's settings for all pictures of a report."""
    # Any: matplotlib's stubs list every key, and this is a plain mapping of a few.
    return {
        **(more or {}),
        "text.parse_math": False,  # a name with dollar signs is a name, and no formula
        "font.size": 10,
        "font.family": "sans-serif",
        "axes.edgecolor": COLOURS["--line"],
        "axes.labelcolor": COLOURS["--faint"],
        "text.color": COLOURS["--ink"],
        "xtick.color": COLOURS["--line"],
        "ytick.color": COLOURS["--line"],
        "xtick.labelcolor": COLOURS["--faint"],
        "ytick.labelcolor": COLOURS["--faint"],
    }


def svg_style(name: str) -> Any:
    """`style`, with text as text, and ids that depend on `name` alone."""
    return style({"svg.fonttype": "none", "svg.hashsalt": f"vpeft {name}"})


def svg_of(figure: Figure, name: str, what: str) -> str:
    """A figure as an SVG element; `name` keeps the ids of several apart, `what` is read to those who cannot see it."""
    with matplotlib.rc_context(svg_style(name)):
        stream = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(stream.getvalue(), what)


def _for_a_page(svg: str, what: str) -> str:
    """Only the element, scaled by the page, in the page's font and in its colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(what)}" ', 1)
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", lambda match: f"font: {match[1]}var(--font)", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    return svg
