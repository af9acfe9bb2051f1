"""Where the images come from and how they are read: one model for the command line, the recipe and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from vpeft.data.clips.clip_config import ClipConfig
from vpeft.settings import Settings

# The name of a kind of target: a file of vpeft/data/targets, which `vpeft.data.target.target_of` looks up.
TargetName = str
Window = Literal["auto", "type", "percentiles"] | tuple[float, float]

# Fields added after recipes and records were written: serialised only if set, so that old digests do not change.
_YOUNGER = (
    "target",
    "label_columns",
    "label_separator",
    "masks",
    "label_names",
    "box_format",
    "depth_scale",
    "channels",
    "window",
    "max_pixels",
    "max_aspect",
    "max_mib",
    "clip",
    "split_by",
)


class DataConfig(Settings):
    """A data set and how it is split, checked and read. Only `open_data` reads files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="A folder of images, a list (csv, tsv, parquet), arrays (npz, npy), or a name such as 'digits', "
        "'pocket/NAME', 'torchvision:CIFAR10' or 'hf:beans'."
    )
    layout: str | None = Field(
        default=None, description="How to read a source that has more than one reading; see `vpeft data list`."
    )
    root: Path | None = Field(
        default=None, description="Folder that listed paths are relative to, or that stores named data sets."
    )
    val_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share of images for validation if the source has no such split."
    )
    test_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share of images for the test if the source has no splits at all."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the splits that vpeft makes and of the augmentation.")
    split_by: Literal["images", "classes"] | None = Field(
        default=None,
        description="What splits are made of: images of every class in each, or classes, none of them in two splits; "
        "val_fraction and test_fraction are then shares of the classes, and the test takes the last ones. By default "
        "as the task says.",
    )
    train_on_val: bool = Field(
        default=False, description="Train on train and val together, after all settings are chosen; val is then empty."
    )
    per_class: int | None = Field(
        default=None, ge=1, description="Keep at most this many training images of each class."
    )
    labels_are: Literal["auto", "names", "numbers"] = Field(
        default="auto", description="Whether the labels of a list are names or numbers; auto refuses a mixture."
    )
    image_column: str | None = Field(default=None, description="Column of the image, or of its path.")
    label_column: str | None = Field(default=None, description="Column of the label.")
    target: TargetName = Field(
        default="label",
        description="The target of each image: label, labels (several), values (numbers), mask, objects (boxes and "
        "their masks) or depth; the task sets it.",
    )
    label_columns: tuple[str, ...] = Field(
        default=(), description="Several columns: one for each label with 0 or 1, or one for each value."
    )
    label_separator: str | None = Field(
        default=None, min_length=1, description="Separator of several labels in one cell; ; | or , by default."
    )
    masks: Path | None = Field(
        default=None,
        description="Folder of the masks or depth maps, if it is not masks/ or depth/ beside images/; files have the "
        "images' names.",
    )
    label_names: tuple[str, ...] = Field(
        default=(), description="Names of the classes in masks, in the order of their numbers."
    )
    box_format: Literal["corners", "sides"] | None = Field(
        default=None,
        description="The four numbers of a box: left, top, right, bottom (corners) or left, top, width, height "
        "(sides); by default as the format of the source says.",
    )
    depth_scale: float = Field(
        default=1.0,
        gt=0,
        description="Factor from the stored numbers of depth maps to the unit of depth, such as 0.001.",
    )
    channels: int | None = Field(
        default=None, ge=1, le=16, description="Channels to read; by default those of the backbone, mostly 3 (RGB)."
    )
    window: Window = Field(
        default="type",
        description="The values of black and white: the full range of the number type, percentiles of each image, "
        "auto for the bits in use, or two numbers such as 0,4095.",
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        description="Height times width of the largest image to read, 178956970 by default; JPEG is read smaller.",
    )
    max_aspect: float | None = Field(
        default=None, ge=1, description="Longer side of the narrowest image to read, by its shorter; 200 by default."
    )
    max_mib: int | None = Field(
        default=None, ge=1, description="Memory of one decoded image, and size of its file, in MiB; 4096 by default."
    )
    download: bool = Field(default=False, description="Allow a named data set to be downloaded.")
    image_size: int | None = Field(
        default=None, ge=1, description="Side of the images in pixels; the backbone's by default."
    )
    augmentation: str = Field(default="none", description="Named policy for training images; see `vpeft data`.")
    check: Literal["decode", "header", "none"] = Field(
        default="decode",
        description="Check before the start: decode every image, read its header, or only see that the file exists "
        "(then copies in several splits are not found).",
    )
    strict: bool = Field(default=False, description="Stop at the first broken image or doubtful split.")
    max_unreadable: float = Field(
        default=0.01, ge=0, le=1, description="Share of missing or broken images above which it is an error."
    )
    cache: Literal["none", "ram"] = Field(default="none", description="Keep decoded images in memory.")
    cache_gib: float = Field(default=4.0, gt=0, description="Largest memory of the decoded images, in GiB.")
    clip: ClipConfig | None = Field(
        default=None, description="How frames are chosen, for sources of clips; setting any of it asks for clips."
    )
    workers: int = Field(
        default=0, ge=0, le=256, description="Processes that load images; 0 loads in the training process."
    )

    @field_validator("source", "root", "masks")
    @classmethod
    def _home_is_known(cls, path: Any) -> Any:
        if path is not None and str(path).startswith("~"):
            try:
                Path(path).expanduser()
            except RuntimeError:
                raise ValueError(f"{path} names the home folder of a user that this machine does not know") from None
        return path

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
