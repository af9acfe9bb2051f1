"""Published methods, one file each; `vpeft.methods.LoRA` and the like are found by class name."""

from __future__ import annotations

from ..method import Method, all_methods, register
from ..method import get_method as get
from ..method import method_names as names

__all__ = ["Method", "all_methods", "get", "names", "register"]


def __getattr__(name: str) -> type[Method]:
    if name.startswith("_") or not name[0].isupper():
        raise AttributeError(name)
    by_class = {kind.__name__: kind for kind in all_methods().values()}
    if name not in by_class:
        from ..errors import nearest

        raise AttributeError(f"vpeft.methods has no {name!r}. {nearest(name, by_class)}")
    return by_class[name]


def __dir__() -> list[str]:
    return sorted([*__all__, *(kind.__name__ for kind in all_methods().values())])
