"""NYUD_MT: the 1,449 labelled images of NYUDv2 with classes, depth, normals and edges, as multi-task papers use them.

There is no test split: papers report the validation split.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.mapped_picture import RenumberedMask
from vpeft.data.on_pixels import IGNORED, OnPixels
from vpeft.data.pixel_maps import BinaryMap
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.depth import DepthMap
from vpeft.data.targets.mask import Mask
from vpeft.data.targets.normals import NormalMap

_SPLITS: tuple[SplitName, ...] = ("train", "val")
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard"),
    *("person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture"),
    "other prop",
)
_LABELS = {"mask": CLASSES, "depth": ("depth",), "normals": ("x", "y", "z"), "edges": ("edge",)}
# 0 is void, and n is class n - 1.
_REDUCED = (IGNORED, *range(255))


@source
class NyudMt:
    """Each kind of map by itself; `mask+depth+normals+edges` reads several. Depth is in metres."""

    name = "nyud-mt"
    title = "NYUD_MT: images, gt_sets, segmentation, depth, normals, edge"
    targets = tuple(_LABELS)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = (root / "gt_sets").is_dir() and (root / "images").is_dir()
        return Claim.FORMAT if there and config.target in self.targets else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.", labels=list(config.label_names or _LABELS[config.target]))
        for split in _SPLITS:
            file = root / "gt_sets" / f"{split}.txt"
            for stem in (line.strip() for line in read_lines(file)) if file.is_file() else ():
                if stem:
                    image = FilePicture(root / "images" / f"{stem}.jpg")
                    listing.add(split, Item(f"images/{stem}.jpg", "", image, _target(root, stem, config)))
        return listing


def _target(root: Path, stem: str, config: DataConfig) -> OnPixels:
    if config.target == "depth":
        return DepthMap(FilePicture(root / "depth" / f"{stem}.npy"), config.depth_scale)
    if config.target == "normals":
        return NormalMap(FilePicture(root / "normals" / f"{stem}.npy"))
    if config.target == "edges":
        return BinaryMap(FilePicture(root / "edge" / f"{stem}.npy"))
    return Mask(RenumberedMask(FilePicture(root / "segmentation" / f"{stem}.png"), _REDUCED))
