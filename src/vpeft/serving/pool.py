"""The adapters that are on the backbone now: loaded on first use, the least recently used ones leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import describe
from vpeft.errors import VpeftError
from vpeft.head import Head
from vpeft.injection.adapter import edits_of
from vpeft.injection.adapter_file import Manifest, methods_of
from vpeft.injection.heads import Heads
from vpeft.injection.load_adapter import load
from vpeft.injection.placed import placed_methods
from vpeft.injection.tuned_model import TunedModel
from vpeft.serving.catalogue import Card, Catalogue, NotServable, Stamp
from vpeft.serving.metrics import Metrics
from vpeft.task import Task


@dataclass
class Loaded:
    """An adapter on the backbone.

    Attributes:
        card: of the file that it was loaded from.
        shares: whether images of other adapters may be in one pass with its own; None until its first pass has shown
            that its outputs are a tensor.
    """

    card: Card
    shares: bool | None = None


class Pool:
    """Adapters on one backbone. One thread uses it.

    Args:
        description: of the backbone, which no other model acts on.
        catalogue: of the files.
        capacity: adapters in memory, pinned ones included; a batch may need more while it runs.
        pinned: names of those that never leave.
        metrics: counts loads and evictions.
    """

    def __init__(
        self,
        description: Backbone,
        catalogue: Catalogue,
        capacity: int,
        pinned: Collection[str] = (),
        metrics: Metrics | None = None,
    ) -> None:
        self.tuned = TunedModel(description).eval()
        self.catalogue, self.capacity, self.pinned = catalogue, capacity, frozenset(pinned)
        self._metrics = metrics
        self._held: OrderedDict[str, Loaded] = OrderedDict()

    @classmethod
    def on(cls, model: object, catalogue: Catalogue, capacity: int, pinned: Collection[str] = ()) -> Pool:
        """A pool on a backbone, or on the description of one."""
        description = model if isinstance(model, Backbone) else describe(model)  # type: ignore[arg-type]
        return cls(description, catalogue, capacity, pinned)

    @property
    def names(self) -> list[str]:
        """The adapters in memory, least recently used first."""
        return list(self._held)

    def get(self, name: str, keep: Iterable[str] = ()) -> Loaded:
        """The adapter, loaded if it is not there or its file has changed; its digests and kept outputs are checked.

        Args:
            name: of the adapter.
            keep: names that must not leave now.

        Raises:
            UnknownAdapter: its file is gone, and so is the adapter then.
            VpeftError: the file is damaged or does not fit the backbone.
        """
        held = self._held.get(name)
        try:
            stamp = self.catalogue.stamp(name)
        except VpeftError:
            self.drop(name)
            raise
        if held is not None and held.card.stamp == stamp:
            self._held.move_to_end(name)
            return held
        self.drop(name)
        card = self.catalogue.card(name)
        self._put(card, card.stamp.path, name)
        made = self._held[name] = Loaded(card, None if self._may_share(name, card.task) else False)
        self._shrink({name, *keep})
        return made

    def try_file(self, path: Path, name: str) -> Card:
        """Load a file that is not in the folder, and take it off again; its card.

        Raises:
            VpeftError: it is damaged, does not fit the backbone, or cannot be served.
        """
        card = self.catalogue.read(name, Stamp.of(path))
        trial = f"{name[:90]}-trial"
        self._put(card, path, trial)
        self.tuned.detach(trial)
        self._stand_still()
        return card

    def drop(self, name: str) -> None:
        """Take an adapter off the backbone; nothing happens where it is not on it."""
        if self._held.pop(name, None) is not None:
            self.tuned.detach(name)
            self._stand_still()
            self._count()

    def _put(self, card: Card, path: Path, key: str) -> None:
        require_off_again(self.tuned.description, card.manifest, card.name)
        load(self.tuned, path, name=key)
        self._stand_still()
        if self._metrics is not None:
            self._metrics.loads.inc()

    def _stand_still(self) -> None:
        """Evaluate, with no adapter on until a batch says which."""
        self.tuned.eval()
        self.tuned.disable()
        self._count()

    def _count(self) -> None:
        if self._metrics is not None:
            self._metrics.loaded.set(len(self._held))

    def _shrink(self, keep: Collection[str]) -> None:
        for name in list(self._held):
            if len(self._held) <= self.capacity:
                return
            if name not in keep and name not in self.pinned:
                self.drop(name)
                if self._metrics is not None:
                    self._metrics.evictions.inc()

    def _may_share(self, name: str, task: Task) -> bool:
        head = self.tuned.adapter(name).head
        return (
            self.tuned.description.host is None
            and task.images_per_sample == 1
            and type(task).run is Task.run
            and (
                head is None
                or (isinstance(head, Head) and not isinstance(head, Heads))
                or type(head).__name__ == "Linear"
            )
        )


def require_off_again(description: Backbone, manifest: Manifest, name: str) -> None:
    """Refuse an adapter that would write to the backbone's own weights, which all adapters share.

    Raises:
        NotServable: it trains weights in place and keeps no originals (full fine-tuning).
    """
    edits = edits_of(description, placed_methods(description, tuple(methods_of(manifest))))
    if any(edit.verb == "unfreeze" and not edit.keep_original for edit in edits):
        raise NotServable(
            f"The adapter {name!r} replaces the backbone's own weights, which all adapters here share. Serve it alone,"
            " as a checkpoint: vpeft export FILE OUT --to backbone."
        )
