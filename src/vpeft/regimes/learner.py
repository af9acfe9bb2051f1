"""What a continual learner is: options, and an object at work on one stream; and the list of all learners.

A learner is one file of vpeft/regimes/learners, found by its name. Whatever is no learner's name is an ordinary method,
which the default learner trains task after task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.data.image_set import ImageSet
from vpeft.errors import VpeftError, nearest
from vpeft.method import Method, get_method
from vpeft.method_spec import parse, parse_one
from vpeft.regimes.stream import StreamTask
from vpeft.registry import Registry, wrong_options
from vpeft.tasks.classification import Classification
from vpeft.training.evaluate import outputs_of
from vpeft.training.machine import accelerator
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

# The learner of a name that is a method's.
DEFAULT = "sequential"
Tensors = dict[str, dict[str, Tensor]]
"""By group and name, as checkpoints hold them."""


class UnknownLearner(VpeftError):
    """Neither a learner nor a method has this name."""


class BadLearner(VpeftError):
    """An option that the learner does not have, a value that it does not take, or a method that does not suit it."""


def methods_of(text: str) -> tuple[Method, ...]:
    """The methods that `text` names, such as "lora(rank=4)" or "adaptformer+ssf"."""
    return tuple(get_method(spec.name)(**spec.fields) for spec in parse(text).methods)


def _known_methods(text: str) -> str:
    methods_of(text)
    return text


MethodText = Annotated[str, AfterValidator(_known_methods)]
"""Methods in text, for the options of a learner."""


@dataclass(frozen=True)
class Setting:
    """What a learner works with.

    Attributes:
        make: makes the pre-trained backbone, with the same weights at each call.
        optimisation: of each training; its seed is replaced.
        seed: of everything that is drawn.
        tasks: how many the stream has.
        workers: loading processes.
        progress: whether trainings show theirs.
    """

    make: Callable[[], nn.Module]
    optimisation: Optimisation
    seed: int = 0
    tasks: int | None = None
    workers: int = 0
    progress: bool = False

    def seed_of(self, *parts: int | str) -> int:
        """A seed for one purpose; equal for equal parts, whether the stream was interrupted or not."""
        return derived_seed(self.seed, "stream", *parts)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = accelerator(self.optimisation.precision, self.optimisation.device).device
        return found


class Learning(ABC):
    """A learner at work on one stream: it is given one task at a time.

    After `learn(task)`, everything that the next task depends on is in `state`, so that a stream that is restored from
    it goes on bit by bit as it would have.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """Images (B, C, H, W) -> scores (B, classes so far). A score depends on its own image alone."""

    @abstractmethod
    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        """Learn one task.

        Args:
            task: the next one.
            labels: all classes so far, its own included.
            past: the tasks before, for learners that keep images.
        """

    @abstractmethod
    def state(self) -> Tensors:
        """All tensors that the learner has, by group and name."""

    @abstractmethod
    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Go on after the tasks that are `done`, with their `state`.

        Args:
            done: the tasks, of which only the numbers and the classes are looked at.
            labels: all classes so far.
            state: of `state`.
        """

    def for_file(self) -> TunedModel | None:
        """The model whose active adapter alone predicts as `model` does; None where it takes more than one."""
        return None


class Learner(BaseModel):
    """One way to learn a stream. Fields are options, and at once what the command line takes and records keep.

    Class attributes:
        name, paper: set by `@register_learner`.
        keeps: what it keeps of earlier tasks besides trained tensors: nothing, statistics of features, or their images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "nothing"

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadLearner(
                wrong_options(f"The learner {self.name}", self.name, type(self).model_fields, error)
            ) from None

    @abstractmethod
    def start(self, setting: Setting) -> Learning:
        """The learner before the first task."""


LearnerT = TypeVar("LearnerT", bound=type[Learner])
_LEARNERS = Registry["Learner"](f"{__package__}.learners")


def register_learner(name: str, *, paper: str = "") -> Callable[[LearnerT], LearnerT]:
    """Enter the decorated class under `name`, snake case; the file has the same name.

    Args:
        name: of the learner.
        paper: arXiv number, or the venue where there is none.
    """

    def add(kind: LearnerT) -> LearnerT:
        _LEARNERS.add(name, kind)
        kind.name, kind.paper = name, paper
        return kind

    return add


def all_learners() -> dict[str, type[Learner]]:
    """Every learner by name, sorted."""
    return _LEARNERS.all()


def make_learner(text: str) -> Learner:
    """The learner that `text` names, such as "ranpac(projection=2000)"; a method's text is trained task after task.

    Raises:
        UnknownLearner: neither a learner nor a method has this name.
        BadLearner, BadField: an option does not exist, or does not take this value.
    """
    from vpeft.method import method_names

    specs = parse(text).methods
    known = all_learners()
    if len(specs) == 1 and specs[0].name in known:
        spec = parse_one(text, "learner")
        return known[spec.name](**spec.fields)
    for spec in specs:
        if spec.name in known:
            raise BadLearner(
                f"{spec.name} is a learner, which takes its methods as an option: {spec.name}(method=...)."
            )
        if spec.name not in method_names():
            raise UnknownLearner(
                f"There is no learner and no method {spec.name!r}. {nearest(spec.name, [*known, *method_names()])}"
            )
    return known[DEFAULT](method=text)


class Features(nn.Module):
    """Images -> pooled features (B, D) of a model: with one adapter on, or of the frozen model for None."""

    def __init__(self, tuned: TunedModel, adapter: str | None) -> None:
        super().__init__()
        self.tuned, self.adapter = tuned, adapter

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        with self.tuned.disable() if self.adapter is None else self.tuned.enable(self.adapter):
            return self.tuned.features(images)


def outputs_for(model: nn.Module, images: ImageSet, setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs, class numbers) of each batch, in evaluation mode, on the processor."""
    task, settings = Classification(), setting.optimisation
    batches = outputs_of(model, images, task, settings.batch, setting.workers, settings.precision)
    for outputs, batch in batches:
        yield outputs, _targets(batch)


def _targets(batch: Batch) -> Tensor:
    targets: Tensor = batch.targets
    return targets
