"""The libraries' forms, by the name of the library that a description states: each file NAME_format.py holds one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from .library_format import CannotExport, LibraryFormat


@cache
def all_library_formats() -> dict[str, LibraryFormat]:
    """The form of each library; it imports the files of this folder that end in `_format`."""
    package = importlib.import_module(__package__ or "vpeft.interop")
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.endswith("_format"):
            importlib.import_module(f"{package.__name__}.{found.name}")
    made = [kind() for kind in LibraryFormat.__subclasses__()]
    return {one.library: one for one in sorted(made, key=lambda one: one.library)}


def format_of(library: str) -> LibraryFormat:
    """The form of a library.

    Raises:
        CannotExport: the backbone is of none of these libraries.
    """
    formats = all_library_formats()
    if library not in formats:
        raise CannotExport(
            f"The backbone is of {library!r}, which has no file format of its own that vpeft writes. It writes those of"
            f" {', '.join(formats)}. Merge it in Python (tuned.merge()) and save tuned.backbone.state_dict()."
        )
    return formats[library]
