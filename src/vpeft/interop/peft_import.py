"""A folder of Hugging Face peft as an adapter of ours.

peft itself loads the folder on the plain model; each of its layers is then read and put into ours. What comes out must
equal what peft computes, or nothing is made.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..backbones.origin import origin_of, remember
from ..errors import VpeftError, nearest, need_extra
from ..guarded import TENSOR_BYTES, TEXT_BYTES, parse_json, parse_tensor_header, read_bytes
from ..injection.heads import new_head
from ..injection.tune import tune
from ..injection.tuned_model import TunedModel
from ..methods.lora import Target, chosen_places
from .library_format import Classified
from .library_formats import format_of
from .peft_kinds import ADAPTER, KINDS, PeftKind
from .plain_model import difference

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
TOLERANCE = 1e-5


class CannotImport(VpeftError):
    """A folder is none of peft's, does not fit the backbone, or holds what has no form here."""


@dataclass(frozen=True)
class PeftImport:
    """What was made.

    Attributes:
        tuned: the adapter on the backbone.
        kind: peft's name of the method.
        layers: number of layers that the folder changes.
        idle: layers of the same kind that the folder leaves as they are; their tensors do nothing.
        error: the largest difference of the outputs from peft's, in parts of the largest output (at least 1).
    """

    tuned: TunedModel
    kind: str
    layers: int
    idle: int
    error: float


