"""Which adapter is on: one for the whole batch, or several, each for its own images of one batch."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backbones.tokens import TokenCarrier
from ..method import ONE_TASK
from .forward_pass import (
    CHOICES,
    NO_CHOICES,
    NO_PASSES,
    NO_TASKS,
    PASSES,
    TASKS,
    Cell,
    Choice,
    ForwardPass,
    Within,
)
from .guard import Guard
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

    def of(
        self, *tensors: Tensor, acting: Container[str] | None = None
    ) -> Iterator[tuple[str | None, int, list[Tensor]]]:
        """Each adapter with how many images it has and its rows of the tensors, as views.

        An image may have several rows (windows). Where `acting` is given, neighbours that are not in it come as one,
        under no name.

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
        for name, count in self.counts if acting is None else self._merged(acting):
            yield name, count, [t[first * rows : (first + count) * rows] for t, rows in zip(tensors, per, strict=True)]
            first += count

    def _merged(self, acting: Container[str]) -> list[tuple[str | None, int]]:
        """The counts, those of neighbours that do not act added up."""
        found: list[tuple[str | None, int]] = []
        for name, count in self.counts:
            if name is not None and name in acting:
                found.append((name, count))
            elif found and found[-1][0] is None:
                found[-1] = (None, found[-1][1] + count)
            else:
                found.append((None, count))
        return found


@dataclass(eq=False)
class _Tentative:
    """A switch whose `with`, if there is one, has not begun: only the thread that made it sees it until then."""

    choice: Choice
    before: Choice
    thread: int
    alive: weakref.ref[object] | None = None


@dataclass(frozen=True)
class _Ran:
    """A pass whose backward pass has not come yet."""

    on: str | None
    shares: Shares | None
    installed: str | None
    tasks: tuple[str, ...] | None


@dataclass(frozen=True)
class _Rest:
    """What a part of a pass needs to run again besides which adapter was on."""

    within: Within
    size: tuple[int, ...] | None
    counts: dict[Cell, int]


