"""PASCAL_MT: PASCAL-Context with classes, human parts, saliency, normals and edges, as multi-task papers use it.

The archive is that of Maninis et al. (ASTMT, arXiv 1904.08918). Saliency and normals in it were predicted by other
models. There is no test split: papers report the validation split.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.matlab_maps import LabelEdges, LabelMap, NormalsWhere, PeopleParts
from vpeft.data.on_pixels import OnPixels
from vpeft.data.pixel_maps import BinaryMap
from vpeft.data.sources.registry import Claim, source
from vpeft.data.sources.voc import CLASSES
from vpeft.data.targets.mask import Mask
from vpeft.data.targets.normals import NormalMap

_SPLITS: tuple[SplitName, ...] = ("train", "val")
# Numbers of PASCAL-Context's 459 classes that NYUD's list of names has too, and tvmonitor: where normals count.
SURFACES = frozenset(
    (
        *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39),
        *(41, 43, 46, 49, 50, 51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83),
        *(84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146),
        *(150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216),
        *(219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263),
        *(269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310),
        *(314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374),
        *(379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429),
        *(430, 432, 440, 441, 442, 443, 444, 446, 454, 457),
    )
)
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_PERSON = 15
# The 24 parts that PASCAL-Parts marks of a person, as six.
_SIX = {
    1: ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"),
    2: ("neck", "torso"),
    3: ("luarm", "ruarm"),
    4: ("lhand", "llarm", "rhand", "rlarm"),
    5: ("luleg", "ruleg"),
    6: ("lfoot", "llleg", "rfoot", "rlleg"),
}
_NAMED = tuple(sorted((name, number) for number, names in _SIX.items() for name in names))
_LABELS = {"mask": CLASSES, "parts": PARTS, "saliency": ("salient",), "normals": ("x", "y", "z"), "edges": ("edge",)}


@source
class PascalMt:
    """Each kind of map by itself; `mask+parts+saliency+normals` reads several."""

    name = "pascal-mt"
    title = (
        "PASCAL_MT: JPEGImages, ImageSets/Context, semseg, human_parts, sal_distill, normals_distill, pascal-context"
    )
    targets = tuple(_LABELS)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = (root / "ImageSets" / "Context").is_dir() and (root / "JPEGImages").is_dir()
        return Claim.FORMAT if there and config.target in self.targets else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.", labels=list(config.label_names or _LABELS[config.target]))
        for split in _SPLITS:
            file = root / "ImageSets" / "Context" / f"{split}.txt"
            for stem in (line.strip() for line in read_lines(file)) if file.is_file() else ():
                if not stem:
                    continue
                image = root / "JPEGImages" / f"{stem}.jpg"
                found = _target(root, stem, image, config.target)
                listing.add(split, Item(f"JPEGImages/{stem}.jpg", "", FilePicture(image), found))
        return listing


def _target(root: Path, stem: str, image: Path, kind: str) -> OnPixels:
    labels = LabelMap(root / "pascal-context" / "trainval" / f"{stem}.mat")
    if kind == "parts":
        return Mask(PeopleParts(root / "human_parts" / f"{stem}.mat", image, _NAMED, _PERSON))
    if kind == "edges":
        return BinaryMap(LabelEdges(labels.file))
    if kind == "saliency":
        return BinaryMap(FilePicture(root / "sal_distill" / f"{stem}.png"))
    if kind == "normals":
        picture = FilePicture(root / "normals_distill" / f"{stem}.png")
        return NormalMap(NormalsWhere(picture, labels, SURFACES))
    first = root / "semseg" / "VOC12" / f"{stem}.png"
    return Mask(FilePicture(first if first.is_file() else root / "semseg" / "pascal-context" / f"{stem}.png"))
