"""A TunedModel as its library would have it: a plain model with a classifier, and the tensors that merging changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbones.inputs import fitted_to
from ..backbones.origin import origin_of, remember
from ..injection.adapter_file import probe_images
from ..injection.heads import reads_of
from ..injection.tuned_model import TunedModel
from .library_format import CannotExport, LibraryFormat
from .library_formats import format_of
from .weight_changes import Changes, tensors, weight_changes


@dataclass
class PlainModel:
    """A model of its library, without any hook.

    Attributes:
        model: with the frozen weights; where it has a classifier for the adapter's head, that holds the head's tensors.
        format: the form of its library.
        changed: by the model's names, the tensors that the adapter changes: (before, merged), in double precision if
            they are floats. A bias that the model does not have is before None.
        classifiers: the paths of the linear layers that stand for the adapter's head; empty where it has no head.
        head: the head that the library's model has no room for, as a linear layer; None where there is none.
        images: an example batch, (2, C, H, W).
        exact: whether the frozen weights are still there; False where the adapter trained them in place.
    """

    model: nn.Module
    format: LibraryFormat
    changed: Changes
    classifiers: tuple[str, ...]
    head: nn.Linear | None
    images: Tensor
    exact: bool

    @property
    def outputs(self) -> int | None:
        """The number of classes of the adapter's head; None where it has none."""
        if self.head is not None:
            return self.head.out_features
        if not self.classifiers:
            return None
        layer = self.model.get_submodule(self.classifiers[0])
        assert isinstance(layer, nn.Linear)
        return layer.out_features

    def merged(self) -> nn.Module:
        """A copy of the model with the merged tensors.

        Raises:
            CannotExport: a bias or buffer is needed that this architecture does not have.
        """
        made = copy.deepcopy(self.model)
        lacking = [key for key, (before, _) in self.changed.items() if before is None]
        if lacking:
            raise CannotExport(
                f"Merged, this adapter needs tensors that the architecture does not have ({', '.join(lacking[:4])}), so"
                " the library could not load them. Use a method without shifts, or export to peft or ONNX."
            )
        put(made, {key: after for key, (_, after) in self.changed.items()})
        return made


def unsaved(model: nn.Module, changed: Changes) -> str:
    """A sentence on the changed buffers that the library does not save; empty if there are none."""
    found = []
    for key in changed:
        owner, _, attribute = key.rpartition(".")
        if attribute in model.get_submodule(owner)._non_persistent_buffers_set:
            found.append(key)
    return "" if not found else f" The adapter changes {', '.join(found[:3])}, which the library does not save."


