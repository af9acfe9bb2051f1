"""What a task is: what is read, learnt and judged; and the list of all tasks, made from the files of vpeft/tasks.

A task is one file there: a frozen set of options that knows no method and no backbone. Training, evaluation, records,
reports, the command line and the adapter file know it only through the members of `Task`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from .arguments import TEXT, require
from .batch import Batch, Sample, collate, run_model
from .errors import VpeftError, nearest
from .host_formats.host_format import run_in_format, usual_format
from .registry import Registry, wrong_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

    from .backbones.backbone import Backbone
    from .data.preprocessing import Preprocessing

# Probability from which a pixel belongs to an object.
INSIDE = 0.5
# The task of a data set and a model that say nothing of one.
DEFAULT = "classification"


class UnknownTask(VpeftError):
    """No task has this name."""


class BadOption(VpeftError):
    """An option that the task does not have, or a value that it does not take."""


class NoViews(VpeftError):
    """A task that cannot put several views of a sample together."""


class NoGallery(VpeftError):
    """A task that does not compare samples with others."""


class UnsuitableTargets(VpeftError):
    """Targets of another kind than the task learns, or none; the message names the task that fits."""


@dataclass(frozen=True)
class Leading:
    """The metric by which epochs, searches and tables compare, and which direction is better."""

    name: str
    higher_is_better: bool = True

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`; anything beats None, and NaN beats nothing."""
        if than is None:
            return value == value
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class DetectedObjects:
    """The objects of one image, best first, in pixels of the original image.

    Attributes:
        boxes: float (N, 4): left, top, right, bottom.
        numbers: class numbers (N,).
        labels: names of the classes.
        scores: (N,), from 0 to 1.
        shapes: None for boxes alone; else the masks bool (N, H, W), or what they are made of when somebody asks for
            `masks`: float (N, 1, M, M), the probability of each part of the box.
        size: rows and columns of the image.
        sure: how many of the first ones are sure enough to be shown.
    """

    boxes: Tensor
    numbers: Tensor
    labels: tuple[str, ...]
    scores: Tensor
    shapes: Tensor | None
    size: tuple[int, int]
    sure: int

    @property
    def masks(self) -> Tensor | None:
        """The masks, bool (N, H, W); None where the task finds boxes alone."""
        if self.shapes is None or not self.shapes.is_floating_point():
            return self.shapes
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        pasted: Tensor = paste_masks_in_image(self.shapes, self.boxes, self.size)
        return pasted[:, 0] >= INSIDE

    def first(self, count: int) -> DetectedObjects:
        """The best `count` of them."""
        return DetectedObjects(
            self.boxes[:count],
            self.numbers[:count],
            self.labels[:count],
            self.scores[:count],
            None if self.shapes is None else self.shapes[:count],
            self.size,
            min(self.sure, count),
        )


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample: what `predict` prints, draws and serves.

    Attributes:
        id: of the sample.
        rows: the answers, best first, each a mapping from column to word or number (a label and its probability).
        values: the whole answer for programs, JSON.
        map: a map of class numbers (H, W), where the answer is one for each pixel; of real numbers, such as depths.
        objects: the objects of the image, where the task finds objects.
        pictures: pictures that the model made, uint8 (3, H, W), by what each shows.
    """

    id: str
    rows: tuple[Mapping[str, Any], ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    map: Tensor | None = None
    objects: DetectedObjects | None = None
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


TargetKind = str
"""The name of a kind of target, as a file of vpeft/data/targets registers it."""


class Task(BaseModel):
    """What is learnt. Fields are options, and at once flags, recipe keys and what the adapter file carries.

    A task is made twice: with the options of the user, and by `bind` with what the training data tell (label names, a
    standardisation), which are fields too. So a bound task is all that is needed to use a trained model.

    Class attributes:
        name: set by `@register_task`.
        target_kind: what a data source must find beside each image: one "label", several "labels", numbers ("values"),
            a "mask", "objects", "depth", or another kind that a file of vpeft/data/targets registers; a task that makes
            its samples out of labelled images in `dataset` says "label". A kind that nobody has registered is refused
            when data are opened.
        leading: the metric to compare by; a property where it depends on options.
        images_per_sample: how many images make one sample in `predict`.
        split_by: how splits are made where the data state none: images of every class in each, or "classes", no class
            in two of them.
        stacks_inputs: whether `collate` makes inputs of one shape the rows of a tensor, and looks at nothing else of
            them; then outputs of a frozen backbone may stand for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)

    name: ClassVar[str] = ""
    target_kind: ClassVar[TargetKind] = "label"
    images_per_sample: ClassVar[int] = 1
    split_by: ClassVar[Literal["images", "classes"]] = "images"
    stacks_inputs: ClassVar[bool] = True

    labels: tuple[str, ...] = ()
    """names of the outputs or classes in their order; filled in from the training data"""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadOption(wrong_options(f"The task {self.name}", self.name, type(self).options(), error)) from None

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The fields by the names under which users write them."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def leading(self) -> Leading:
        """The metric by which epochs, searches and tables compare."""

    @abstractmethod
    def head(self, backbone: Backbone, width: int) -> nn.Module | None:
        """A fresh head, or None to keep what the model itself gives.

        `width` is the channels of the pooled feature as the methods leave it.

        Raises:
            MissingPlace: the backbone lacks a place that the head reads.
        """

    def bind(self, train: Any) -> Self:
        """The task with the facts of the training data: label names, a standardisation. The default takes `labels`."""
        names = getattr(train, "labels", None)
        if self.labels or not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
            return self
        return self.model_copy(update={"labels": tuple(names)})

    @property
    def data_labels(self) -> tuple[str, ...] | None:
        """The labels that data to be scored may carry; None where the task takes whatever there is."""
        return self.labels

    def dataset(self, images: Any, training: bool) -> Any:
        """The samples that are learnt, out of a data set of images; the default is that data set itself."""
        return images

    def check(self, train: Any) -> None:
        """Look at the targets of a data set before the first step.

        Raises:
            UnsuitableTargets: they are of another kind; the message names the task that fits.
        """

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Look at the targets of one batch, which are on the processor, beside the model's outputs for it.

        For data sets that do not tell their targets beforehand. The default does nothing.

        Raises:
            UnsuitableTargets: a target does not fit the outputs.
        """

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """From an image of any size, and its target where that is drawn on it, to what the model is given.

        Args:
            preprocessing: the size and the normalisation that the backbone states.
            augmentation: the policy that the data set's configuration names; only training uses it.
            training: whether random changes are wanted.

        The default resizes to one size: `preprocessing.augmented` in training, else `preprocessing.transform`.
        """
        made: Callable[..., Any] = preprocessing.augmented(augmentation) if training else preprocessing.transform()
        return made

    def sample_of(self, image: Any, transform: Callable[..., Any], id: str) -> Sample:
        """A sample of an image without a target, for prediction; `transform` is that of `transforms`.

        A task whose predictions are in pixels of the image states its size in the target here.
        """
        return Sample(transform(image), None, id)

    @property
    def own_transforms(self) -> bool:
        """Whether `transforms` gives others than the default; a task that does so with some options only says when."""
        return type(self).transforms is not Task.transforms

    @property
    def shown_size(self) -> tuple[int, int] | Literal["own", "any"]:
        """The size (H, W) of the images that a model is shown: one size, the backbone's "own", or "any" of several.

        The default is "own" where `transforms` is the default, else "any".
        """
        return "any" if self.own_transforms else "own"

    @property
    def reads_alike(self) -> tuple[Any, ...]:
        """What must be equal for two runs to share their samples; a task with transforms of its own adds its options.

        The default is `images_per_sample` where `transforms` is the default too, else all options.
        """
        return (self.images_per_sample, self.model_dump_json() if self.own_transforms else "")

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples as a batch."""
        return collate(samples)

    def order(self, train: Any, shuffled: list[int], epoch_seed: int) -> list[int]:
        """Which samples an epoch sees, in order; `shuffled` is each once. The default sees each once."""
        return shuffled

    @property
    def reorders(self) -> bool:
        """Whether `order` changes what an epoch sees; runs that share their batches must then have equal options."""
        return type(self).order is not Task.order

    def augment(self, batch: Batch) -> Batch:
        """What training does to a whole batch before the model sees it (mixup). The default does nothing.

        A task that overrides it says in `augments` whether it will; random numbers come from torch's generator.
        """
        return batch

    @property
    def augments(self) -> str | None:
        """What `augment` does, as a sentence, where it is on; None where batches pass unchanged."""
        return None

    def run(self, model: Callable[..., Any], batch: Batch) -> Any:
        """The model's outputs for a batch, in training and in evaluation; the default calls the model.

        A whole model that runs with its own head is given images and targets in its own format, and answers as a head
        does; see vpeft/host_formats.

        Raises:
            NoHostFormat: no convention is known for it, or it has another number of classes than the task.
        """
        host = getattr(model, "host_alone", None)
        if host is None:
            return run_model(model, batch)
        return run_in_format(model, host, batch, self.target_kind, self.labels)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named parts of the mean loss of a batch, each a scalar in single precision; their sum is minimised."""

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Cheap numbers that are shown while training: for each name the sum over the samples of the batch."""
        return {}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def averaged(self, outputs: Any, views: int) -> Any:
        """The outputs for samples that were seen in several views.

        Args:
            outputs: of B * `views` inputs, the views of a sample one after the other.
            views: of each sample.

        Returns:
            outputs for B samples, of the same form, that say the mean over the views.

        Raises:
            NoViews: the task does not say how; the default does not.
        """
        raise NoViews(f"The task {self.name} does not average several views of a sample. Ask for one, views = 1x1.")

    def compared_on(self, images: Any) -> Self:
        """The task for scores on these images, a data set, with what it compares scores with measured on the same ones.

        The default compares with nothing and is the task itself.
        """
        return self

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh metric: `update(outputs, batch)` for each batch, `compute()` -> values by name, `leading` among them.

        Values may be tensors with one element, or anything JSON can say (a confusion matrix as lists), which goes to
        the details of the scores. Outputs and targets are on the processor, outputs in single precision.
        """

    def calibrated(self, outputs: Callable[[], Iterable[tuple[Any, Batch]]]) -> Self:
        """The task with what is chosen on validation samples once training is over: thresholds, a temperature.

        `outputs` gives the model's outputs and the batches, anew at each call. The default chooses nothing.
        """
        return self

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Tables for people out of the details of scores: title, names of the columns, rows. The default has none."""
        return []

    def picture(self, details: Mapping[str, Any]) -> Figure | None:
        """A drawing of the details of scores (matplotlib), such as a confusion matrix; the default has none."""
        return None

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """What the model says of each sample of a batch."""
        raise NotImplementedError(f"The task {self.name} does not say what its outputs mean.")

    def nearest(self, outputs: Any, batch: Batch, gallery: Any, names: Sequence[str], count: int) -> list[Prediction]:
        """The samples of a gallery that resemble each sample of a batch most, nearest first.

        Args:
            outputs, batch: of the samples that are looked for.
            gallery: the outputs for the samples among which is looked.
            names: of these.
            count: how many, at most.

        Raises:
            NoGallery: the task does not compare samples; the default does not.
        """
        able = [name for name, one in all_tasks().items() if one.nearest is not Task.nearest]
        raise NoGallery(
            f"The task {self.name} does not compare an image with those of a gallery. Tasks that do: {', '.join(able)}."
        )

    def truth(self, batch: Batch) -> list[Prediction]:
        """The targets of a batch in the form of predictions, to be drawn beside them; empty where nothing is drawn."""
        return []


