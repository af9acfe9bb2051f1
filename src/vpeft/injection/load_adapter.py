"""Load an adapter file: compare it with the backbone, attach what it holds, and recompute the saved outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import PATH, TEXT, one_of, require
from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..errors import VpeftError
from ..guarded import printable, short
from .adapter import require_equal_shapes
from .adapter_file import (
    BadAdapterFile,
    CannotTell,
    Manifest,
    made_again,
    methods_of,
    probe,
    read,
    require_as_many_labels,
    task_of,
)
from .as_it_was import AsItWas
from .implied import budget, implied_tensors
from .other_layout import relaid
from .other_precision import (
    COARSE_TOLERANCE,
    OtherPrecision,
    coarse,
    precision_hint,
    said,
    same_in_other_precision,
)
from .quantise import quantise
from .tuned_already import refuse_tuned
from .tuned_model import TunedModel
from .weights_digest import weights_digest

PROBE_TOLERANCE = 1e-3
# Two libraries add the same numbers in another order; other weights differ by far more.
LAYOUT_TOLERANCE = 1e-4


def load(
    model: nn.Module | Backbone | TunedModel,
    path: str | Path,
    *,
    name: str | None = None,
    head: nn.Module | None = None,
    check: bool = True,
    other_library: bool = False,
    task: Any = None,
) -> TunedModel:
    """Put a saved adapter on its backbone.

    Args:
        model: the same pre-trained model as at saving, or a TunedModel of it, which gains one more adapter.
        path: the adapter file.
        name: the adapter's name here; the saved one by default.
        head: needed where the saved head was of no class that vpeft knows.
        check: recompute the probe outputs and compare them with the saved ones. Where the adapter was trained on
            quantised weights, the backbone is quantised in the same way; False leaves it in full precision.
        other_library: the model holds the same weights as another library lays them out, for instance transformers'
            ViTModel for an adapter made on timm's VisionTransformer. Digests cannot agree then; in their place the
            features of the frozen model and the outputs with the adapter must equal the saved ones.
        task: in place of the one that the file names, for instance one of your own that vpeft does not know.

    Raises:
        BadAdapterFile: damaged, or made for other weights; the message names both sides.
    """
    require(
        "load(model, path)",
        model=(model, one_of(nn.Module, Backbone, says="the pre-trained model, a torch.nn.Module")),
        path=(path, PATH),
    )
    require(
        "load(model, path)",
        name=(name, TEXT.or_none()),
        head=(head, one_of(nn.Module, says="a torch.nn.Module").or_none()),
    )
    manifest, tensors = read(path)
    if isinstance(model, TunedModel):
        description = model.description
        found = weights_digest(description, model)
    else:
        refuse_tuned(model.root if isinstance(model, Backbone) else model)
        description = model if isinstance(model, Backbone) else _described(model, manifest, path)
        found = weights_digest(description)
    rounded = _rounded(description, manifest, path, found, model)
    other = found != manifest.base_digest and not rounded
    limit = LAYOUT_TOLERANCE if other else COARSE_TOLERANCE if rounded or coarse(description) else PROBE_TOLERANCE
    if other and not (other_library and description.facts.family != manifest.family):
        hint = (
            f" If these are the same weights as {description.facts.library} lays them out, pass other_library=True."
            if description.facts.family != manifest.family and not other_library
            else ""
        )
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} with weights {manifest.base_digest[:12]}, but this is"
            f" {description.facts.architecture} with weights {found[:12]}. Load the backbone {manifest.backbone!r}"
            f" with its pre-trained weights.{hint}{precision_hint(description, manifest)}"
        )
    if isinstance(head, nn.Linear) and manifest.head is not None and head.out_features != manifest.head.classes:
        raise BadAdapterFile(
            f"{path} has a head for {manifest.head.classes} classes, but the given head is for {head.out_features}."
            " To go on with other classes, train anew and start from this file: vpeft train --from FILE."
        )

    require_implied(manifest, tensors, description, path, head=head, other=other)
    tuned = model if isinstance(model, TunedModel) else None
    before = AsItWas(description, tuned)
    try:
        tuned = tuned or TunedModel(description)
        if other:
            _check_layout(tuned, manifest, path, check)
        made = _head_of(manifest, description, path, head)
        _put_on(tuned, manifest, tensors, name or manifest.name, made, path, check, other, limit, task, before)
    except BaseException as error:
        before.restore(tuned)
        if isinstance(error, Exception) and not isinstance(error, VpeftError):
            raise BadAdapterFile(
                f"{path} cannot be put on {description.facts.architecture} ({type(error).__name__}:"
                f" {printable(str(error), 200)})."
            ) from error
        raise
    tuned.manifest = manifest
    return tuned


def _rounded(
    description: Backbone, manifest: Manifest, path: str | Path, found: str, model: nn.Module | Backbone
) -> bool:
    """Whether the weights are those of the file in another precision, which is said then."""
    if found == manifest.base_digest:
        return False
    with model.disable() if isinstance(model, TunedModel) else nullcontext():
        same = same_in_other_precision(description, manifest)
    if same:
        warnings.warn(said(description, manifest, path), OtherPrecision, stacklevel=3)
    return same


def _head_of(manifest: Manifest, description: Backbone, path: str | Path, head: nn.Module | None) -> nn.Module | None:
    if head is not None or manifest.head is None:
        return head
    return made_again(manifest.head, description.facts.width, path)


def _put_on(
    tuned: TunedModel,
    manifest: Manifest,
    tensors: dict[str, Tensor],
    key: str,
    head: nn.Module | None,
    path: str | Path,
    check: bool,
    other: bool,
    limit: float,
    task: Any,
    before: AsItWas,
) -> None:
    """Attach what the file holds, and compare the outputs with the saved ones."""
    tuned.attach(*methods_of(manifest), name=key, head=head, statistics=manifest.statistics, train=manifest.train)
    before.note_written(tuned, key)
    tuned.adapter(key).task = task if task is not None else task_of(manifest)
    tuned.load_adapter_state(relaid(tensors, tuned.adapter_state(key)) if other else tensors, key)
    if manifest.quantised is not None and check:
        quantise(tuned, manifest.quantised)
    if check:
        _compare(probe(tuned, key), manifest.probe, limit, manifest, path)


def _described(model: nn.Module, manifest: Manifest, path: str | Path) -> Backbone:
    try:
        return describe(model, manifest.anatomy)
    except VpeftError:
        raise
    except Exception as error:
        if manifest.anatomy is None:
            raise
        raise BadAdapterFile(
            f"{path}: its anatomy does not fit {type(model).__name__} ({type(error).__name__}:"
            f" {printable(str(error), 200)})."
        ) from error


def require_implied(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    description: Backbone,
    path: str | Path,
    *,
    head: nn.Module | None = None,
    other: bool = False,
) -> None:
    """Compare what the manifest implies on a backbone with the tensors that the file holds, before anything is built.

    Args:
        manifest, tensors: of the file.
        description: of the backbone; it may be on the meta device.
        path: of the file, for messages.
        head: in place of the one that the file describes.
        other: the backbone has another library's layout.

    Raises:
        BadAdapterFile: methods, head or parts do not fit, are more than the tensors justify, or give other tensors.
        CannotTell: they fail in a way that nobody foresaw.
    """
    held = sum(value.numel() for value in tensors.values())
    try:
        with budget(len(tensors), held):
            implied = implied_tensors(
                description,
                lambda: list(methods_of(manifest)),
                lambda: _head_of(manifest, description, path, head),
                statistics=manifest.statistics,
                train=manifest.train,
            )
    except VpeftError as error:
        raise BadAdapterFile(f"{path}: {printable(str(error), 600)}") from None
    except Exception as error:
        raise CannotTell(
            f"{path}: what its manifest says cannot be made ({type(error).__name__}: {printable(str(error), 200)})."
        ) from error
    given = relaid(dict(tensors), implied) if other else dict(tensors)
    if head is None:
        require_as_many_labels(manifest, description, path)
    try:
        require_equal_shapes(given, implied)
        _require_equal_kinds(given, implied)
    except VpeftError as error:
        raise BadAdapterFile(f"{path}: {printable(str(error), 600)}") from None


def _require_equal_kinds(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Floats go where floats are, in any precision; whole numbers and truth values where the same kind is.

    Raises:
        BadAdapterFile: with the tensor that does not fit.
    """
    for name, value in own.items():
        kind = given[name].dtype
        if kind != value.dtype and not (kind.is_floating_point and value.dtype.is_floating_point):
            raise BadAdapterFile(f"The tensor {short(name)} is of the type {kind} in the file, and {value.dtype} here.")


