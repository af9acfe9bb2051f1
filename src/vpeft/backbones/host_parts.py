"""Parts of a host beside its towers, described so that methods can act there: a decoder, a neck, the heads.

A part is any module of a host outside its towers. Every linear, convolution and norm in it is a place under its own
module name. Layers that repeat in a list and have an MLP of two linears are its blocks, with that MLP as `mlp` and
`mlp_branch`, and the attention of a layer to itself as `attn`. The branch begins where the MLP does: in a layer with
its norms behind the sums, as decoders of detectors have them, that is the stream itself. In layers of BERT's kind
`attn` ends behind its sum and norm and has its projections; `cross` is the same for attention to another sequence.

A host may run a layer several times in one pass, or in training only. So what a part's edits do is checked in the
host's own forward passes, and not by `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from . import outline
from .backbone import Backbone, Facts
from .blocks import AttentionSite, Block, MlpSite
from .builders import Where, branch, projection, site
from .convolutional import is_norm, norm_place
from .module_names import place_name, whole_name
from .places import Place, Projection, Site, Span
from .points import Layout, MissingPlace, Point
from .probe import Classifier

# Two linears, one after the other, under the names that libraries give them.
PAIRS = (("fc1", "fc2"), ("lin1", "lin2"), ("linear1", "linear2"), ("proj_in", "proj_out"), ("up_proj", "down_proj"))
OWN_ATTENTION = ("self_attn", "attn", "attention")
# the projections of an attention of BERT's kind, whose last one is followed by a sum and a norm
BERT = {"q": "self.query", "k": "self.key", "v": "self.value", "proj": "output.dense"}
NOT_READ = "a part of a host has no features of its own; `verify` and heads look at its towers"


@dataclass
class NoFeature:
    """In place of a pooling: a part gives none."""

    name: str

    def __call__(self, module: nn.Module, inputs: Any) -> NoReturn:
        raise MissingPlace(f"{self.name}: {NOT_READ}.")


def part_of(description: Backbone, name: str) -> Backbone:
    """The part of a host with this module name, described once and kept in `description.parts`.

    Args:
        description: of the host.
        name: the module's dotted name, or the last part of it where only one module has that.

    Raises:
        MissingPlace: there is no such module, it holds a tower or is inside of one, or it has no layers.
    """
    host = description.root
    whole = whole_name(host, description.aliases.get(name, name))
    if whole not in description.parts:
        description.parts[whole] = _described(description, whole)
    return description.parts[whole]


def _described(description: Backbone, name: str) -> Backbone:
    host = description.root
    module = host.get_submodule(name) if name in dict(host.named_modules()) else None
    if module is None:
        raise MissingPlace(
            f"{name} is a parameter of {type(host).__name__}; methods act on modules. Use train=({name!r},)."
        )
    _require_outside(description, name, module)
    prefix, depth = place_name(name), len(description.blocks)
    blocks = _blocks(prefix, module, depth)
    known = {id(part) for block in blocks for part in _modules_of(block)}
    others = [
        place
        for path, inner in _layers(module)
        if id(inner) not in known
        and (place := _layer(f"{prefix}.{path}" if path else prefix, inner, depth)) is not None
    ]
    if not others and not blocks:
        raise MissingPlace(f"The part {name!r} of {type(host).__name__} has no linear, convolution or norm to act on.")
    start = Where(depth, Layout.TOKENS)
    stages = [outline.stage(0, blocks, start)] if blocks else []
    for stage in stages:
        stage.name = f"{prefix}.stages.0"
    made = Backbone(
        module=module,
        facts=Facts(
            family="host_part",
            library=type(module).__module__.partition(".")[0],
            architecture=f"{type(host).__name__}.{name}",
            image_size=description.facts.image_size,
            depth=len(blocks),
            width=blocks[-1].width if blocks else 0,
            prefix_tokens=0,
            pooling="none",
        ),
        pixels=_nowhere("pixels", depth),
        trunk=_trunk(prefix, stages, start, module),
        stages=stages,
        norm=None,
        others=others,
        pooled=NoFeature(name),
        classifier=Classifier(None),
        inputs=description.inputs,
        no_tokens="nothing says that this part of a host takes sequences of any length",
    )
    made.host, made.tower_name = host, prefix
    for place in (made.pixels, made.outlet, made.logits, made.whole):
        place.name = f"{prefix}.{place.name}"
    for end in (made.outlet, made.logits):
        end.verbs, end.enter, end.exit = frozenset(), None, None
    return made


def _require_outside(description: Backbone, name: str, module: nn.Module) -> None:
    """Raise `MissingPlace` where a part shares parameters with a tower."""
    own = {id(parameter) for parameter in module.parameters()}
    kind = type(description.root).__name__
    for tower, one in description.towers.items():
        inside = {id(owner._parameters[key]) for part in one.whole.walk() for owner, key in part.own.values()}
        if own & inside:
            called = f"the tower {tower!r}" if tower else "the tower"
            raise MissingPlace(
                f"The part {name!r} of {kind} shares layers with {called}, {one.facts.architecture}. Put the method on"
                " the tower, or name a part beside it."
            )


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linears, convolutions and norms that are called as modules, by name inside `module`."""
    called = {id(inner.out_proj) for inner in module.modules() if isinstance(inner, nn.MultiheadAttention)}
    for path, inner in module.named_modules():
        if id(inner) not in called and (isinstance(inner, (nn.Linear, nn.Conv2d)) or is_norm(inner)):
            yield path, inner


