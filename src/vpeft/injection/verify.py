"""Check with one tiny batch and two backward passes that every edit has an effect; the model is the same afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.host_parts import in_part
from ..backbones.inputs import fitted_to
from ..backbones.module_names import place_name
from ..backbones.places import WHOLE
from ..errors import VpeftError
from ..head import raw_outputs
from .heads import reads_of, seen_by_heads
from .operations import Slot
from .outputs import tensors_in
from .two_towers import outputs_of_frozen_towers

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class DeadPlace(VpeftError):
    """An edit is never executed, a new tensor gets no gradient, or the model at step 0 differs from the frozen one."""


class NotTogether(VpeftError):
    """Methods that each work alone on this backbone, and whose edits contradict each other in one adapter."""


class NotPooled(VpeftError):
    """The head reads one feature of each image, and the backbone gives several."""


@dataclass(frozen=True)
class Report:
    """The result of `verify`; true if there are no problems.

    Attributes:
        executed: number of operations that ran.
        live: names of trained tensors that received a gradient within two steps.
        dormant: tensors that a layer declares to receive none: name -> reason.
        identity: whether the features before the first step equal those of the frozen backbone.
        problems: sentences that each describe a problem.
    """

    executed: int
    live: list[str]
    dormant: dict[str, str] = field(default_factory=dict)
    identity: bool = False
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.problems


SCALES = (".weight", ".gamma")  # of norms and LayerScale
STEP = 1e-2  # relative size of the trial step; it only has to leave zero-initialised factors
IDENTITY = 1e-5  # in 16 bits four roundings, since another kernel adds in another order
BESIDE = "it belongs to the host, and `verify` runs only the tower"


def verify(
    tuned: TunedModel, name: str, batch: Tensor | dict[str, Tensor] | None = None, *, first: bool = False
) -> Report:
    """Run two forward and backward passes in eval mode and report edits without effect and tensors without gradient.

    The adapter's tensors, gradients, buffers, modes and the random state are the same afterwards.

    Args:
        tuned: the model.
        name: the adapter.
        batch: inputs (B, ...) of the tower, or {tower: inputs} if there are several; by default two random inputs of
            the backbone's own size. For a host, `verify` runs only the tower; the host's first forward pass then
            checks that the host executes every edit.
        first: whether this is step 0; then methods with `starts_as_identity` must equal the frozen model.
    """
    with tuned._wiring.switch.guard.alone():
        return _verified(tuned, name, batch, first)


def _verified(tuned: TunedModel, name: str, batch: Tensor | dict[str, Tensor] | None, first: bool) -> Report:
    modes = {module: module.training for module in tuned.modules()}
    parameters = dict(tuned.adapter(name).trained())
    state = {key: tensor.clone() for key, tensor in tuned.adapter_state(name).items()}
    kept = {key: p.grad for key, p in parameters.items()}
    frozen = {key: p for key, p in tuned.backbone.named_parameters() if not p.requires_grad}
    before = {key: p._version for key, p in frozen.items()}
    statistics = {key: buffer.clone() for key, buffer in tuned.backbone.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            tuned.eval()
            images = _images(tuned, batch)
            with torch.no_grad():
                plain = _frozen(tuned, name, images)
            tuned._wiring.switch.forget()  # graphs of other adapters that wait for their backward pass do not matter
            with tuned.enable(name):
                try:
                    report = _look(tuned, name, images, plain, parameters, first)
                except (RuntimeError, TypeError, IndexError) as error:
                    if len(tuned.methods(name)) < 2 or isinstance(error, torch.OutOfMemoryError):
                        raise
                    raise NotTogether(_not_together(tuned, name, error)) from error
        finally:
            tuned._wiring.switch.watched = None
            tuned._wiring.switch.let_go()
            tuned._wiring.switch.forget()  # the passes above are over, and may have been for single tasks
            with torch.no_grad():
                for key, tensor in tuned.adapter_state(name).items():
                    tensor.copy_(state[key])
                for key, buffer in tuned.backbone.named_buffers():
                    buffer.copy_(statistics[key])
            for key, p in parameters.items():
                p.grad = kept[key]
            for module, mode in modes.items():
                module.training = mode
    changed = [key for key, p in frozen.items() if p._version != before[key] or p.grad is not None]
    if changed:
        report.problems.append(f"Frozen tensors of the backbone were written to: {', '.join(changed[:4])}.")
    return report


def _not_together(tuned: TunedModel, name: str, error: Exception) -> str:
    names = " and ".join(method.name for method in tuned.methods(name))
    said = str(error).strip().splitlines()[0] if str(error).strip() else "no more is said"
    return (
        f"{names} do not go together on {tuned.description.facts.architecture}: a pass with all of them ends with"
        f" {type(error).__name__}: {said}. One of them changes what another reads, such as the number of tokens."
        " Leave one out, or train each by itself and keep the adapters side by side."
    )


def _require_pooled(tuned: TunedModel, name: str, features: Tensor) -> None:
    """Raise `NotPooled` if the head reads pooled features (B, D), and the backbone gives tokens or maps."""
    if features.dim() == 2 or "outlet" not in reads_of(tuned.adapter(name).head):
        return
    raise NotPooled(
        f"{tuned.description.facts.architecture} gives features of the shape {tuple(features.shape)} for"
        f" {len(features)} inputs, and this head reads one feature (B, D) of each. Create the model with"
        " pooling, such as global_pool='avg' or, with a class token, 'token'; or take a head that reads other places."
    )


def _images(tuned: TunedModel, batch: Tensor | dict[str, Tensor] | None) -> Any:
    made: Any = tuned.description.inputs.example(2 * tuned.rows_per_sample) if batch is None else batch
    return fitted_to(made, tuned.backbone)


@torch.enable_grad()  # gradients are what is looked at, whatever the caller has switched off
def _look(
    tuned: TunedModel,
    name: str,
    images: Any,
    plain: list[Tensor],
    parameters: dict[str, nn.Parameter],
    first: bool,
) -> Report:
    ran: list[object] = []
    tuned._wiring.switch.watched = ran
    live: set[str] = set()
    problems: list[str] = []
    identity = False
    passes = tuned.passes(name)
    for step in range(2):
        for p in parameters.values():
            p.grad = None
        loss = torch.zeros((), device=plain[0].device)
        for number, tasks in enumerate(passes):
            with tuned.for_tasks(*tasks), raw_outputs():
                if tuned.reads_towers:  # the inputs that the head brings itself are those of a tower
                    outputs = tuned(images)
                    seen = list(tensors_in(outputs))
                else:
                    seen = [tuned.features(images)]
                    outputs = tuned.outputs(seen[0])
            if step == 0:
                identity = all(map(_alike, seen, plain)) and (identity or number == 0)
            for given in tensors_in(outputs):
                loss = loss + (given * torch.randn(given.shape[1:], device=given.device, dtype=given.dtype)).sum()
        if step == 0:
            ran_once = {id(operation) for operation in ran}  # those at the outputs too
        penalty = tuned.penalty()
        if penalty is not None:
            loss = loss + penalty
        if not torch.isfinite(loss):
            problems.append("The output on a random image is not finite.")
            break
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for key, p in parameters.items():
                if p.grad is not None and bool(p.grad.any()):
                    live.add(key)
                    scale = p.grad.abs().max()
                    p.add_(p.grad / scale, alpha=-STEP * float(p.abs().mean().clamp(min=1.0)))
    dormant = _dormant(tuned, name)
    if live:  # tensors that the head cannot see get no gradient, and that is no error
        dormant |= _behind_the_head(tuned, name, [key for key in parameters if key not in live])
    beside = _operations_of_parts(tuned, name)
    operations = [op for op in tuned._wiring.operations(name) if id(op) not in beside]
    asleep = sorted(
        {_where(tuned, name, op) for op in operations if id(op) not in ran_once and name not in tuned._merged}
    )
    if asleep:
        problems.append(f"These places are never executed, so their edits do nothing: {', '.join(asleep[:6])}.")
    dead = [key for key in parameters if key not in live and key not in dormant]
    if dead and not problems:
        problems.append(f"These tensors receive no gradient in two steps: {', '.join(dead[:6])} ({len(dead)} in all).")
        problems += _blocked_by_zeros(tuned)
    promised = first and all(method.starts_as_identity for method in tuned.methods(name))
    if promised and not identity:
        problems.append(
            "The features at step 0 differ from the frozen backbone's, although the method states that they are equal."
        )
    return Report(len(ran_once), sorted(live), dormant, identity, problems)


def _frozen(tuned: TunedModel, name: str, images: Any) -> list[Tensor]:
    """The features of the frozen model; or what the head makes of its towers, where it compares these."""
    with tuned.enable(name):
        compares = tuned.reads_towers
    if compares:
        return list(tensors_in(outputs_of_frozen_towers(tuned, name, images)))
    with tuned.disable():
        plain = tuned.features(images)
    _require_pooled(tuned, name, plain)
    return [plain]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two results are equal up to rounding."""
    if one.shape != other.shape:
        return False
    return bool((one.detach() - other).abs().max() <= _equal(other.dtype) * other.abs().max().clamp(min=1.0))


