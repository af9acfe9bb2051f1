"""Images with labels, values or masks: reading, splitting, checking and preprocessing.

    data = open_data(DataConfig(source="photos/")).prepared(Preprocessing.from_model(backbone))
    image, label = data.train[0]

The names below are imported on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpeft.data.augmentation import policies as policies
    from vpeft.data.config import DataConfig as DataConfig
    from vpeft.data.datasets import Datasets as Datasets
    from vpeft.data.datasets import open_data as open_data
    from vpeft.data.datasets import open_for_evaluation as open_for_evaluation
    from vpeft.data.export import export_folder as export_folder
    from vpeft.data.image_set import ArraySet as ArraySet
    from vpeft.data.image_set import ImageSet as ImageSet
    from vpeft.data.image_set import matched as matched
    from vpeft.data.images import find_images as find_images
    from vpeft.data.images import read_image as read_image
    from vpeft.data.manifest import DataManifest as DataManifest
    from vpeft.data.preprocessing import Preprocessing as Preprocessing
    from vpeft.data.problems import DataError as DataError
    from vpeft.data.problems import DataWarning as DataWarning

_HOMES = {
    "augmentation": ["policies"],
    "config": ["DataConfig"],
    "datasets": ["Datasets", "open_data", "open_for_evaluation"],
    "export": ["export_folder"],
    "image_set": ["ArraySet", "ImageSet", "matched"],
    "images": ["find_images", "read_image"],
    "manifest": ["DataManifest"],
    "preprocessing": ["Preprocessing"],
    "problems": ["DataError", "DataWarning"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
