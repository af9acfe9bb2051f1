"""Towers inside a larger model: a detector, a segmenter, a CLIP. The larger model is their host.

A host with one tower is described as that tower, under the tower's own place names. A host with several is a `Towers`,
whose place names begin with the tower's name: `image.blocks.3.attn.q`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .backbone import Backbone, Blocks, Facts
from .inputs import InputSpec
from .places import Place
from .points import MissingPlace, Point
from .texts import TextSpec, as_tokenizer


def towers_inside(
    model: nn.Module, describe_part: Callable[[str, nn.Module], Backbone | None]
) -> list[tuple[str, Backbone]]:
    """The outermost parts of a model that can be described, by their dotted names, in the order of registration.

    Args:
        model: the host, which is not looked at itself.
        describe_part: gives the description of a part (name, module), or None where it knows none.
    """
    seen: set[int] = {id(model)}

    def walk(prefix: str, module: nn.Module) -> Iterator[tuple[str, Backbone]]:
        for key, child in module.named_children():
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = f"{prefix}.{key}" if prefix else key
            found = describe_part(name, child)
            if found is not None:
                yield name, found
            else:
                yield from walk(name, child)

    return list(walk("", model))


def describe_host(model: nn.Module, found: list[tuple[str, Backbone]]) -> Backbone:
    """The description of a host with the towers that were found in it: the tower itself where there is one."""
    if len(found) == 1:
        return in_host(found[0][1], model)
    return Towers(model, named_towers(found))


def in_host(tower: Backbone, model: nn.Module) -> Backbone:
    """Tell a tower that it lives in `model`, whose forward pass it is then part of."""
    tower.host = model
    enter = tower.pixels.enter
    inside = {id(module) for module in model.modules()}
    if enter is not None and id(enter.module) not in inside:
        # The description's own pooling shows the images at an identity that the host does not call.
        tower.pixels.enter = tower.enters_inside()
        if tower.pixels.enter is None:
            tower.pixels.verbs = frozenset()
    return tower


def named_towers(found: list[tuple[str, Backbone]]) -> dict[str, Backbone]:
    """Names for towers: "image" and "text" where there is one of each, else the last part of their dotted names.

    Where that is not unique, the whole dotted name is taken, with `_` between its parts.
    """
    texts = [entry for entry in found if entry[1].inputs.layout == "tokens"]
    if len(found) == 2 and len(texts) == 1:
        (image,) = (entry for entry in found if entry is not texts[0])
        return {"image": image[1], "text": texts[0][1]}
    last = [name.rpartition(".")[2] for name, _ in found]
    unique = len(set(last)) == len(last) and not any(name.isdigit() for name in last)
    names = last if unique else [name.replace(".", "_") for name, _ in found]
    return {name: tower for name, (_, tower) in zip(names, found, strict=True)}


@dataclass(frozen=True)
class TowersInputs(InputSpec):
    """The inputs of a host with several towers: a batch for each, by the tower's name.

    `size`, `channels` and `layout` are those of the first tower.
    """

    specs: tuple[tuple[str, InputSpec], ...] = ()

    def example(self, count: int, generator: torch.Generator | None = None) -> Any:
        """{tower: a batch of `count` made-up inputs}."""
        return {name: spec.example(count, generator) for name, spec in self.specs}

    def blank(self, count: int, device: torch.device | str | None = None) -> Any:
        """{tower: a batch of `count` inputs that are all zero}."""
        return {name: spec.blank(count, device) for name, spec in self.specs}

    def probe(self) -> Any:
        """{tower: its fixed input}."""
        return {name: spec.probe() for name, spec in self.specs}


class Towers(Backbone):
    """The description of a host with several towers, each a `Backbone` of its own in `towers`.

    What is one for a single backbone (`pixels`, `trunk`, `norm`, `inputs.size`) is that of the first tower; `blocks`,
    `stages` and `places()` are those of all, one tower after the other. Methods are given the towers, not this.
    """

    def __init__(
        self, model: nn.Module, towers: Mapping[str, Backbone], family: str = "towers", architecture: str = ""
    ) -> None:
        """`towers` by name; their places are renamed so that they begin with it.

        `architecture` is by what `create_backbone` finds the model; the name of its class where it is made by hand.
        """
        first = next(iter(towers.values()))
        self.module, self.host, self.tower_name = model, model, ""
        self.frames_enter: nn.Module | None = None
        self.parts: dict[str, Backbone] = {}
        self.aliases = {}
        self._towers = {name: in_host(tower, model) for name, tower in towers.items()}
        for name, tower in towers.items():
            tower.name_places(name)
        self.facts = Facts(
            family=family,
            library=first.facts.library,
            architecture=architecture or type(model).__name__,
            image_size=first.facts.image_size,
            depth=max(tower.facts.depth for tower in towers.values()),
            width=sum(tower.facts.width for tower in towers.values()),
            prefix_tokens=0,
            pooling="one for each tower",
        )
        spec = first.inputs
        self.inputs = TowersInputs(
            spec.size,
            spec.channels,
            layout=spec.layout,
            names=spec.names,
            frames=spec.frames,
            time_axis=spec.time_axis,
            make=spec.make,
            specs=tuple((name, tower.inputs) for name, tower in towers.items()),
        )
        self._specs: TowersInputs = self.inputs
        self.unused: tuple[nn.Parameter, ...] = ()
        self.anatomy = None
        self.pixels, self.trunk, self.whole = first.pixels, first.trunk, first.whole
        self.stages = [stage for tower in towers.values() for stage in tower.stages]
        self.blocks = Blocks(self.facts.architecture, [block for one in towers.values() for block in one.blocks])
        self.outlet, self.logits = first.outlet, first.logits
        self.outlet_anchor, self.logits_anchor = nn.Identity(), first.logits_anchor
        self._norm, self._end, self._end_layout = None, None, None
        self._index: dict[str, Place] = {place.name: place for tower in towers.values() for place in tower.places()}

    @property
    def towers(self) -> Mapping[str, Backbone]:
        """The towers by name."""
        return self._towers

    @property
    def classifier(self) -> nn.Module:
        """A host with several towers ends in what its own forward pass makes of them."""
        return nn.Identity()

    def at_outlet(self, inputs: Any) -> Tensor:
        """The features that `pooled` returns."""
        return self.pooled(inputs)

    def pooled(self, inputs: Any) -> Tensor:
        """{tower: inputs} -> the pooled features of these towers side by side, (B, the sum of their widths).

        Raises:
            MissingPlace: the inputs are not given by tower.
        """
        if not isinstance(inputs, Mapping) or not inputs or inputs.keys() - self._towers.keys():
            raise MissingPlace(
                f"{self.facts.architecture} has the towers {', '.join(self._towers)}; features need inputs by tower:"
                f" features({{{', '.join(f'{name!r}: ...' for name in self._towers)}}})."
            )
        return torch.cat([self.feature(name, given) for name, given in inputs.items()], dim=1)

    def feature(self, tower: str, inputs: Any) -> Tensor:
        """The pooled features (B, D) of one tower, with the edits at its outlet."""
        one = self._towers[tower]
        features: Tensor = one.outlet_anchor(one.at_outlet(inputs))
        return one.gathered(features, inputs)

    # -- the space that an image tower and a text tower share ---------------------------------------------------------

    def require_shared_space(self) -> None:
        """Look whether features of the towers can be compared.

        Raises:
            MissingPlace: they have different widths, or the model has no scale of their similarity.
        """
        widths = {name: tower.facts.width for name, tower in self._towers.items()}
        if len(set(widths.values())) > 1:
            told = " and ".join(f"{name} gives {width} channels" for name, width in widths.items())
            raise MissingPlace(
                f"The towers of {self.facts.architecture} do not end in one space: {told}. A tower lacks the projection"
                " into the space of the other; take the whole model (CLIPModel, open_clip.CLIP), which has both."
            )
        if not isinstance(getattr(self.host, "logit_scale", None), Tensor):
            raise MissingPlace(
                f"{self.facts.architecture} has no `logit_scale`, by which the similarity of an image and a text is"
                " multiplied. Give your model a parameter of this name, the logarithm of the scale."
            )

    def scale(self) -> Tensor:
        """What cosines of an image and a text are multiplied by: exp(logit_scale), a scalar."""
        stated: Any = self.host
        found: Tensor = stated.logit_scale.exp().reshape(())
        return found

    def bias(self) -> Tensor | None:
        """What is added to them, where the model has a `logit_bias`, as those learnt with a sigmoid do; else None."""
        found = getattr(self.host, "logit_bias", None)
        return found.reshape(()) if isinstance(found, Tensor) else None

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """Tell the text tower how words become tokens, and return this description.

        Args:
            tokenizer: of transformers or open_clip, or a function from a list of texts to token numbers (n, L).

        Raises:
            MissingPlace: there is no text tower.
        """
        for tower in self._towers.values():
            if isinstance(tower.inputs, TextSpec):
                length = tower.inputs.length
                tower.inputs = replace(tower.inputs, tokenizer=as_tokenizer(tokenizer, length))
                specs = tuple((name, one.inputs) for name, one in self._towers.items())
                self.inputs = replace(self._specs, specs=specs)
                return self
        raise MissingPlace(f"{self.facts.architecture} has no text tower; its towers are {', '.join(self._towers)}.")

    def __repr__(self) -> str:
        inner = "; ".join(f"{name}: {tower!r}" for name, tower in self._towers.items())
        return f"Towers({self.facts.architecture}: {inner})"


def outside_of_host(backbone: Backbone, places: Iterator[Place]) -> list[str]:
    """Names of places that the host's own forward pass never comes by, as they belong to the tower's pooling."""
    if backbone.host is None:
        return []
    inside = {id(module) for module in backbone.host.modules()}

    def reached(point: Point | None) -> bool:
        if point is None or id(point.module) in inside:
            return True
        return any(point.module is anchor for need in point.needs for anchor in need.anchors.values())

    return [place.name for place in places if not (reached(place.enter) and reached(place.exit))]
