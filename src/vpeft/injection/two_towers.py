"""One pass through the towers of a host, for a head that compares what they give.

The towers run one after the other in the order of the description, the image tower first, so that an edit in a text
tower may read what the image tower gave. A head may bring the inputs of a tower itself, such as the names of classes;
then the features of that tower are kept as long as nothing that they depend on changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.features import Feature, Features
from ..backbones.host import Towers
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..backbones.texts import TextSpec
from ..head import Head
from .mixed_precision import in_precision, mixed_precision
from .node import AdapterError

if TYPE_CHECKING:
    from ..backbones.edits import Edit
    from .tuned_model import TunedModel

# By these names, too, images are handed to a model.
IMAGES = ("pixel_values", "images", "image", "x", "input", "inputs")
SCALE, BIAS = "scale", "bias"
"""By these names a head finds what cosines are multiplied by, and what is added to them."""


def outlets(description: Backbone) -> dict[str, str]:
    """The outlets of the towers of a host with several: place name -> tower; empty for a model with one."""
    if not isinstance(description, Towers):
        return {}
    return {tower.outlet.name: name for name, tower in description.towers.items()}


def require_reads_towers(description: Backbone, head: nn.Module, reads: tuple[str, ...], edits: list[Edit]) -> None:
    """Look whether a head on a host with several towers can be carried out.

    Raises:
        AdapterError: the head reads the feature of one model.
        MissingPlace: it reads other places than the features of the towers; the towers do not share a space; or an edit
            reads the frozen feature of the inputs, or acts behind a tower where nothing comes by.
    """
    assert isinstance(description, Towers)
    name = description.facts.architecture
    known = outlets(description)
    if "outlet" in reads or not reads:
        raise AdapterError(
            f"{name} has several towers, so a head belongs to one of them, or compares what they give. Tune that tower"
            " alone; or take a task that compares images with names or texts; or leave out num_classes,"
            " head and task, and the model keeps its own outputs."
        )
    others = [place for place in reads if place not in known]
    if others:
        raise MissingPlace(
            f"{type(head).__name__} reads {', '.join(others)}, and on {name} a head reads the features of the towers:"
            f" {', '.join(known)}."
        )
    description.require_shared_space()
    first, *rest = description.towers.values()
    behind = {tower.logits.name for tower in rest}
    for edit in edits:
        if edit.place.name in behind:
            raise MissingPlace(f"Nothing comes by {edit.place.name}: the outputs of {name} are {first.logits.name}.")
        if any(isinstance(source, Place) and source.name == "query" for source in edit.reads):
            raise MissingPlace(
                f"This method reads the frozen model's own feature of the inputs, of which {name} has one for each"
                " tower. Tune the image tower alone, or take another method."
            )


def by_tower(description: Towers, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call by tower: in order, in a mapping, or by the names of towers or of their inputs.

    A list of words for a text tower becomes token numbers.

    Raises:
        NoTokenizer, TooLongText, WrongTokenizer: words cannot be turned into tokens of the tower.
        AdapterError: there is more than the towers take, or a name that none has.
    """
    towers = description.towers
    found: dict[str, Any] = {}
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        found, inputs = dict(inputs[0]), ()
    found |= dict(zip(towers, inputs, strict=False))
    known = {name: name for name in towers}
    for name, tower in towers.items():
        known |= dict.fromkeys(tower.inputs.names, name)
        if tower.inputs.layout != "tokens":
            known |= {one: name for one in IMAGES if one not in known}
    for key, value in named.items():
        if value is not None:
            found[known.get(key, key)] = value
    for name, tower in towers.items():
        given = found.get(name)
        if isinstance(given, (list, tuple)) and all(isinstance(one, str) for one in given):
            spec = tower.inputs
            if not isinstance(spec, TextSpec):
                raise AdapterError(f"The tower {name} takes {spec.layout}, and it was given words.")
            found[name] = spec.ids(given).to(next(tower.module.parameters()).device)
    strange = [name for name in found if name not in towers]
    if strange or len(inputs) > len(towers):
        raise AdapterError(
            f"{description.facts.architecture} takes inputs for {', '.join(towers)}, in this order or by these names;"
            f" it was given {', '.join(strange) or f'{len(inputs)} by position'}."
        )
    return found


