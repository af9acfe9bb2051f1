"""No two files of one folder need each other: what runs in a circle cannot be read, tested or moved alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import grimp
import pytest


def imports(root: str, type_checking: bool) -> dict[str, set[str]]:
    """Each module of the package with those of the same folder that it imports."""
    graph = grimp.build_graph(root, exclude_type_checking_imports=not type_checking, cache_dir=None)
    return {
        module: {
            other
            for other in graph.find_modules_directly_imported_by(module)
            if other.rpartition(".")[0] == module.rpartition(".")[0]
        }
        for module in graph.modules
    }


def circles(needs: Mapping[str, Set[str]]) -> Iterator[frozenset[str]]:
    """The groups of modules that all need each other, directly or through others of the group."""
    reach = {module: _reached(module, needs) for module in needs}
    done: set[str] = set()
    for module in sorted(needs):
        if module in reach[module] and module not in done:
            group = frozenset(other for other in reach[module] if module in reach[other])
            done |= group
            yield group


def _reached(start: str, needs: Mapping[str, Set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in needs.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def test_no_folder_has_a_circle() -> None:
    found = [sorted(group) for group in circles(imports("vpeft", type_checking=False))]
    assert not found, f"these files import each other in a circle: {found}"


@pytest.mark.parametrize("folder", ["backbones", "layers", "methods", "heads", "tasks", "data"])
def test_these_folders_have_none_for_a_type_checker_either(folder: str) -> None:
    found = circles(imports("vpeft", type_checking=True))
    assert not [sorted(group) for group in found if any(name.startswith(f"vpeft.{folder}.") for name in group)]


def test_a_circle_is_found() -> None:
    needs = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str](), "e": {"e"}}
    assert set(circles(needs)) == {frozenset("bc"), frozenset("e")}