class Switch:
    """Which adapter is on; shared by every hook of one TunedModel.

    Attributes:
        default: what is on where no `with enable` says otherwise.
        common: the pass of compiled code, which can read no context variable.
        compiled: how many times parts of the model are compiled; passes share `common` then, one at a time.
        merged: the adapters that act through the weights, so that none of their operations run.
        stands_in: the adapters that put tensors of their own into the backbone's modules.
        guard: who may run at the same time.
        carriers: what carries inserted tokens.
        asks_query: the adapters with an edit that reads the frozen model's own feature.
        keeps_precision: whether what an edit makes returns to the precision of what it edits: in a backbone of 16 bits
            with adapters in 32.
        tasks: the names of the tasks that each adapter serves, in the order of its heads; none for one with one head.
        frames: the cell of the number of frames T that pass as images of the batch (B * T).
        watched: None except while `verify` looks: then each operation that runs is noted there.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.default = Choice()
        self.common = ForwardPass(Choice(), None, shared=True)
        self.compiled = 0
        self.merged: set[str] = set()
        self.stands_in: set[str] = set()
        self.guard = Guard()
        self.carriers: list[TokenCarrier] = []
        self.asks_query: set[str] = set()
        self.tasks: dict[str, tuple[str, ...]] = {}
        self.frames = Cell()
        self.keeps_precision = False
        self.watched: list[object] | None = None
        self._start()

    def _start(self) -> None:
        self.key = next(self._numbers)
        self._tentative: list[_Tentative] = []
        self._ran: dict[int, dict[_Ran, _Rest]] = {}
        self._spent: set[int] = set()  # threads whose passes had their backward pass
        self._again: dict[tuple[int, int], ForwardPass] = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name[0] != "_" and name not in ("key", "common")}
        return {**own, "default": self.choice, "watched": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.common = ForwardPass(self.default, self._acts(self.default), shared=True)
        self._start()

    # -- what is chosen ---------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        """What is on in the present thread or task; compiled code knows what was chosen last."""
        if torch.compiler.is_compiling():
            return self.common.choice
        chosen = CHOICES.get(NO_CHOICES).get(self.key)
        if chosen is not None:
            return chosen
        if self._tentative:
            me = get_ident()
            for one in reversed(self._tentative):
                if one.thread == me:
                    return one.choice
        return self.default

    def override(self) -> Choice | None:
        """What a `with enable` of the present thread or task chose; None outside of one."""
        return CHOICES.get(NO_CHOICES).get(self.key)

    def set_override(self, choice: Choice | None) -> None:
        """Choose for the present thread or task alone; None goes back to the default."""
        chosen = dict(CHOICES.get(NO_CHOICES))
        chosen.pop(self.key, None)
        if choice is not None:
            chosen[self.key] = choice
        CHOICES.set(chosen)
        self.follow()

    def set_default(self, choice: Choice) -> None:
        """Choose for everybody, or inside of a `with enable` for the present thread or task until its end."""
        if self.override() is not None:
            self.set_override(choice)
            return
        self.settle()
        self.default = choice
        self.follow()

    def settle(self) -> None:
        """The present thread's switches were statements: they hold for everybody."""
        me = get_ident()
        for one in [one for one in self._tentative if one.thread == me]:
            self._commit(one)

    def propose(self, choice: Choice, owner: object) -> object | None:
        """Choose for everybody, but only for this thread until `owner` is gone; returns what `withdraw` takes."""
        if self.override() is not None:
            self.set_override(choice)
            return None
        self.settle()
        made = _Tentative(choice, self.default, get_ident())

        switch = weakref.ref(self)

        def gone(_: object) -> None:
            found = switch()
            if found is not None:
                found._commit(made)

        made.alive = weakref.ref(owner, gone)
        self._tentative.append(made)
        self.follow()
        return made

    def withdraw(self, made: object | None) -> None:
        """The switch is not for everybody after all: its `with` begins."""
        if not isinstance(made, _Tentative):
            return
        if made in self._tentative:
            self._tentative.remove(made)
        elif self.default is made.choice:
            self.default = made.before

    def _commit(self, made: _Tentative) -> None:
        if made in self._tentative:
            self._tentative.remove(made)
            self.default = made.choice
            self.follow()

    def follow(self) -> None:
        """Let compiled code see what is chosen now."""
        with self.guard.writes_common:
            if not self.common.open:
                self.common.choice = self.choice
                self.common.on = self._acts(self.common.choice)

    def _acts(self, choice: Choice) -> str | None:
        return None if choice.name in self.merged else choice.name

    def needs(self, name: str | None) -> str | None:
        """The adapter whose own tensors must stand in the backbone while `name` is on."""
        return name if name in self.stands_in else None

    # -- which tasks -------------------------------------------------------------------------------------------------

    def chosen_tasks(self) -> tuple[str, ...] | None:
        """The tasks that `for_tasks` chose in the present thread or task; None where nobody chose."""
        return None if torch.compiler.is_compiling() else TASKS.get(NO_TASKS).get(self.key)

    @contextmanager
    def for_tasks(self, tasks: tuple[str, ...]) -> Iterator[None]:
        """A context in which passes of the present thread or task are for these tasks alone."""
        before = TASKS.set({**TASKS.get(NO_TASKS), self.key: tasks})
        try:
            yield
        finally:
            TASKS.reset(before)

    def tasks_on(self) -> tuple[str, ...]:
        """The tasks that the pass under way is for."""
        now = self.present
        return now.tasks or (self.tasks.get(now.on) if now.on is not None else None) or (ONE_TASK,)

    # -- the pass under way -----------------------------------------------------------------------------------------

    @property
    def present(self) -> ForwardPass:
        """The pass under way in the present thread or task; one begins where a hook runs outside of any.

        Raises:
            SwitchedTooSoon: a block is run again in the backward pass, when another adapter is on than before.
        """
        if torch.compiler.is_compiling():
            return self.common
        task = torch._C._current_graph_task_id()
        found = PASSES.get(NO_PASSES).get(self.key)
        if found is not None and found.task == task and (found.open or self._goes_on(found)):
            return found
        return self._begun(task)

    def _goes_on(self, found: ForwardPass) -> bool:
        return found.choice == self.choice and (found.shares is not None or found.on == self._acts(found.choice))

    def _begun(self, task: int, size: tuple[int, ...] | None = None) -> ForwardPass:
        if self.compiled:
            self.follow()
            return self.common
        if task != -1:
            return self._run_again(task)
        choice = self.choice
        made = ForwardPass(choice, self._acts(choice), size=size, tasks=self.chosen_tasks())
        self._note(made)
        self._put(made)
        return made

    def _put(self, made: ForwardPass) -> None:
        PASSES.set({**PASSES.get(NO_PASSES), self.key: made})

    def enter(self, size: tuple[int, ...] | None) -> None:
        """Images of this size enter the backbone; outside of the model's own forward call a pass begins here."""
        if torch.compiler.is_compiling():
            self.common.size = size
            return
        if torch._C._current_graph_task_id() != -1:
            return
        found = PASSES.get(NO_PASSES).get(self.key)
        if found is None or not found.open:
            found = self._begun(-1, size)
        found.size = size

    @contextmanager
    def run(
        self,
        install: Callable[[str | None], None],
        *,
        shares: Shares | None = None,
        within: Within | None = None,
        size: tuple[int, ...] | None = None,
        lingers: bool = False,
        tasks: tuple[str, ...] | None = None,
    ) -> Iterator[ForwardPass]:
        """A forward call of the model. A pass that was handed to it is taken, otherwise its own is opened.

        Args:
            install: puts the tensors of an adapter into the backbone.
            shares, within: see `ForwardPass`; no adapter is on for the batch as a whole then.
            size: of the images, where it is known already.
            lingers: whether what was read is kept for what follows in this thread: `logits` after `features`.
            tasks: that the pass is for; None for those of `for_tasks`, or all.
        """
        found = PASSES.get(NO_PASSES).get(self.key)
        if found is not None and found.open and found.handed:
            found.handed = False
            yield found
            return
        choice = Choice() if shares is not None else self.choice
        wanted = self.needs(choice.name)
        tasks = self.chosen_tasks() if tasks is None else tasks
        if tasks == (ONE_TASK,) and choice.name not in self.tasks:
            tasks = None  # one head: that is all of them
        with self.guard.alone() if self.compiled else nullcontext():
            self.guard.begin(wanted, install)
            made = ForwardPass(choice, self._acts(choice), shares, within, size, open=True, tasks=tasks)
            made.task = torch._C._current_graph_task_id()
            outer = None
            if self.compiled:
                made, outer = self.common, self.common.__dict__.copy()
                with self.guard.writes_common:  # else a `follow` that saw no pass writes its choice into this one
                    made.__dict__.update(
                        choice=choice,
                        on=self._acts(choice),
                        shares=shares,
                        within=within or {},
                        size=size,
                        open=True,
                        tasks=tasks,
                    )
                made.task = torch._C._current_graph_task_id()
                made.let_go()
                for carrier in self.carriers:
                    carrier.reset()
            self._note(made)
            self._put(made)
            try:
                yield made
            finally:
                made.open = False
                if not lingers:
                    made.let_go()
                if outer is not None:
                    made.__dict__.update(outer)
                if found is not None and found.open:
                    self._put(found)
                self.guard.end()

    def _note(self, made: ForwardPass) -> None:
        if made.gradient and not made.idle:
            me = get_ident()
            if me in self._spent:
                self._spent.discard(me)
                self._ran.pop(me, None)
            self._ran.setdefault(me, {})[_Ran(made.on, made.shares, self.guard.installed, made.tasks)] = _Rest(
                made.within, made.size, made.counts
            )

    def _run_again(self, task: int) -> ForwardPass:
        """The pass in which blocks are run again in a backward pass.

        Which adapter a block ran with is nowhere in the graph. So if several were on since the last backward pass, what
        is now run again may be of another than the one that is on. A thread of autograd's own knows no context: there
        it is the one that ran.
        """
        me = get_ident()
        made = self._again.get((task, me))
        if made is not None:
            return made
        own = self._ran.get(me)
        ran = own if own is not None else {key: one for some in list(self._ran.values()) for key, one in some.items()}
        self._spent.update([me] if own is not None else list(self._ran))
        choice = self.choice
        # which tasks it was for is nowhere in the graph either, and what ran last need not be chosen any more
        tasks = next(iter(ran)).tasks if ran else None
        now = _Ran(self._acts(choice), None, self.guard.installed, tasks)
        if ran or now.on is not None:
            fits = len(ran) == 1 and (own is None or now in ran)
            if not fits or next(iter(ran)).installed != self.guard.installed:
                raise SwitchedTooSoon(
                    "With activation checkpointing, blocks are run again in the backward pass, and by now another"
                    " adapter or task is on than in (one of) the forward passes before it. Call backward() before"
                    " switching, give batches that name one task to a method that runs once for each, and run what"
                    " needs no gradient under torch.no_grad()."
                )
        first = next(iter(ran.values()), None)
        if first is None:
            made = ForwardPass(choice, now.on, task=task)
        else:
            (key,) = ran
            made = ForwardPass(choice, key.on, key.shares, first.within, first.size, task=task, tasks=key.tasks)
            made.counts = first.counts
        self._again[task, me] = made
        again = self._again

        def ended() -> None:
            for key in [key for key in again if key[0] == task]:
                del again[key]

        torch.autograd.Variable._execution_engine.queue_callback(ended)
        return made

    def let_go(self) -> None:
        """Keep nothing of the last pass of this thread, which `features` leaves for `outputs`."""
        passes = PASSES.get(NO_PASSES)
        found = passes.get(self.key)
        if found is not None and not found.open:
            PASSES.set({key: made for key, made in passes.items() if key != self.key})

    def forget(self) -> None:
        """No backward pass will come for what ran in this thread until now."""
        self._ran.pop(get_ident(), None)
        self._spent.discard(get_ident())

    # -- what hooks and operations ask ------------------------------------------------------------------------------

    @property
    def on(self) -> str | None:
        """The adapter whose operations run in the present pass."""
        return self.present.on

    @on.setter
    def on(self, name: str | None) -> None:
        self.set_default(Choice(name))

    @property
    def shares(self) -> Shares | None:
        """Who has which images in the present pass, while several adapters are on at once."""
        return self.present.shares

    @property
    def idle(self) -> bool:
        """Whether no adapter is on in the present pass."""
        return self.present.idle

    def recall(self, cell: Cell) -> Any:
        """The value that the cell has in the present pass, or None."""
        return self.present.recall(cell)

    def keep(self, cell: Cell, value: Any) -> None:
        """Give the cell a value in the present pass; None takes it away."""
        self.present.keep(cell, value)

    def runs(self, operation: Operation | EditCore) -> bool:
        """Whether this operation acts now; `verify` notes that it did."""
        if operation.adapter != self.present.on:
            return False
        if self.watched is not None:
            self.watched.append(operation)
        return True

    def by_image(
        self, now: ForwardPass, act: Callable[..., tuple[Tensor, ...]], acting: Container[str], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """What `act` makes of the tensors, of each adapter's rows alone while several are on.

        `act` gives as many tensors as it gets. It is called for the adapters in `acting` alone; the rows of others
        pass as they are. Rows that it returns as they were, or has written to, are not copied.
        """
        shares = now.shares
        if shares is None:
            return act(*tensors)
        now.shares, made, same, first = None, list[tuple[Tensor, ...]](), True, 0
        now.images = shares.images
        try:
            for name, images, rows in shares.of(*tensors, acting=acting):
                now.on, now.rows = name, slice(first, first + images)
                first += images
                if name is None:
                    made.append(tuple(rows))
                    continue
                with now.within.get(name, nullcontext)():
                    out = act(*rows)
                same = same and all(a is b for a, b in zip(out, rows, strict=True))
                made.append(out)
        finally:
            now.on, now.shares, now.rows = None, shares, None
        return tensors if same else tuple(torch.cat(parts) for parts in zip(*made, strict=True))
