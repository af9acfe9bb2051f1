"""What is known of each image: the contract of a kind of target, and the list of all kinds.

A kind is one file of vpeft/data/targets: it says how a table and an array give it, how a sample carries it, by what
splits are stratified, what lists and manifests say of it, and refuses what belongs to another kind with the task that
fits.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import Item
from vpeft.data.problems import DataError, Problems
from vpeft.errors import VpeftError, nearest

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing


class UnknownTarget(VpeftError):
    """No kind of target has this name."""


class Given(NamedTuple):
    """The target of one image as a source gives it: the text for lists, and what the text says (None: the same)."""

    text: str
    value: Any = None


class Target(ABC):
    """A kind of target.

    Class attributes:
        name: as `DataConfig.target` and `Task.target_kind` say it; set by `@register_target`.
        given: the beginning of a sentence about it, with its verb: "masks are".
        plural: what the targets of several images are called.
        wants: what a task that learns it wants of each image, in words.
        task: the first task that learns it, for messages.
        on_pixels: whether it lies on the pixels of the image, so that it goes through the transform with the image.
    """

    name: ClassVar[TargetName]
    given: ClassVar[str]
    plural: ClassVar[str]
    wants: ClassVar[str]
    task: ClassVar[str]
    on_pixels: ClassVar[bool] = False

    def refused(self, where: str, found: TargetName) -> DataError:
        """The error that a target of another kind was found, with the task that fits."""
        other = target_kind(found)
        return DataError(f"{where}: {other.given} given where {self.task} wants {self.wants}: use --task {other.task}.")

    # -- reading --------------------------------------------------------------------------------------------------

    @abstractmethod
    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        """Positions of the columns of a table that hold the target; raises `DataError` where there are none."""

    @abstractmethod
    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        """The targets in the cells of a table.

        Args:
            rows: line number, and the cells of the columns that `columns` chose.
            names: of these columns.
            config: of the data set.
            where: the table, for messages.
            root: the folder that paths start from.

        Returns:
            one for each row; None for a row without a target.
        """

    @abstractmethod
    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        """The targets in an array whose first axis counts images; `classes` names columns or numbers."""

    # -- describing -----------------------------------------------------------------------------------------------

    @abstractmethod
    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        """Names of classes or values in the order of their numbers; `stated` where the source says them."""

    @abstractmethod
    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        """Note what is wrong with the targets of all splits; raises `DataError` where nothing can be learnt."""

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """For each item's name the group of which splits take a due share."""
        return {item.name: item.label for item in items}

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        """Images per label, zeros included."""
        counted = Counter(label for item in items for label in self.of_item(item, labels))
        return {label: counted[label] for label in labels}

    @abstractmethod
    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        """Which of `labels` an image shows."""

    @abstractmethod
    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        """A function from an item to what a sample carries, or to what goes through the transform with the image.

        The function raises `DataError` for an item with an unknown label.
        """

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """The transform of image and target where no task states its own; `augmentation` acts in training alone."""
        made: Callable[..., Any] = preprocessing.augmented(augmentation) if training else preprocessing.transform()
        return made

    def untransformed(self, drawn: Any, size: tuple[int, int]) -> Any:
        """What a sample carries where there is no transform, for a target on the pixels of an image (H, W)."""
        return drawn.as_subclass(Tensor).reshape(drawn.shape[-2:])

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        """The columns of the target in a list; raises `DataError` where a list cannot hold it."""
        return ["label"]

    def cells(self, item: Item) -> list[str]:
        """What `list_columns` hold for an image."""
        return [item.label]


JOIN = "+"
"""Between the names of several kinds of maps that each image has, as in "mask+depth"."""
_KINDS: dict[str, type[Target]] = {}
_JOINED: list[Callable[[Sequence[Target]], Target]] = []
_T = TypeVar("_T", bound=type[Target])


def register_target(name: str) -> Callable[[_T], _T]:
    """Enter the decorated kind of target under `name`, which data sets and tasks then ask for."""

    def add(kind: _T) -> _T:
        taken = _KINDS.get(name)
        if taken is not None and taken.__qualname__ != kind.__qualname__:
            raise ValueError(f"The name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        kind.name = name
        _KINDS[name] = kind
        return kind

    return add


def joins_kinds(kind: _T) -> _T:
    """Let the decorated class stand for several kinds of maps together; it is made with a fresh target of each."""
    _JOINED[:] = [kind]
    return kind


def target_kinds() -> dict[str, type[Target]]:
    """Every kind of target by name, sorted; made from the files of vpeft/data/targets."""
    _discover()
    return dict(sorted(_KINDS.items()))


@lru_cache(maxsize=1)
def _discover() -> None:
    package = importlib.import_module("vpeft.data.targets")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")


def target_kind(name: TargetName) -> type[Target]:
    """The kind of target with this name; `UnknownTarget` names the nearest."""
    known = target_kinds()
    if name not in known:
        raise UnknownTarget(f"There is no kind of target {name!r}. {nearest(name, known)}")
    return known[name]


def target_of(config: DataConfig | TargetName) -> Target:
    """A fresh target of the kind that a configuration, or its name, asks for; `UnknownTarget` names the nearest."""
    name = config if isinstance(config, str) else config.target
    if JOIN in name:
        importlib.import_module("vpeft.data.joined_maps")
        return _JOINED[0]([target_kind(one)() for one in name.split(JOIN)])
    return target_kind(name)()


def known(index: Mapping[str, int], found: Iterable[str], labels: Sequence[str]) -> list[int]:
    try:
        return [index[label] for label in found]
    except KeyError as error:
        shown = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise DataError(
            f"Labels {error.args[0]!r} are in the data but not among the {len(labels)} known ones ({shown})."
        ) from None


def note_unseen(
    target: Target,
    splits: Mapping[Any, Sequence[Item]],
    labels: Sequence[str],
    stated: Iterable[str],
    problems: Problems,
) -> None:
    """Note classes that no image shows, and those that no training image shows."""
    for label in dict.fromkeys(stated):
        if label not in labels:
            problems.add("empty_class", label)
    of_split = {
        split: {one for item in items for one in target.of_item(item, labels)} for split, items in splits.items()
    }
    for label in labels:
        if label not in of_split.get("train", set()):
            where = [split for split, seen in of_split.items() if label in seen]
            if where:
                problems.add("unseen_class", label, f"only in {' and '.join(where)}")
            else:
                problems.add("empty_class", label)
