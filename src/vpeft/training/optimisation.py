"""How a model is trained: every number of the optimiser, the schedule, the checkpoints and the device, in one model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vpeft.acceleration.names import UnknownAcceleration, wanted
from vpeft.errors import VpeftError, nearest
from vpeft.method_spec import parse_one
from vpeft.training.sizes import BadSize, bytes_of

Precision = Literal["fp32", "bf16", "fp16"]
# Fields that do not change a single bit of the result: a run may be resumed under other values of these.
_NOT_NUMERICS = frozenset(
    {"checkpoint_every", "checkpoint_steps", "acceleration", "prefix_gib", "prefix_folder", "fit_memory"}
)


# What was a setting of the optimisation before there were tasks, and is an option of the task now.
MOVED = ("label_smoothing", "mixup")


class UnknownOptimiser(VpeftError):
    """torch.optim has no such optimiser, or it has no such setting."""


def optimiser_class(text: str) -> tuple[str, dict[str, Any]]:
    """The name of a class of torch.optim and its settings, from `sgd(momentum=0.9)`; case does not matter.

    Raises:
        UnknownOptimiser: with the nearest names.
    """
    spec = parse_one(text, "optimiser")
    import torch

    known = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    del known["lbfgs"]  # it runs the model several times in a step, which this loop does not do
    if spec.name not in known:
        raise UnknownOptimiser(f"There is no optimiser {spec.name!r}. {nearest(spec.name, known)}")
    kind = known[spec.name]
    settings = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr", "weight_decay")]
    for name in spec.fields:
        if name not in settings:
            hint = "The rate and the decay have settings of their own." if name in ("lr", "weight_decay") else ""
            raise UnknownOptimiser(f"{kind.__name__} has no setting {name!r}. {hint or nearest(name, settings)}")
    return kind.__name__, dict(spec.fields)


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
        default=1e-4, ge=0, description="Weight decay; biases and one-dimensional tensors are not decayed."
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
    optimiser: str = Field(
        default="adamw",
        description="adamw, sgd, or any class of torch.optim, with its own settings in brackets:"
        " sgd(momentum=0.9, nesterov=true).",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a moving average of what is trained, which is validated and kept; none: off.",
    )
    clip: float | None = Field(default=None, gt=0, description="Largest norm of the whole gradient; none: not clipped.")
    early_stopping: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a better leading metric; needs validation images.",
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

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_task(cls, given: Any) -> Any:
        """Settings that went to the task: recipes and records from before have them here, mostly switched off."""
        if not isinstance(given, dict):
            return given
        moved = {name: given[name] for name in MOVED if name in given}
        on = [name for name, value in moved.items() if value]
        if on:
            raise ValueError(
                f"{' and '.join(on)} belong to the task: [task] {', '.join(f'{name} = {moved[name]}' for name in on)}"
            )
        return {name: value for name, value in given.items() if name not in moved}

    @field_validator("optimiser")
    @classmethod
    def _known_optimiser(cls, text: str) -> str:
        try:
            optimiser_class(text)
        except VpeftError as error:
            raise ValueError(str(error)) from error
        return text

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
        for name in ("views", "ema"):  # so that runs from before there were these are still known
            if stated[name] is None:
                del stated[name]
        if self.optimiser == "adamw":
            del stated["optimiser"]
        return {name: value for name, value in stated.items() if name not in _NOT_NUMERICS}
