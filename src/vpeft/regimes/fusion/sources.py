"""What a fine-tuned model changed of its base: from an adapter file of any mergeable method, or a full checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.weights import read_weights
from vpeft.data.used_images import UsedImages
from vpeft.errors import VpeftError
from vpeft.heads.linear import LinearHead
from vpeft.injection.adapter_file import KEY, Manifest, read_manifest
from vpeft.injection.heads import Heads
from vpeft.injection.load_adapter import load
from vpeft.injection.merge import CannotMerge
from vpeft.task import Task
from vpeft.tasks.classification import Classification
from vpeft.training.run import USED


class CannotFuse(VpeftError):
    """These models cannot become one; the message names the one that stands in the way."""


@dataclass(frozen=True)
class Source:
    """A fine-tuned model.

    Attributes:
        name: of its task.
        changes: what was added to the base's parameters, by their names in the base; those that stayed are left out.
        head: from the pooled feature to the task's outputs.
        task: what it learnt.
        preprocessing: of its images, as its file states it; None where it states none.
        used: the images of its training, where they are known.
        facts: where it comes from, for the record.
    """

    name: str
    changes: Mapping[str, Tensor]
    head: nn.Module
    task: Task
    preprocessing: Mapping[str, Any] | None = None
    used: UsedImages | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def source_of(base: Backbone, name: str, given: str | Path | nn.Module, task: Task | None = None) -> Source:
    """Read a fine-tuned model.

    Args:
        base: the pre-trained backbone, which stays as it is.
        name: for the task.
        given: an adapter file; or a full fine-tuned model of the same class with its linear classifier, or the file of
            its weights.
        task: what it learnt, where the file does not say.

    Raises:
        CannotFuse: it is of another base, cannot be folded into the weights, or has no head on the pooled feature.
    """
    if isinstance(given, nn.Module):
        return _of_model(base, name, given, task)
    path = Path(given)
    return _of_file(base, name, path, task) if is_adapter(path) else _of_checkpoint(base, name, path, task)


def is_adapter(path: Path) -> bool:
    """Whether a file is an adapter of vpeft, and no plain file of weights."""
    if path.suffix != ".safetensors" or not path.is_file():
        return not path.suffix or not path.is_file()  # then reading it as an adapter says what is wrong
    try:
        with safe_open(path, "pt") as opened:
            return KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return True


def require_one_base(paths: Sequence[Path]) -> None:
    """Raise `CannotFuse` unless adapter files were made on one backbone with the same weights."""
    manifests = [(path, read_manifest(path)) for path in paths if is_adapter(path)]
    if not manifests:
        return
    first, of_first = manifests[0]
    for path, manifest in manifests[1:]:
        if manifest.base_digest != of_first.base_digest:
            raise CannotFuse(
                f"{first} was made on {of_first.backbone} with weights {of_first.base_digest[:12]}, and {path} on"
                f" {manifest.backbone} with weights {manifest.base_digest[:12]}. Changes of different weights do not"
                " add up; give adapters of one backbone."
            )


def _of_file(base: Backbone, name: str, path: Path, task: Task | None) -> Source:
    manifest = read_manifest(path)
    methods = " + ".join(entry.name for entry in manifest.methods)
    tuned = load(copy.deepcopy(base.root).cpu(), path)  # in double precision below, which not every device has
    learnt = task if task is not None else tuned.task
    head = tuned.head
    if head is None or base.host is not None:
        raise CannotFuse(f"{path} ({methods}) has no head of its own: fusing is for backbones with heads.")
    if isinstance(head, Heads):
        raise CannotFuse(f"{path} has heads for several tasks already; give the files that it was made of.")
    if not isinstance(learnt, Task):
        raise CannotFuse(f"{path} does not say what its outputs mean. Pass its task: tasks={{{name!r}: ...}}.")
    adapter = tuned.adapter()
    tuned.double()  # a change of rank 4 then has four singular values, and not four and rounding
    if any(edit.verb != "unfreeze" for edit in adapter.edits):
        try:
            tuned.merge()
        except CannotMerge as error:
            raise CannotFuse(f"{path} ({methods}) cannot be fused. {error}") from None
    changes = changes_of(base.root, tuned.backbone, f"{path} ({methods})")
    return Source(
        name,
        changes,
        head.float(),
        learnt,
        manifest.preprocessing,
        _used(manifest, path),
        {"file": path.name, "methods": methods, "tensors_digest": manifest.tensors_digest},
    )


def _used(manifest: Manifest, path: Path) -> UsedImages | None:
    stated = manifest.extra.get(USED)
    try:
        return None if stated is None else UsedImages.model_validate(stated)
    except ValidationError:
        raise CannotFuse(f"{path}: what it says about the images of its training is not usable.") from None


def _of_model(base: Backbone, name: str, model: nn.Module, task: Task | None) -> Source:
    described = describe(model)
    classifier = described.classifier
    if described.facts.family != base.facts.family or not isinstance(classifier, nn.Linear):
        raise CannotFuse(
            f"{name!r} is {described.facts.architecture} ({described.facts.family}) with a classifier"
            f" {type(classifier).__name__}; a fine-tuned {base.facts.architecture} ({base.facts.family}) with a linear"
            " classifier is wanted."
        )
    own = {id(parameter) for parameter in classifier.parameters()}
    left_out = {key for key, parameter in model.named_parameters() if id(parameter) in own}
    own_head = {id(parameter) for parameter in base.classifier.parameters()}
    kept = {key for key, parameter in base.root.named_parameters() if id(parameter) in own_head}
    changes = changes_of(base.root, model, repr(name), without=left_out | kept)
    learnt = task or Classification(labels=tuple(map(str, range(classifier.out_features))))
    return Source(name, changes, copy.deepcopy(classifier), learnt, facts={"methods": "full checkpoint"})


def _of_checkpoint(base: Backbone, name: str, path: Path, task: Task | None) -> Source:
    tensors = read_weights(path)
    model = copy.deepcopy(base.root).cpu()
    own = {id(parameter) for parameter in base.classifier.parameters()}
    kept = {key for key, parameter in base.root.named_parameters() if id(parameter) in own}
    known = model.state_dict()
    further = {key: value for key, value in tensors.items() if key not in known or key in kept}
    weights = [key for key, value in further.items() if value.dim() == 2 and key.endswith(".weight")]
    owner = weights[0].removesuffix("weight") if len(weights) == 1 else ""
    lacking = [key for key in known if key not in tensors and key not in kept]
    unlike = [key for key in known if key in tensors and key not in kept and known[key].shape != tensors[key].shape]
    if lacking or unlike or not owner or further.keys() - {f"{owner}weight", f"{owner}bias"}:
        raise CannotFuse(
            f"{path} is no adapter, and no fine-tuned {base.facts.architecture} with one linear classifier either:"
            f" {', '.join([*lacking, *unlike, *further][:4]) or 'it has no classifier'} stands in the way."
        )
    model.load_state_dict({key: value for key, value in tensors.items() if key not in further}, strict=False)
    weight, bias = further[f"{owner}weight"].float(), further.get(f"{owner}bias")
    head = LinearHead(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    learnt = task or Classification(labels=tuple(map(str, range(len(weight)))))
    changes = changes_of(base.root, model, str(path), without=kept)
    return Source(name, changes, head, learnt, facts={"file": path.name, "methods": "full checkpoint"})


@torch.no_grad()
def changes_of(
    base: nn.Module, tuned: nn.Module, what: str, *, without: frozenset[str] | set[str] = frozenset()
) -> dict[str, Tensor]:
    """What `tuned` added to the parameters of `base`, by name, in the precision of the base.

    Args:
        base: the pre-trained model.
        tuned: the same model with other values.
        what: names `tuned` in messages.
        without: names that are passed over.

    Raises:
        CannotFuse: their parameters differ in names or shapes, or a buffer has changed.
    """
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    lacking = sorted(key for key in before if key not in after and key not in without)
    further = sorted(key for key in after if key not in before and key not in without)
    shapes = [key for key in before if key in after and key not in without and before[key].shape != after[key].shape]
    if further and not lacking and not shapes and all(key.endswith("bias") for key in further):
        raise CannotFuse(
            f"{what} needs a bias at {', '.join(further[:3])}, and the base has none there. Give a base with biases, or"
            " leave this model out."
        )
    if lacking or further or shapes:
        raise CannotFuse(
            f"{what} is no fine-tuned version of the base: its parameters differ in"
            f" {', '.join([*lacking, *further, *shapes][:4])}."
        )
    buffers = dict(tuned.named_buffers())
    for key, value in base.named_buffers():
        if key not in buffers or not torch.equal(buffers[key].cpu().to(value.dtype), value.cpu()):
            raise CannotFuse(
                f"{what} has changed {key}, which is no parameter (statistics of BatchNorm, for instance). Train it"
                ' with statistics="frozen".'
            )
    found = {}
    for key, value in before.items():
        if key not in without:
            change = after[key].cpu().double() - value.cpu().double()
            if bool(change.any()):
                found[key] = change.to(value)
    return found
