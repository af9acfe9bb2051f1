"""What a method is: a frozen set of hyper-parameters that can state its edits on any backbone; and the list of all.

This file lies below injection, and knows no method: `all_methods` imports the files of vpeft/methods by their names.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from .backbones.backbone import Backbone
from .backbones.edits import Edit
from .errors import VpeftError, nearest

if TYPE_CHECKING:
    from .batch import Batch
    from .injection.tuned_model import TunedModel


ONE_TASK = "task"
"""The name of the task of an adapter with one head; several heads have the names that the user gives them."""


class BadField(VpeftError):
    """A hyper-parameter that the method does not have, or a value that it does not take."""


class NoEditsAcross(VpeftError):
    """The method was put on all towers together, and edits each by itself."""


class NoSearch(VpeftError):
    """The method has nothing to search."""


class Evolution(BaseModel):
    """Sizes of an evolutionary search; the defaults are NOAH's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=15, ge=0, description="Rounds after the first population.")
    population: int = Field(default=50, gt=0, description="New candidates of the first population and of each round.")
    parents: int = Field(default=10, gt=0, description="Best candidates that a round starts from.")
    crossovers: int = Field(default=25, ge=0, description="Candidates of a round that mix two parents.")
    mutations: int = Field(default=25, ge=0, description="Candidates of a round that change one parent.")
    mutate: float = Field(default=0.2, ge=0.0, le=1.0, description="Probability that a part of a candidate changes.")
    redraw_depth: float = Field(default=0.4, ge=0.0, le=1.0, description="Probability that its depth is drawn anew.")
    resample: bool = Field(default=False, description="Also draw each width anew, as the paper says, not the code.")


@dataclass(frozen=True)
class Found:
    """A candidate: the method that trains it alone, its parameters without the head, its score (higher is better)."""

    method: Method
    parameters: int
    score: float


@dataclass(frozen=True)
class KnownFailure:
    """A check of the contract suite that a method cannot pass, and how it fails: any other failure is a bug.

    Attributes:
        reason: why, in a sentence that the coverage page shows.
        raises: class of the error: AssertionError where the check's own comparison fails.
        match: regular expression that the error's message contains.
    """

    reason: str
    raises: type[Exception]
    match: str

    def explains(self, error: Exception) -> bool:
        """Whether the check failed in the declared way."""
        return isinstance(error, self.raises) and re.search(self.match, str(error)) is not None


