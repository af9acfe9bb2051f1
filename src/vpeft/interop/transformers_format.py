"""transformers' form of a model: what `save_pretrained` writes, which `from_pretrained` and pipelines read."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .library_format import Classified, LibraryFormat, path_of

# PIL's numbers of the ways of resizing, as image processors keep them.
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


class TransformersFormat(LibraryFormat):
    """A model of transformers."""

    library = "transformers"

    def with_classifier(self, model: nn.Module, outputs: int) -> Classified | None:
        found: Any = model
        prefix = ""
        if not hasattr(model, "classifier"):
            made = _classifying(model, outputs)
            if made is None:
                return None
            found, prefix = made
        else:
            found.config.num_labels = outputs
            found.num_labels = outputs
            with torch.device("meta"):  # the classifier as the class itself makes it
                fresh: Any = type(found)(copy.deepcopy(found.config)).classifier
            found.classifier = fresh.to_empty(device="cpu")
        layers = [layer for layer in found.classifier.modules() if isinstance(layer, nn.Linear)]
        if len(layers) != 1:
            return None
        path = path_of(found, layers[0])
        return None if path is None else Classified(found, (path,), prefix)

    def output(self, model: nn.Module, images: Tensor) -> Tensor:
        out = model(pixel_values=images)
        for name in ("logits", "pooler_output", "last_hidden_state"):
            found = getattr(out, name, None)
            if isinstance(found, Tensor):
                return found
        first: Tensor = out[0]
        return first

    def write(self, model: nn.Module, folder: Path, labels: Sequence[str], preprocessing: dict[str, Any]) -> None:
        whole: Any = model
        if labels:
            whole.config.id2label = dict(enumerate(labels))
            whole.config.label2id = {label: number for number, label in enumerate(labels)}
        whole.save_pretrained(str(folder))
        if preprocessing and preprocessing["interpolation"] in _RESAMPLE and preprocessing["resize"] != "longer":
            (folder / "preprocessor_config.json").write_text(json.dumps(_processor(preprocessing), indent=2))

    def read(self, folder: Path, like: nn.Module) -> nn.Module:
        kind: Any = type(like)
        made: nn.Module = kind.from_pretrained(str(folder), local_files_only=True)
        return made.eval()

    def usage(self, model: nn.Module, folder: Path) -> str:
        return f"model = transformers.{type(model).__name__}.from_pretrained({str(folder)!r})"

    def creation(self, model: nn.Module, outputs: int | None) -> str:
        classes = "" if outputs is None else f", num_labels={outputs}"
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or "ID"
        return f"transformers.{type(model).__name__}.from_pretrained({name!r}{classes})"


def _classifying(model: nn.Module, outputs: int) -> tuple[nn.Module, str] | None:
    """The library's classifier class with `model` as its backbone, and the prefix of the backbone's names."""
    transformers: Any = importlib.import_module("transformers")
    whole: Any = model
    kind = transformers.AutoModelForImageClassification._model_mapping.get(type(whole.config), None)
    kind = kind[0] if isinstance(kind, (tuple, list)) else kind
    if kind is None:
        return None
    config = copy.deepcopy(whole.config)
    config.num_labels = outputs
    made = kind(config)
    inner = getattr(made, kind.base_model_prefix, None)
    if type(inner) is not type(model) or not isinstance(getattr(made, "classifier", None), nn.Linear):
        return None
    given, wanted = set(model.state_dict()), set(inner.state_dict())
    if given - wanted:  # a pooler that the classifier's backbone does not have
        given_only = {key.partition(".")[0] for key in given - wanted}
        if given_only != {"pooler"}:
            return None
    if wanted - given:
        return None
    inner.load_state_dict({key: value for key, value in model.state_dict().items() if key in wanted})
    return made.eval(), f"{kind.base_model_prefix}."


def _processor(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """The same preprocessing in the words of transformers' image processors."""
    height, width = preprocessing["size"]
    scaled = [int(side / preprocessing["crop_pct"]) for side in (height, width)]
    squash = preprocessing["resize"] == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": scaled[0], "width": scaled[1]} if squash else {"shortest_edge": min(scaled)},
        "resample": _RESAMPLE[preprocessing["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }
