"""A paragraph of nouns for a model that no family knows: where its blocks are, and what things in them are called.

`describe(model, anatomy=Anatomy(blocks="encoder", attn="attn", qkv="attn.qkv", ...))`. Without `blocks` the
description is generic: every linear, convolution and norm that runs once is a place under its own module name, and no
more is known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn

from ..guarded import read_toml
from . import outline
from .backbone import Backbone, Facts
from .blocks import AttentionSite, Block, MlpSite, Stage
from .builders import Where, branch, norm, projection, site, skip, stream
from .convolutional import is_norm, norm_place
from .places import Norm, Place, Projection, Span, stored_weight
from .points import Layout, Point
from .probe import BadAnatomy, Classifier, Pooling, ProbedLayer, find, stated_size, watch
from .tokens import TokenCarrier

LAYOUTS = {"tokens": Layout.TOKENS, "map": Layout.MAP, "channels_first": Layout.CHANNELS_FIRST}
NO_TOKENS = "the anatomy does not say joins=True, which is that the blocks take sequences of any length"
MOST_PIXELS = 4096 * 4096
# methods of models that write, send or change something
_CHANGES = re.compile(r"(^|_)(push|save|write|load|delete|remove|reset|init|set|add|merge|train|eval|to|from)(_|$)")
WHOLE_MODEL = ("blocks", "patch", "embedding", "norm", "classifier")


class Anatomy(BaseModel):
    """The nouns of one model. Names are dotted module names: of the model, or, where it says so, of one block."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    blocks: tuple[str, ...] = ()
    """lists of residual blocks, one for each stage; without any the description is generic"""
    layout: Literal["tokens", "map", "channels_first"] = "tokens"
    """of what passes from block to block: (B, N, D), (B, H, W, D) or (B, D, H, W)"""
    norm1: str | None = None
    """in a block: the norm that opens (or, with `post_norm`, closes) the attention branch"""
    attn: str | None = None
    """in a block: the attention; with `conv_branch` left out, the first branch is norm1, attn"""
    qkv: str | None = None
    """in a block: one linear for queries, keys and values, in this order"""
    q: str | None = None
    """in a block: the linear of the queries, where the three are apart"""
    k: str | None = None
    """in a block: of the keys"""
    v: str | None = None
    """in a block: of the values"""
    proj: str | None = None
    """in a block: the linear that closes the attention"""
    attn_end: str | None = None
    """in a block: what is added to the stream, a LayerScale's or drop path's output; the attention's by default"""
    norm2: str | None = None
    """in a block: the norm that opens (closes) the MLP branch"""
    mlp: str | None = None
    """in a block: the MLP, or whatever mixes channels"""
    fc1: str | None = None
    """in a block: the first layer of the MLP"""
    fc2: str | None = None
    """in a block: its last layer"""
    mlp_end: str | None = None
    """in a block: what is added to the stream, as above; the MLP's output by default"""
    post_norm: bool = False
    """x + norm(f(x)) instead of x + f(norm(x))"""
    joins: bool = False
    """the blocks take sequences of any length, so that prompts can join them after the prefix"""
    patch: str | None = None
    """the first convolution or linear"""
    embedding: str | None = None
    """the module whose output enters the first block; what the first block receives by default"""
    norm: str | None = None
    """the norm behind the last block"""
    prefix_tokens: int = Field(default=0, ge=0)
    """class token and registers, before the grid"""
    features: str | None = None
    """a method of the model that gives what is pooled; without it the model is called"""
    classifier: str | None = None
    """the last layer, whose input is the pooled feature; without it the model's output is"""
    pool: Literal["none", "token", "avg"] = "none"
    """what is left to do to have one vector for each image"""
    image_size: tuple[int, int] | None = None
    """height and width in pixels; by default what the model states in its configuration, or 224 x 224"""
    stride: int | None = Field(default=None, gt=0)
    """pixels per cell of the grid at the first stage, for methods that need the grid"""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            nouns = ", ".join(Anatomy.model_fields)
            raise BadAnatomy(f"The anatomy is not usable: {said}. Its nouns are: {nouns}.") from None

    @field_validator("features")
    @classmethod
    def _reads_only(cls, given: str | None) -> str | None:
        """The anatomy may come with a stranger's adapter file, and the method that it names is called."""
        if given is not None and (
            not given.isidentifier()
            or given.startswith("_")
            or (hasattr(nn.Module, given) and given != "forward")
            or _CHANGES.search(given)
        ):
            raise ValueError(f"{given!r} is no name of a method that gives features, such as forward_features")
        return given

    @field_validator("image_size")
    @classmethod
    def _of_an_image(cls, given: tuple[int, int] | None) -> tuple[int, int] | None:
        if given is not None and (min(given) < 1 or given[0] * given[1] > MOST_PIXELS):
            raise ValueError(f"an image has 1 to {MOST_PIXELS} pixels")
        return given

    @field_validator("blocks", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def generic(self) -> bool:
        return not self.blocks


def read_anatomy(path: str | Path) -> Anatomy:
    """The anatomy that a TOML file holds: its nouns as plain keys.

    Raises:
        BadAnatomy: the file cannot be read, or holds other keys or values than nouns.
    """
    what = f"The anatomy {str(path)!r}"
    try:
        return Anatomy(**read_toml(path, what, BadAnatomy))
    except BadAnatomy as error:
        if str(error).startswith(f"{what} cannot be read"):
            raise BadAnatomy(f'{error} It is a TOML file, or "generic".') from None
        raise


def anatomy_from(said: str | Path) -> Anatomy:
    """What a recipe or a command calls an anatomy: "generic", or a TOML file of nouns."""
    return Anatomy() if said == "generic" else read_anatomy(said)


def as_anatomy(given: Anatomy | dict[str, Any] | Literal["generic"]) -> Anatomy:
    """An anatomy, from itself, from a mapping (a table of a TOML file, an adapter file), or the generic one."""
    if given == "generic":
        return Anatomy()
    if isinstance(given, Anatomy):
        return given
    if isinstance(given, dict):
        return Anatomy(**given)
    raise BadAnatomy(f'An anatomy is an Anatomy, a mapping of its nouns, or "generic", not {given!r}.')


def describe_own(model: nn.Module, anatomy: Anatomy) -> Backbone:
    """The description that an anatomy gives.

    Every linear, convolution and norm that it does not name, but that runs once in a forward pass, is a place under its
    own module name; what runs never or several times is none.

    Raises:
        BadAnatomy: a name that the model does not have, or a model that does not give one vector for each image.
    """
    pooling = Pooling(
        anatomy.features,
        anatomy.classifier,
        anatomy.pool,
        anatomy.prefix_tokens,
        anatomy.layout == "channels_first",
    )
    if anatomy.image_size is None:
        anatomy = anatomy.model_copy(update={"image_size": stated_size(model)})
    size = anatomy.image_size
    assert size is not None
    for name in WHOLE_MODEL:
        given = getattr(anatomy, name)
        for one in given if isinstance(given, tuple) else [given]:
            if one is not None:
                find(model, one)
    seen, width, channels = watch(model, pooling, size)
    stages = _stages(model, anatomy)
    _check_that_all_run(model, stages, seen)
    depth = sum(len(stage.blocks) for stage in stages)
    named = {id(p.module) for s in stages for p in s.walk() if isinstance(p, Projection)}
    named |= {id(owner) for s in stages for p in s.walk() if isinstance(p, Norm) for owner, _ in p.own.values()}
    others, final = _outside(model, anatomy, seen, depth, named)
    rest = [entry for entry in seen.values() if id(entry.module) not in named and entry.name != anatomy.classifier]
    once = [entry for entry in rest if entry.times == 1 and len(entry.shape) >= 2]
    others += [place for entry in once if (place := _plain(entry, depth)) is not None]
    backbone = Backbone(
        module=model,
        facts=Facts(
            family="generic" if anatomy.generic else "own_model",
            library=type(model).__module__.partition(".")[0],
            architecture=type(model).__name__,
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=anatomy.prefix_tokens,
            pooling=anatomy.pool,
        ),
        pixels=outline.pixels(
            Point(model if anatomy.features is None else next(iter(seen.values())).module, "input"), channels
        ),
        trunk=_trunk(model, anatomy, seen, stages, width),
        stages=stages,
        norm=final,
        others=others,
        pooled=pooling,
        classifier=Classifier(anatomy.classifier),
        no_tokens=NO_TOKENS if anatomy.layout == "tokens" else "",
    )
    backbone.anatomy = anatomy.model_dump(mode="json", exclude_defaults=True)
    return backbone


def _check_that_all_run(model: nn.Module, stages: list[Stage], seen: dict[str, ProbedLayer]) -> None:
    """A named layer must run once: one whose weight is used without calling it would take edits and do nothing."""
    names = {id(module): name for name, module in model.named_modules()}
    for place in (place for stage in stages for place in stage.walk()):
        module = place.module if isinstance(place, Projection) else place.exit.module if place.exit else None
        if isinstance(place, (Projection, Norm)) and module is not None:
            name = names.get(id(module), place.name)
            times = seen[name].times if name in seen else 0
            if times != 1 and not hasattr(module, "act"):
                raise BadAnatomy(
                    f"{name}, which the anatomy makes {place.name}, ran {times} times in one forward pass instead of"
                    " once, so an edit there would not do what it says. If its weight is used without calling it"
                    " (as torch's MultiheadAttention does), leave it out."
                )


def _trunk(model: nn.Module, anatomy: Anatomy, seen: dict[str, ProbedLayer], stages: list[Stage], width: int) -> Span:
    """All blocks; without any, from where the images enter to the end, as something that offers no edit."""
    layout = LAYOUTS[anatomy.layout]
    if stages:
        return outline.trunk(stages, where=Where(0, layout, stages[0].grid, anatomy.prefix_tokens))
    enter = model if anatomy.features is None else next(iter(seen.values())).module
    where = Where(0, layout, None, anatomy.prefix_tokens)
    return Span(
        name="trunk",
        width=width,
        enter=Point(enter, "input"),
        exit=Point(model, "output"),
        verbs=frozenset(),
        nesting=0,
        **where.shared(),
    )


def _plain(entry: ProbedLayer, depth: int) -> Place | None:
    """A layer under its own name; what it gives may be overwritten in place, so readers copy it.

    None for a norm without a scale, which has nothing to train and does not say how wide it is.
    """
    weight = entry.module._parameters.get("weight")
    if weight is None and is_norm(entry.module):
        return None
    # an adapter keeps its own head under this name
    name = f"model.{entry.name}" if entry.name.partition(".")[0] == "head" else entry.name
    turned = weight is not None and len(entry.shape) == 4 and entry.shape[-1] != weight.shape[0]
    if isinstance(entry.module, nn.Conv2d) or turned:
        layout = Layout.CHANNELS_FIRST
    else:
        layout = {2: Layout.VECTOR, 4: Layout.MAP}.get(len(entry.shape), Layout.TOKENS)
    where = Where(-1, layout)
    if is_norm(entry.module):
        return norm_place(name, entry.module, where, overwritten=True)
    place = projection(name, entry.module, where)
    place.exit = Point(entry.module, "output", overwritten=True)
    return place


def _outside(
    model: nn.Module, anatomy: Anatomy, seen: dict[str, ProbedLayer], depth: int, named: set[int]
) -> tuple[list[Place], Norm | None]:
    """Patch projection, embedding and final norm; what they are made of joins `named`."""
    layout = LAYOUTS[anatomy.layout]
    others: list[Place] = []
    if anatomy.patch is not None:
        layer = find(model, anatomy.patch)
        stem = Layout.CHANNELS_FIRST if isinstance(layer, nn.Conv2d) else layout
        others.append(projection("patch", layer, Where(-1, stem)))
        named.add(id(layer))
    if not anatomy.generic:
        first = find(model, anatomy.blocks[0])
        start = next(iter(first.children()))
        where = Where(-1, layout, None, anatomy.prefix_tokens)
        at = Point(start, "input") if anatomy.embedding is None else Point(find(model, anatomy.embedding), "output")
        width = _block_width(start, anatomy)
        others.append(outline.embedding(at, where, width))
    if anatomy.norm is None:
        return others, None
    layer = find(model, anatomy.norm)
    named.add(id(layer))
    shape = seen[anatomy.norm].shape if anatomy.norm in seen else ()
    behind = Where(depth, Layout.VECTOR if len(shape) == 2 else layout, None, anatomy.prefix_tokens)
    return others, norm_place("norm", layer, behind)


def _block_width(block: nn.Module, anatomy: Anatomy) -> int:
    """Channels of the stream, from the layer that writes it or the norm that reads it."""
    for name in (anatomy.fc2, anatomy.proj):
        if name is not None:
            return int(stored_weight(find(block, name)).shape[0])
    for name in (anatomy.norm1, anatomy.norm2):
        if name is not None:
            return int(stored_weight(find(block, name)).shape[0])
    raise BadAnatomy("To know how wide the blocks are, the anatomy must name one of fc2, proj, norm1, norm2 in them.")


def _stages(model: nn.Module, anatomy: Anatomy) -> list[Stage]:
    stages: list[Stage] = []
    carrier = TokenCarrier(anatomy.prefix_tokens) if anatomy.joins and anatomy.layout == "tokens" else None
    depth = 0
    for number, name in enumerate(anatomy.blocks):
        modules = list(find(model, name).children())
        if not modules:
            raise BadAnatomy(f"{name!r} holds no modules, so it is no list of blocks.")
        stride = None if anatomy.stride is None else anatomy.stride * 2**number
        size = anatomy.image_size
        grid = None if stride is None or size is None else (size[0] // stride, size[1] // stride)
        where = Where(depth, LAYOUTS[anatomy.layout], grid, anatomy.prefix_tokens, stride or 1)
        blocks = [
            _block(module, depth + i, number, anatomy, Where(depth + i, *_rest(where)), carrier)
            for i, module in enumerate(modules)
        ]
        depth += len(blocks)
        stages.append(outline.stage(number, blocks, where))
    return stages


def _rest(where: Where) -> tuple[Layout, tuple[int, int] | None, int, int]:
    return where.layout, where.grid, where.prefix, where.stride


def _block(
    module: nn.Module, index: int, stage: int, anatomy: Anatomy, where: Where, carrier: TokenCarrier | None
) -> Block:
    name, width = f"blocks.{index}", _block_width(module, anatomy)
    parts: dict[str, Place] = {}
    for number, kind, before, inner, end in (
        (1, "attn", anatomy.norm1, anatomy.attn, anatomy.attn_end),
        (2, "mlp", anatomy.norm2, anatomy.mlp, anatomy.mlp_end),
    ):
        layers = _inside(f"{name}.{kind}", module, kind, anatomy, where)
        if before is not None:
            parts[f"norm{number}"] = norm(f"{name}.norm{number}", find(module, before), where, width)
        if inner is None:
            parts.update({f"{kind}.{key}": layer for key, layer in layers.items()})
            continue
        sub_layer = find(module, inner)
        ends = sub_layer if end is None else find(module, end)
        opens = sub_layer if before is None or anatomy.post_norm else find(module, before)
        closes = find(module, before) if anatomy.post_norm and before is not None and end is None else ends
        around = branch(f"{name}.{kind}_branch", Point(opens, "input"), Point(closes, "output"), where, width)
        parts |= {
            kind: site(
                f"{name}.{kind}",
                AttentionSite if kind == "attn" else MlpSite,
                Point(sub_layer, "input"),
                Point(sub_layer, "output"),
                where,
                width,
                layers,
            ),
            f"{kind}_branch": around,
            f"skip{number}": skip(f"{name}.skip{number}", around, where),
            f"stream{number}": stream(f"{name}.stream{number}", around, where),
        }
    block = outline.block(index, module, parts, where, width, carrier=carrier, stage=stage)
    # what will be a place under its own name is not the block's
    elsewhere = {id(m) for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or is_norm(m)}
    for key in [key for key, (owner, _) in block.own.items() if id(owner) in elsewhere]:
        del block.own[key]
    return block


def _inside(name: str, module: nn.Module, kind: str, anatomy: Anatomy, where: Where) -> dict[str, Place]:
    """The named projections of attention or MLP."""
    keys = ("q", "k", "v", "proj") if kind == "attn" else ("fc1", "fc2")
    parts: dict[str, Place] = {}
    if kind == "attn" and anatomy.qkv is not None:
        layer = find(module, anatomy.qkv)
        parts["qkv"] = whole = projection(f"{name}.qkv", layer, where)
        third = whole.width // 3
        for offset, letter in enumerate("qkv"):
            parts[letter] = projection(f"{name}.{letter}", layer, where, (offset * third, (offset + 1) * third))
    for key in keys:
        given = getattr(anatomy, key)
        if given is not None and key not in parts:
            parts[key] = projection(f"{name}.{key}", find(module, given), where)
    return parts
