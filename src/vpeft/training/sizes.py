"""Sizes of memory as text. This module imports nothing heavy."""

from __future__ import annotations

import re

from vpeft.errors import VpeftError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class BadSize(VpeftError):
    """The text is not a size of memory."""


def bytes_of(size: str) -> int:
    """Parse '8GB' (10^9 each), '8GiB' (2^30 each), '500 MB' or '123456'; return bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", size, re.IGNORECASE)
    if found is None or found[2].lower() not in _UNITS or float(found[1]) == 0:
        raise BadSize(f"{size!r} is not a size of memory. Write a number and a unit: 8GB, 7.5GiB, 900MB.")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def readable(count: float) -> str:
    """Format bytes: 512 B, 3.4 MiB, 1.2 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
