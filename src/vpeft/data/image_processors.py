"""What a transformers image processor does, in the words of `Preprocessing`.

`preprocessor_config.json` says little by itself: what a size given as a number means, whether the centre is cropped,
and what is not said at all, are known to the processor's class. So the class of the installed library is asked.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vpeft.data.problems import DataError
from vpeft.data.steps import Interpolation

# PIL's numbers for them, as transformers writes them.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# What the published checkpoints of a family state where the defaults of its processor's class say something else, by
# the model type: their preprocessor_config.json on the hub.
_PUBLISHED: dict[str, dict[str, Any]] = {
    family: {**_IMAGENET, **more}
    for families, more in (
        ("convnext convnextv2 resnet regnet cvt", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
        (
            "dinov2 dinov2_with_registers",
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
        ),
        ("swin swinv2 maskformer-swin dinat ijepa", {"resample": 3}),
        ("deit focalnet hiera mobilevitv2 poolformer pvt_v2 vit_mae vit_msn", {}),
    )
    for family in families.split()
}


def complete(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor states, with what its class adds; as it is where there is no such class."""
    name = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    kind = _class(name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast"))
    if kind is None:
        return dict(stated)
    known = {key: value for key, value in stated.items() if not key.endswith("_type") and key != "processor_class"}
    made: dict[str, Any] = kind(**known).to_dict()
    return made


def of_family(config: Any) -> dict[str, Any] | None:
    """What the processor of a family does where a checkpoint states none; None for a family without one."""
    kind = str(getattr(config, "model_type", ""))
    kind = kind.removesuffix("_vision_model")
    try:
        names = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    except ImportError:
        return None
    entry = names.get(kind) or names.get(getattr(config, "model_type", ""))
    name = entry.get("torchvision") or entry.get("pil") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or _class(name) is None:
        return _PUBLISHED.get(kind)
    return complete({"image_processor_type": name, **_PUBLISHED.get(kind, {})})


def _class(name: str) -> Any:
    """The class of this name in the installed transformers, or None."""
    try:
        auto = importlib.import_module("transformers.models.auto.image_processing_auto")
        return auto.get_image_processor_class_from_name(name) if name else None
    except ImportError:
        return None


def any_size(model: nn.Module) -> bool:
    """Whether a transformers model takes images of any size unasked: it has no positions, or resizes them by itself."""
    parameters = inspect.signature(model.forward).parameters
    resizes = any(hasattr(type(module), "interpolate_pos_encoding") for module in model.modules())
    if resizes:
        return "interpolate_pos_encoding" not in parameters
    return not any("position" in name for name, _ in model.named_parameters())


def fields_of(stated: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The fields of `Preprocessing` for a processor that `complete` completed.

    Args:
        stated: the processor's settings.
        size: (H, W) of the model, where it takes no other; None takes what the processor makes.

    Returns:
        Size, resize, interpolation, crop_pct, mean and std. Images are squashed to a height and width; of a shortest
        edge the aspect ratio stays, and the centre is cut out (ConvNeXt says `crop_pct`, and squashes from 384 on).

    Raises:
        DataError: it takes more than 16 channels.
    """
    whole, crop = _sides(stated.get("size")), _sides(stated.get("crop_size"))
    edge, share = whole.get("shortest_edge"), stated.get("crop_pct")
    cropped = bool(stated.get("do_center_crop")) and bool(crop)
    resize, made = "squash", (whole.get("height"), whole.get("width"))
    crop_pct = 1.0
    if edge is not None:
        made = (edge, edge)
        resize = "shorter"
        if str(stated.get("image_processor_type", "")).startswith("Levit"):
            crop_pct = 224 / 256  # LeViT's processor adds the margin by itself
        elif share is not None and not cropped:
            resize, crop_pct = ("squash", 1.0) if edge >= 384 else ("shorter", float(share))
    if cropped:
        height, width = crop["height"], crop["width"]
        if resize == "squash" and made[0]:
            crop_pct = _share(height, int(made[0]))
        elif edge is not None and crop_pct == 1.0:
            crop_pct = _share(height, edge)
        made = (height, width)
    if stated.get("do_resize") is False and not cropped:
        made = (None, None)
    final = size or ((int(made[0]), int(made[1])) if made[0] and made[1] else (224, 224))
    mean, std = stated.get("image_mean") or (0.5,) * 3, stated.get("image_std") or (0.5,) * 3
    mean, std = (_each(one) for one in (mean, std))
    if stated.get("do_normalize") is False:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    # Of 255; 1 where values from 0 to 255 become those from 0 to 1.
    scale = 255 * (float(stated.get("rescale_factor") or 1 / 255) if stated.get("do_rescale") is not False else 1.0)
    if abs(scale - 1) > 1e-6:
        mean, std = (tuple(value / scale for value in one) for one in (mean, std))
    if len(mean) > 16:
        raise DataError(f"The backbone takes images of {len(mean)} channels; vpeft gives at most 16.")
    return {
        "size": final,
        "resize": resize,
        "interpolation": _RESAMPLE[int(stated["resample"] if stated.get("resample") is not None else 2)],
        "crop_pct": crop_pct,
        "mean": mean,
        "std": std,
    }


def _share(crop: int, whole: int) -> float:
    """`crop_pct`, such that crop / crop_pct rounded down is `whole`."""
    share = min(1.0, crop / whole)
    return share if crop >= whole or int(crop / share) == whole else math.nextafter(share, 0.0)


def _sides(size: Any) -> dict[str, int]:
    """A size as transformers writes it: a number, two, or a mapping of which some values are None."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, Sequence):
        return {"height": int(size[0]), "width": int(size[1])}
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def _each(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(one) for one in value)