def _equal(kind: torch.dtype) -> float:
    """How far two features that are equal may be from each other, as a share of their size."""
    return max(IDENTITY, 4 * torch.finfo(kind).eps)


def _blocked_by_zeros(tuned: TunedModel) -> list[str]:
    """Return a likely cause of missing gradients: frozen scales that are zero, as in some random initialisations."""
    zero = [
        name
        for name, parameter in tuned.backbone.named_parameters()
        if not parameter.requires_grad and parameter.dim() == 1 and name.endswith(SCALES) and not bool(parameter.any())
    ]
    if not zero:
        return []
    return [
        f"The frozen scales of {', '.join(zero[:3])}{' ...' if len(zero) > 3 else ''} are all zero, as in a randomly"
        " initialised model, so the layers before them have no effect. Load pre-trained weights. To train on these"
        " weights, create the model without zero initialisation (zero_init_last=False, if it has that option) or pass"
        " verify=False."
    ]


def _behind_the_head(tuned: TunedModel, name: str, keys: list[str]) -> dict[str, str]:
    """Return those of the tensors whose edits act after all places that the head reads: name -> reason."""
    adapter, description = tuned.adapter(name), tuned.description
    reads = reads_of(adapter.head)
    if not reads or "outlet" in reads:
        return {}
    seen = seen_by_heads(adapter.edits, description)
    last = max(seen.place(read).depth for read in reads)
    homes = {
        (id(module), attribute): place.depth
        for place in description.places()
        if place.name != WHOLE
        for module, attribute in place.own.values()
    }
    reason = f"the head reads {' and '.join(reads)}, which is computed earlier"
    found = {}
    for edit, prefix in zip(adapter.edits, adapter.keys, strict=True):
        for key in keys:
            if not key.startswith(f"{prefix}."):
                continue
            depth = edit.place.depth
            if edit.layer is None:
                module, attribute = edit.place.parameter(key.removeprefix(f"{prefix}."))
                depth = homes.get((id(module), attribute), depth)
            if depth > last:
                found[key] = reason
    return found


