"""Make a backbone from its name: a timm name, `hf:` and a transformers id or folder, or `py:` and code of one's own.

Its weights are the library's own or a file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import VpeftError, nearest
from .channels import ChannelsRule, adapt_channels
from .origin import Origin, remember
from .own_code import OWN_CODE, create_from_own_code
from .positions import say
from .trust import TYPED, Trust
from .weights import Difference, file_digest, load_weights

TRANSFORMERS = "hf:"


# whose errors mean that a download failed
NETWORK = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib")


class NoWeights(VpeftError):
    """The pre-trained weights of a model cannot be had."""


class UnknownModelName(VpeftError):
    """No library knows this model name."""


def create_backbone(
    name: str,
    pretrained: bool = True,
    *,
    weights: str | Path | Mapping[str, Any] | None = None,
    prefix: str = "",
    allow: Sequence[Difference] = (),
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    channels_rule: ChannelsRule = "repeat",
    described: bool = True,
    trust: Trust = TYPED,
) -> nn.Module:
    """The model that `name` stands for, without a classifier.

    Args:
        name: a timm name with or without its pre-training tag, `pocket_vit`, which is shipped with vpeft, `hf:` and the
            id or folder of a transformers checkpoint, or `py:` and FILE.py:NAME or package.module:NAME, a function or
            class that makes the model; that code is run.
        pretrained: load the weights (the shipped ones, or from the library's own cache or download).
        weights: load these instead: a .safetensors, .npz or .pth file, or a state dict. Pickles are read as weights
            only.
        prefix: what the keys of `weights` start with, for instance "module." or "teacher.backbone.".
        allow: differences between weights and model that are accepted: "missing", "unexpected", "shape".
        image_size: pixels of a side, or height and width; position embeddings are resized to it, and it is said.
        channels: of the images, 1 to 16, where they are not those of the weights; the first convolution is adapted.
        channels_rule: how: "repeat" the pre-trained filters, take their "mean", or "new" ones, which `tune` then
            trains beside the adapter; see `ChannelsRule`.
        trust: what may be run and fetched; a name that a file gave may do less than one that was typed.
        described: False takes a transformers model that no family knows, for an anatomy to describe.

    Raises:
        UnknownModelName: with the nearest names.
        NoWeights: the library's weights are not here and cannot be downloaded.
        BadWeights: the weights cannot be read or do not fit; every difference is listed.
        NotTrusted: the name is of code that may not be run.
        BadChannels: the model cannot be made for so many channels.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    own = pretrained and weights is None
    if name.startswith(TRANSFORMERS):
        from .hf_create import create_from_transformers

        model, notes = create_from_transformers(name.removeprefix(TRANSFORMERS), own, size, allow, described, trust)
    elif name.startswith(OWN_CODE):
        if size is not None:
            raise UnknownModelName(f"{name} is made by code of yours, so its image size is set there, not here.")
        trust.require_code(name)
        model, notes, own = create_from_own_code(name.removeprefix(OWN_CODE)), [], False
    else:
        model, notes = _from_timm(name, own, size)
    digest = None
    if weights is not None:
        report = load_weights(model, weights, prefix=prefix, allow=allow, **_exempt(model, name))
        notes = [*notes, *report.notes]
        digest = None if isinstance(weights, Mapping) else file_digest(weights)
    fresh = () if channels is None else adapt_channels(model, channels, channels_rule)
    kept = None if weights is None or isinstance(weights, Mapping) else str(weights)
    origin = Origin(
        name=name,
        pretrained=own,
        weights=kept,
        weights_sha256=digest,
        prefix=prefix,
        allow=tuple(allow),
        image_size=size,
        channels=channels,
        channels_rule=channels_rule,
        fresh=fresh,
        notes=tuple(notes),
    )
    remember(model, origin)
    return model


def _exempt(model: nn.Module, name: str) -> dict[str, Any]:
    """What a file may hold or lack without harm: a classifier; what the feature does not depend on."""
    from .describe import UnknownBackbone, describe

    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    stated = config.get("classifier") or ()
    heads = {"classifier", *((stated,) if isinstance(stated, str) else stated)}
    exempt: dict[str, Any] = {"name": name, "leave_out": tuple(sorted({head.partition(".")[0] for head in heads}))}
    try:
        backbone = describe(model)
    except UnknownBackbone:
        return exempt
    unused = {id(parameter) for parameter in backbone.unused}
    idle = frozenset(key for key, parameter in model.named_parameters() if id(parameter) in unused)
    grid = backbone.blocks[0].grid if len(backbone.stages) == 1 else None
    return {**exempt, "optional": idle, "grid": grid}


def _from_timm(name: str, pretrained: bool, size: tuple[int, int] | None) -> tuple[nn.Module, list[str]]:
    import timm

    from . import pocket_vit  # noqa: F401 - registers the shipped model with timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UnknownModelName(
            f"timm has no model {name!r}. {nearest(architecture, timm.list_models())} A checkpoint of transformers is"
            f" named {TRANSFORMERS}ID or {TRANSFORMERS}FOLDER; code of your own, {OWN_CODE}FILE.py:NAME."
        )
    sized: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # a convolutional net takes any size
            model, sized = timm.create_model(name, pretrained=pretrained, num_classes=0), {}
    except RuntimeError as error:
        if "pretrained" not in str(error).lower():
            raise
        tags = ", ".join(timm.list_pretrained(f"{architecture}*")[:12]) or "none"
        raise UnknownModelName(f"{name}: {error} Names of this architecture with weights: {tags}.") from error
    except Exception as error:
        if not pretrained or not (isinstance(error, OSError) or type(error).__module__.startswith(NETWORK)):
            raise
        said = str(error).strip().partition("\n")[0]
        raise NoWeights(
            f"The pre-trained weights of {name} are not in the cache and cannot be downloaded: {said} Give a file of"
            " them as `weights` (--weights FILE), or take random ones with pretrained=False (--no-pretrained)."
        ) from error
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if sized and pretrained and stated and tuple(stated[1:]) != size:
        assert size is not None
        return model, [say(f"{name}, in pixels,", tuple(stated[1:]), size)]
    return model, []
