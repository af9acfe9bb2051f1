"""Where the images come from and how they are read: one model for the command line, the recipe and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

TargetName = Literal["label", "labels", "values", "mask"]
Window = Literal["auto", "type", "percentiles"] | tuple[float, float]

# Fields that are younger than recipes and records on disk: said only where they are set, so that old digests stay.
_YOUNGER = (
    "target",
    "label_columns",
    "label_separator",
    "masks",
    "label_names",
    "channels",
    "window",
    "max_pixels",
)


class DataConfig(BaseModel):
    """A data set and how it is split, checked and read. Nothing is read before `open_data`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="A folder of images, a list (csv, tsv, parquet), arrays (npz, npy), or a name such as 'digits', "
        "'pocket/NAME', 'torchvision:CIFAR10' or 'hf:beans'."
    )
    layout: str | None = Field(
        default=None, description="How to read the source, where it can be read in more than one way; see `vpeft data`."
    )
    root: Path | None = Field(
        default=None, description="Folder that listed paths start from, or where named data sets are kept."
    )
    val_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share held out for validation where the source states no such split."
    )
    test_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share held out for the test where the source states no splits at all."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the splits that are made here and of the augmentation.")
    train_on_val: bool = Field(
        default=False, description="Train on train and val together, once nothing is left to choose; val is then empty."
    )
    per_class: int | None = Field(
        default=None, ge=1, description="Keep at most this many training images of each class."
    )
    labels_are: Literal["auto", "names", "numbers"] = Field(
        default="auto", description="What the labels of a list are; auto refuses a list that mixes both."
    )
    image_column: str | None = Field(default=None, description="Column of the image, or of its path.")
    label_column: str | None = Field(default=None, description="Column of the label.")
    target: TargetName = Field(
        default="label",
        description="What is known of each image: one label, several labels, numbers (values), or a mask; "
        "set by the task.",
    )
    label_columns: tuple[str, ...] = Field(
        default=(), description="Several columns: one for each label with 0 or 1, or one for each value."
    )
    label_separator: str | None = Field(
        default=None, min_length=1, description="What stands between several labels in one cell; ; | or , by default."
    )
    masks: Path | None = Field(
        default=None,
        description="Folder of the masks, where it is not masks/ beside images/; same names as the images.",
    )
    label_names: tuple[str, ...] = Field(
        default=(), description="Names of the classes in masks, in the order of their numbers."
    )
    channels: int | None = Field(
        default=None, ge=1, le=16, description="Channels to read; those of the backbone by default, mostly 3 (RGB)."
    )
    window: Window = Field(
        default="type",
        description="What is black and what is white: the full range of the number type, percentiles of each image, "
        "auto for the bits that are used, or two numbers such as 0,4095.",
    )
    max_pixels: int | None = Field(
        default=None, ge=1, description="Height times width of the largest image to read; 178956970 by default."
    )
    download: bool = Field(default=False, description="Allow a named data set to be downloaded.")
    image_size: int | None = Field(
        default=None, ge=1, description="Side in pixels to which images are brought, instead of the backbone's own."
    )
    augmentation: str = Field(default="none", description="Named policy for training images; see `vpeft data`.")
    check: Literal["decode", "header", "none"] = Field(
        default="decode",
        description="Before the start, decode every image, or read only its header, or only see that it is there "
        "(copies in several splits are then not found either).",
    )
    strict: bool = Field(default=False, description="Stop at the first broken image or doubtful split.")
    max_unreadable: float = Field(
        default=0.01, ge=0, le=1, description="Share of missing or broken images above which it is an error."
    )
    cache: Literal["none", "ram"] = Field(default="none", description="Keep decoded images in memory.")
    cache_gib: float = Field(default=4.0, gt=0, description="Memory that the decoded images may take, in GiB.")
    workers: int = Field(default=0, ge=0, description="Processes that load images; 0 loads in the training process.")

    @field_validator("window")
    @classmethod
    def _black_below_white(cls, window: Window) -> Window:
        if isinstance(window, tuple) and not window[0] < window[1]:
            raise ValueError(f"the first number must be below the second, not {window[0]:g}, {window[1]:g}")
        return window

    @model_serializer(mode="wrap")
    def _younger_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated: dict[str, Any] = handler(self)
        unset = {name for name in _YOUNGER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in stated.items() if name not in unset}

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self