class Method(BaseModel):
    """One published idea. Fields are hyper-parameters, and at once flags, recipe keys and the adapter file's header.

    Class attributes, set by `@register` or by the class:
        name, family, category, paper, year, venue: for lists and records.
        aliases: other names under which the method is found; records and files have `name`.
        trains_head_only: the method adds nothing but the head (linear probe).
        restorable: whether detaching gives the frozen backbone back bit by bit.
        variants: settings for backbones that lack the places of the defaults; the contract suite tries them in order.
        exceptions: checks of the contract suite that this method cannot pass, by name: how each fails and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str] = ""
    category: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    venue: ClassVar[str] = ""
    trains_head_only: ClassVar[bool] = False
    restorable: ClassVar[bool] = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    exceptions: ClassVar[Mapping[str, KnownFailure]] = {}

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadField(_explain(type(self), error)) from None

    @abstractmethod
    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        """What to change where; pure, nothing is touched yet. A missing place raises `MissingPlace`."""

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """What to change in the towers of one host together, for methods that share or couple layers between them.

        Optional: it is called in place of `edits` where the method is put on "*".

        Raises:
            NoEditsAcross: this method edits each tower by itself.
        """
        each = ", ".join(f"{name!r}: {self!r}" for name in towers)
        raise NoEditsAcross(
            f"{type(self).__name__} edits each tower by itself, and not all together. Put it on each: {{{each}}}."
        )

    def resolved(self, backbone: Backbone) -> Self:
        """The method with what it would choose for this backbone written into its fields; by default it is as it is.

        Records and run keys have it so: a default that depends on the backbone is then stated.
        """
        return self

    def for_labels(self, labels: Sequence[str]) -> Self:
        """The method for these classes, which the task learns; by default it is as it is.

        Optional: for methods with layers for each class that only training needs. It is called where a method is
        attached with a task whose labels are known.
        """
        return self

    def for_use(self) -> Self:
        """The method as an adapter file states it: without what only training needs. By default it is as it is."""
        return self

    @property
    def starts_as_identity(self) -> bool:
        """Whether the features at step 0 are those of the frozen backbone (a promise that `verify` checks)."""
        return True

    def for_tasks(self, tasks: tuple[str, ...]) -> Self:
        """The method for an adapter that serves several tasks, given the names of their heads in order.

        The default fills in the field `tasks` of a method that has layers of each task's own, and else changes nothing.

        Raises:
            BadField: the method states other tasks.
        """
        stated = getattr(self, "tasks", None)
        if not isinstance(stated, tuple):  # no such field, or a number of tasks that come one after another
            return self
        if stated and set(stated) != set(tasks):
            raise BadField(
                f"{type(self).__name__} has layers for the tasks {', '.join(stated)}, and the heads are for"
                f" {', '.join(tasks)}. Leave its field tasks out, and it takes the names of the heads."
            )
        return self if stated else self.model_copy(update={"tasks": tasks})

    @property
    def runs_per_task(self) -> bool:
        """Whether what its layers do along the trunk depends on the task: the trunk then runs once for each task.

        By default one pass through the trunk serves all tasks of a batch.
        """
        return False

    @property
    def reads_data(self) -> bool:
        """Whether `prepare` is called with batches before training: where it is overridden, unless this says no."""
        return type(self).prepare is not Method.prepare

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at real batches before training, for methods that select by data. The default does nothing."""

    def begin_epoch(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at the batches of an epoch before it begins, for methods that follow the data as they train.

        The default does nothing, and then the batches are not read.
        """

    @property
    def follows_data(self) -> bool:
        """Whether `begin_epoch` is called: where it is overridden, unless this says no."""
        return type(self).begin_epoch is not Method.begin_epoch

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        """A scalar that joins the loss, or None."""
        return None

    def extra_loss(self, tuned: TunedModel, outputs: Any, loss: Callable[[Any], Tensor]) -> Tensor | None:
        """A scalar that joins the loss in training, for methods whose layers make outputs of their own; or None.

        Args:
            tuned: with this method on, after its forward pass.
            outputs: of the head in this pass.
            loss: the task's loss of any outputs of the head for the same batch.
        """
        return None

    def batch_loss(self, tuned: TunedModel, outputs: Any, batch: Batch) -> Tensor | None:
        """A scalar that joins the loss in training, for methods that run the model again on a batch; or None.

        Args:
            tuned: with this method on, after its forward pass.
            outputs: of the head in this pass.
            batch: the inputs and targets of this pass, on the model's device.
        """
        return None

    @property
    def runs_again(self) -> bool:
        """Whether `batch_loss` is called: where it is overridden, unless this says no."""
        return type(self).batch_loss is not Method.batch_loss

    def advance(self, tuned: TunedModel, progress: float) -> None:
        """Called before each step with the share of training that is done (0 to 1). The default does nothing."""

    def begin_task(self, tuned: TunedModel, number: int, tasks: int | None = None) -> None:
        """Called before task `number` (from 0) of a stream of tasks is learnt. The default does nothing.

        It must do the same for a model whose tensors are loaded afterwards: a stream that goes on after a kill calls it
        for each task that is done, in order, and then loads the tensors.

        Args:
            tuned: with this method on.
            number: of the task; one training without a stream is task 0, which is not announced.
            tasks: how many the stream has, where it is known.
        """

    def end_task(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at the images of a task of a stream once it is learnt. The default does nothing."""

    def after_backward(self, tuned: TunedModel) -> None:
        """Look at the gradients of a whole batch before the optimiser uses them. The default does nothing."""

    def search(
        self, tuned: TunedModel, score: Callable[[Method], float], budget: int, evolution: Evolution, seed: int
    ) -> list[Found]:
        """Search among settings of this method that share the weights that `tuned` holds; best first.

        Args:
            tuned: trained with this method (the supernet), in eval mode.
            score: called with each candidate while `tuned` acts as that one.
            budget: most trained parameters of a candidate, without the head.
            evolution: sizes of the search.
            seed: of its draws; equal arguments and scores give equal candidates in equal order.

        Raises:
            NoSearch: this method offers none.
        """
        raise NoSearch(f"{self.name} offers no search. A method that does overrides `Method.search`, as `NOAH` does.")


def _explain(kind: type[Method], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{kind.__name__} has no hyper-parameter {where!r}. {nearest(where, kind.model_fields)}")
        else:
            lines.append(f"{kind.__name__}.{where} = {problem['input']!r}: {problem['msg']}.")
    return " ".join(lines)


Category = Literal["baseline", "addition", "partial", "unified", "multi-task"]
Family = Literal["baseline", "adapter", "prompt", "prefix", "side", "specification", "reparameter", "unified"]
MethodT = TypeVar("MethodT", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}
_ALIASES: dict[str, str] = {}
_CATEGORIES: dict[Family, Category] = {
    "baseline": "baseline",
    "adapter": "addition",
    "prompt": "addition",
    "prefix": "addition",
    "side": "addition",
    "specification": "partial",
    "reparameter": "partial",
    "unified": "unified",
}


class UnknownMethod(VpeftError):
    """No method has this name."""


def register(
    name: str,
    *,
    family: Family,
    paper: str = "",
    category: Category | None = None,
    year: int | None = None,
    venue: str = "",
    aliases: tuple[str, ...] = (),
) -> Callable[[MethodT], MethodT]:
    """Enter the decorated class under `name`.

    Args:
        name: snake case, as the paper calls the method; the file has the same name.
        family: the survey's family.
        paper: arXiv number, or the venue where there is none.
        category: the survey's category; that of the family where it is not given.
        year: of the publication at `venue`; None for what has no paper of its own.
        venue: conference or journal, "arXiv" for a preprint, empty where it is not known.
        aliases: other names that people know it by.
    """

    def add(kind: MethodT) -> MethodT:
        for one in (name, *aliases):
            taken = _METHODS.get(_ALIASES.get(one, one))
            if taken is not None and taken.__qualname__ != kind.__qualname__:
                raise ValueError(f"The name {one!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        kind.name, kind.family, kind.paper = name, family, paper
        kind.category, kind.year, kind.venue = category or _CATEGORIES[family], year, venue
        kind.aliases = aliases
        _METHODS[name] = kind
        _ALIASES.update(dict.fromkeys(aliases, name))
        return kind

    return add


def all_methods() -> dict[str, type[Method]]:
    """Every method by name, sorted."""
    package = importlib.import_module(f"{__package__}.methods")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return dict(sorted(_METHODS.items()))


def method_names() -> list[str]:
    """The names of all methods, sorted."""
    return list(all_methods())


def method_aliases() -> dict[str, str]:
    """Other names of methods, each with the name that it stands for."""
    all_methods()
    return dict(sorted(_ALIASES.items()))


def get_method(name: str) -> type[Method]:
    """The method with this name or alias.

    Raises:
        UnknownMethod: with the nearest names.
    """
    known = all_methods()
    found = known.get(_ALIASES.get(name, name))
    if found is None:
        raise UnknownMethod(f"There is no method {name!r}. {nearest(name, [*known, *_ALIASES])}")
    return found
