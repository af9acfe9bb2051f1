"""Pascal VOC: Annotations/*.xml with boxes, JPEGImages, ImageSets with the splits, SegmentationClass with masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from vpeft.data.annotations import corners_of, read_lines
from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, is_image_name, readable
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.objects import Objects, PixelsWithNumber
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.mask import Mask
from vpeft.guarded import MEBI, read_bytes

# The classes of SegmentationClass, of the number 0 on.
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS: tuple[tuple[str, SplitName], ...] = (("train", "train"), ("val", "val"), ("test", "test"))


@source
class PascalVoc:
    """A folder of one year, or one that holds several (VOC2007, VOC2012), whose images are then taken together.

    Boxes count pixels from 1 and include their last one: xmin 1 and xmax 5 cover the pixels from 0 up to 5. A difficult
    object is a crowd, which neither training nor a score counts. Where there is SegmentationObject, its number n is the
    mask of the n-th object.
    """

    name = "voc"
    title = "Pascal VOC: a folder with Annotations/*.xml and JPEGImages, and ImageSets where there are splits"
    targets = ("objects", "mask")

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        years = _years(root) if root.is_dir() else []
        if config.target == "mask":
            return Claim.FORMAT if any((year / "SegmentationClass").is_dir() for year in years) else Claim.NONE
        return Claim.FORMAT if years else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        for year in _years(root):
            for split, stem in _stems(year, "Segmentation" if config.target == "mask" else "Main", config.target):
                image = _image(year, stem)
                name = readable(image.relative_to(root).as_posix())
                if config.target == "mask":
                    mask = year / "SegmentationClass" / f"{stem}.png"
                    listing.add(split, Item(name, "", FilePicture(image), Mask(FilePicture(mask))))
                    continue
                file = year / "Annotations" / f"{stem}.xml"
                if not file.is_file():
                    listing.problems.add("unlabelled", name, f"there is no {stem}.xml")
                    continue
                shapes = year / "SegmentationObject" / f"{stem}.png"
                listing.add(split, Item(name, "", FilePicture(image), _objects(file, shapes, config)))
        if config.target == "mask":
            listing.labels = config.label_names or CLASSES
        return listing


def _years(root: Path) -> list[Path]:
    """The folder itself, or the years in it."""
    if (root / "Annotations").is_dir() and any((root / "Annotations").glob("*.xml")):
        return [root]
    inner = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    return sorted(one.parent for one in inner.glob("VOC*/Annotations") if one.is_dir())


def _stems(year: Path, kind: str, target: str) -> Iterator[tuple[SplitName | None, str]]:
    """The names of the images with their splits: train, val and test, or trainval to train where one of two lacks."""
    folder = year / "ImageSets" / kind
    lists: list[tuple[Path, SplitName]] = [(folder / f"{word}.txt", split) for word, split in _LISTS]
    if not (lists[0][0].is_file() and lists[1][0].is_file()) and (folder / "trainval.txt").is_file():
        lists = [(folder / "trainval.txt", "train"), lists[2]]
    there = [(file, split) for file, split in lists if file.is_file()]
    for file, split in there:
        for line in read_lines(file):
            yield split, line.split()[0]
    if there:
        return
    annotated = year / ("SegmentationClass" if target == "mask" else "Annotations")
    for file in files_below(annotated).files:
        if file.suffix.lower() in (".png", ".xml"):
            yield None, file.stem


def _image(year: Path, stem: str) -> Path:
    """The image of a name; JPEG where there is none, which the check of the images then misses."""
    for folder in (year / "JPEGImages", year / "images", year):
        usual = folder / f"{stem}.jpg"
        if usual.is_file():
            return usual
        found = next((one for one in sorted(folder.glob(f"{_plain(stem)}.*")) if is_image_name(one)), None)
        if found is not None:
            return found
    return year / "JPEGImages" / f"{stem}.jpg"


def _plain(stem: str) -> str:
    """A name whose brackets and stars a pattern takes as they are."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def _objects(file: Path, shapes: Path, config: DataConfig) -> Objects:
    """The objects in one XML file; raises `DataError` where it is none."""
    try:
        # The parser reads no other file, and expat limits what entities become.
        tree = ElementTree.fromstring(read_bytes(file, str(file), DataError, 64 * MEBI))
    except ElementTree.ParseError as error:
        raise DataError(f"{file} is not usable XML: {error}.") from None
    boxes, labels, difficult = [], [], []
    for one in tree.iter("object"):
        label = (one.findtext("name") or "").strip()
        box = one.find("bndbox")
        if not label or box is None:
            raise DataError(f"{file}: an object needs name and bndbox, and has {', '.join(part.tag for part in one)}.")
        numbers = [_number(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        form = config.box_format or "corners"
        numbers = [numbers[0] - 1, numbers[1] - 1, *numbers[2:]]
        boxes.append(corners_of(numbers, form))
        labels.append(label)
        difficult.append((one.findtext("difficult") or "0").strip() == "1")
    picture = FilePicture(shapes)
    masks = [PixelsWithNumber(picture, place + 1) for place in range(len(boxes))] if shapes.is_file() else None
    height, width = (_number(tree.findtext(f"size/{key}")) for key in ("height", "width"))
    size = (int(height), int(width)) if height > 0 and width > 0 else None  # some programs write 0
    return Objects.of(boxes, labels, crowd=difficult, shapes=masks, size=size)


def _number(text: str | None) -> float:
    """A number; NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