def usual_task(host: nn.Module) -> type[Task]:
    """The task that a whole model with its own heads is made for.

    Raises:
        NoHostFormat: no convention is known for it.
        UnknownTask: no task learns what it gives.
    """
    spoken = usual_format(host)
    for kind in all_tasks().values():
        if kind.target_kind == spoken.kind and bool(getattr(kind, "masks", False)) == spoken.gives_masks:
            return kind
    raise UnknownTask(f"No task learns {spoken.kind}, which {type(host).__name__} gives.")


TaskT = TypeVar("TaskT", bound=type[Task])
_TASKS = Registry["Task"](f"{__package__}.tasks")
_SHORT: dict[str, str] = {}


def register_task(name: str, short: str = "") -> Callable[[TaskT], TaskT]:
    """Enter the decorated class under `name`, snake case; the file has the same name.

    `short` is another name under which users may ask for it; files and records have the first.
    """

    def add(kind: TaskT) -> TaskT:
        _TASKS.add(name, kind)
        kind.name = name
        if short:
            _SHORT[short] = name
        return kind

    return add


def all_tasks() -> dict[str, type[Task]]:
    """Every task by name, sorted."""
    return _TASKS.all()


def full_name(name: str) -> str:
    """The name of the task that a user asks for by its short name; any other name as it is."""
    all_tasks()
    return _SHORT.get(name, name)


def get_task(name: str) -> type[Task]:
    """The task with this name, or this short name; `UnknownTask` names the nearest."""
    require("get_task(name)", name=(name, TEXT))
    known, name = all_tasks(), full_name(name)
    if name not in known:
        raise UnknownTask(f"There is no task {name!r}. {nearest(name, known)}")
    return known[name]
