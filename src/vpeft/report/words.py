"""Numbers as people read them. An absent number is a dash, never a zero."""

from __future__ import annotations

import math

DASH = "–"


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
