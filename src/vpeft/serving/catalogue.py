"""The adapters of a folder: their names, and what each file says of itself. No tensor is put anywhere here."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpeft.atomic import replace_file
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError, nearest
from vpeft.guarded import printable
from vpeft.injection.adapter_file import Manifest, read_manifest, task_of
from vpeft.task import Task

ENDING, INSIDE = ".safetensors", "adapter.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
REMEMBERED = 4096  # cards; one has a few KiB


class UnknownAdapter(VpeftError):
    """The folder has no adapter of this name."""


class NotServable(VpeftError):
    """An adapter file that cannot be served beside others."""


@dataclass(frozen=True)
class Stamp:
    """By which a file is recognised: where it is, its size and its last change."""

    path: Path
    number: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now; raises OSError where there is none."""
        found = path.stat()
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Card:
    """What an adapter file says of itself, for one state of the file.

    Attributes:
        name: of the adapter.
        stamp: of the file.
        manifest, task, preprocessing: from the file.
    """

    name: str
    stamp: Stamp
    manifest: Manifest
    task: Task
    preprocessing: Preprocessing

    @cached_property
    def transform(self) -> Callable[..., Any]:
        """From an image to what the model is shown."""
        return self.task.transforms(self.preprocessing, "none", False)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a list of adapters shows."""
        return {
            "name": self.name,
            "task": self.task.name,
            "methods": [entry.name for entry in self.manifest.methods],
            "labels": list(self.task.labels),
            "parameters": self.manifest.parameters,
            "scores": dict(self.manifest.scores),
            "backbone": self.manifest.backbone,
            "image_size": list(self.preprocessing.size),
            "digest": self.manifest.seal or self.manifest.tensors_digest,
        }


class Catalogue:
    """The adapters below a folder. Threads may use it at the same time.

    Args:
        folder: is made if it is not there.
        fallback: the preprocessing of files that state none.
    """

    def __init__(self, folder: Path, fallback: Preprocessing) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._fallback = folder, fallback
        self._cards: OrderedDict[Stamp, Card] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of all adapters, sorted."""
        found = set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(ENDING):
                    found.add(entry.name.removesuffix(ENDING))
                elif os.path.isfile(os.path.join(entry.path, INSIDE)):
                    found.add(entry.name)
        return sorted(name for name in found if _NAME.fullmatch(name))

    def stamp(self, name: str) -> Stamp:
        """The file of an adapter as it is now.

        Raises:
            UnknownAdapter: there is none of this name.
        """
        if _NAME.fullmatch(name):
            for path in (self.folder / f"{name}{ENDING}", self.folder / name / INSIDE):
                try:
                    return Stamp.of(path)
                except OSError:
                    continue
        raise UnknownAdapter(f"There is no adapter {printable(name, 100)!r}. {nearest(name[:100], self.names())}")

    def card(self, name: str) -> Card:
        """What the file of an adapter says of itself.

        Raises:
            UnknownAdapter: there is none of this name.
            VpeftError: it is damaged, or cannot be served.
        """
        stamp = self.stamp(name)
        with self._lock:
            card = self._cards.get(stamp)
            if card is not None:
                self._cards.move_to_end(stamp)
                return card
        card = self.read(name, stamp)
        with self._lock:
            self._cards[stamp] = card
            while len(self._cards) > REMEMBERED:
                self._cards.popitem(last=False)
        return card

    def read(self, name: str, stamp: Stamp) -> Card:
        """The card of a file, read anew; see `card`."""
        manifest = read_manifest(stamp.path)
        task = task_of(manifest)
        if task is None:
            raise NotServable(f"The adapter {name!r} does not say what its outputs mean: it has no labels or task.")
        if manifest.quantised is not None:
            raise NotServable(
                f"The adapter {name!r} is for weights rounded to {manifest.quantised}, and all adapters share one"
                " backbone. Serve it alone, or train it on full weights."
            )
        try:
            stated = manifest.preprocessing
            preprocessing = Preprocessing.model_validate(stated) if stated else self._fallback
        except ValidationError as error:
            raise NotServable(f"The adapter {name!r} states a preprocessing that is not usable: {error}") from None
        if preprocessing.clip is not None:
            raise NotServable(f"The adapter {name!r} takes clips, and this server takes images. Use `vpeft predict`.")
        return Card(name, stamp, manifest, task, preprocessing)

    def require_name(self, name: str) -> None:
        """Look at a name before a file is written under it.

        Raises:
            NotServable: it has other letters than names of adapters have.
        """
        if not _NAME.fullmatch(name):
            raise NotServable("A name of an adapter has 1 to 100 letters, digits, - and _.")

    def has(self, name: str) -> bool:
        """Whether there is an adapter of this name."""
        try:
            self.stamp(name)
        except UnknownAdapter:
            return False
        return True

    def keep(self, name: str, data: bytes) -> None:
        """Write an adapter file in one step, and bring it to the disk before this returns."""
        self.require_name(name)
        path = self.stamp(name).path if self.has(name) else self.folder / f"{name}{ENDING}"

        def write(beside: Path) -> None:
            beside.write_bytes(data)

        replace_file(path, write)

    def remove(self, name: str) -> None:
        """Remove the file of an adapter, and bring that to the disk before this returns.

        Raises:
            UnknownAdapter: there is none of this name.
        """
        self.stamp(name)
        while self.has(name):  # there may be one of each form
            path = self.stamp(name).path
            path.unlink(missing_ok=True)
            number = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