def start_from(tuned: TunedModel, path: str | Path) -> str:
    """Give the active adapter the tensors of a saved one with the same methods; says what was taken.

    The head is taken too where its tensors have the same shapes; otherwise it stays as it was made.

    Raises:
        BadAdapterFile: the file is no adapter, or of other weights or methods.
    """
    manifest, tensors = read(path)
    found = weights_digest(tuned.description, tuned)
    if found != manifest.base_digest and not _rounded(tuned.description, manifest, path, found, tuned):
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} with weights {manifest.base_digest[:12]}, but this is"
            f" {tuned.description.facts.architecture} with weights {found[:12]}. Take an adapter of this backbone."
        )
    state, fresh = tuned.adapter_state(), tuned.adapter().only_for_training()
    own = {key: value for key, value in state.items() if key not in fresh}
    inside = {key for key in own if key.split(".")[0] != "head"}
    lacking = sorted(key for key in inside if key not in tensors or tensors[key].shape != own[key].shape)
    if lacking or not inside:
        theirs = " + ".join(entry.name for entry in manifest.methods)
        raise BadAdapterFile(
            f"{path} holds {theirs}, which does not have the tensors of this adapter"
            f" ({', '.join(lacking[:4]) or 'it has none'}). Start from an adapter with the same method and settings."
        )
    heads = [key for key in own if key not in inside]
    same = all(key in tensors and tensors[key].shape == own[key].shape for key in heads)
    taken = {key: tensors[key] for key in own if key in inside or same}
    tuned.load_adapter_state({**state, **taken})
    head = "its head included" if same and heads else "with a new head" if heads else "without a head"
    return f"starts from {path}, {head}"