def _operations_of_parts(tuned: TunedModel, name: str) -> set[int]:
    """Return the ids of the operations that act in parts of the host, which `verify` does not run."""
    edits = tuned.adapter(name).edits
    layers = {id(edit.layer) for edit in edits if edit.layer is not None and in_part(tuned.description, edit.place)}
    operations = tuned._wiring.operations(name)
    acting = [one for one in operations if id(getattr(one, "layer", None)) in layers]
    slots = {id(slot) for one in acting for slot in _slots_of(one)}
    return {id(one) for one in (*acting, *(one for one in operations if slots & {id(s) for s in _slots_of(one)}))}


def _slots_of(operation: object) -> list[Slot]:
    """Return the slots that an operation fills or empties."""
    held = vars(operation).values()
    listed = [one for value in held for one in (value if isinstance(value, (list, tuple)) else (value,))]
    return [one for one in listed if isinstance(one, Slot)]


def _dormant(tuned: TunedModel, name: str) -> dict[str, str]:
    """Return the tensors that get no gradient by declaration: a layer's attribute `dormant` maps names to reasons."""
    found: dict[str, str] = {}
    adapter = tuned.adapter(name)
    if tuned.description.host is not None:
        for key, _ in adapter.trained():
            if any(key.startswith(f"{place_name(part)}.unfreeze") for part in adapter.train_too):
                found[key] = BESIDE
    for edit, prefix in zip(adapter.edits, adapter.keys, strict=True):
        if in_part(tuned.description, edit.place):
            found |= {key: BESIDE for key, _ in adapter.trained() if key.startswith(f"{prefix}.")}
    for prefix, module in adapter.named_modules():
        for key, reason in getattr(module, "dormant", {}).items():
            found[f"{prefix}.{key}" if prefix else key] = reason
    return found


def require_all_ran(tuned: TunedModel, name: str, ran: list[object], *, training: bool) -> None:
    """Raise `DeadPlace` unless a host's forward pass executed every edit of the towers that it ran.

    `training`: whether it was a pass in training, in which the parts beside the towers run too.
    """
    noted = {id(operation) for operation in ran}
    adapter = tuned.adapter(name)
    places = {id(edit.layer): edit.place.name for edit in adapter.edits}
    towers: dict[str, list[tuple[bool, str]]] = {}
    beside = set() if training else _operations_of_parts(tuned, name)
    operations = tuned._wiring.operations(name)
    acts_at = {id(one): places.get(id(getattr(one, "layer", None)), "") for one in operations}
    # what only reads is part of the edit that takes what was read
    taken_at = {id(slot): acts_at[id(one)] for one in operations if acts_at[id(one)] for slot in _slots_of(one)}
    for operation in operations:
        if id(operation) in beside:
            continue
        read = next((taken_at[id(slot)] for slot in _slots_of(operation) if id(slot) in taken_at), "")
        place = acts_at[id(operation)] or read
        tower = place.partition(".")[0] if len(tuned.description.towers) > 1 else ""
        towers.setdefault(tower, []).append((id(operation) in noted, _where(tuned, name, operation)))
    several = len(towers) > 1
    for seen in towers.values():
        if several and not any(did for did, _ in seen):
            continue
        idle = {where for did, where in seen if not did}
        asleep = sorted(idle & set(adapter.keys)) or sorted(idle)
        if asleep:
            host = type(tuned.backbone).__name__
            raise DeadPlace(
                f"The forward pass of {host} does not execute these edits, so they have no effect:"
                f" {', '.join(asleep[:6])}. Use a method that acts at places that {host} executes."
            )


def _where(tuned: TunedModel, name: str, operation: object) -> str:
    layer = getattr(operation, "layer", None)
    adapter = tuned.adapter(name)
    for edit, key in zip(adapter.edits, adapter.keys, strict=True):
        if edit.layer is layer and layer is not None:
            return key
    return type(operation).__name__
