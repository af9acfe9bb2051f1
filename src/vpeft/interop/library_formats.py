"""The list of the libraries' forms, by the name of the library that a backbone's description states."""

from __future__ import annotations

from .library_format import CannotExport, LibraryFormat
from .open_clip_format import OpenClipFormat
from .timm_format import TimmFormat
from .torchvision_format import TorchvisionFormat
from .transformers_format import TransformersFormat

FORMATS: dict[str, LibraryFormat] = {
    one.library: one for one in (TimmFormat(), TransformersFormat(), TorchvisionFormat(), OpenClipFormat())
}


def format_of(library: str) -> LibraryFormat:
    """The form of a library.

    Raises:
        CannotExport: the backbone is of none of these libraries.
    """
    if library not in FORMATS:
        raise CannotExport(
            f"The backbone is of {library!r}, which has no file format of its own that vpeft writes. It writes those of"
            f" {', '.join(FORMATS)}. Merge it in Python (tuned.merge()) and save tuned.backbone.state_dict()."
        )
    return FORMATS[library]
