"""Make a backbone from its name: of timm, torchvision or open_clip, of a checkpoint on the hub, or of one's own code.

Its weights are the library's own or a file's. names.py lists the ways to write a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..errors import VpeftError, nearest
from ..guarded import printable, short
from .channels import ChannelsRule, adapt_channels
from .describe import FramesRule
from .library_create import UnknownModelName as UnknownModelName
from .library_create import UnsuitableSize as UnsuitableSize
from .library_create import create_from_open_clip, create_from_torchvision
from .names import HOST, OPEN_CLIP, TIMM_FOLDER, TIMM_HUB, TORCHVISION, one_form
from .names import TRANSFORMERS as TRANSFORMERS
from .origin import Origin, remember
from .own_code import OWN_CODE, create_from_own_code
from .positions import say
from .trust import TYPED, NotTrusted, Trust
from .weights import Difference, load_weights

# whose errors mean that a download failed
# arguments of timm's models for images of any size: of vision transformers, and of Swin
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
)
MadeT = TypeVar("MadeT")
NETWORK = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib")


class NoWeights(VpeftError):
    """The pre-trained weights of a model cannot be had."""


def create_backbone(
    name: str,
    pretrained: bool = True,
    *,
    weights: str | Path | Mapping[str, Any] | None = None,
    prefix: str = "",
    allow: Sequence[Difference] = (),
    image_size: int | tuple[int, int] | None = None,
    any_size: bool = False,
    channels: int | None = None,
    channels_rule: ChannelsRule = "repeat",
    frames: int | None = None,
    frames_rule: FramesRule = "interpolate",
    described: bool = True,
    trust: Trust = TYPED,
) -> nn.Module:
    """The model that `name` stands for, without a classifier.

    Args:
        name: a timm name with or without its pre-training tag, `pocket_vit`, which is shipped with vpeft, `hf:` and the
            id or folder of a transformers checkpoint, `torchvision:NAME`, `open_clip:NAME/WEIGHTS`, or `py:` and
            FILE.py:NAME or package.module:NAME, a function or class that makes the model; that code is run. Names as
            the hub and timm write them are taken too: `timm/NAME`, `hf-hub:`, `local-dir:`, the address of a page.
        pretrained: load the weights (the shipped ones, or from the library's own cache or download).
        weights: load these instead: a .safetensors, .npz or .pth file, or a state dict. Pickles are read as weights
            only.
        prefix: what the keys of `weights` start with, for instance "module." or "teacher.backbone.".
        allow: differences between weights and model that are accepted: "missing", "unexpected", "shape".
        image_size: pixels of a side, or height and width; position embeddings are resized to it, and it is said.
        any_size: make it so that it takes images of any size, where the library can: positions are interpolated in each
            pass, and sides that fill no whole patch are padded. At its own size nothing changes.
        channels: of the images, 1 to 16, where they are not those of the weights; the first convolution is adapted.
        channels_rule: how: "repeat" the pre-trained filters, take their "mean", or "new" ones, which `tune` then
            trains beside the adapter; see `ChannelsRule`.
        frames: of clips (B, C, T, H, W), where clips are wanted: a video model is fitted to this number, and an image
            model becomes a `FrameReader`, whose places and methods are those of the image model. None leaves the model
            as it is.
        frames_rule: what becomes of a video model's positions in time: "interpolate" or "first"; it is said.
        trust: what may be run and fetched; a name that a file gave may do less than one that was typed.
        described: False takes a transformers model that no family knows, for an anatomy to describe.

    Raises:
        UnknownModelName: with the nearest names.
        NoWeights: the library's weights are not here and cannot be downloaded.
        BadWeights: the weights cannot be read or do not fit; every difference is listed.
        NotTrusted: the name is of code that may not be run, or of files that may not be fetched.
        UnsuitableSize: the model does not take images of this size, or clips of so many frames.
        NotAFrameReader: clips are wanted, and the model is neither for clips nor for images.
        BadChannels: the model cannot be made for so many channels.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    own = pretrained and weights is None
    name = one_form(name)
    anew: tuple[str, ...] = ()
    if name.startswith(HOST):
        from .host_create import create_host

        model, anew, notes = _fetched(name, own, None, lambda: create_host(name, own, trust))
    elif name.startswith(TRANSFORMERS):
        from .hf_create import create_from_transformers

        model, notes = create_from_transformers(name.removeprefix(TRANSFORMERS), own, size, allow, described, trust)
    elif name.startswith(OWN_CODE):
        if size is not None:
            raise UnknownModelName(f"{name} is made by code of yours, so its image size is set there, not here.")
        trust.require_code(name)
        model, notes, own = create_from_own_code(name.removeprefix(OWN_CODE)), [], False
    elif name.startswith(TORCHVISION):
        rest = name.removeprefix(TORCHVISION)
        model, notes = _fetched(name, own, size, lambda: create_from_torchvision(rest, own, size)), []
    elif name.startswith(OPEN_CLIP):
        rest = name.removeprefix(OPEN_CLIP)
        model, notes = _fetched(name, own, size, lambda: create_from_open_clip(rest, own, size)), []
    else:
        if name.startswith(TIMM_HUB) and not trust.download:
            raise NotTrusted(
                f"A file names the model {name} on the hub, and nothing is fetched because a file names it. If you want"
                f" it, say --allow-download (in Python allow_download=True), or --backbone {name}."
            )
        model, notes = _from_timm(name, own, size, any_size)
    digest = None
    if weights is not None:
        report = load_weights(model, weights, prefix=prefix, allow=_allowed(name, allow), **_exempt(model, name))
        notes = [*notes, *report.notes]
        if name.startswith(HOST):  # its heads are the model's own; what the file does not fill trains
            anew = _modules_without(model, report.loaded)
        digest = report.sha256
    fresh = (*anew, *(() if channels is None else adapt_channels(model, channels, channels_rule)))
    if frames is not None:
        from .clip_frames import for_clips

        plain = model
        model, more = for_clips(plain, frames, frames_rule)
        notes = [*notes, *more]
        inside = next((f"{part}." for part, module in model.named_modules() if module is plain and part), "")
        fresh = tuple(f"{inside}{part}" for part in fresh)
    kept = None if weights is None or isinstance(weights, Mapping) else str(weights)
    origin = Origin(
        name=name,
        pretrained=own,
        weights=kept,
        weights_sha256=digest,
        prefix=prefix,
        allow=tuple(allow),
        image_size=size,
        any_size=any_size,
        channels=channels,
        channels_rule=channels_rule,
        frames=frames,
        frames_rule=frames_rule,
        fresh=fresh,
        notes=tuple(notes),
    )
    remember(model, origin)
    return model


def _allowed(name: str, allow: Sequence[Difference]) -> Sequence[Difference]:
    """A whole model for another number of classes has layers of other shapes than its file."""
    stated = name.startswith(HOST) and not name.startswith(f"{HOST}:")
    return (*allow, "shape") if stated and "shape" not in allow else allow


def _modules_without(model: nn.Module, loaded: Sequence[str]) -> tuple[str, ...]:
    """The names of the modules some of whose parameters were not loaded."""
    filled = set(loaded)
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key, _ in model.named_parameters() if key not in filled))


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


