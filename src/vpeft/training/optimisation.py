"""`Optimisation`: the settings of the optimiser, the schedule, the checkpoints and the device."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from vpeft.acceleration.names import UnknownAcceleration, wanted
from vpeft.errors import VpeftError, nearest
from vpeft.method_spec import parse_one
from vpeft.settings import Settings
from vpeft.training.sizes import BadSize, bytes_of

Precision = Literal["fp32", "bf16", "fp16"]
# Fields that do not change a single bit of the result: a run may be resumed under other values of these.
_NOT_NUMERICS = frozenset(
    {"checkpoint_every", "checkpoint_steps", "acceleration", "prefix_gib", "prefix_folder", "fit_memory", "shard"}
)


# What was a setting of the optimisation before there were tasks, and is an option of the task now.
MOVED = ("label_smoothing", "mixup")


class UnknownOptimiser(VpeftError):
    """torch.optim has no such optimiser, or the optimiser has no such setting."""


def optimiser_class(text: str) -> tuple[str, dict[str, Any]]:
    """Parse text such as `sgd(momentum=0.9)`; return the class's name in torch.optim and its settings.

    Upper and lower case do not matter.

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
            hint = (
                "Rate and decay have their own settings (lr, weight_decay)." if name in ("lr", "weight_decay") else ""
            )
            raise UnknownOptimiser(f"{kind.__name__} has no setting {name!r}. {hint or nearest(name, settings)}")
    return kind.__name__, dict(spec.fields)


class Optimisation(Settings):
    """The settings of one training run; also the flags of `vpeft train` and the table `[optimisation]`.

    The defaults are those of NOAH (Zhang et al. 2022, arXiv 2206.04673), FacT and Convpass for VTAB-1k: AdamW with lr
    1e-3, weight decay 1e-4, batch 64, a linear warm-up over a tenth of the run (10 of 100 epochs there), then a cosine
    to 1e-5, no augmentation, no label smoothing and no clipping. There are two departures. vpeft trains 30 epochs
    instead of 100, our choice for the few hundred images that a user starts with (benchmark protocols state their own
    number). The warm-up rises at every optimiser step, starting at lr / steps, instead of holding 1e-6 for whole
    epochs. The rate suits adapters. Full fine-tuning needs 1e-5 to 1e-4: at 1e-3, AdamW destroys a pre-trained
    backbone.

    AdamW's betas (0.9, 0.999) and eps (1e-8) are PyTorch's. Weight decay applies to weights of two or more dimensions,
    and not to biases and other tensors of at most one dimension (norms, scales, gates), as in VPT (Jia et al. 2022,
    arXiv 2203.12119).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=30, ge=1, description="Passes over the training images.")
    batch: int = Field(default=64, ge=1, description="Images per optimiser step, independent of `accumulate`.")
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Parts in which a batch is computed: less memory, the same step up to rounding; but dropout draws"
        " other numbers, and BatchNorm that adapts sees one part at a time.",
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of the adapter.")
    head_lr: float | None = Field(default=None, gt=0, description="Peak learning rate of the head; none: as `lr`.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="Weight decay; biases and one-dimensional tensors are not decayed."
    )
    warmup: float = Field(
        default=0.1, ge=0, description="Linear warm-up: below 1 a share of all steps, from 1 on a number of epochs."
    )
    schedule: Literal["cosine", "linear", "constant", "step"] = Field(
        default="cosine", description="Shape of the learning rate after the warm-up, per optimiser step."
    )
    milestones: tuple[float, ...] = Field(
        default=(),
        description="For the schedule `step`: where the rate falls to a tenth; below 1 a share of all steps, from 1 on"
        " a number of epochs.",
    )
    min_lr: float = Field(
        default=1e-5,
        ge=0,
        description="Learning rate at the end of the schedule; a group with a lower peak stays at its peak.",
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
        description="Decay of a moving average of the trained weights, which is validated and saved; none: off.",
    )
    clip: float | None = Field(default=None, gt=0, description="Clip the gradient to this norm; none: no clipping.")
    early_stopping: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a better leading metric; needs validation images.",
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="Weights to end with: of the last epoch, or of the best on validation."
    )
    validate_every: int = Field(
        default=1, ge=1, description="Epochs between validations; the last epoch is always validated."
    )
    drop_last: bool = Field(default=False, description="Drop an epoch's last batch if it is not full.")
    batch_norm: Literal["frozen", "adapt"] = Field(
        default="frozen",
        description="Backbone's BatchNorm statistics: keep them, or update them and save them with the adapter.",
    )
    precision: Precision = Field(default="fp32", description="Arithmetic of the forward pass; the weights stay fp32.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="The best device of this machine, or the CPU.")
    deterministic: bool = Field(
        default=False,
        description="Use deterministic kernels only; some accelerators need this for an exact resume.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the head, the adapter, the order of images and dropout.")
    checkpoint_every: int = Field(
        default=1, ge=0, description="Epochs between checkpoints; 0: only when interrupted, or by `checkpoint_steps`."
    )
    checkpoint_steps: int | None = Field(default=None, ge=1, description="Steps between checkpoints, besides epochs.")

    acceleration: str = Field(
        default="auto",
        description="Accelerations that do not change results: auto, off, or names separated by commas.",
    )
    prefix_gib: float = Field(
        default=4.0,
        gt=0,
        description="Largest size of caches (outputs of the frozen part, decoded images) in memory or on disk, in GiB.",
    )
    prefix_folder: Path | None = Field(
        default=None, description="Folder of caches that later runs use; none: caches in memory."
    )

    views: int | None = Field(
        default=None,
        ge=1,
        description="Number of augmented versions of each training image, used in turn, so that outputs of the frozen"
        " part can be cached; none: a new one in each epoch.",
    )
    fit_memory: str | None = Field(
        default=None,
        description="Memory limit of a training step, such as 8GB; decides accelerations and parts of a batch.",
    )

    shard: bool = Field(
        default=False,
        description="Divide the frozen weights among the processes that a launcher started, where one device cannot"
        " hold them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_task(cls, given: Any) -> Any:
        """Handle settings that have moved to the task; older recipes and records have them here."""
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
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("the schedule `step` and its milestones go together, for instance milestones = [27, 33]")
        ends = [self.epochs * one if one < 1 else one for one in self.milestones]
        if ends != sorted(ends) or any(not 0 < end < self.epochs for end in ends):
            raise ValueError(
                f"milestones = {list(self.milestones)} must rise, from above 0 to less than {self.epochs} epochs"
            )
        if self.shard and self.fit_memory is not None:
            raise ValueError("fit_memory measures a model that is whole in one process; leave out fit_memory or shard")
        if self.accumulate > self.batch:
            raise ValueError(f"a batch of {self.batch} cannot be computed in {self.accumulate} parts; lower accumulate")
        return self

    def numerics(self) -> dict[str, Any]:
        """Return the fields that decide the result, for run keys and for comparing checkpoints."""
        stated = self.model_dump(mode="json")
        for name in ("views", "ema"):  # so that runs from before there were these are still known
            if stated[name] is None:
                del stated[name]
        if self.optimiser == "adamw":
            del stated["optimiser"]
        if not self.milestones:
            del stated["milestones"]
        return {name: value for name, value in stated.items() if name not in _NOT_NUMERICS}
