"""The sources, found by looking through this folder. Nothing elsewhere knows any of them by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import Listing
from vpeft.data.problems import DataError
from vpeft.data.target import JOIN
from vpeft.errors import nearest
from vpeft.guarded import short


class Claim(IntEnum):
    """How surely a source can read something.

    A mark of its own (a list, a name) outweighs a likeness, and the files of a published format outweigh a mark.
    """

    NONE = 0
    LIKENESS = 1
    MARK = 2
    FORMAT = 3


class Source(Protocol):
    """One way of keeping labelled images.

    A source that gives other targets than one label for each image lists them in `targets`, names as in
    `DataConfig.target`. Where these depend on what is named, a method `targets_in(config)` returns them. A source of
    clips has `gives_clips = True`. A method `advice(config)` may return a sentence about something that is nearly what
    it reads, or None; it is said where no source claims it.
    """

    name: str
    """What `layout` calls it."""
    title: str
    """One line: what it looks like on disk, or where it comes from."""

    def claims(self, config: DataConfig) -> Claim:
        """Whether this source can read what `config.source` names, judged quickly and without decoding images."""

    def names(self) -> Iterable[str]:
        """Texts for `config.source` that this source knows by name (none for a folder or a file)."""

    def read(self, config: DataConfig) -> Listing:
        """List the images and labels; decodes nothing. Raises `DataError` with the file and line of a mistake."""


_SOURCES: dict[str, Source] = {}
_S = TypeVar("_S", bound=type)


def source(kind: _S) -> _S:
    """Class decorator: make a source known."""
    made: Source = kind()
    if made.name in _SOURCES and type(_SOURCES[made.name]).__qualname__ != kind.__qualname__:
        raise ValueError(f"Two sources are called {made.name!r}.")
    _SOURCES[made.name] = made
    return kind


@lru_cache(maxsize=1)
def _discover() -> None:
    package = importlib.import_module("vpeft.data.sources")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")


def sources() -> dict[str, Source]:
    """All sources by name, sorted."""
    _discover()
    return dict(sorted(_SOURCES.items()))


def known_names() -> list[str]:
    """Every data set that can be asked for by name alone."""
    return sorted(name for one in sources().values() for name in one.names())


def find_source(config: DataConfig) -> Source:
    """The source for `config`: the stated layout, or the one with the strongest claim. Raises `DataError` otherwise."""
    known = sources()
    if config.layout is not None:
        if config.layout not in known:
            raise DataError(f"There is no layout {config.layout!r}. {nearest(config.layout, known)}")
        return known[config.layout]
    config = config.model_copy(update={"target": config.target.partition(JOIN)[0]})  # each kind of several
    try:
        claims = {name: one.claims(config) for name, one in known.items()}
    except OSError as error:  # a name that no file can have, or a folder that may not be read
        raise DataError(f"{short(config.source, 200)} cannot be opened: {error.strerror}.") from None
    strongest = max(claims.values())
    claiming = [known[name] for name, claim in claims.items() if claim and claim == strongest]
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        ways = "; ".join(f"layout {one.name!r}: {one.title}" for one in claiming)
        raise DataError(f"{config.source} can be read in several ways; state one of them. {ways}.")
    path = Path(config.source).expanduser()
    if path.exists():
        for one in known.values():
            said = one.advice(config) if hasattr(one, "advice") else None
            if said:
                raise DataError(said)
        kinds = "\n".join(f"  {one.name}: {one.title}" for one in known.values())
        raise DataError(f"{config.source} exists, but is none of the layouts that vpeft reads:\n{kinds}")
    hint = nearest(config.source, known_names())
    raise DataError(f"There is no file or folder {config.source}, and no data set of that name. {hint}")


def holds_clips(config: DataConfig) -> bool:
    """Whether the data are clips: the configuration says how frames are chosen, or its source gives clips.

    Raises:
        DataError: as `find_source`.
    """
    return config.clip is not None or bool(getattr(find_source(config), "gives_clips", False))


def with_its_target(config: DataConfig) -> DataConfig:
    """The configuration with the kind of target that its source holds: that of the strongest claim.

    The kind that `config` has, a label unless another is stated, stays where a source claims it by a mark: a list of
    images may be one of labels or of captions. Where a source claims several kinds alike, it is the first in its
    `targets`.
    """
    known = sources()
    chosen = [known[config.layout]] if config.layout in known else list(known.values())
    strongest, found = Claim.NONE, config
    for one in chosen:
        for kind in targets_in(one, config):
            asked = config.model_copy(update={"target": kind})
            claim = one.claims(asked)
            if kind == config.target and claim >= Claim.MARK:
                return config
            if claim > strongest:
                strongest, found = claim, asked
    return found


def targets_in(one: Source, config: DataConfig) -> tuple[TargetName, ...]:
    """The kinds of target that a source has; for a source with a method `targets_in`, those of what `config` names."""
    told: Callable[[DataConfig], tuple[TargetName, ...]] | None = getattr(one, "targets_in", None)
    had: tuple[TargetName, ...] = getattr(one, "targets", ("label",))
    return had if told is None or not one.claims(config) else told(config)
