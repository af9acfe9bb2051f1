"""`Backbone`, the description of a model as named places: `describe` returns it, and `Method.edits` reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from ..errors import nearest
from .blocks import Block, Stage
from .grids import Rounding, Scale
from .inputs import InputSpec
from .module_names import place_name, whole_name
from .places import WHOLE, Edit, Norm, Place, Projection, Site, Span
from .points import Layout, MissingPlace, Point

NO_TOKENS = {
    True: "what passes through it is a map, which has rows and columns and no room for further tokens",
    False: "nothing says that its blocks take sequences of any length",
}
MAPS = {Layout.MAP, Layout.CHANNELS_FIRST}  # alike for every layer, which sees channels last


@dataclass(frozen=True)
class Facts:
    """Properties of a backbone that are known without running it.

    Attributes:
        family: the description's own name, for instance "timm_vit".
        library: where the model class lives.
        architecture: the library's name of the model, with its pre-training tag where there is one.
        image_size: height and width that the model expects, in pixels.
        depth: number of blocks.
        width: channels of the pooled feature.
        prefix_tokens: class token and registers.
        pooling: how the library pools: "token", "avg", "map", ...
        dynamic_size: whether other image sizes are accepted.
        rounding: how the model treats an image side that is not a multiple of the patch, and a map side that is not a
            multiple of a later stage's stride: it drops the rest ("floor") or pads ("ceil").
        keeps_batch: whether it reshapes by the size of the batch that came in, so that the batch cannot grow inside.
    """

    family: str
    library: str
    architecture: str
    image_size: tuple[int, int]
    depth: int
    width: int
    prefix_tokens: int
    pooling: str
    dynamic_size: bool = False
    rounding: tuple[Rounding, Rounding] = ("floor", "floor")
    keeps_batch: bool = False


class Blocks(list[Block]):
    """The blocks of a backbone. Indexing an empty list raises `MissingPlace` with the reason."""

    def __init__(self, architecture: str, blocks: Iterable[Block]) -> None:
        super().__init__(blocks)
        self.architecture = architecture

    def __getitem__(self, index: Any) -> Any:
        if not self and not isinstance(index, slice):
            raise MissingPlace(no_blocks(self.architecture))
        return super().__getitem__(index)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.architecture, list(self))


def no_blocks(architecture: str) -> str:
    """Return the reason why a method that needs blocks cannot act on this backbone."""
    return (
        f"The description of {architecture} has no residual blocks that keep their shape, and this method needs such"
        " blocks. Methods that act on single layers work: low-rank updates with targets=('all',), scales, biases,"
        " norms, all weights, or a head. To name the blocks yourself, use describe(model, anatomy=Anatomy(blocks=...))."
    )


class Backbone:
    """The description of a live model.

    Attributes:
        module: the tower itself; describing does not change it.
        host: the larger model that contains the tower; None if the tower is the whole model.
        facts: see `Facts`.
        pixels, patch, embedding, trunk, stages, blocks, norm, outlet, logits: the places.
        inputs: the model's inputs; see `InputSpec`.
        whole: every parameter that contributes to the pooled feature.
        unused: the other parameters, without those of the classifier.
        outlet_anchor, logits_anchor: identities that `TunedModel` runs, so that `outlet` and `logits` are places too.
        frames_enter: the module that takes a clip (B, C, T, H, W) and gives its frames as a batch (B * T, C, H, W), for
            a model that reads frame by frame; None for any other. Such a model has the place `clips` before it, and
            `outlet` is the feature of one frame.
    """

    def __init__(
        self,
        *,
        module: nn.Module,
        facts: Facts,
        pixels: Site,
        trunk: Span,
        stages: list[Stage],
        norm: Site | None,
        others: list[Place],
        pooled: Callable[[nn.Module, Tensor], Tensor],
        classifier: Callable[[nn.Module], nn.Module],
        end: Point | None = None,
        end_layout: Layout | None = None,
        unused: Iterable[nn.Parameter] = (),
        inputs: InputSpec | None = None,
        no_tokens: str = "",
        frames_enter: nn.Module | None = None,
    ) -> None:
        """Collect the places.

        Args:
            module, facts, pixels, trunk, stages, norm: see the class.
            others: places outside the stages: the patch projection, the embedding, norms of the pooling ...
            pooled: (module, inputs) -> pooled feature (B, D).
            classifier: module -> its last layer.
            end: where the sequence or map leaves the trunk, for models whose final norm follows the pooling.
            end_layout: the layout there; that of the last block by default.
            unused: parameters that do not contribute to the pooled feature (a mask token, a decoder).
            inputs: the model's inputs; by default images of the size in `facts` with the channels of `pixels`.
            no_tokens: the reason why tokens cannot be inserted, if the layout does not imply it.
            frames_enter: see the class; `pooled` then returns the features of the frames (B * T, D).
        """
        self.frames_enter = frames_enter
        self._end, self._end_layout = end, end_layout
        self.inputs = inputs or InputSpec(facts.image_size, pixels.width)
        self.unused = tuple(unused)
        self.module = module
        self.host: nn.Module | None = None
        self.parts: dict[str, Backbone] = {}  # of the host, beside its towers, once methods are put there
        self.tower_name = ""  # among several towers of a host
        self.aliases: Mapping[str, str] = {}  # of parts of the host: "projector" for model.multi_modal_projector
        self.facts = facts
        self.pixels = pixels
        self.trunk = trunk
        self.stages = stages
        self.blocks: list[Block] = Blocks(facts.architecture, [block for stage in stages for block in stage.blocks])
        self.anatomy: dict[str, Any] | None = None  # the fields of the Anatomy, if the user gave one
        self._norm = norm
        self._pooled = pooled
        self._classifier = classifier
        self.outlet_anchor = nn.Identity()
        self.logits_anchor = nn.Identity()
        depth = len(self.blocks)
        self.outlet = _end("outlet", facts.width, self.outlet_anchor, depth)
        self.logits = _end("logits", 0, self.logits_anchor, depth)
        top: list[Place] = [pixels, *others, trunk, *stages]
        if norm is not None:
            top.append(norm)
        top += [self.outlet, self.logits]
        self._index = {place.name: place for head in top for place in head.walk()}
        for place in (trunk, *stages, *self.blocks):
            if "insert_tokens" not in place.verbs:
                place.refusals = {"insert_tokens": no_tokens or NO_TOKENS[place.layout in MAPS]}
        self.whole = self._describe_whole(top)
        self._index[WHOLE] = self.whole
        patch = self._index["patch"].stride if "patch" in self._index else 1
        scale = Scale(self.inputs.size, self.inputs.frames, patch, *facts.rounding)
        for place in self._index.values():
            place.scale = scale
            if frames_enter is not None and place not in (self._index.get("clips"), self.logits, self.whole):
                place.per_frame, place.frames = True, self.inputs.frames

    def _describe_whole(self, top: list[Place]) -> Site:
        """All parameters, each under its place; parameters without a place keep their name in the model."""
        known = {id(m._parameters[a]) for head in top for place in head.walk() for m, a in place.own.values()}
        unused = {id(p) for p in (*self.classifier.parameters(), *self.unused)}
        rest: dict[str, tuple[nn.Module, str]] = {}
        for prefix, owner in self.module.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None and id(parameter) not in known | unused:
                    rest[f"{prefix}.{attribute}" if prefix else attribute] = (owner, attribute)
        return Site(
            name=WHOLE,
            width=self.facts.width,
            layout=Layout.VECTOR,
            enter=None,
            exit=None,
            verbs=frozenset({"unfreeze"}),
            depth=-1,
            own=rest,
            parts={place.name: place for place in top},
        )

    @property
    def root(self) -> nn.Module:
        """The whole model: the host if there is one, otherwise the tower."""
        return self.module if self.host is None else self.host

    @property
    def towers(self) -> Mapping[str, Backbone]:
        """The towers of the model by name. A model with one tower has it under the empty name."""
        return {"": self}

    def with_stages(self, stages: Sequence[Stage]) -> Backbone:
        """Return the same description with other stages, for a head that is to read them; the model's are kept."""
        twin = copy(self)
        twin.stages = list(stages)
        twin._index = {**self._index, **{stage.name: stage for stage in stages}}
        return twin

    def name_places(self, tower: str) -> None:
        """Put the tower's name before the names of all places; `place` still accepts the names without it."""
        self.tower_name = tower
        for place in self._index.values():
            place.name = f"{tower}.{place.name}"

    def enters_inside(self) -> Point | None:
        """Where images enter the tower when a host runs it, if `pooled` hooks them at a module outside the tower."""
        tell: Callable[[nn.Module], Point | None] | None = getattr(self._pooled, "enters", None)
        return None if tell is None else tell(self.module)

    @property
    def patch(self) -> Projection:
        """The projection of patches (or the first convolution of the stem)."""
        found = self.place("patch")
        assert isinstance(found, Projection)
        return found

    @property
    def embedding(self) -> Site:
        """The input of the first block: a sequence or a map."""
        found = self.place("embedding")
        assert isinstance(found, Site)
        return found

    @property
    def tokens(self) -> Site:
        """The token numbers (n, L) of a text tower; `MissingPlace` for any other."""
        return self._site("tokens")

    @property
    def words(self) -> Site:
        """The token embeddings (n, L, D) of a text tower before positions are added; `MissingPlace` for any other."""
        return self._site("words")

    def _site(self, name: str) -> Site:
        found = self.place(name)
        assert isinstance(found, Site)
        return found

    @property
    def norm(self) -> Site:
        """The final normalisation, before or after pooling; `MissingPlace` if there is none."""
        if self._norm is None:
            raise MissingPlace(f"{self.facts.architecture} has no final norm. It has: {self._listing()}.")
        return self._norm

    @property
    def has_norm(self) -> bool:
        return self._norm is not None

    def at_end(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Return the edit h -> layer(h, *reads) on the output of the trunk, before the final norm and the pooling.

        The edit acts at the input of the final norm if the norm receives the whole sequence; otherwise at the end of
        the trunk that the family states; otherwise after the last block. The first two are outside the blocks, so
        activation checkpointing does not repeat the edit.
        """
        if not self.blocks:
            raise MissingPlace(
                f"{self.facts.architecture} has no blocks, so no edit can follow them. It has: {self._listing()}."
            )
        last, final = self.blocks[-1], self._norm
        same = final is not None and (final.grid, final.width) == (last.grid, last.width)
        if final is not None and same and (final.layout is last.layout or {final.layout, last.layout} == MAPS):
            return final.before(layer, reads=reads)
        if self._end is None:
            return last.after(layer, reads=reads)
        end = Site(
            name=f"{self.tower_name}.end" if self.tower_name else "end",
            width=last.width,
            layout=self._end_layout or last.layout,
            enter=self._end,
            exit=None,
            verbs=frozenset({"before"}),
            depth=len(self.blocks),
            grid=last.grid,
            frames=last.frames,
            prefix=last.prefix,
            stride=last.stride,
            scale=last.scale,
        )
        return end.before(layer, reads=reads)

    def through(self, projection: nn.Module, width: int) -> None:
        """Let the pooled feature pass a projection of the host, so that the outlet is in the space behind it.

        Args:
            projection: a module of the host, (B, D) -> (B, E).
            width: E.
        """
        self._pooled = Projected(self._pooled, projection)
        self.facts = replace(self.facts, width=width)
        self.outlet.width = self.outlet.width_in = width

    def pooled_by(self, pooled: Callable[[nn.Module, Tensor], Tensor]) -> Self:
        """Let (module, inputs) -> (B, D) give the pooled feature, such as the module's own call; returns this."""
        self._pooled = pooled
        return self

    def feature_parameters(self) -> Iterator[nn.Parameter]:
        """Yield every parameter that the pooled feature depends on."""
        idle = {id(parameter) for parameter in self.unused}
        yield from (parameter for parameter in self.module.parameters() if id(parameter) not in idle)
        if isinstance(self._pooled, Projected):
            yield from self._pooled.projection.parameters()

    @property
    def classifier(self) -> nn.Module:
        """The library's own last layer, or an identity if the model was created without one."""
        return self._classifier(self.module)

    def pooled(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, D) of images (B, C, H, W): the input of the library's own last layer."""
        return self.gathered(self.at_outlet(images), images)

    def at_outlet(self, images: Tensor) -> Tensor:
        """Return the features at the place `outlet`: (B, D), or (B * T, D) where the frames of clips pass singly."""
        return self._pooled(self.module, images)

    def gathered(self, features: Tensor, inputs: Tensor) -> Tensor:
        """Return the features (B, D) of the inputs from those at the outlet: the mean over the frames of a clip."""
        if self.frames_enter is None:
            return features
        return features.reshape(inputs.shape[0], -1, features.shape[-1]).mean(dim=1)

    @property
    def query(self) -> Site:
        """The frozen model's pooled feature (B, D) of the same inputs. Only `reads=` can use this place.

        It costs one more forward pass, shared by all edits that read it.
        """
        return Site(
            name="query",
            width=self.facts.width,
            layout=Layout.VECTOR,
            enter=None,
            exit=None,
            verbs=frozenset(),
            depth=-1,
            per_frame=self.outlet.per_frame,
            frames=self.outlet.frames,
        )

    def place(self, name: str) -> Place:
        """Return the place with this canonical name; `MissingPlace` lists the nearest names."""
        found = self.query if name == "query" else self._index.get(name)
        if found is None:
            raise MissingPlace(f"{self.facts.architecture} has no place {name!r}. {nearest(name, self._index)}")
        return found

    def module_place(self, name: str) -> Site:
        """Return a module or parameter of the model or its host as a place that can be unfrozen.

        Args:
            name: its dotted name, or the end of it where only one module has that: `decoder` for `model.decoder`.

        Raises:
            MissingPlace: the module does not exist or has no parameters, or several have this name.
        """
        name = whole_name(self.root, name)
        modules = dict(self.root.named_modules())
        owner, _, leaf = name.rpartition(".")
        if name not in modules:
            own = {leaf: (modules[owner], leaf)}
        else:
            own = {
                f"{path}.{attribute}" if path else attribute: (inner, attribute)
                for path, inner in modules[name].named_modules()
                for attribute, parameter in inner._parameters.items()
                if parameter is not None
            }
        if not own:
            raise MissingPlace(f"The module {name!r} has no parameters to train.")
        return Site(
            name=place_name(name),
            width=0,
            layout=Layout.VECTOR,
            enter=None,
            exit=None,
            verbs=frozenset({"unfreeze"}),
            depth=len(self.blocks),
            own=own,
        )

    def places(self) -> Iterator[Place]:
        """Every place, outer before inner, in the order of the forward pass."""
        yield from self._index.values()

    @property
    def norms(self) -> list[Site]:
        """Every normalisation of the model, in the order of the forward pass."""
        return [place for place in self.places() if isinstance(place, Norm)]

    @property
    def projections(self) -> list[Projection]:
        """Every linear and convolution of the model; a fused qkv counts once."""
        return [place for place in self.places() if isinstance(place, Projection) and place.rows is None]

    def require(self, *places: str) -> None:
        """Raise `MissingPlace` unless every named place exists; `attn.core` must exist in every block."""
        for wanted in places:
            if wanted in self._index:
                continue
            lacking = [block.name for block in self.blocks if not block.has(wanted)]
            if lacking or not self.blocks:
                have = ", ".join(sorted(self.blocks[0].parts)) if self.blocks else "no blocks"
                raise MissingPlace(
                    f"{self.facts.architecture} ({self.facts.family}) has no place {wanted!r}"
                    f" in {lacking[0] if lacking else 'any block'}. A block there has: {have};"
                    f" the whole model has: {self._listing()}."
                )

    def require_time(self, method: str, *, single: bool = False) -> None:
        """Raise `MissingPlace` unless clips are read, for a method that lets frames see one another.

        Args:
            method: its name, for the message.
            single: whether the frames must pass one by one, through a model for images.
        """
        name = self.facts.architecture
        if self.inputs.frames is None:
            raise MissingPlace(
                f"{method} needs clips and the axis of time, and {name} takes {self.inputs.layout}. Let it read clips"
                " frame by frame: create_backbone(name, frames=8), on the command line --clip.frames 8."
            )
        if single and self.frames_enter is None:
            raise MissingPlace(
                f"{method} needs the frames of a clip one by one, through a model for images, and {name} takes the clip"
                " as a whole. Take an image model with create_backbone(name, frames=8)."
            )

    def require_images(self, method: str) -> None:
        """Raise `MissingPlace` where clips pass as a whole, for a method (its name) whose maps have no axis of time."""
        if self.inputs.frames is not None and self.frames_enter is None:
            raise MissingPlace(
                f"{method} makes maps of an image, and {self.facts.architecture} takes the clip as a whole. Let an"
                " image model read the frames: create_backbone(name, frames=8)."
            )

    def _listing(self) -> str:
        return ", ".join(name for name in self._index if "." not in name)

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"Backbone({facts.architecture}, {facts.family}: {facts.depth} blocks, width {facts.width},"
            f" {facts.image_size[0]}x{facts.image_size[1]}, {facts.prefix_tokens} prefix tokens,"
            f" {facts.pooling} pooling)"
        )


class Projected:
    """Inputs -> features behind a projection that the host has and the tower has not."""

    def __init__(self, pooled: Callable[[nn.Module, Tensor], Tensor], projection: nn.Module) -> None:
        self.pooled, self.projection = pooled, projection

    def __call__(self, model: nn.Module, inputs: Tensor) -> Tensor:
        found: Tensor = self.projection(self.pooled(model, inputs))
        return found

    def enters(self, model: nn.Module) -> Point | None:
        """Where the images enter; see `Backbone.enters_inside`."""
        tell: Callable[[nn.Module], Point | None] | None = getattr(self.pooled, "enters", None)
        return None if tell is None else tell(model)


def _end(name: str, width: int, anchor: nn.Module, depth: int) -> Site:
    return Site(
        name=name,
        width=width,
        layout=Layout.VECTOR,
        enter=Point(anchor, "input"),
        exit=Point(anchor, "output"),
        verbs=frozenset({"before", "after", "parallel", "tap"}),
        depth=depth,
    )
