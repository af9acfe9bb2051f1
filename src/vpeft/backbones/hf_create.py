"""Make a backbone from a transformers checkpoint: an id of the hub, or a folder that `save_pretrained` wrote."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import VpeftError, need_extra
from .describe import UnknownBackbone, describe, families
from .trust import TYPED, NotTrusted, Trust
from .weights import DIFFERENCES, BadWeights, Difference, load_weights

# the vision half of models that also read text, and of those whose plain class has a pooler that is rarely trained
CHOSEN = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
WITHOUT_POOLER = ("vit", "deit")


class NoCheckpoint(VpeftError):
    """transformers finds no such checkpoint, or none that is a described vision model."""


def create_from_transformers(
    where: str,
    pretrained: bool,
    size: tuple[int, int] | None,
    allow: Sequence[Difference],
    described: bool = True,
    trust: Trust = TYPED,
) -> tuple[nn.Module, list[str]]:
    """The model of a checkpoint without its classifier, and sentences on what was resized or left out.

    Args:
        where: an id of the hub, or a folder.
        pretrained: load its weights; otherwise random ones.
        size: height and width in pixels, if not the model's own.
        allow: differences between checkpoint and model that are accepted.
        described: False takes a class that no family knows.
        trust: without `download` only what is on this machine is read. Code of a checkpoint is never run.

    Raises:
        NoCheckpoint: nothing is there, or it is no vision model that is described here.
        BadWeights: keys or shapes differ; they are listed.
    """
    transformers: Any = need_extra("transformers", "hf")
    try:
        config = transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=not trust.download
        )
    except (OSError, ValueError) as error:
        if not trust.download and not Path(where).is_dir():
            raise NotTrusted(
                f"A file names the checkpoint {where!r}, which is not on this machine, and nothing is fetched because a"
                " file names it. If you want it, say --allow-download (in Python allow_download=True), or"
                f" --backbone hf:{where}."
            ) from None
        raise NoCheckpoint(f"transformers finds no checkpoint {where!r}: {_first(error)}") from None
    kind, stated = _model_class(transformers, config, described), list(config.architectures or [])
    whole, options = config, {}
    if hasattr(config, "vision_config") and "Vision" in kind.__name__:
        config = config.vision_config
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # an encoder that masks has no features of the whole image
    if config.model_type in WITHOUT_POOLER and "For" not in kind.__name__:
        options["add_pooling_layer"] = False
    model, notes = _made(kind, where, config, pretrained, options, allow, stated, trust)
    if size is not None:
        model, more = _sized(kind, model, config, size, pretrained, options, where)
        notes += more
    model.config._name_or_path = where
    if "classifier" in model._modules:
        model.classifier = nn.Identity()
    model.__dict__["preprocessor_config"] = stated_processor(where, trust)
    if getattr(whole, "architectures", None) is None:
        notes.append(f"{where} does not say which class it was saved from; {kind.__name__} was used.")
    return model.eval(), notes


def _model_class(transformers: Any, config: Any, described: bool) -> Any:
    """The class of the checkpoint, if it is described; else its vision tower, or what AutoModel takes."""
    known = {dotted.rpartition(".")[2] for entry in families().values() for dotted in entry.classes}
    names = [*(config.architectures or []), CHOSEN.get(config.model_type, "")]
    if config.model_type in CHOSEN:
        names.reverse()
    for name in names:
        if name in known and hasattr(transformers, name) and not name.endswith("ForPreTraining"):
            return getattr(transformers, name)
    try:
        found = transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        found = None
    found = found[0] if isinstance(found, (tuple, list)) else found
    if found is not None and not described:
        return found
    if found is None or found.__name__ not in known:
        vision = sorted(name for name in known if name.endswith("Model"))
        raise NoCheckpoint(
            f"The checkpoint is a {config.model_type!r} model, which no description knows. Described are:"
            f' {", ".join(vision)}. With an anatomy, or "generic" for one, any is taken: see docs/own_model.md.'
        )
    return found


def _made(
    kind: Any,
    where: str,
    config: Any,
    pretrained: bool,
    options: dict[str, Any],
    allow: Sequence[Difference],
    stated: Sequence[str],
    trust: Trust,
) -> tuple[Any, list[str]]:
    if not pretrained:
        return kind(config, **options), []
    asked = sorted(set(allow) - set(DIFFERENCES))
    if asked:
        raise BadWeights(f"There is no difference {asked[0]!r} to allow; there are: {', '.join(DIFFERENCES)}.")
    try:
        with quiet():  # what differs is said below, in one sentence
            model, told = kind.from_pretrained(
                where,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                local_files_only=not trust.download,
                **options,
            )
    except pickle.UnpicklingError as error:
        raise BadWeights(f"{where} holds a pickle that could run code, which is not read: {_first(error)}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise NoCheckpoint(f"The weights of {where!r} cannot be loaded: {_first(error)}") from None
    unused = {id(parameter) for parameter in _unused(model)}
    idle = {key for key, parameter in model.named_parameters() if id(parameter) in unused}
    found = {
        "missing": sorted(set(told["missing_keys"]) - idle),
        "unexpected": sorted(told["unexpected_keys"]),
        "shape": sorted(f"{key} {tuple(old)}, the model has {tuple(new)}" for key, old, new in told["mismatched_keys"]),
    }
    notes: list[str] = []
    pooler = [key for key in found["unexpected"] if key.partition(".")[0] == "pooler"]
    if pooler and "add_pooling_layer" in options:
        notes.append(f"Left out of {where}: its pooler, which the feature does not pass.")
        found["unexpected"] = [key for key in found["unexpected"] if key not in pooler]
    if found["unexpected"] and kind.__name__ not in stated:
        # a checkpoint of another class has a head or a text tower of its own
        tops = sorted({key.partition(".")[0] for key in found["unexpected"]})
        notes.append(f"Left out of {where}, saved as {', '.join(stated) or 'nothing stated'}: {', '.join(tops)}.")
        found["unexpected"] = []
    words = {"missing": "Missing", "unexpected": "Unknown to the model", "shape": "Of another shape"}
    refused = [key for key in words if found[key] and key not in allow]
    if refused:
        listed = " ".join(
            f"{words[key]}: {', '.join(found[key][:6])}{f' and {len(found[key]) - 6} more' * (len(found[key]) > 6)}."
            for key in refused
        )
        raise BadWeights(
            f"The weights of {where} do not fit {kind.__name__}. {listed} To load them all the same, allow"
            f" {', '.join(map(repr, refused))}."
        )
    return model, notes + [f"Allowed, {key}: {', '.join(found[key][:6])}." for key in words if found[key]]


def _unused(model: nn.Module) -> tuple[nn.Parameter, ...]:
    try:
        return describe(model).unused
    except UnknownBackbone:
        return ()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own report of loading and its progress bars."""
    logging: Any = importlib.import_module("transformers.utils.logging")

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _sized(
    kind: Any,
    model: Any,
    config: Any,
    size: tuple[int, int],
    pretrained: bool,
    options: dict[str, Any],
    where: str,
) -> tuple[Any, list[str]]:
    """The same model for another image size, with its position embeddings resized."""
    if not hasattr(config, "image_size") or not any(key for key in model.state_dict() if "position" in key):
        config.image_size = list(size)
        return model, []
    square = size[0] if size[0] == size[1] else list(size)
    twin_config = type(config).from_dict({**config.to_dict(), "image_size": square})
    twin_config._attn_implementation = config._attn_implementation
    if hasattr(twin_config, "num_patches") and "num_patches" in config.to_dict():
        twin_config.num_patches = size[0] // config.patch_size * (size[1] // config.patch_size)
    twin = kind(twin_config, **options)
    if not pretrained:
        return twin, []
    try:
        grid = describe(twin).blocks[0].grid
    except UnknownBackbone:
        grid = None
    report = load_weights(twin, model.state_dict(), grid=grid, name=where)
    return twin, report.notes


def stated_processor(where: str, trust: Trust) -> dict[str, Any] | None:
    """The preprocessing that the checkpoint states, if it states one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(where, local_files_only=not trust.download)
    except (OSError, ValueError):
        return None
    found: dict[str, Any] = dict(stated)
    return found


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