def _layer(name: str, module: nn.Module, depth: int) -> Place | None:
    """One layer as a place; what it gives may be overwritten in place, so readers copy it."""
    where = Where(depth, Layout.CHANNELS_FIRST if isinstance(module, nn.Conv2d) else Layout.TOKENS)
    if is_norm(module):
        if module._parameters.get("weight") is None:
            return None
        place: Place = norm_place(name, module, where, overwritten=True)
        place.verbs = frozenset({"unfreeze"}) if not isinstance(module, nn.LayerNorm) else place.verbs
        return place
    place = projection(name, module, where)
    place.exit = Point(module, "output", overwritten=True)
    return place


def _blocks(prefix: str, module: nn.Module, depth: int) -> list[Block]:
    """The repeating layers of a part, in the order of registration, none inside another."""
    found: list[Block] = []
    inside: set[int] = set()
    for path, listed in module.named_modules():
        if not isinstance(listed, nn.ModuleList) or id(listed) in inside:
            continue
        for key, layer in listed.named_children():
            mlp = _mlp(layer)
            if mlp is None:
                continue
            name = f"{prefix}.{path}.{key}" if path else f"{prefix}.{key}"
            found.append(_block(name, len(found), layer, mlp, depth))
            inside |= {id(inner) for inner in layer.modules()}
    return found


