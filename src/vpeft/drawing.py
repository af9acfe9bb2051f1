"""Predictions drawn on their images: boxes, masks and names, class maps, depth; and panels of them beside the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

if TYPE_CHECKING:
    from .data.preprocessing import Preprocessing
    from .task import DetectedObjects, Prediction

# How strongly masks and class maps cover the image.
COVER = 0.55
# The class number of pixels that do not count.
IGNORED = 255
# Steps of the hue between one class and the next: the golden ratio keeps any number of them apart.
GOLDEN = 0.618034
# Sides of the images of a panel, in pixels, and how many samples it shows.
CELL, MARGIN, CAPTION = 256, 8, 22
SAMPLES = 6
# Depths are drawn between these shares of a map's values, so that single odd ones do not use up the colours.
DEPTH_SHARES = (0.02, 0.98)


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class, the same in every picture; neighbours in number differ most."""
    value = 1.0 if number % 3 else 0.8
    red, green, blue = colorsys.hsv_to_rgb((number * GOLDEN) % 1.0, 0.85 - 0.25 * (number % 2), value)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn(image: Tensor, prediction: Prediction, labels: Sequence[str] = ()) -> Image.Image:
    """An image with what is predicted of it.

    Args:
        image: uint8 (3, H, W), of the size that the prediction is of; for a map of any size, to which that is brought.
        prediction: with objects, a map, or pictures, which are then beside the image.
        labels: names of the classes, for the legend of a class map.
    """
    if prediction.pictures:
        beside = [(shows, picture_of(made)) for shows, made in prediction.pictures.items()]
        return panel(
            [("", [picture_of(image), *(picture for _, picture in beside)])], ["image", *(shows for shows, _ in beside)]
        )
    if prediction.objects is not None:
        return picture_of(with_objects(image, prediction.objects))
    found = prediction.map
    if found is None:
        return picture_of(image)
    if found.is_floating_point():
        return depth_picture(found)
    return _with_legend(with_classes(image, found), found, labels)


def with_objects(image: Tensor, objects: DetectedObjects) -> Tensor:
    """The image uint8 (3, H, W) with the masks, boxes, names and scores of those objects that are sure enough."""
    objects = objects.first(objects.sure)
    if not objects.sure:
        return image
    colours = [colour(int(number)) for number in objects.numbers]
    masks = objects.masks
    if masks is not None:
        # Where masks overlap the surest object has the pixel; torchvision would paint it black.
        image = draw_segmentation_masks(image, masks & (masks.cumsum(0) == 1), alpha=COVER, colors=colours)
    certain = bool((objects.scores == 1).all())  # the truth
    words = [
        _plain(name) if certain else f"{_plain(name)} {score:.0%}"
        for name, score in zip(objects.labels, objects.scores.tolist(), strict=True)
    ]
    height, width = image.shape[-2:]
    limits = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    boxes = objects.boxes.clamp(min=0).minimum(limits.to(objects.boxes))
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])], dim=1)
    lines = max(1, round(max(height, width) / 300))
    made: Tensor = draw_bounding_boxes(image, boxes, colors=colours, width=lines)
    return _lettered(made, boxes, words, colours)