def put(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy tensors into a model by name, each in the type that the model has there."""
    with torch.no_grad():
        for key, value in values.items():
            owner, _, attribute = key.rpartition(".")
            module = model.get_submodule(owner)
            own = module._parameters if module._parameters.get(attribute) is not None else module._buffers
            found = own[attribute]
            assert found is not None
            found.copy_(value)


@torch.no_grad()
def plain_model(tuned: TunedModel, name: str | None = None) -> PlainModel:
    """Return the plain model of an adapter (the active one by default); `tuned` stays as it is.

    Raises:
        CannotMerge: an edit cannot be expressed as a change of weights; the message lists them.
        CannotExport: the model is a host or of another library, or the head is more than a linear layer.
    """
    description = tuned.description
    if description.host is not None or len(description.towers) > 1:
        raise CannotExport(
            f"{description.facts.architecture} is a tower inside a host. Export takes models that are one tower;"
            " merge it in Python (tuned.merge()) and save the host with its own library."
        )
    if not description.inputs.takes_images:
        raise CannotExport(
            f"{description.facts.architecture} takes {description.inputs.layout}; export takes models of images."
        )
    form = format_of(description.facts.library)
    adapter = tuned.adapter(name)
    head = _linear(adapter.head)
    exact = adapter.unfrozen.exact
    with tuned.disable():
        frozen = tensors(tuned.backbone)
    changed = weight_changes(tuned, adapter.name)
    images = fitted_to(torch.cat([probe_images(description), probe_images(description).roll(3, -1)]), tuned.backbone)
    model = _without_hooks(tuned, frozen)
    if head is None:
        return PlainModel(model, form, changed, (), None, images, exact)
    origin = origin_of(model)
    attempt = copy.deepcopy(model)
    made = form.with_classifier(attempt, head.out_features)
    if made is None:
        return PlainModel(model, form, changed, (), head, images, exact)
    layers = [made.model.get_submodule(path) for path in made.classifiers]
    if any(not isinstance(layer, nn.Linear) or layer.in_features != head.in_features for layer in layers):
        return PlainModel(model, form, changed, (), head, images, exact)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    made.model.to(like.device)
    for layer in layers:
        layer.load_state_dict(head.state_dict())
    if origin is not None:
        remember(made.model, origin)
    prefixed = {f"{made.prefix}{key}": value for key, value in changed.items()}
    names = tensors(made.model)
    if any(key not in names for key, (before, _) in prefixed.items() if before is not None):
        return PlainModel(model, form, changed, (), head, images, exact)
    found = PlainModel(made.model.eval(), form, prefixed, made.classifiers, None, images, exact)
    wanted = head(description.pooled(images)) if not changed else None
    if wanted is not None and not _equal(form.output(found.model, images), wanted):
        return PlainModel(model, form, changed, (), head, images, exact)
    return (
        found if _head_fits(found, tuned, adapter.name) else PlainModel(model, form, changed, (), head, images, exact)
    )


def _head_fits(found: PlainModel, tuned: TunedModel, name: str) -> bool:
    """Whether the library's classifier reads the feature that the adapter's head reads."""
    mode = tuned.training
    made = copy.deepcopy(found.model)
    for key, (before, after) in found.changed.items():
        owner, _, attribute = key.rpartition(".")
        if before is None and attribute in made.get_submodule(owner)._parameters:
            made.get_submodule(owner)._parameters[attribute] = nn.Parameter(after.float(), requires_grad=False)
        elif before is not None:
            put(made, {key: after})
    try:
        with tuned.eval().enable(name):  # another width, or a map where vectors are wanted, is an error of the library
            return _equal(found.format.output(made, found.images), tuned(found.images), 1e-4)
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        tuned.train(mode)


def _equal(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and difference(a, b) <= tolerance


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors, in parts of the largest entry of the second (at least 1)."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def _linear(head: nn.Module | None) -> nn.Linear | None:
    """The head as a linear layer of the pooled feature.

    Raises:
        CannotExport: it is more than that.
    """
    if head is None:
        return None
    if not isinstance(head, nn.Linear) or reads_of(head) != ("outlet",):
        kind = getattr(head, "kind", "") or type(head).__name__
        raise CannotExport(
            f"The adapter's head ({kind!r}) is no linear layer on the pooled feature, and other libraries have no place"
            " for it. Export to ONNX, or train with a linear head."
        )
    made = nn.Linear(head.in_features, head.out_features)
    bias = head._parameters["bias"]
    with torch.no_grad():
        made.weight.copy_(head.weight)
        made.bias.copy_(torch.zeros_like(made.bias) if bias is None else bias)
    return made


def _without_hooks(tuned: TunedModel, frozen: dict[str, Tensor]) -> nn.Module:
    """A copy of the backbone with the frozen weights and no hook."""
    twin = copy.deepcopy(tuned)
    for other in list(twin.adapters):
        if twin.adapter(other).unfrozen.exact:
            twin.detach(other)
        else:  # trained in place: its hooks go, and the weights stay
            twin._wiring.remove(other)
            del twin.adapters[other]
    model = twin.backbone
    put(model, frozen)
    origin = origin_of(tuned.backbone)
    if origin is not None:
        remember(model, origin)
    return model.eval().requires_grad_(False)
