"""Numbers as people read them. An absent number is a dash, never a zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vpeft.bench.record import title_of

DASH = "–"


@dataclass(frozen=True)
class Measure:
    """The leading metric of a board: its name, its direction, and how its values are written.

    A `share` (all values from 0 to 1, higher is better) is written in per cent, anything else as the plain number.
    """

    name: str = ""
    higher_is_better: bool = True
    share: bool = True

    @property
    def title(self) -> str:
        """As in a heading: "top-1"."""
        return title_of(self.name) or "score"

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def unit(self) -> str:
        """What follows the title on an axis."""
        return " (%)" if self.share else ""

    @property
    def factor(self) -> float:
        """What a value is multiplied with before it is drawn or written."""
        return 100.0 if self.share else 1.0

    def number(self, value: float | None, digits: int = 1) -> str:
        """A value; `digits` after the point of a percentage."""
        return percent(value, digits) if self.share else DASH if value is None else f"{value:.4g}"

    def spread(self, value: float | None, digits: int = 1) -> str:
        """A standard deviation, or nothing where one seed has none."""
        if self.share:
            return spread(value, digits)
        return "" if value is None or math.isnan(value) else f"± {value:.2g}"

    def signed(self, value: float | None, digits: int = 1) -> str:
        """A difference, with a real minus."""
        if self.share:
            return signed(value, digits)
        return DASH if value is None else f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """0.8714 as 87.1."""
    return DASH if share is None else f"{100 * share:.{digits}f}"


def spread(share: float | None, digits: int = 1) -> str:
    """A standard deviation, or nothing where one seed has none."""
    return "" if share is None or math.isnan(share) else f"± {100 * share:.{digits}f}"


def count(number: int | None) -> str:
    """294912 as 295 k, 1234567 as 1.23 M."""
    if number is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{three_digits(number / size)} {unit}"
    return str(number)


def size(number: int | None) -> str:
    """Bytes: 51752 as 51.8 kB."""
    if number is None:
        return DASH
    for large, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= large:
            return f"{three_digits(number / large)} {unit}"
    return f"{number} B"


def seconds(number: float | None) -> str:
    """0.0123 as 12.3 ms, 75 as 75.0 s, 7300 as 2 h 2 min."""
    if number is None:
        return DASH
    if number < 1:
        return f"{three_digits(1000 * number)} ms"
    if number < 100:
        return f"{three_digits(number)} s"
    minutes = round(number / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def signed(share: float | None, digits: int = 1) -> str:
    """-0.0124 as −1.2, with a real minus."""
    return DASH if share is None else f"{100 * share:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def three_digits(number: float) -> str:
    """12.345 as 12.3, 1.2345 as 1.23, 123.4 as 123."""
    return f"{number:.{max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0}f}"
