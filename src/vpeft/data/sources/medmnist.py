"""Files of MedMNIST (Yang et al., Scientific Data 2023, arXiv 2110.14795): one .npz with three splits of small images.

A file `pathmnist.npz`, or `pathmnist_64.npz` of a larger size, holds `train_images` (N, H, W) or (N, H, W, 3) and
`train_labels` (N, 1), and the same of val and test. Its name says which set it is, and so the names of the classes.
Labels of `chestmnist` are 0 and 1 (N, 14): `--task multilabel`. Those of `retinamnist` are five grades in order:
classification, or `--task "regression(ordinal=true)"`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.numpy_pair import NumpyPair
from vpeft.data.sources.registry import Claim, source

_ARRAYS = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))
_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
# Names of the classes in the order of their numbers, as the authors' package states them (medmnist 3.0.2).
CLASSES: dict[str, tuple[str, ...]] = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal, benign"),
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
}


@source
class MedMNIST:
    """Six arrays in one file; a file of another name in the same layout is read with `layout = "medmnist"`."""

    name = "medmnist"
    targets = ("label", "labels", "values")
    title = "MedMNIST: an .npz of that name with train_images, train_labels, val_... and test_..."

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        known = _set_of(path) in CLASSES and set(_ARRAYS) <= set(_arrays_in(path))
        return Claim.FORMAT if known else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        missing = [name for name in _ARRAYS if name not in _arrays_in(path)]
        if missing:
            raise DataError(f"{path} is no file of MedMNIST: it has no {', '.join(missing)}. Expected: {self.title}.")
        _require_images(path)
        names = CLASSES.get(_set_of(path), ()) if config.target != "values" else ()
        if names and not config.label_names:
            config = config.model_copy(update={"label_names": names})
        return NumpyPair().read(config)


def _set_of(path: Path) -> str:
    """The set that a file name says, without the size of its images."""
    return path.stem.lower().partition("_")[0]


def _arrays_in(path: Path) -> list[str]:
    """Names of the arrays in an .npz, none where the file is something else."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return []


def _require_images(path: Path) -> None:
    """Refuse the sets of volumes (N, D, H, W), told by the header alone.

    Raises:
        DataError: the arrays are no images, or the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("train_images.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = read(file)[0]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(shape) == 5 or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(
            f"{path} holds volumes, {shape}; vpeft reads images. Save the slices that matter as images (N, H, W)."
        )
