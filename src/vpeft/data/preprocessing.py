"""From a picture to the tensor that a backbone was trained on, as the backbone's own configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from vpeft.data.augmentation import policy_named
from vpeft.data.problems import DataError

Resize = Literal["shorter", "squash", "longer"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

# timm's names for the ways of resizing, and ours. "shorter" may cut off parts of the image, "squash" changes its aspect
# ratio, "longer" adds bars in the mean colour.
_MODES: dict[str, Resize] = {"center": "shorter", "squash": "squash", "border": "longer"}


# PIL's numbers for them, as transformers writes them.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}


class Preprocessing(BaseModel):
    """Size (H, W) in pixels, how to reach it, and the normalisation (of values from 0 to 1) per channel.

    The image is first brought to size / crop_pct, rounded down, and its centre of that size is kept: with "shorter" its
    shorter side is matched, with "longer" its longer side, with "squash" both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = (224, 224)
    resize: Resize = "shorter"
    interpolation: Interpolation = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    # ImageNet's statistics, the default of timm too.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_model(cls, model: nn.Module) -> Self:
        """What `model` states about itself: timm's `pretrained_cfg`, or the image processor of a transformers
        checkpoint, with the size that the model was built for.

        A model that states nothing gets the defaults above. Raises `DataError` for one that does not take RGB.
        """
        stated = getattr(model, "pretrained_cfg", None)
        settings, processor = getattr(model, "config", None), getattr(model, "preprocessor_config", None)
        if settings is not None or processor:
            return cls.from_processor(processor or {}, settings)
        if not stated:
            return cls.from_attributes(model)
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        channels, height, width = config["input_size"]
        if channels != 3 or len(config["mean"]) != 3:
            raise DataError(f"The backbone takes images of {channels} channels; vpeft gives three (RGB).")
        # A model built with img_size=... keeps its origin's input_size in pretrained_cfg.
        built = getattr(getattr(model, "patch_embed", None), "img_size", None)
        size = (int(built[0]), int(built[1])) if isinstance(built, (tuple, list)) else (int(height), int(width))
        return cls(
            size=size,
            resize=_MODES[config["crop_mode"]],
            # "random" is for training only; bilinear is one of the two that it draws from.
            interpolation="bilinear" if config["interpolation"] == "random" else config["interpolation"],
            crop_pct=config["crop_pct"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    @classmethod
    def from_attributes(cls, model: nn.Module) -> Self:
        """What a model without a configuration says in attributes: open_clip's `preprocess_cfg`, an `image_size`."""
        told: Mapping[str, Any] = getattr(model, "preprocess_cfg", None) or {}
        side = told.get("size") or getattr(model, "image_size", None) or 224
        size = (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))
        if not told:
            return cls(size=size)
        how: dict[str, Resize] = {"longest": "longer", "squash": "squash"}
        return cls(
            size=size,
            resize=how.get(told.get("resize_mode", "shortest"), "shorter"),
            interpolation=told.get("interpolation", "bicubic"),
            crop_pct=1.0,
            mean=tuple(told["mean"]),
            std=tuple(told["std"]),
        )

    @classmethod
    def from_processor(cls, stated: Mapping[str, Any], config: object = None) -> Self:
        """What a transformers image processor states (`preprocessor_config.json`), at the size that `config` asks for.

        Sizes are a height and width, to which images are squashed, or a shortest edge, with a crop of its centre
        (ConvNeXt calls it `crop_pct`). What is not stated is as in transformers' ViT. Raises `DataError` for a
        processor that does not take RGB.
        """
        size, crop = stated.get("size") or {}, stated.get("crop_size") or {}
        size = {"height": size, "width": size} if isinstance(size, int) else size
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        built = getattr(config, "image_size", None) or size.get("height") or size.get("shortest_edge") or 224
        final = (int(built), int(built)) if isinstance(built, int) else (int(built[-2]), int(built[-1]))
        mean, std = stated.get("image_mean", (0.5, 0.5, 0.5)), stated.get("image_std", (0.5, 0.5, 0.5))
        if not stated.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if len(mean) != 3 or len(std) != 3:
            raise DataError(f"The backbone takes images of {len(mean)} channels; vpeft gives three (RGB).")
        edge, share = size.get("shortest_edge"), stated.get("crop_pct")
        if stated.get("do_center_crop") and crop and edge:
            share = min(1.0, crop["height"] / edge)
        elif edge is None or (edge >= 384 and share is not None):  # transformers' ConvNeXt squashes large images
            edge, share = None, None
        return cls(
            size=final,
            resize="squash" if edge is None else "shorter",
            interpolation=_RESAMPLE[int(stated.get("resample", 2))],
            crop_pct=share or 1.0,
            mean=tuple(mean),
            std=tuple(std),
        )

    def resized(self, size: int | tuple[int, int]) -> Self:
        """The same at another size: (H, W), or the side of a square."""
        return self.model_copy(update={"size": (size, size) if isinstance(size, int) else size})

    @property
    def scaled(self) -> tuple[int, int]:
        """The size (H, W) before the centre crop."""
        return floor(self.size[0] / self.crop_pct), floor(self.size[1] / self.crop_pct)

    @property
    def mode(self) -> InterpolationMode:
        """The interpolation as torchvision names it."""
        return InterpolationMode(self.interpolation)

    @property
    def mode_of_warps(self) -> InterpolationMode:
        """The nearest that rotations and shears know: they have no lanczos, box or hamming."""
        known = (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
        return self.mode if self.mode in known else InterpolationMode.BICUBIC

    def transform(self) -> v2.Compose:
        """PIL image, or uint8 tensor (3, H, W), -> float tensor (3, size): for validation, test and prediction."""
        return v2.Compose([AsPicture(), *self.fitted(), *self.normalised()])

    def augmented(self, policy: str) -> v2.Compose:
        """The same for training, through the named augmentation policy; raises `UnknownPolicy`."""
        return v2.Compose([AsPicture(), *policy_named(policy)(self), *self.normalised()])

    def fitted(self) -> list[nn.Module]:
        """Steps from a PIL image of any size to one of `size`."""
        return [
            ResizeTo(self.scaled, self.resize, self.mode),
            CropTo(self.size, tuple(round(255 * v) for v in self.mean)),
        ]

    def normalised(self) -> list[nn.Module]:
        """Steps from a PIL image to the normalised tensor."""
        return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]


class AsPicture(nn.Module):
    """A uint8 tensor (3, H, W) becomes a PIL image, so that both are resized by the same code, with the same result."""

    def forward(self, image: Any) -> Any:
        if not isinstance(image, Tensor):
            return image
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise DataError(
                f"Preprocessing takes PIL images or uint8 tensors (3, H, W), not {image.dtype} {tuple(image.shape)}."
            )
        return functional.to_pil_image(image)


class ResizeTo(nn.Module):
    """Bring a PIL image to `size` (H, W): both sides ("squash"), or keep its aspect ratio and match one side."""

    def __init__(self, size: tuple[int, int], how: str, mode: InterpolationMode) -> None:
        super().__init__()
        self.size, self.how, self.mode = size, how, mode

    def forward(self, image: Any) -> Any:
        return functional.resize(image, list(self.target(image.height, image.width)), self.mode)

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


class CropTo(nn.Module):
    """The centre of a PIL image, (H, W) pixels; where it is too small, bars of `fill` are added first."""

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, image: Any) -> Any:
        down, across = self.size[0] - image.height, self.size[1] - image.width
        if down > 0 or across > 0:
            down, across = max(down, 0), max(across, 0)
            # Left, top, right, bottom; the odd pixel as torchvision and timm place it.
            bars = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
            image = functional.pad(image, bars, fill=list(self.fill))
        return functional.center_crop(image, list(self.size))
