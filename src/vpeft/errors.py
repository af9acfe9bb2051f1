"""Errors that a user can mend, and the sentences they are made of.

Every error says what was asked, what exists, and what to do. The command line prints a `VpeftError` as one message and
exits with 1; anything else is a bug of ours and exits with 2.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class VpeftError(Exception):
    """A mistake that the user can mend; the message says how."""


class MissingExtra(VpeftError):
    """An optional dependency is not installed."""


def nearest(word: str, options: Iterable[str], count: int = 3) -> str:
    """A sentence that offers the `options` most like `word`, or all of them when none is like it."""
    known = sorted(options)
    if not known:
        return "There are none to choose from."
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(name) for name in close)}?"
    shown = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
    return f"Choose one of: {shown}."


def need_extra(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtra` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtra(
            f'This needs {package}, which is not installed. Install it: pip install "vpeft[{extra}]"'
        ) from error
