"""The steps from an image of any size to one that a backbone takes, which do the same to a mask beside it.

Each step takes an image, or an image and a mask, and returns as much. Images are PIL pictures, or float tensors
(C, H, W) where they have other than three channels; masks are class numbers (H, W), never interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask, wrap

from vpeft.data.on_pixels import IGNORED
from vpeft.data.problems import DataError

Resize = Literal["shorter", "squash", "longer"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True)
class Fit:
    """The size (H, W) that a backbone takes and the way to it; see `Preprocessing`, whose fields these are."""

    size: tuple[int, int]
    resize: Resize
    interpolation: Interpolation
    crop_pct: float
    mean: tuple[float, ...]

    @property
    def scaled(self) -> tuple[int, int]:
        """The size (H, W) before the centre crop."""
        return floor(self.size[0] / self.crop_pct), floor(self.size[1] / self.crop_pct)

    @property
    def mode(self) -> InterpolationMode:
        """The interpolation as torchvision names it; tensors have no lanczos, box or hamming."""
        return InterpolationMode(self.interpolation) if len(self.mean) == 3 else self.mode_of_warps

    @property
    def mode_of_warps(self) -> InterpolationMode:
        """The nearest that rotations and shears know: they have no lanczos, box or hamming."""
        known = (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
        mode = InterpolationMode(self.interpolation)
        return mode if mode in known else InterpolationMode.BICUBIC

    @property
    def fill(self) -> tuple[float, ...]:
        """The mean colour, of which bars are: from 0 to 255 for pictures, from 0 to 1 for other channels."""
        return tuple(round(255 * value) for value in self.mean) if len(self.mean) == 3 else self.mean

    def resized(self, crop_pct: float | None = None) -> ResizeTo:
        """The step to the size before the crop."""
        chosen = self if crop_pct is None else replace(self, crop_pct=crop_pct)
        return ResizeTo(chosen.scaled, chosen.resize, chosen.mode)

    def steps(self) -> list[nn.Module]:
        """Steps from an image of any size to one of `size`."""
        resized = ResizeTo(self.scaled, self.resize, self.mode, keep=self.size)
        return [resized, CropTo(self.size, self.fill)]


class AsPicture(nn.Module):
    """A uint8 tensor (3, H, W) becomes a PIL image, so that both are resized by the same code, with the same result.

    With other than three channels an image has to be a float tensor (C, H, W) from 0 to 1, and stays one.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self._channels = channels

    @property
    def channels(self) -> int:
        """Of the images that pass."""
        return self._channels

    def forward(self, image: Any, mask: Any = None) -> Any:
        made = image if isinstance(image, Mask) else self._picture(image)
        return made if mask is None else (made, mask)

    def _picture(self, image: Any) -> Any:
        if self.channels != 3:
            if not isinstance(image, Tensor) or not image.is_floating_point() or image.shape[:-2] != (self.channels,):
                seen = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                raise DataError(
                    f"Preprocessing takes float tensors ({self.channels}, H, W) from 0 to 1 here, not {seen}. "
                    f"Images from `open_data` come so with channels = {self.channels}."
                )
            return image
        if not isinstance(image, Tensor):
            return image
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise DataError(
                f"Preprocessing takes PIL images or uint8 tensors (3, H, W), not {image.dtype} {tuple(image.shape)}."
            )
        return functional.to_pil_image(image)


