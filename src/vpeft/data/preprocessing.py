"""Preprocessing: from an image to the tensor that a backbone was trained on, as the backbone's configuration states."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import v2

from vpeft.backbones.origin import origin_of
from vpeft.data.augmentation import policy_named
from vpeft.data.clips.clip_config import FRAMES, ClipConfig
from vpeft.data.clips.clip_steps import ClipTransform, InputLayout, SampleFrames, clip_fit, view_steps
from vpeft.data.config import DataConfig, Window
from vpeft.data.image_processors import any_size, complete, fields_of, of_family
from vpeft.data.images import read
from vpeft.data.pixels import MOST_CHANNELS, Reading
from vpeft.data.problems import DataWarning
from vpeft.data.steps import AsPicture as AsPicture
from vpeft.data.steps import CropTo as CropTo
from vpeft.data.steps import Fit, Interpolation, Resize
from vpeft.data.steps import ResizeTo as ResizeTo

Size = tuple[int, int]

# timm's names for the ways of resizing, and ours. "shorter" may cut off parts of the image, "squash" changes its aspect
# ratio, "longer" adds bars in the mean colour.
_MODES: dict[str, Resize] = {"center": "shorter", "squash": "squash", "border": "longer"}


class Preprocessing(BaseModel):
    """Size (H, W) in pixels, how it is reached, and the normalisation per channel (of values in [0, 1]).

    The image is resized to size / crop_pct, rounded down, and its centre of that size is cropped. "shorter" matches its
    shorter side, "longer" its longer side, "squash" both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = (224, 224)
    resize: Resize = "shorter"
    interpolation: Interpolation = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    # ImageNet's statistics, the default of timm too.
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), min_length=1, max_length=MOST_CHANNELS)
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), min_length=1, max_length=MOST_CHANNELS)
    # What is black and what is white in the files, see `DataConfig.window`.
    window: Window = "type"
    # Of a backbone for clips: which frames it is shown, and the axis of time in its batches, see `InputSpec.time_axis`.
    clip: ClipConfig | None = None
    time_axis: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _as_many_deviations_as_means(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; each channel needs one of both"
            )
        return self

    @model_serializer(mode="wrap")
    def _window_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated: dict[str, Any] = handler(self)
        if self.window == "type":  # as in every file that is older than the field
            stated.pop("window", None)
        if self.clip is None:
            stated.pop("clip", None)
            stated.pop("time_axis", None)
        return stated

    @classmethod
    def from_model(cls, model: nn.Module) -> Self:
        """Return the preprocessing that `model` states, with the size that the model was built for.

        It is timm's `pretrained_cfg`, or the image processor of a transformers checkpoint. A model that states none
        gets the defaults above. A transformers checkpoint without a processor gets that of its family, with a
        `DataWarning`.
        """
        found, origin = cls._stated_by(model), origin_of(model)
        return found if origin is None or origin.channels is None else found.with_channels(origin.channels)

    @classmethod
    def _stated_by(cls, model: nn.Module) -> Self:
        stated = getattr(model, "pretrained_cfg", None)
        settings, processor = getattr(model, "config", None), getattr(model, "preprocessor_config", None)
        if settings is not None or processor:
            return cls._from_checkpoint(model, settings, processor)
        if not stated:
            return cls.from_attributes(model)
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        channels, height, width = config["input_size"]
        # A model built with img_size=... keeps its origin's input_size in pretrained_cfg.
        built = getattr(getattr(model, "patch_embed", None), "img_size", None)
        size = (int(built[0]), int(built[1])) if isinstance(built, (tuple, list)) else (int(height), int(width))
        return cls(
            size=size,
            resize=_MODES[config["crop_mode"]],
            # "random" is for training only; bilinear is one of the two that it draws from.
            interpolation="bilinear" if config["interpolation"] == "random" else config["interpolation"],
            crop_pct=config["crop_pct"],
            mean=tuple(islice(cycle(config["mean"]), channels)),
            std=tuple(islice(cycle(config["std"]), channels)),
        )

    @classmethod
    def from_attributes(cls, model: nn.Module) -> Self:
        """Read attributes of a model without a configuration: open_clip's `preprocess_cfg`, an `image_size`."""
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
    def from_processor(cls, stated: Mapping[str, Any], config: object = None, size: Size | None = None) -> Self:
        """Return the preprocessing of a transformers image processor (`preprocessor_config.json`).

        Args:
            stated: its settings; if empty, those of transformers' ViT.
            config: of the model; its `image_size` is the size unless `size` is given.
            size: final size (H, W).

        Raises:
            DataError: it needs more channels than vpeft supports.
        """
        built: Any = getattr(config, "image_size", None)
        if size is None and built:
            size = (int(built), int(built)) if isinstance(built, int) else (int(built[-2]), int(built[-1]))
        return cls(**fields_of(complete(stated), size))

    @classmethod
    def _from_checkpoint(cls, model: nn.Module, settings: Any, processor: Mapping[str, Any] | None) -> Self:
        """Return that of a transformers model: its checkpoint's processor, or that of its family with a warning."""
        origin = origin_of(model)
        asked = None if origin is None else origin.image_size
        if processor:
            stated = dict(processor)
            free = any_size(model) and asked is None and ("size" in stated or "crop_size" in stated)
            return cls(**fields_of(complete(stated))) if free else cls.from_processor(stated, settings, asked)
        family = of_family(settings)
        if "preprocessor_config" in model.__dict__:
            name = getattr(settings, "_name_or_path", "")
            values = "those of its family" if family is not None else "mean and deviation 0.5"
            warnings.warn(
                f"The checkpoint {name} has no preprocessor_config.json; {values} are used. Add the file if the model"
                " was trained with other settings.",
                DataWarning,
                stacklevel=3,
            )
        built: Any = asked or getattr(settings, "image_size", None)
        if isinstance(built, int):
            built = (built, built)
        return cls(**fields_of(family or {}, None if built is None else (int(built[-2]), int(built[-1]))))

    def resized(self, size: int | tuple[int, int]) -> Self:
        """Return a copy with another size: (H, W), or the side of a square."""
        return self.model_copy(update={"size": (size, size) if isinstance(size, int) else size})

    def with_channels(self, channels: int) -> Self:
        """Return a copy for another number of channels; mean and deviation are repeated."""
        if channels == self.channels:
            return self
        mean, std = (tuple(islice(cycle(values), channels)) for values in (self.mean, self.std))
        return self.model_copy(update={"mean": mean, "std": std})

    def for_data(self, config: DataConfig) -> Self:
        """Return a copy with the size, channels and window of a data set's configuration."""
        chosen = self.resized(config.image_size) if config.image_size else self
        chosen = chosen.with_channels(config.channels) if config.channels else chosen
        chosen = chosen.with_clip(config.clip) if config.clip is not None else chosen
        return chosen if config.window == chosen.window else chosen.model_copy(update={"window": config.window})

    def with_clip(self, clip: ClipConfig, time_axis: Literal[1, 2] | None = None) -> Self:
        """Return a copy for clips: with what `clip` sets, otherwise what is there, and 16 frames by default."""
        merged = clip.over(self.clip)
        if merged.frames is None:
            merged = merged.model_copy(update={"frames": FRAMES})
        return self.model_copy(update={"clip": merged, "time_axis": time_axis or self.time_axis})

    @property
    def channels(self) -> int:
        """Number of channels; 3 is RGB."""
        return len(self.mean)

    @property
    def fit(self) -> Fit:
        """How images of any size get the size `size`."""
        return Fit(self.size, self.resize, self.interpolation, self.crop_pct, self.mean)

    @property
    def scaled(self) -> tuple[int, int]:
        """The size (H, W) before the centre crop."""
        return self.fit.scaled

    def reading(
        self, max_pixels: int | None = None, max_aspect: float | None = None, max_mib: int | None = None
    ) -> Reading:
        """How files are read before `transform`, and the largest that are read (see `Reading`)."""
        return Reading(self.channels, self.window, max_pixels, max_aspect, max_mib)

    def read(
        self,
        source: str | Path | bytes,
        max_pixels: int | None = None,
        max_aspect: float | None = None,
        max_mib: int | None = None,
    ) -> Image.Image | Tensor:
        """Read an image file for `transform`: RGB, or a float tensor (C, H, W) for other numbers of channels.

        Raises:
            UnreadableImage: the file is damaged, it exceeds a limit, or its channels do not fit.
        """
        return read(source, self.reading(max_pixels, max_aspect, max_mib))

    def transform(self) -> v2.Compose:
        """Return the transform for validation, test and prediction: an image -> float tensor (C, size).

        An image is a PIL image or a uint8 tensor (3, H, W), or a float tensor (C, H, W) for other numbers of channels.
        Called with an image and a mask (`torchvision.tv_tensors.Mask`), it returns both, the mask as int64 `size`.
        """
        if self.clip is not None:
            return self.view(0, 0)
        return v2.Compose([AsPicture(self.channels), *self.fit.steps(), *self.normalised()])

    def view(self, part: int, crop: int) -> v2.Compose:
        """Return the transform of one view of a clip in tests: a clip -> float tensor (C, T, size), or (T, C, size).

        Args:
            part: which of `clip.parts` views in time.
            crop: which of `clip.crops` in space.
        """
        assert self.clip is not None  # images have one view
        sampled = SampleFrames(self.clip, random=False, part=part)
        steps = view_steps(self.fit, self.clip.crops, crop)
        return ClipTransform([sampled, *steps, *self.normalised(), InputLayout(self.time_axis)])

    def augmented(self, policy: str) -> v2.Compose:
        """Return the transform for training, with the named augmentation policy; raises `UnknownPolicy`."""
        if self.clip is not None:
            # Without augmentation the clips of training are those of validation: the same frames each time.
            sampled = SampleFrames(self.clip, random=policy != "none")
            steps = policy_named(policy)(clip_fit(self.fit))
            layout = InputLayout(self.time_axis)
            return ClipTransform([sampled, *steps, *self.normalised(), layout], self.clip.no_flip)
        return v2.Compose([AsPicture(self.channels), *policy_named(policy)(self.fit), *self.normalised()])

    def fitted(self) -> list[nn.Module]:
        """Return the steps from an image of any size to one of `size`."""
        return self.fit.steps()

    def normalised(self) -> list[nn.Module]:
        """Return the steps from an image to the normalised tensor; a mask does not change."""
        return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
