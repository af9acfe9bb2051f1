"""What a head is: a module that reads places of a backbone; and the list of heads, from the files of vpeft/heads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from .backbones.features import Features
from .errors import VpeftError, nearest

if TYPE_CHECKING:
    from .backbones.backbone import Backbone
    from .batch import Batch


class BadHead(VpeftError):
    """A head that does not exist, or settings that it does not take."""


class Head(nn.Module):
    """A module from features to a task's outputs. It belongs to an adapter and is saved with it.

    A head is one file in vpeft/heads: a subclass with a `kind`, whose constructor takes numbers, words and lists of
    them by name. They are `settings`, by which an adapter file makes the head again.

    Class attributes:
        kind: the name under which files and the command line know it.
        reads: the places whose tensors it reads; an instance may set its own.
    """

    kind: ClassVar[str] = ""
    reads: tuple[str, ...] = ("outlet",)
    settings: dict[str, Any]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__dict__.get("kind"):
            _HEADS[cls.kind] = cls
            own: Any = cls.__init__
            names = list(inspect.signature(own).parameters)[1:]

            def remembering(self: Head, *given: Any, **named: Any) -> None:
                own(self, *given, **named)
                self.settings = {**dict(zip(names, given, strict=False)), **named}

            remembering.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
            remembering.__doc__ = own.__doc__
            setattr(cls, "__init__", remembering)  # noqa: B010 - a method is assigned

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, **options: Any) -> Head:
        """The head for a backbone: `width` channels of the pooled feature as the methods leave it, `outputs` numbers.

        Subclasses that read other places find their widths here.

        Raises:
            MissingPlace: the backbone has no such place.
            BadHead: an option does not exist.
        """
        known = list(inspect.signature(cls).parameters)
        for name in options:
            if name not in known:
                raise BadHead(f"The head {cls.kind!r} has no option {name!r}. {nearest(name, known)}")
        return cls(width=width, outputs=outputs, **options)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Features of one pass -> the task's outputs, (B, K) or whatever the task's loss takes."""
        raise NotImplementedError


_HEADS: dict[str, type[Head]] = {}


def pooled(features: Features | Tensor) -> Tensor:
    """The pooled feature (B, D), of what a head is given; a plain tensor is that already."""
    return features if isinstance(features, Tensor) else features["outlet"]


def all_heads() -> dict[str, type[Head]]:
    """Every head by its kind, sorted."""
    package = importlib.import_module(f"{__package__}.heads")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return dict(sorted(_HEADS.items()))


def get_head(kind: str) -> type[Head]:
    """The head of this kind; `BadHead` names the nearest."""
    known = all_heads()
    if kind not in known:
        raise BadHead(f"There is no head {kind!r}. {nearest(kind, known)}")
    return known[kind]
