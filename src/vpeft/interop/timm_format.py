"""timm's form of a model: config.json and model.safetensors, which `timm.create_model("local-dir:FOLDER")` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from ..backbones.origin import origin_of
from .library_format import Classified, LibraryFormat, path_of

_CROPS = {"shorter": "center", "squash": "squash", "longer": "border"}


class TimmFormat(LibraryFormat):
    """A model of timm."""

    library = "timm"

    def with_classifier(self, model: nn.Module, outputs: int) -> Classified | None:
        reset: Any = getattr(model, "reset_classifier", None)
        if reset is None:
            return None
        reset(outputs)
        found: Any = model.get_classifier()  # type: ignore[operator]
        layers = found if isinstance(found, (tuple, list)) else (found,)
        paths = [path_of(model, layer) for layer in layers]
        if not all(isinstance(layer, nn.Linear) for layer in layers) or None in paths:
            return None
        return Classified(model, tuple(path for path in paths if path is not None))

    def output(self, model: nn.Module, images: Tensor) -> Tensor:
        out = model(images)
        found: Tensor = out[0] if isinstance(out, (tuple, list)) else out
        return found

    def write(self, model: nn.Module, folder: Path, labels: Sequence[str], preprocessing: dict[str, Any]) -> None:
        if _known(model) is None:  # a class that was called by itself: nothing says how to make it again
            tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
            return
        config: dict[str, Any] = {"num_classes": getattr(model, "num_classes", 0)}
        if labels:
            config["label_names"] = list(labels)
        origin, options = origin_of(model), {}
        if origin is not None and origin.image_size is not None:
            options["img_size"] = list(origin.image_size)
        stated = dict(getattr(model, "pretrained_cfg", None) or {})
        stated["architecture"] = stated.get("architecture") or type(model).__name__
        if (plain := getattr(model, "made_by_timm", None)) is not None:  # a name that timm alone does not know
            stated["architecture"], options = plain[0], {**plain[1], **options}
        if preprocessing:
            stated |= {
                "input_size": [len(preprocessing["mean"]), *preprocessing["size"]],
                "mean": list(preprocessing["mean"]),
                "std": list(preprocessing["std"]),
                "interpolation": preprocessing["interpolation"],
                "crop_pct": preprocessing["crop_pct"],
                "crop_mode": _CROPS[preprocessing["resize"]],
            }
        for source in ("file", "url", "hf_hub_id", "custom_load"):
            stated.pop(source, None)
        stated["num_classes"] = config["num_classes"]
        model.pretrained_cfg = stated  # type: ignore[assignment]
        save_for_hf(model, str(folder), model_config=config, model_args=options or None, safe_serialization=True)

    def read(self, folder: Path, like: nn.Module) -> nn.Module:
        if _known(like) is None:
            like.load_state_dict(load_file(folder / "model.safetensors"))
            return like.eval()
        made: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return made.eval()

    def usage(self, model: nn.Module, folder: Path) -> str:
        if _known(model) is None:
            kind = f"{type(model).__module__}.{type(model).__name__}"
            return f"{kind}(...).load_state_dict(safetensors.torch.load_file({str(folder / 'model.safetensors')!r}))"
        return f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"

    def creation(self, model: nn.Module, outputs: int | None) -> str:
        classes = "" if outputs is None else f", num_classes={outputs}"
        known = _known(model)
        if known is None:
            return f"{type(model).__name__}(...)  # as it was made{classes and f', with {outputs} classes'}"
        origin = origin_of(model)
        size = "" if origin is None or origin.image_size is None else f", img_size={origin.image_size}"
        return f"timm.create_model({origin.name if origin is not None else known!r}, pretrained=True{classes}{size})"


def _known(model: nn.Module) -> str | None:
    """The name under which timm makes this architecture; None for a class that was called by itself."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""
    return name if timm.is_model(name) else None