def _from_timm(
    name: str, pretrained: bool, size: tuple[int, int] | None, any_size: bool = False
) -> tuple[nn.Module, list[str]]:
    import timm

    from . import pocket_clip, pocket_video, pocket_vit  # noqa: F401 - registers the shipped models with timm

    architecture = name.partition(".")[0]
    if not name.startswith((TIMM_HUB, TIMM_FOLDER)) and not timm.is_model(architecture):
        raise UnknownModelName(
            f"timm has no model {short(name)}. {_nearest(architecture, timm.list_models())} A checkpoint of"
            f" transformers is named {TRANSFORMERS}ID or {TRANSFORMERS}FOLDER, a model of torchvision"
            f" {TORCHVISION}NAME, a tower of open_clip {OPEN_CLIP}NAME/WEIGHTS, and code of your own"
            f" {OWN_CODE}FILE.py:NAME."
        )
    sized: dict[str, Any] = {} if size is None else {"img_size": size}

    def made() -> nn.Module:
        nonlocal sized
        # Some take images of any size if they are asked in one of these ways; a convolutional net takes them unasked.
        asked: list[dict[str, Any]] = [*(ANY_SIZE if any_size else ()), {}]
        for more in asked:
            try:
                found: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized, **more)
                return found
            except TypeError as error:
                if "_img_" not in str(error) and "img_size" not in str(error):
                    raise
        sized = {}
        return timm.create_model(name, pretrained=pretrained, num_classes=0)

    model = _fetched(name, pretrained, size, made)
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if sized and pretrained and stated and tuple(stated[1:]) != size:
        assert size is not None
        return model, [say(f"{name}, in pixels,", tuple(stated[1:]), size)]
    return model, []


def _fetched(name: str, pretrained: bool, size: tuple[int, int] | None, make: Callable[[], MadeT]) -> MadeT:
    """What `make` gives; the errors of the libraries become sentences.

    Raises:
        UnknownModelName: the library has no such weights, or there is no such model on the hub or in the folder.
        NoWeights: they cannot be fetched.
        UnsuitableSize: the model cannot be made for this size.
    """
    try:
        return make()
    except VpeftError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        if name.startswith((TIMM_HUB, TIMM_FOLDER)) and not isinstance(error, AssertionError):
            where = name.partition(":")[2]
            raise UnknownModelName(
                f"timm finds no model of its own at {name}: {printable(said, 300)} A checkpoint of transformers is"
                f" named {TRANSFORMERS}{where}."
            ) from error
        if pretrained and (isinstance(error, OSError) or type(error).__module__.startswith(NETWORK)):
            raise _no_weights(name, said) from error
        if pretrained and isinstance(error, RuntimeError) and "download" in said.lower():
            raise _no_weights(name, said) from error
        if isinstance(error, RuntimeError) and "pretrained" in said.lower():
            raise UnknownModelName(f"{name}: {said} {_tags(name)}") from error
        if size is not None and isinstance(error, (AssertionError, ValueError, RuntimeError)):
            raise UnsuitableSize(
                f"{name} cannot be made for images of {size[0]} x {size[1]} pixels: {printable(said, 300)}. Take"
                " another size, such as a multiple of its patches or windows, or leave it out."
            ) from error
        raise


def _nearest(architecture: str, known: Sequence[str]) -> str:
    """The names that are like this one; of more than a thousand names no others are listed."""
    told = nearest(architecture[:100], known)
    return told if told.startswith("Did") else "timm.list_models() lists its names."


def _no_weights(name: str, said: str) -> NoWeights:
    return NoWeights(
        f"The pre-trained weights of {name} are not in the cache and cannot be downloaded: {said} Give a file of"
        " them as `weights` (--weights FILE), or take random ones with pretrained=False (--no-pretrained)."
    )


def _tags(name: str) -> str:
    import timm

    tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*")[:12]) or "none"
    return f"Names of this architecture with weights: {tags}."
