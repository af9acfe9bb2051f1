"""How a model is trained: every number of the optimiser, the schedule, the checkpoints and the device, in one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vpeft.acceleration.names import UnknownAcceleration, wanted
from vpeft.training.sizes import BadSize, bytes_of

Precision = Literal["fp32", "bf16", "fp16"]
# Fields that do not change a single bit of the result: a run may be resumed under other values of these.
_NOT_NUMERICS = frozenset(
    {"checkpoint_every", "checkpoint_steps", "acceleration", "prefix_gib", "prefix_folder", "fit_memory"}
)


class Optimisation(BaseModel):
    """The settings of one training run; also the flags of `vpeft train` and the `[optimisation]` table of a recipe.

    Where the defaults come from. AdamW with lr 1e-3, weight decay 1e-4, batch 64, a linear warm-up over a tenth of the
    run (10 of 100 epochs there), then a cosine to 1e-5, no augmentation, no label smoothing and no clipping: the recipe
    of NOAH (Zhang et al. 2022, arXiv 2206.04673), FacT and Convpass for VTAB-1k. Two departures: 30 epochs where they
    take 100, a choice of ours for the few hundred images that a user starts with (benchmark protocols state their own
    number); and the warm-up rises once per optimiser step from lr / steps, where they hold 1e-6 for whole epochs.
    The rate suits adapters. Full fine-tuning wants 1e-5 to 1e-4: at 1e-3 AdamW destroys a pre-trained backbone.

    AdamW's betas (0.9, 0.999) and eps (1e-8) are PyTorch's. Decayed are weights of two or more dimensions; biases and
    all tensors of one dimension or none (norms, scales, gates) are not, as in VPT (Jia et al. 2022, arXiv 2203.12119).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=30, ge=1, description="Passes over the training images.")
    batch: int = Field(default=64, ge=1, description="Images per optimiser step, whatever `accumulate` is.")
    accumulate: int = Field(
        default=1, ge=1, description="Parts in which a batch is computed: less memory, the same step up to rounding."
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of the adapter.")
    head_lr: float | None = Field(default=None, gt=0, description="Peak learning rate of the head; none: as `lr`.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="AdamW's weight decay; biases and one-dimensional tensors are not decayed."
    )
    warmup: float = Field(
        default=0.1, ge=0, description="Linear warm-up: below 1 a share of all steps, from 1 on a number of epochs."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the rate goes on after the warm-up, per optimiser step."
    )
    min_lr: float = Field(
        default=1e-5,
        ge=0,
        description="Rate at which the schedule ends; a group whose peak is lower stays at its peak.",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    mixup: float = Field(default=0.0, ge=0, description="Mixup's Beta parameter; 0 is off.")
    clip: float | None = Field(default=None, gt=0, description="Largest norm of the whole gradient; none: not clipped.")
    early_stopping: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a better top-1; needs validation images.",
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="State to end with: of the last epoch, or of the best on validation."
    )
    validate_every: int = Field(
        default=1, ge=1, description="Epochs between validations; the last epoch always is one."
    )
    drop_last: bool = Field(default=False, description="Leave out an epoch's last batch when it is not full.")
    batch_norm: Literal["frozen", "adapt"] = Field(
        default="frozen",
        description="Backbone's BatchNorm statistics in a run: still, or moving and saved with the adapter.",
    )
    precision: Precision = Field(default="fp32", description="Arithmetic of the forward pass; the weights stay fp32.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="Best device of this machine, or the processor.")
    deterministic: bool = Field(
        default=False,
        description="Only kernels that repeat bit by bit; needed for an exact resume on some accelerators.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the head, the adapter, the order of images and all dropout."
    )
    checkpoint_every: int = Field(
        default=1, ge=0, description="Epochs between checkpoints; 0: only when interrupted, or by `checkpoint_steps`."
    )
    checkpoint_steps: int | None = Field(default=None, ge=1, description="Steps between checkpoints, besides epochs.")

    acceleration: str = Field(
        default="auto",
        description="What saves work without changing results: auto, off, or names with commas between them.",
    )
    prefix_gib: float = Field(
        default=4.0,
        gt=0,
        description="Memory or room on the disk for what is computed once (outputs of the frozen part, or decoded"
        " images), in GiB.",
    )
    prefix_folder: Path | None = Field(
        default=None, description="Folder that keeps what is computed once for other runs; none: in memory."
    )

    views: int | None = Field(
        default=None,
        ge=1,
        description="Augmented versions of each training image, taken in turn, so that outputs of the frozen part can"
        " be kept; none: a new one in each epoch.",
    )
    fit_memory: str | None = Field(
        default=None,
        description="Largest memory of a training step, such as 8GB: a profile and parts of a batch are chosen to"
        " stay within it.",
    )

    @field_validator("fit_memory")
    @classmethod
    def _a_size(cls, size: str | None) -> str | None:
        try:
            if size is not None:
                bytes_of(size)
        except BadSize as error:
            raise ValueError(str(error)) from error
        return size

    @field_validator("acceleration")
    @classmethod
    def _known_accelerations(cls, choice: str) -> str:
        try:
            wanted(choice)
        except UnknownAcceleration as error:
            raise ValueError(str(error)) from error
        return choice

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup >= 1 and self.warmup >= self.epochs:
            raise ValueError(
                f"warmup = {self.warmup:g} epochs does not fit in {self.epochs} epochs; "
                "give fewer, or a share of the run below 1"
            )
        if self.accumulate > self.batch:
            raise ValueError(f"a batch of {self.batch} cannot be computed in {self.accumulate} parts; lower accumulate")
        return self

    def numerics(self) -> dict[str, Any]:
        """The fields that decide the result, for run keys and for recognising a checkpoint."""
        stated = self.model_dump(mode="json")
        if self.views is None:
            del stated["views"]  # so that runs from before there were views are still known
        return {name: value for name, value in stated.items() if name not in _NOT_NUMERICS}