class KeptFeatures:
    """Features of a tower for inputs that a head brings, kept for as long as nothing that they depend on changes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, str], tuple[tuple[Any, ...], Tensor]] = {}

    def forget(self, adapter: str | None) -> None:
        """Let go of what was kept for one adapter."""
        self._kept = {key: value for key, value in self._kept.items() if key[0] != adapter}

    def get(self, key: tuple[str | None, str], state: tuple[Any, ...]) -> Tensor | None:
        """What was kept under `key`, if it was made in the same state."""
        found = self._kept.get(key)
        return found[1] if found is not None and found[0] == state else None

    def put(self, key: tuple[str | None, str], state: tuple[Any, ...], features: Tensor) -> None:
        """Keep features that were made in a state."""
        self._kept[key] = state, features

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": {}}  # a copy computes its own


def outputs_of_towers(tuned: TunedModel, given: Mapping[str, Any], batch: Any) -> Any:
    """What the active adapter's head makes of the towers' features, in the pass that is open.

    Args:
        tuned: with a head that reads towers.
        given: inputs by tower.
        batch: handed on to the head.

    Raises:
        AdapterError: a tower that the head reads was given nothing.
    """
    description, head = tuned.description, tuned.head
    assert isinstance(description, Towers) and isinstance(head, Head)
    own: Mapping[str, Tensor] = head.own_inputs()
    found: dict[str, Feature] = {}
    for place, name in outlets(description).items():
        if place not in head.reads:
            continue
        inputs = own.get(name, given.get(name))
        if inputs is None:
            raise AdapterError(f"The head reads the tower {name}, and it was given no input. Call the model with both.")
        depends = _reads_another(tuned, name) if name in own else None
        if depends is not None:
            found[place] = Feature(
                _for_each(tuned, name, inputs, len(found[description.towers[depends].outlet.name].value))
            )
        elif name in own:
            found[place] = Feature(_kept(tuned, name, inputs))
        else:
            found[place] = Feature(description.feature(name, inputs))
    found[SCALE] = Feature(description.scale())
    bias = description.bias()
    if bias is not None:
        found[BIAS] = Feature(bias)
    return tuned._headed(found, batch)


def outputs_of_frozen_towers(tuned: TunedModel, name: str, given: Mapping[str, Any]) -> Any:
    """What the head of an adapter makes of the features of the frozen towers; see `outputs_of_towers`."""
    description, head = tuned.description, tuned.adapter(name).head
    assert isinstance(description, Towers) and isinstance(head, Head)
    inputs: Mapping[str, Any] = {**given, **head.own_inputs()}
    with tuned.disable(), tuned._pass((given,)), mixed_precision(tuned.backbone, tuned.adapters):
        found = {
            place: Feature(description.feature(tower, in_precision(tuned.backbone, inputs[tower])))
            for place, tower in outlets(description).items()
            if place in head.reads
        }
        found[SCALE] = Feature(description.scale())
        bias = description.bias()
        if bias is not None:
            found[BIAS] = Feature(bias)
        return head(Features(found), None)


def _reads_another(tuned: TunedModel, name: str) -> str | None:
    """The tower that edits in the tower `name` read; None where they read none."""
    for edit in tuned.adapter().edits:
        if _tower_of(edit.place) != name:
            continue
        for source in edit.reads:
            if isinstance(source, Place) and _tower_of(source) != name:
                return _tower_of(source)
    return None


def _tower_of(place: Place) -> str:
    return place.name.partition(".")[0]


def _for_each(tuned: TunedModel, name: str, inputs: Tensor, count: int) -> Tensor:
    """Features (B, R, E) of R inputs as each of B samples of the other tower makes them.

    The tower runs once on B * R rows: row b * R + r is input r for sample b.
    """
    assert isinstance(tuned.description, Towers)
    features = tuned.description.feature(name, inputs.repeat(count, *([1] * (inputs.dim() - 1))))
    return features.reshape(count, len(inputs), -1)


def _kept(tuned: TunedModel, name: str, inputs: Tensor) -> Tensor:
    """Features of inputs that the head brings: kept ones, where no gradient is wanted and nothing has changed."""
    description = tuned.description
    assert isinstance(description, Towers)
    if torch.compiler.is_compiling():
        return description.feature(name, inputs)
    tower, adapter = description.towers[name], tuned.adapter()
    edited = any(_tower_of(edit.place) == name for edit in adapter.edits)
    parameters = [*tower.feature_parameters(), *(adapter.parameters() if edited else ())]
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    draws = tuned.training and (edited or any(map(_drops, tower.module.modules())))
    watched = tuned._wiring.switch.watched is not None and edited
    if learns or draws or watched:
        return description.feature(name, inputs)
    device = inputs.device.type
    state = (
        inputs.data_ptr(),
        inputs._version,
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        tuple(tuned._merged),
        tuple((parameter.data_ptr(), parameter._version) for parameter in parameters),
    )
    key = (tuned.active, name)
    found = tuned._kept_features.get(key, state)
    if found is None:
        with torch.no_grad():
            found = description.feature(name, inputs)
        tuned._kept_features.put(key, state, found)
    return found


def _drops(module: nn.Module) -> bool:
    """Whether a layer draws in training: dropout, or an attention of transformers with a share that it drops."""
    share = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
    return isinstance(share, float) and share > 0
