"""What a way to fuse is: options, and a function from changes of weights to one model; and the list of all ways."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from vpeft.errors import VpeftError, nearest
from vpeft.method import Method
from vpeft.method_spec import parse_one
from vpeft.regimes.fusion.ground import Ground
from vpeft.registry import Registry, wrong_options

Changes = Mapping[str, Tensor]
"""What one model added to the parameters of the base, by name; a parameter that stayed may be left out."""


class UnknownWay(VpeftError):
    """No way to fuse has this name."""


class BadWay(VpeftError):
    """An option that the way does not have, or a value that it does not take."""


@dataclass(frozen=True)
class Fusion:
    """One model out of several.

    Attributes:
        added: what is added to the parameters of the base, by name.
        methods: whose layers act besides, such as routed experts.
        layers: tensors of these layers by their names in the adapter (`blocks.0.attn.q.parallel.A`).
        facts: for the record, JSON: coefficients that were found, for instance.
    """

    added: dict[str, Tensor]
    methods: tuple[Method, ...] = ()
    layers: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Way(BaseModel):
    """One way to fuse. Fields are options, and at once what the command line takes and files keep.

    Class attributes:
        name, paper: set by `@register_way`.
        needs: what it looks at besides the weights: nothing, images, or images and the outputs of the heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[Literal["nothing", "images", "classes"]] = "nothing"

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadWay(wrong_options(self.name, self.name, type(self).model_fields, error)) from None

    @abstractmethod
    def fuse(self, ground: Ground) -> Fusion:
        """One model out of the sources of `ground`."""


WayT = TypeVar("WayT", bound=type[Way])
_WAYS = Registry["Way"](f"{__package__}.ways")


def register_way(name: str, *, paper: str = "") -> Callable[[WayT], WayT]:
    """Enter the decorated class under `name`, snake case; the file has the same name.

    Args:
        name: of the way.
        paper: arXiv number, or the venue where there is none.
    """

    def add(kind: WayT) -> WayT:
        _WAYS.add(name, kind)
        kind.name, kind.paper = name, paper
        return kind

    return add


def all_ways() -> dict[str, type[Way]]:
    """Every way by name, sorted."""
    return _WAYS.all()


def make_way(text: str) -> Way:
    """The way that `text` names, such as "ties(density=0.1)".

    Raises:
        UnknownWay: with the nearest names.
        BadWay: an option does not exist, or does not take this value.
    """
    spec, known = parse_one(text, "way to fuse"), all_ways()
    if spec.name not in known:
        raise UnknownWay(f"There is no way to fuse {spec.name!r}. {nearest(spec.name, known)}")
    return known[spec.name](**spec.fields)
