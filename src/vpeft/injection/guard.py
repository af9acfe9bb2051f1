"""Who may run at the same time: passes that need the same tensors in the backbone, and nobody beside a change.

Some adapters put tensors of their own into the backbone (unfrozen parameters, BatchNorm statistics, merged weights).
A pass that needs other tensors there than the installed ones waits until the passes under way have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, get_ident

from .node import AdapterError


class Guard:
    """Lets passes with equal tensors run side by side, and all others one after another, in the order they came.

    Attributes:
        installed: the adapter whose own tensors are in the backbone's modules; None while the frozen ones are.
        writes_common: held while the pass that compiled code reads is opened, or its choice is written.
    """

    def __init__(self) -> None:
        self.installed: str | None = None
        self.writes_common = Lock()
        self._condition = Condition()
        self._running: dict[int, int] = {}  # how many passes each thread has under way
        self._alone: int | None = None  # the thread that runs beside nobody
        self._depth = 0
        self._queue: deque[object] = deque()
        self._nested = 0  # threads that wait while they have a pass under way

    def __getstate__(self) -> dict[str, object]:
        return {"installed": self.installed}  # a copy starts between two passes

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]
        self.installed = state["installed"]  # type: ignore[assignment]

    def begin(self, wanted: str | None, install: Callable[[str | None], None]) -> None:
        """Begin a pass that needs the tensors of `wanted`; `install` puts them in if others are there."""
        me = get_ident()
        with self._condition:
            if self._queue or self._alone not in (None, me) or wanted != self.installed:
                self._wait(me, lambda: wanted == self.installed or not self._others(me))
                if wanted != self.installed:
                    install(wanted)
                    self.installed = wanted
            self._running[me] = self._running.get(me, 0) + 1

    def end(self) -> None:
        """The pass has ended."""
        me = get_ident()
        with self._condition:
            left = self._running.pop(me) - 1
            if left:
                self._running[me] = left
            if self._queue:
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the passes of other threads to end, and let none begin until the end."""
        me = get_ident()
        with self._condition:
            if self._alone != me:
                self._wait(me, lambda: not self._others(me))
            self._alone, self._depth = me, self._depth + 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                if not self._depth:
                    self._alone = None
                self._condition.notify_all()

    @property
    def runs_here(self) -> bool:
        """Whether a pass of the present thread is under way."""
        return get_ident() in self._running

    def _others(self, me: int) -> bool:
        return any(thread != me for thread in self._running)

    def _wait(self, me: int, free: Callable[[], bool]) -> None:
        """Wait in line; who has a pass under way already goes first, as others may wait for its end."""
        inside = me in self._running or self._alone == me
        if inside:
            if free():
                return
            if self._nested:
                raise AdapterError(
                    "Two threads have a forward pass under way, and each wants to put other tensors into the backbone"
                    " before it ends. Switch such adapters outside of forward passes."
                )
            self._nested += 1
            try:
                self._condition.wait_for(free)
            finally:
                self._nested -= 1
            return
        token = object()
        self._queue.append(token)
        try:
            self._condition.wait_for(lambda: self._queue[0] is token and self._alone in (None, me) and free())
        finally:
            self._queue.remove(token)
            self._condition.notify_all()
