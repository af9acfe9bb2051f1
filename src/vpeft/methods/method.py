"""What a method is: a frozen set of hyper-parameters that can state its edits on any backbone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..errors import VpeftError, nearest
from .evolution import Evolution, Found

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


class BadField(VpeftError):
    """A hyper-parameter that the method does not have, or a value that it does not take."""


class NoSearch(VpeftError):
    """The method has nothing to search."""


class Method(BaseModel):
    """One published idea. Fields are hyper-parameters, and at once flags, recipe keys and the adapter file's header.

    Class attributes, set by `@register` or by the class:
        name, family, category, paper, year, venue: for lists and records.
        trains_head_only: the method adds nothing but the head (linear probe).
        restorable: whether detaching gives the frozen backbone back bit by bit.
        variants: settings for backbones that lack the places of the defaults; the contract suite tries them in order.
        exceptions: checks of the contract suite that this method cannot pass: name of the check -> reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    category: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    venue: ClassVar[str] = ""
    trains_head_only: ClassVar[bool] = False
    restorable: ClassVar[bool] = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    exceptions: ClassVar[dict[str, str]] = {}

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadField(_explain(type(self), error)) from None

    @abstractmethod
    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        """What to change where; pure, nothing is touched yet. A missing place raises `MissingPlace`."""

    @property
    def starts_as_identity(self) -> bool:
        """Whether the features at step 0 are those of the frozen backbone (a promise that `verify` checks)."""
        return True

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at real batches before training, for methods that select by data. The default does nothing."""

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        """A scalar that joins the loss, or None."""
        return None

    def advance(self, tuned: TunedModel, progress: float) -> None:
        """Called before each step with the share of training that is done (0 to 1). The default does nothing."""

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