def _mlp(layer: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The two linears of a layer's MLP; None where it has none.

    An attention beside it is what tells a layer from a list of MLPs.
    """
    if not any("Attention" in type(inner).__name__ for inner in layer.children()):
        return None
    outer = [getattr(layer._modules.get(key), "_modules", {}).get("dense") for key in ("intermediate", "output")]
    for holder in (layer, *layer.children()):
        pairs = [(outer[0], outer[1])] if holder is layer else []
        pairs += [(holder._modules.get(one), holder._modules.get(two)) for one, two in PAIRS]
        inner = list(holder.children())
        if len(inner) == 2 or (len(inner) == 3 and not list(inner[1].parameters())):
            pairs.append((inner[0], inner[-1]))
        listed = holder._modules.get("layers")
        if isinstance(listed, (nn.ModuleList, nn.Sequential)) and len(listed) == 2:
            pairs.append((listed[0], listed[1]))
        for first, second in pairs:
            if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
                continue
            if (first.in_features, first.out_features) == (second.out_features, second.in_features):
                return first, second
    return None


def _block(name: str, index: int, layer: nn.Module, mlp: tuple[nn.Linear, nn.Linear], depth: int) -> Block:
    where = Where(depth, Layout.TOKENS)
    first, second = mlp
    width = first.in_features
    enter, exit = Point(first, "input"), Point(second, "output")
    fcs: dict[str, Place] = {
        "fc1": projection(f"{name}.mlp.fc1", first, where),
        "fc2": projection(f"{name}.mlp.fc2", second, where),
    }
    readers = tuple(place for place in fcs.values() if place.name.endswith("fc1"))
    parts: dict[str, Place] = {}
    attention = next((layer._modules[key] for key in OWN_ATTENTION if layer._modules.get(key) is not None), None)
    for key, module in (("attn", attention), ("cross", layer._modules.get("crossattention"))):
        if module is None:
            continue
        inside = _bert_attention(f"{name}.{key}", module, where)
        own = site(f"{name}.{key}", AttentionSite, enter, Point(module, "output"), where, width, inside)
        own.enter, own.verbs = None, frozenset({"after", "tap"}) if inside else frozenset({"after"})
        parts[key] = own
    parts["mlp"] = site(f"{name}.mlp", MlpSite, enter, exit, where, width, fcs, None, readers)  # type: ignore[arg-type]
    parts["mlp_branch"] = branch(f"{name}.mlp_branch", enter, exit, where, width)
    named = {id(first), id(second)} | {id(place.module) for place in _projections(parts)}
    for path, inner in _layers(layer):
        if id(inner) not in named and (place := _layer(f"{name}.{path}", inner, depth)) is not None:
            parts[path] = place
    made = outline.block(index, layer, parts, where, width)
    made.name = name
    # what a layer is given and gives differs from library to library; one of BERT's kind gives its stream
    verbs, end = {"unfreeze"}, made.exit if _projections(parts) and "cross" in parts else None
    made.enter, made.exit = None, end
    made.verbs = frozenset(verbs | {"after", "tap"}) if end is not None else frozenset(verbs)  # type: ignore[arg-type]
    return made


def _bert_attention(name: str, module: nn.Module, where: Where) -> dict[str, Place]:
    """The projections of an attention of BERT's kind, by their canonical names; none of any other attention."""
    inside = dict(module.named_modules())
    if not all(isinstance(inside.get(path), nn.Linear) for path in BERT.values()):
        return {}
    return {key: projection(f"{name}.{key}", inside[path], where) for key, path in BERT.items()}


def _projections(parts: dict[str, Place]) -> list[Projection]:
    """The projections of the attentions among the parts of a block."""
    found = [place for key in ("attn", "cross") if key in parts for place in parts[key].parts.values()]
    return [place for place in found if isinstance(place, Projection)]


def _modules_of(block: Block) -> Iterator[Any]:
    for place in block.walk():
        for point in (place.enter, place.exit):
            if point is not None:
                yield point.module


def _nowhere(name: str, depth: int) -> Site:
    return Site(name=name, width=0, layout=Layout.CHANNELS_FIRST, enter=None, exit=None, verbs=frozenset(), depth=depth)


def _trunk(prefix: str, stages: list[Any], where: Where, module: nn.Module) -> Span:
    """All blocks together, or nothing where there are none; no edit acts on it."""
    made = Span(
        name=f"{prefix}.trunk",
        width=stages[-1].width if stages else 0,
        enter=None,
        exit=None,
        verbs=frozenset(),
        nesting=0,
        **where.shared(),
    )
    for stage in stages:
        stage.verbs, stage.enter, stage.exit = frozenset(), None, None
    return made


def in_part(description: Backbone, place: Place) -> bool:
    """Whether a place belongs to a part of the host and to none of its towers."""
    return any(
        place.name == prefix or place.name.startswith(f"{prefix}.") for prefix in map(place_name, description.parts)
    )