class ResizeTo(nn.Module):
    """Bring an image to `size` (H, W): both sides ("squash"), or keep its aspect ratio and match one side.

    Where only the centre of size `keep` is wanted next, and a long narrow image would be enlarged to more than 16 times
    that, only the part that the centre needs is enlarged. So memory does not grow with the aspect ratio.
    """

    def __init__(
        self, size: tuple[int, int], how: str, mode: InterpolationMode, keep: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.size, self.how, self.mode, self.keep = size, how, mode, keep

    def forward(self, image: Any, mask: Any = None) -> Any:
        size = self.target(*height_and_width(image))
        if self.keep is not None and _much_larger(size, self.keep, height_and_width(image)):
            part = Part.of(size, self.keep, height_and_width(image))
            made = part.enlarged(image, self.mode)
            return made if mask is None else (made, part.enlarged(mask, self.mode))
        made = nearest_resized(image, size) if isinstance(image, Mask) else functional.resize(image, [*size], self.mode)
        return made if mask is None else (made, nearest_resized(mask, size))

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size (H, W) that an image of this height and width gets."""
        if self.how == "squash":
            return self.size
        if self.how == "shorter" and self.size[0] == self.size[1]:
            # torchvision's rule cuts the longer side off where timm's rule for the other cases rounds it.
            side = self.size[0]
            return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        ratios = (height / self.size[0], width / self.size[1])
        ratio = max(ratios) if self.how == "longer" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


# A resized image of more than so many times the pixels that are kept of it is not made; photographs stay below 1 : 16.
_EXCESS = 16


def _much_larger(size: tuple[int, int], keep: tuple[int, int], source: tuple[int, int]) -> bool:
    pixels = size[0] * size[1]
    return pixels > _EXCESS * keep[0] * keep[1] and pixels > source[0] * source[1]


@dataclass(frozen=True)
class Part:
    """The centre of a resized image that would be too large to make.

    Attributes:
        size: (H, W) of the part.
        box: left, top, right and bottom of what it shows, in pixels of the source.
        scale: pixels of the source for each pixel of the resized image, (down, across).
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    scale: tuple[float, float]

    @classmethod
    def of(cls, size: tuple[int, int], keep: tuple[int, int], source: tuple[int, int]) -> Part:
        """The part of an image of `source` (H, W), resized to `size`, whose centre of size `keep` is that of the whole.

        The part begins at an even pixel, so that the centre is rounded in the same way in both.
        """
        spans: list[tuple[int, float, float, float]] = []
        for whole, wanted, side in zip(size, keep, source, strict=True):
            left = max(0, (whole - wanted) // 4 * 2)
            scale = side / whole
            spans.append((whole - 2 * left, left * scale, (whole - left) * scale, scale))
        (height, top, bottom, down), (width, left_end, right, across) = spans
        return cls((height, width), (left_end, top, right, bottom), (down, across))

    def enlarged(self, image: Any, mode: InterpolationMode) -> Any:
        """The part of a picture, exact to rounding; of a mask, exact; of other channels, to half a pixel."""
        if not isinstance(image, Tensor):
            return self._enlarged_picture(image, Image.Resampling[mode.value.upper()])
        if isinstance(image, Mask):
            rows, columns = (
                ((torch.arange(count, dtype=torch.float64) + 0.5) * scale + start).floor().long().clamp(max=side - 1)
                for count, scale, start, side in zip(
                    self.size, self.scale, (self.box[1], self.box[0]), image.shape[-2:], strict=True
                )
            )
            return wrap(image.as_subclass(Tensor)[..., rows, :][..., columns], like=image)
        cuts: list[tuple[int, int, int, int]] = []
        rows_and_columns = zip(self._needed(*image.shape[-2:]), self.size, self.scale, self.box[1::-1], strict=True)
        for (start, stop), count, scale, first in rows_and_columns:
            cuts.append((start, stop, max(count, round((stop - start) / scale)), round((first - start) / scale)))
        (top, bottom, height, down), (left, right, width, across) = cuts
        made = functional.resize(image[..., top:bottom, left:right], [height, width], mode)
        return functional.crop(made, down, across, *self.size)

    def _enlarged_picture(self, image: Image.Image, filter: Image.Resampling) -> Image.Image:
        """As Pillow resizes the whole: across first, then down, with eight bits between."""
        (height, width), (left, top, right, bottom) = self.size, self.box
        (first, last), (start, stop) = self._needed(image.height, image.width)
        cut = image.crop((start, first, stop, last))
        wide = cut.resize((width, cut.height), filter, box=(left - start, 0, right - start, cut.height))
        return wide.resize((width, height), filter, box=(0, top - first, width, bottom - first))

    def _needed(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows and the columns of a source (height, width) that any filter reads for the part."""
        left, top, right, bottom = self.box
        margins = [ceil(4 * max(1.0, scale)) for scale in self.scale]
        return (
            (max(0, floor(top) - margins[0]), min(height, ceil(bottom) + margins[0])),
            (max(0, floor(left) - margins[1]), min(width, ceil(right) + margins[1])),
        )


class CropTo(nn.Module):
    """The centre of an image, (H, W) pixels; where it is too small, bars of `fill` are added first (255 in a mask)."""

    def __init__(self, size: tuple[int, int], fill: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, image: Any, mask: Any = None) -> Any:
        made = self._cropped(image)
        return made if mask is None else (made, self._cropped(mask))

    def _cropped(self, image: Any) -> Any:
        height, width = height_and_width(image)
        down, across = self.size[0] - height, self.size[1] - width
        if down > 0 or across > 0:
            down, across = max(down, 0), max(across, 0)
            # Left, top, right, bottom; the odd pixel as torchvision and timm place it.
            bars = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
            fill: Any = IGNORED if isinstance(image, Mask) else list(self.fill)
            image = functional.pad(image, bars, fill=fill)
        return functional.center_crop(image, list(self.size))


def height_and_width(image: Any) -> tuple[int, int]:
    """Of a PIL image, a tensor (C, H, W) or a mask (H, W)."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return image.height, image.width


def nearest_resized(mask: Tensor, size: tuple[int, int]) -> Mask:
    """A mask of another size, each pixel from the one whose centre is nearest (torchvision's is half a pixel off)."""
    plain = mask.as_subclass(Tensor).reshape(1, 1, *mask.shape[-2:])
    made = nn.functional.interpolate(plain.double(), size, mode="nearest-exact").to(mask.dtype)
    kept = wrap(made.reshape(*mask.shape[:-2], *size), like=mask)
    assert isinstance(kept, Mask)  # the other was one
    return kept