def _lettered(image: Tensor, boxes: Tensor, words: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> Tensor:
    """The words at the upper left corners of boxes, in any script that Pillow's own font has."""
    picture = picture_of(image)
    pen, font = ImageDraw.Draw(picture), _font(max(9, min(picture.size) // 24))
    for (left, top, _, _), text, paint in zip(boxes.tolist(), words, colours, strict=True):
        across, down = pen.textbbox((0, 0), text, font=font)[2:]
        x = max(0.0, min(left, picture.width - across - 2))
        y = top - down - 2 if top >= down + 2 else top
        pen.rectangle((x, y, x + across + 2, y + down + 2), fill=paint)
        pen.text((x + 1, y + 1), text, fill=_readable_on(paint), font=font)
    return _pixels(picture)


def with_classes(image: Tensor, numbers: Tensor) -> Tensor:
    """The image uint8 (3, H, W) under the colours of a class map (h, w), brought to the map's size."""
    image = resized(image, (int(numbers.shape[0]), int(numbers.shape[1])))
    made = image
    for number in torch.unique(numbers).tolist():
        if number != IGNORED:
            made = draw_segmentation_masks(made, numbers == number, alpha=COVER, colors=[colour(number)])
    return made


def index_picture(numbers: Tensor) -> Image.Image:
    """A class map (H, W) as a picture of class numbers, with a palette: programs read numbers, people see colours.

    Numbers above 255 make it one of 16 bits without colours.
    """
    if int(numbers.max()) > IGNORED:
        return Image.fromarray(numbers.numpy().astype("uint16"))
    picture = Image.fromarray(numbers.to(torch.uint8).numpy())
    picture.putpalette([part for number in range(IGNORED) for part in colour(number)] + [0, 0, 0])
    return picture


def depth_picture(depth: Tensor) -> Image.Image:
    """A depth map (H, W) in colours, near is bright; black where it is not known."""
    from matplotlib import colormaps

    known = torch.isfinite(depth) & (depth > 0)
    values = depth[known]
    if not len(values):
        return Image.new("RGB", (int(depth.shape[1]), int(depth.shape[0])))
    near, far = torch.quantile(values.float()[:: max(1, len(values) // 1_000_000)], torch.tensor(DEPTH_SHARES)).tolist()
    share = ((depth - near) / max(far - near, 1e-9)).clamp(0, 1).nan_to_num(1)
    painted = (colormaps["magma_r"](share.numpy())[..., :3] * 255).round().astype("uint8")
    painted[~known.numpy()] = 0
    return Image.fromarray(painted)


def plain_image(pixels: Tensor, preprocessing: Preprocessing, target: Any = None) -> Tensor:
    """A normalised image (C, H, W) as the picture uint8 (3, H, W) that it was; without its bars, in its own size.

    Args:
        pixels: as a model is given it.
        preprocessing: how it was normalised.
        target: of the sample; where it states `size` and `original`, bars are cut off and the size is undone.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    shown = (pixels.float() * std + mean).clamp(0, 1)
    shown = shown.expand(3, -1, -1) if len(shown) == 1 else shown[:3] if len(shown) > 2 else shown[:1].expand(3, -1, -1)
    made = (shown * 255).round().byte()
    if isinstance(target, Mapping) and "size" in target and "original" in target:
        height, width = (int(side) for side in target["size"])
        made = resized(made[:, :height, :width], (int(target["original"][0]), int(target["original"][1])))
    return made


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image uint8 (3, H, W) at another size."""
    if tuple(image.shape[-2:]) == size:
        return image
    made = functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return made.round().clamp(0, 255).byte()


def panel(rows: Sequence[tuple[str, Sequence[Image.Image]]], titles: Sequence[str]) -> Image.Image:
    """Pictures in rows, each with its name, under the titles of the columns."""
    width = MARGIN + len(titles) * (CELL + MARGIN)
    made = Image.new("RGB", (width, CAPTION + len(rows) * (CELL + CAPTION)), "white")
    pen, font = ImageDraw.Draw(made), _font(13)
    for column, title in enumerate(titles):
        pen.text((MARGIN + column * (CELL + MARGIN), 3), title, fill="black", font=font)
    for number, (name, pictures) in enumerate(rows):
        top = CAPTION + number * (CELL + CAPTION)
        for column, picture in enumerate(pictures):
            share = CELL / max(picture.size)
            size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
            made.paste(picture.resize(size), (MARGIN + column * (CELL + MARGIN), top))
        pen.text((MARGIN, top + CELL + 2), _plain(name)[-60:], fill="black", font=font)
    return made


def _with_legend(image: Tensor, numbers: Tensor, labels: Sequence[str]) -> Image.Image:
    """The picture with the names and colours of the classes that are in a map, below it."""
    picture = picture_of(image)
    there = [number for number in torch.unique(numbers).tolist() if number < len(labels)]
    if not there:
        return picture
    font = _font(12)
    made = Image.new("RGB", (picture.width, picture.height + 16 * len(there) + 4), "white")
    made.paste(picture, (0, 0))
    pen = ImageDraw.Draw(made)
    for place, number in enumerate(there):
        top = picture.height + 3 + 16 * place
        pen.rectangle((4, top, 16, top + 12), fill=colour(number))
        pen.text((20, top - 1), _plain(labels[number]), fill="black", font=font)
    return made


def _plain(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def _readable_on(paint: tuple[int, int, int]) -> str:
    return "black" if 0.3 * paint[0] + 0.6 * paint[1] + 0.1 * paint[2] > 128 else "white"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def picture_of(image: Tensor) -> Image.Image:
    """An image uint8 (3, H, W) for Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _pixels(picture: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.reshape(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()
