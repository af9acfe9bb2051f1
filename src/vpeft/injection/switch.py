"""Which adapter is on: one for the whole batch, or several, each for its own images of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .node import AdapterError

if TYPE_CHECKING:
    from .operations import EditCore, Operation


class NotByImage(AdapterError):
    """A tensor has no rows that belong to one image, or an edit acts on something that all images share."""


class SwitchedTooSoon(AdapterError):
    """Activation checkpointing runs a block again in the backward pass, when another adapter is on than before."""


@dataclass(frozen=True)
class Shares:
    """How many images of a batch each adapter has, in the order of the images; None is no adapter."""

    counts: tuple[tuple[str | None, int], ...]

    @property
    def images(self) -> int:
        """The size of the batch."""
        return sum(count for _, count in self.counts)

    def has(self, adapter: str) -> bool:
        """Whether some image is this adapter's."""
        return any(name == adapter for name, _ in self.counts)

    def of(self, *tensors: Tensor) -> Iterator[tuple[str | None, list[Tensor]]]:
        """Each adapter with its rows of the tensors, as views; an image may have several rows (windows).

        Raises:
            NotByImage: the rows of a tensor are no multiple of the images.
        """
        per = []
        for tensor in tensors:
            rows, rest = divmod(tensor.shape[0], self.images) if tensor.dim() else (0, 1)
            if rest or not rows:
                raise NotByImage(f"A tensor {tuple(tensor.shape)} does not belong to {self.images} images.")
            per.append(rows)
        first = 0
        for name, count in self.counts:
            yield name, [t[first * rows : (first + count) * rows] for t, rows in zip(tensors, per, strict=True)]
            first += count


class Switch:
    """Which adapter is on; shared by every hook of one TunedModel.

    Attributes:
        on: the adapter, or None.
        shares: who has which images while several adapters are on at once; `on` is None then, but for the moment in
            which an adapter's own rows are worked on.
        within: what to enter around an adapter's work on its own rows, by adapter (its own random numbers).
        watched: None except while `verify` looks: then each operation that runs is noted there.
    """

    def __init__(self) -> None:
        self.on: str | None = None
        self.shares: Shares | None = None
        self.within: Mapping[str | None, Callable[[], AbstractContextManager[None]]] = {}
        self.watched: list[object] | None = None
        self._ran: set[object] = set()
        self._recomputed = False

    def mark(self) -> None:
        """Note that something runs now, or refuse to run it again with another adapter on than the first time.

        Which adapter a block ran with is nowhere in the graph. So if several were on since the last backward pass, what
        is now run again may be of another than the one that is on.

        Raises:
            SwitchedTooSoon: see above.
        """
        if torch.compiler.is_compiling():
            return
        now = self.shares or self.on
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            self._recomputed = True
            if self._ran != {now}:
                raise SwitchedTooSoon(
                    "With activation checkpointing, blocks are run again in the backward pass, and by now another"
                    " adapter is on than in (one of) the forward passes before it. Call backward() before switching,"
                    " and run what needs no gradient under torch.no_grad()."
                )
        elif torch.is_grad_enabled() and not self.idle:
            if self._recomputed:
                self.forget()
            self._ran.add(now)

    def forget(self) -> None:
        """No backward pass will come for what ran until now."""
        self._ran, self._recomputed = set(), False

    @property
    def idle(self) -> bool:
        """Whether no adapter is on."""
        return self.on is None and self.shares is None

    def runs(self, operation: Operation | EditCore) -> bool:
        """Whether this operation acts now."""
        if operation.adapter != self.on:
            return False
        if self.watched is not None:
            self.watched.append(operation)
        return True

    def plays(self, adapter: str) -> bool:
        """Whether this adapter is on, for whichever images."""
        return adapter == self.on or (self.shares is not None and self.shares.has(adapter))

    def by_image(self, act: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """What `act` makes of the tensors, of each adapter's rows alone while several are on.

        `act` gives as many tensors as it gets. Rows that it returns as they were, or has written to, are not copied.
        """
        shares = self.shares
        if shares is None:
            return act(*tensors)
        self.shares, made, same = None, list[tuple[Tensor, ...]](), True
        try:
            for name, rows in shares.of(*tensors):
                self.on = name
                with self.within.get(name, nullcontext)():
                    out = act(*rows)
                same = same and all(a is b for a, b in zip(out, rows, strict=True))
                made.append(out)
        finally:
            self.on, self.shares = None, shares
        return tensors if same else tuple(torch.cat(parts) for parts in zip(*made, strict=True))
