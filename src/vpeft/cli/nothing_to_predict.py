"""The error of `vpeft predict` where there is nothing to say, draw or write."""

from __future__ import annotations

from vpeft.errors import VpeftError


class NothingToPredict(VpeftError):
    """No image could be read, or the task does not predict what is asked for."""