def import_peft(model: nn.Module, folder: str | Path, *, name: str = "default", task: Any = None) -> PeftImport:
    """Make an adapter of a peft folder, on the backbone that it was trained on.

    Args:
        model: the backbone with its pre-trained weights, without an adapter; it is tuned in place.
        folder: what peft's `save_pretrained` wrote, with safetensors.
        name: the adapter's name.
        task: a task of ours that the adapter keeps, for instance classification with its labels.

    Raises:
        CannotImport: the message says what does not fit, and what to do.
        MissingExtra: peft is not installed.
    """
    config, keys = _read(Path(folder))
    peft: Any = need_extra("peft", "peft")
    kind_name, kind = _kind(config)
    description = describe(model)
    form = format_of(description.facts.library)
    plain = _plain_form(model, keys)
    base = copy.deepcopy(plain.model).eval()
    before = dict(plain.model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs: Any = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        except Exception as error:
            raise CannotImport(
                f"peft cannot put {folder} on {description.facts.architecture}: {_first(error)} Take the backbone that"
                f" it was trained on{_stated(config)}."
            ) from error
    _require_all_read(peft, theirs, Path(folder), keys)
    layers = _layers(peft, theirs, plain.prefix)
    if not layers:
        raise CannotImport(f"{folder} changes no layer of {description.facts.architecture}.")
    for path, layer in layers.items():
        own: Any = before[plain.prefix + path]
        if not torch.equal(layer.get_base_layer().weight, own.weight):
            raise CannotImport(
                f"This folder also changes the frozen weight of {path}, as PiSSA and OLoRA do at their start. Save it"
                " with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
            )
    saved = _saved_whole(theirs, plain)
    head, further = _head_and_others(description, saved, plain)
    targets = _targets(description, layers, model, kind_name)
    try:
        method = kind.made(config, list(layers.values()), targets)
        tuned = tune(model, method, head=head, name=name, train=tuple(further), verify=False, show=False)
    except VpeftError:
        raise
    except (ValueError, TypeError) as error:
        raise CannotImport(f"{folder}: {_first(error)}") from error
    tuned.adapter(name).task = task
    try:
        idle = _fill(tuned, name, layers, kind)
        _fill_saved(tuned, further)
        worst = _compared(tuned, name, theirs, form, head is not None or not saved)
        if not worst <= TOLERANCE:
            raise CannotImport(
                f"With the tensors of {folder} the outputs differ by {worst:.1e} from peft's, so nothing was made. Its"
                f" settings have no equal here: {kind.method}({', '.join(sorted(config))})."
            )
    except BaseException:
        tuned.detach(name)
        raise
    return PeftImport(tuned.eval(), kind_name, len(layers), idle, worst)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The configuration, and the shapes of the tensors by their names."""
    if not (folder / CONFIG).is_file():
        raise CannotImport(f"{folder} is no folder of peft: it has no {CONFIG}.")
    if not (folder / TENSORS).is_file():
        raise CannotImport(
            f"{folder} has no {TENSORS}. A pickle (adapter_model.bin) is not read, because it can run code; load it"
            " with peft where you trust it, and save it again with safe_serialization=True."
        )
    text = read_bytes(folder / CONFIG, str(folder / CONFIG), CannotImport, TEXT_BYTES)
    config = parse_json(text.decode("utf-8", "replace"), str(folder / CONFIG), CannotImport)
    if not isinstance(config, dict):
        raise CannotImport(f"{folder / CONFIG} holds no settings.")
    data = read_bytes(folder / TENSORS, str(folder / TENSORS), CannotImport, TENSOR_BYTES)
    _, entries = parse_tensor_header(data, str(folder / TENSORS), CannotImport)
    return config, {key: entry.shape for key, entry in entries.items()}


def _kind(config: Mapping[str, Any]) -> tuple[str, PeftKind]:
    stated = str(config.get("peft_type", "")).upper()
    if stated == "LORA" and config.get("use_dora"):
        stated = "DORA"
    if stated not in KINDS:
        raise CannotImport(f"peft's method {stated!r} is not imported. {nearest(stated, KINDS)}")
    kind = KINDS[stated]
    for name, value in kind.refused.items():
        given = config.get(name, value)
        if given != value and given:
            raise CannotImport(
                f"The folder has {name}={given!r}, which {kind.method} here does not have. Train with"
                f" {name}={value!r}, or merge it with peft and save the model."
            )
    return stated, kind


def _plain_form(model: nn.Module, keys: Mapping[str, tuple[int, ...]]) -> Classified:
    """The library's model that the folder's names belong to: the backbone, or the classifier around it."""
    form = format_of(describe(model).facts.library)
    names = {key.removeprefix("base_model.model.") for key in keys}
    classes = {shape[0] for key, shape in keys.items() if len(shape) == 2 and "lora" not in key} | {2}
    made: Classified | None = None
    for outputs in sorted(classes):
        made = form.with_classifier(copy.deepcopy(model), outputs)
        if made is None:
            break
        if any(keys.get(f"base_model.model.{path}.weight", (0,))[0] == outputs for path in made.classifiers):
            return _with_origin(made, model)
    if made is not None and made.prefix and any(name.startswith(made.prefix) for name in names):
        return _with_origin(made, model)
    return Classified(copy.deepcopy(model), ())


def _with_origin(made: Classified, model: nn.Module) -> Classified:
    origin = origin_of(model)
    if origin is not None:
        remember(made.model, origin)
    return made


def _require_all_read(peft: Any, theirs: Any, folder: Path, keys: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor of the folder must have a place in the loaded model.

    Raises:
        CannotImport: with those that have none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = set(peft.get_peft_model_state_dict(theirs, save_embedding_layers=False))
    known |= {key.replace(f".{ADAPTER}", "") for key in theirs.state_dict()}
    lost = sorted(key for key in keys if key not in known and not key.startswith("base_model.vera_"))
    if lost:
        raise CannotImport(
            f"{len(lost)} tensors of {folder} have no place on this backbone ({', '.join(lost[:4])}). Take the backbone"
            " that the folder was trained on."
        )


def _layers(peft: Any, theirs: Any, prefix: str) -> dict[str, Any]:
    """peft's layers by the names of the layers of our backbone."""
    kind = peft.tuners.tuners_utils.BaseTunerLayer
    found: dict[str, Any] = {}
    for path, module in theirs.base_model.model.named_modules():
        if isinstance(module, kind):
            if not path.startswith(prefix):
                raise CannotImport(
                    f"The folder changes {path}, which is no part of the backbone but of its classifier."
                )
            found[path.removeprefix(prefix)] = module
    return found


def _saved_whole(theirs: Any, plain: Classified) -> dict[str, nn.Module]:
    """The modules that peft saved whole, by their names in the plain model."""
    return {
        path: module.modules_to_save[ADAPTER]
        for path, module in theirs.base_model.model.named_modules()
        if hasattr(type(module), "adapter_state_dict") and ADAPTER in getattr(module, "modules_to_save", {})
    }


def _head_and_others(
    description: Backbone, saved: Mapping[str, nn.Module], plain: Classified
) -> tuple[nn.Module | None, dict[str, nn.Module]]:
    """The head that the folder holds, and what else it saved whole, by our names."""
    head: nn.Module | None = None
    further: dict[str, nn.Module] = {}
    for path, module in saved.items():
        if path in plain.classifiers and isinstance(module, nn.Linear):
            head = new_head(module.in_features, module.out_features)
            with torch.no_grad():
                head.weight.copy_(module.weight)  # type: ignore[operator]
                if module.bias is not None:
                    head.bias.copy_(module.bias)  # type: ignore[operator]
            continue
        ours = path.removeprefix(plain.prefix)
        if ours not in {name for name, _ in description.module.named_modules()}:
            raise CannotImport(
                f"The folder saves {path} whole, which is neither a part of {description.facts.architecture} nor its"
                " classifier."
            )
        further[ours] = module
    return head, further


def _targets(description: Backbone, layers: Mapping[str, Any], model: nn.Module, kind: str) -> dict[str, Any]:
    """The targets of ours that cover these layers, as fields of the method."""
    paths = {id(module): path for path, module in model.named_modules()}

    def covering(wanted: set[str]) -> tuple[Target, ...]:
        by_target: dict[Target, set[str]] = {}
        for target in get_args(Target):
            try:
                places = list(chosen_places(description, (target,), "peft"))
            except VpeftError:
                continue
            if any(place.rows is not None for place in places):
                continue
            by_target[target] = {paths.get(id(place.module), place.name) for place in places}
        lacking = sorted(wanted - set().union(*by_target.values()))
        if lacking:
            known = sorted(set().union(*by_target.values()))
            raise CannotImport(
                f"The folder changes {', '.join(lacking[:4])}, and adapters here change layers of blocks:"
                f" {', '.join(known[:6])} ... Merge it with peft and take the merged model as the backbone."
            )
        chosen: tuple[Target, ...] = ()
        least: tuple[int, int] | None = None  # layers that are covered, and targets
        for count in range(len(by_target) + 1):
            for some in itertools.combinations(by_target, count):
                covered = set().union(*(by_target[target] for target in some))
                if wanted <= covered and (least is None or (len(covered), count) < least):
                    chosen, least = some, (len(covered), count)
        return chosen

    inner = {path for path, layer in layers.items() if getattr(layer, "is_feedforward", False)}
    if kind == "IA3":
        return {"outputs": covering(set(layers) - inner), "inputs": covering(inner)}
    return {"targets": covering(set(layers))}


@torch.no_grad()
def _fill(tuned: TunedModel, name: str, layers: Mapping[str, Any], kind: PeftKind) -> int:
    """Put peft's tensors into ours; returns the number of layers that the folder leaves alone."""
    paths = {id(module): path for path, module in tuned.backbone.named_modules()}
    idle = 0
    filled: set[str] = set()
    for edit in tuned.adapter(name).edits:
        module = getattr(edit.place, "module", None)
        path = paths.get(id(module)) if module is not None else None
        if edit.layer is None or path is None:
            continue
        if path not in layers:
            idle += 1
            continue
        own = edit.layer
        values = kind.tensors(layers[path], own)
        for mine, value in values.items():
            target = own.get_parameter(mine) if mine in dict(own.named_parameters()) else own.get_buffer(mine)
            if target.numel() != value.numel():
                raise CannotImport(
                    f"{path}: {mine} has {tuple(value.shape)} in the folder, and {tuple(target.shape)} here. Its"
                    " layers have settings that differ from layer to layer."
                )
            target.copy_(value.reshape(target.shape))
        filled.add(path)
    lacking = sorted(set(layers) - filled)
    if lacking:
        raise CannotImport(f"The layers {', '.join(lacking[:4])} of the folder have no place here.")
    return idle


@torch.no_grad()
def _fill_saved(tuned: TunedModel, further: Mapping[str, nn.Module]) -> None:
    for path, module in further.items():
        own = tuned.backbone.get_submodule(path)
        values: dict[str, Tensor] = dict(module.named_parameters())
        for key, parameter in own.named_parameters():
            parameter.copy_(values[key])


def _compared(tuned: TunedModel, name: str, theirs: Any, form: Any, comparable: bool) -> float:
    """The largest difference between our outputs and peft's."""
    images = tuned.description.inputs.example(2, torch.Generator().manual_seed(3))
    like = next(parameter for parameter in tuned.backbone.parameters() if parameter.is_floating_point())
    images = images.to(like)
    tuned.eval()
    with torch.no_grad(), tuned.enable(name):
        ours = tuned(images)
        seen = form.output(theirs, images)
        if ours.shape != seen.shape and not isinstance(tuned.head, nn.Module):
            ours = form.output(tuned.backbone, images)
        if ours.shape != seen.shape:
            inner = getattr(theirs.base_model.model, getattr(theirs.base_model.model, "base_model_prefix", ""), None)
            seen = seen if inner is None else form.output(inner, images)
            ours = form.output(tuned.backbone, images)
        return difference(ours, seen) if ours.shape == seen.shape else float("inf")


def _stated(config: Mapping[str, Any]) -> str:
    name = config.get("base_model_name_or_path")
    return f" ({name})" if isinstance(name, str) and name else ""


def _first(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
    return said if said.endswith(".") else f"{said}."


def kinds() -> Sequence[str]:
    """peft's names of the methods that are imported."""
    return tuple(KINDS)
