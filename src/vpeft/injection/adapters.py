"""The adapters of a model by name. Those that are off cost nothing when the model changes between training and eval."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from torch import nn

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class Adapters(nn.ModuleDict):
    """A ModuleDict whose `train` walks no adapter: each takes over the mode when it is switched on or looked at.

    With 1,000 adapters a call of `train` would otherwise visit all of their modules. Who asks for a module, by name or
    by walking the tree, always sees its right mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0  # of `train`
        self._followed: dict[str, int] = {}  # by adapter: the last call whose mode its modules have

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_calls", 0)
        self.__dict__.setdefault("_followed", {})

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add an adapter, which keeps the mode that it has."""
        super().add_module(name, module)
        self._followed[name] = self._calls

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every adapter; see the class."""
        self.training = mode
        self._calls += 1
        return self

    def follow(self, name: str | None) -> None:
        """Let one adapter take over the mode that was last set."""
        adapter = None if name is None else self._modules.get(name)
        if name is not None and adapter is not None and self._followed.get(name) != self._calls:
            adapter.train(self.training)
            self._followed[name] = self._calls  # afterwards, as another thread may ask meanwhile

    def _follow_all(self) -> None:
        for name in list(self._modules):
            self.follow(name)

    def __getitem__(self, key: str) -> nn.Module:
        self.follow(key)
        return super().__getitem__(key)

    def __delitem__(self, key: str) -> None:
        self._followed.pop(key, None)
        super().__delitem__(key)

    def items(self) -> ItemsView[str, nn.Module]:
        """Name and module of each adapter."""
        self._follow_all()
        return super().items()

    def values(self) -> ValuesView[nn.Module]:
        """The module of each adapter."""
        self._follow_all()
        return super().values()

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each adapter, for those who walk the tree."""
        self._follow_all()
        yield from super().named_children()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Every module below, for those who walk the tree."""
        self._follow_all()
        yield from super().named_modules(memo, prefix, remove_duplicate)


@contextmanager
def evaluating(tuned: TunedModel, name: str | None) -> Iterator[None]:
    """Inside, the backbone and one adapter evaluate, whatever their modes were; other adapters are not visited."""
    own = [tuned.backbone] if name is None else [tuned.backbone, tuned.adapter(name)]
    modes = [(module, module.training) for part in own for module in part.modules()]
    whole = tuned.training
    try:
        tuned.training = False
        for part in own:
            part.eval()
        yield
    finally:
        tuned.training = whole
        for module, mode in modes:
            module.training = mode