def _check_layout(tuned: TunedModel, manifest: Manifest, path: str | Path, check: bool) -> None:
    """Whether another library's model computes what the frozen weights computed at saving; nothing is attached yet."""
    if not check or not manifest.base_probe:
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} ({manifest.family}), and only a comparison of outputs can tell"
            f" whether {tuned.description.facts.family} holds the same weights; "
            + ("check=False forbids it." if not check else "the file has none of the frozen model. Save it again.")
        )
    seen = probe(tuned, None)
    scale = max(abs(value) for value in manifest.base_probe) or 1.0
    equal = len(seen) == len(manifest.base_probe)
    worst = _worst(seen, manifest.base_probe) / scale
    if not equal or not worst <= LAYOUT_TOLERANCE:
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} ({manifest.family}). This {tuned.description.facts.architecture}"
            f" ({tuned.description.facts.family}) does not hold the same weights: its features for the probe input"
            f" differ by {worst:.1e} of their size. Convert the weights, epsilons of the norms included."
        )


def _compare(seen: list[float], saved: list[float], limit: float, manifest: Manifest, path: str | Path) -> None:
    """The outputs of a loaded adapter against those that were saved with it."""
    scale = max((abs(value) for value in saved), default=1.0) or 1.0
    if len(seen) != len(saved):
        raise BadAdapterFile(f"{path} has {len(saved)} outputs for the probe input, but there are {len(seen)} here.")
    worst = _worst(seen, saved) / scale
    if not worst <= limit:
        raise BadAdapterFile(
            f"{path}: the outputs for the probe input differ from the saved ones by {worst:.1e} of their size"
            f" (saved with torch {manifest.versions.get('torch')}, now {torch.__version__})."
            " Pass check=False to load anyway."
        )


def _worst(seen: Sequence[float], saved: Sequence[float]) -> float:
    """The largest difference; infinite where one of them is no number."""
    differences = [abs(a - b) for a, b in zip(seen, saved, strict=False)]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf
