"""Which method is on which tower, and which places a host's own forward pass comes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.host import outside_of_host
from ..backbones.host_parts import part_of
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..errors import nearest
from ..method import Method
from .node import AdapterError

TOGETHER = "*"
"""In place of a tower's name: the method edits all towers together, by its `edits_across`."""

MethodLike = Method | Mapping[str, Method | Sequence[Method]]
"""A method; for a host a mapping from its towers and parts, by their names, to one method or several."""
JOINT = "+"
"""Between names of towers and parts, "image+text_encoder": the method edits these together, by its `edits_across`."""
ONLY = "image"
"""The name of the only tower of a host in such a mapping."""


@dataclass(frozen=True)
class Placed:
    """A method and where it is: a tower (empty where there is one), a part, several with "+", or "*" for all towers."""

    method: Method
    tower: str = ""

    def __str__(self) -> str:
        return f"{self.tower}: {self.method!r}" if self.tower else repr(self.method)


def placed_methods(description: Backbone, given: Sequence[MethodLike]) -> tuple[Placed, ...]:
    """Methods as they were given to `tune`, each with its tower or its part of the host.

    Raises:
        AdapterError: there is none; something is no method; a tower does not exist, or none was named among several.
        MissingPlace: a part of the host does not exist or cannot take methods.
    """
    if not given:
        raise AdapterError("No method was given. For a head alone, attach the linear probe.")
    towers = description.towers
    several = len(towers) > 1
    placed: list[Placed] = []
    for one in given:
        if not isinstance(one, Mapping):
            method = _method(one)
            if several:
                raise AdapterError(
                    f"{description.facts.architecture} has the towers {', '.join(towers)}; say which methods are on"
                    f" which: tune(model, {{{', '.join(f'{name!r}: {method!r}' for name in towers)}}})."
                )
            placed.append(Placed(method))
            continue
        if not several and description.host is None:
            raise AdapterError(
                f"{description.facts.architecture} has one tower, so that methods are given by themselves and not by"
                " tower: tune(model, method)."
            )
        for name, methods in one.items():
            where = _where(description, name)
            listed = methods if isinstance(methods, (list, tuple)) else [methods]
            placed += [Placed(_method(method), where) for method in listed]
    if not placed:
        raise AdapterError("No method was given: the mapping from towers to methods is empty.")
    return tuple(placed)


def _where(description: Backbone, name: str) -> str:
    """A tower by its name, a part of the host by its whole name, several with "+", or "*"; empty for the only tower.

    Raises:
        AdapterError: there is neither a tower nor a part with this name.
    """
    towers = description.towers
    if name in towers or (name == TOGETHER and len(towers) > 1):
        return name
    if JOINT in name:
        return JOINT.join(_where(description, one) or ONLY for one in name.split(JOINT))
    if name == ONLY and len(towers) == 1:
        return ""
    try:
        part = part_of(description, name)
    except MissingPlace as error:
        offered = [ONLY] if len(towers) == 1 else [*towers, TOGETHER]
        raise AdapterError(
            f"{description.facts.architecture} has no tower {name!r}. {nearest(name, offered)} A part of the model can"
            f" be named too: {error}"
        ) from None
    return next(key for key, known in description.parts.items() if known is part)


def joined(description: Backbone, names: str) -> dict[str, Backbone]:
    """The towers and parts that a method edits together, by name; "*" is all towers."""
    if names == TOGETHER:
        return dict(description.towers)
    only = description if len(description.towers) == 1 else None
    return {
        name: only if only is not None and name == ONLY else description.towers.get(name) or part_of(description, name)
        for name in names.split(JOINT)
    }


def _method(one: object) -> Method:
    """The method itself; a name or a class is refused, as it has no hyper-parameters."""
    if isinstance(one, Method):
        return one
    found = f"the class {one.__name__}" if isinstance(one, type) else repr(one)
    example = f"{one.__name__}()" if isinstance(one, type) else f"vpeft.methods.get({str(one)!r})()"
    raise AdapterError(
        f"A method with its hyper-parameters is wanted, and {found} is none; {example} would be one with the defaults."
    )


def require_on_host_path(description: Backbone, edits: Sequence[Edit]) -> None:
    """Raise `MissingPlace` where an edit acts on, or reads, what a host's own forward pass never comes by.

    Raises:
        MissingPlace: the place belongs to the pooling that the tower alone has, or is the tower's own feature.
    """
    if description.host is None:
        return
    host = type(description.host).__name__
    places = [edit.place for edit in edits if edit.verb != "unfreeze"]
    read = [source for edit in edits for source in edit.reads if isinstance(source, Place)]
    if any(source.name == "query" for source in read):
        raise MissingPlace(
            f"This method reads the frozen tower's own pooled feature of the inputs, and {host}, which the tower is a"
            " part of, takes other inputs. Tune the tower alone with a head, or take another method."
        )
    outside = outside_of_host(description, iter([*places, *read]))
    if outside:
        raise MissingPlace(
            f"{host} runs the tower and never comes by {', '.join(dict.fromkeys(outside))}, which belongs to the"
            " pooling and the classifier of the tower alone. Take a method that acts inside of it, or give a head."
        )
