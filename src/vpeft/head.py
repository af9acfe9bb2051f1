"""What a head is: a module that reads places of a backbone; and the list of heads, from the files of vpeft/heads."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator
from torch import Tensor, nn

from .arguments import TEXT, require
from .backbones.features import Features
from .errors import VpeftError, nearest
from .method_spec import parse_one

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
        training_only: names of its tensors, or of parts with tensors, that only training needs. Checkpoints have them,
            adapter files do not; an instance may set its own.
        options: what a user may set; by default what the constructor takes besides width and outputs. A head that
            finds more on a backbone, or takes something in `on` alone, names its own.
    """

    kind: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    reads: tuple[str, ...] = ("outlet",)
    training_only: tuple[str, ...] = ()
    settings: dict[str, Any]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__dict__.get("kind"):
            taken = _HEADS.get(cls.kind)
            if taken is not None and taken.__qualname__ != cls.__qualname__:
                raise ValueError(f"The kind {cls.kind!r} is taken by {taken.__module__}.{taken.__qualname__}.")
            _HEADS[cls.kind] = cls
            own = cls.__init__
            signature = inspect.signature(own)
            if "options" not in cls.__dict__:
                names = list(signature.parameters)[1:]
                cls.options = tuple(name for name in names if name not in ("width", "outputs"))

            def remembering(self: Head, *given: Any, **named: Any) -> None:
                own(self, *given, **named)
                bound = signature.bind(self, *given, **named)
                # With the defaults of today, so that a file outlives a change of them.
                bound.apply_defaults()
                self.settings = _plain_settings(cls.kind, dict(list(bound.arguments.items())[1:]))

            remembering.__signature__ = signature  # type: ignore[attr-defined]
            remembering.__doc__ = own.__doc__
            cls.__init__ = remembering  # type: ignore[method-assign,assignment]

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head for a backbone: `width` channels of the pooled feature as the methods leave it, `outputs` numbers.

        Subclasses that read other places find their widths here.

        Raises:
            MissingPlace: the backbone has no such place.
            BadHead: an option does not exist.
        """
        return cls.with_options(options, width=width, outputs=outputs)

    @classmethod
    def with_options(cls, options: Mapping[str, Any], **found: Any) -> Self:
        """The head with what was `found` on a backbone and the user's options.

        Raises:
            BadHead: an option does not exist, or does not take this value.
        """
        for name in options:
            if name not in cls.options:
                raise BadHead(f"The head {cls.kind!r} has no option {name!r}. {nearest(name, cls.options)}")
        try:
            return cls(**found, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadHead(f"The head {cls.kind!r} does not take {dict(options)}: {error}") from error

    def own_inputs(self) -> Mapping[str, Tensor]:
        """Inputs that this head brings to towers of the host, by tower: token numbers (R, L) of the names of classes.

        The default brings none. They must be tensors of the head, so that they move with it.
        """
        return {}

    def grown(self, outputs: int) -> Self:
        """A head of the same kind and settings with more outputs; its first rows are these, exactly.

        Raises:
            BadHead: this kind does not grow, or `outputs` is not more than there are.
        """
        growing = [kind for kind, one in all_heads().items() if one.grown is not Head.grown]
        raise BadHead(
            f"The head {self.kind!r} cannot take further outputs. Heads that can: {', '.join(growing)}. Train the"
            " adapter anew with one of them, for instance --head linear."
        )

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Features of one pass -> the task's outputs, (B, K) or whatever the task's loss takes."""
        raise NotImplementedError(f"The head {self.kind!r} does not say what it computes: it has no forward.")


_HEADS: dict[str, type[Head]] = {}
_RAW: ContextVar[bool] = ContextVar("vpeft_raw_outputs", default=False)


@contextmanager
def raw_outputs() -> Iterator[None]:
    """A context in which heads give what they compute before they choose (a detector's boxes before suppression).

    Checks of gradients and of equality look at these: every tensor of a head has a part in them, they are of one shape
    for one input, and they change continuously. It holds for the present thread or task; most heads never choose.
    """
    before = _RAW.set(True)
    try:
        yield
    finally:
        _RAW.reset(before)


def wants_raw() -> bool:
    """Whether a head is asked for its outputs before it chooses; see `raw_outputs`."""
    return _RAW.get()


def _plain_settings(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples become lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(settings))
    except TypeError as error:
        raise BadHead(
            f"The head {kind!r} was made with something that an adapter file cannot hold: {error}. Its constructor"
            " may take numbers, words, None, and lists or mappings of them."
        ) from error
    return plain


def with_rows_of(fresh: nn.Module, old: nn.Module) -> None:
    """Copy every tensor of a smaller head into a grown one: into its first rows, or whole where the shapes are equal.

    Raises:
        BadHead: the grown head is not larger.
    """
    own, given = fresh.state_dict(), old.state_dict()
    if all(own[name].shape == value.shape for name, value in given.items()):
        raise BadHead("A head grows to more outputs than it has; these are as many.")
    for name, value in given.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
        elif len(own[name]) > len(value):
            own[name][: len(value)].copy_(value)
        else:
            raise BadHead(f"A head grows to more outputs than it has: {len(own[name])} are fewer than {len(value)}.")


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
    require("get_head(kind)", kind=(kind, TEXT))
    known = all_heads()
    if kind not in known:
        raise BadHead(f"There is no head {kind!r}. {nearest(kind, known)}")
    return known[kind]


def make_head(text: str, backbone: Backbone, width: int, outputs: int) -> Head:
    """The head that `text` describes, for instance "linear" or "mlp(hidden=512)", for a backbone.

    Args:
        text: a head's kind, perhaps with options, in the grammar of method_spec.py.
        backbone: whose places the head reads.
        width: channels of the pooled feature as the methods leave it.
        outputs: numbers that the head gives for each sample, or for each cell of a map.

    Raises:
        BadHead: there is no such head, or no such option.
        MissingPlace: the backbone lacks a place that the head reads.
    """
    spec = parse_one(text, "head")
    return get_head(spec.name).on(backbone, width, outputs, **spec.fields)


def _known_head(text: str) -> str:
    get_head(parse_one(text, "head").name)
    return text


HeadText = Annotated[str, AfterValidator(_known_head)]
"""A head in text, for the options of a task: refused where no head has this kind."""
