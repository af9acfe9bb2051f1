"""torchvision's form of a model: a state dict, which `torchvision.models.get_model(NAME)` loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model

from ..backbones.describe import describe
from ..backbones.names import TORCHVISION
from ..backbones.origin import origin_of
from .library_format import Classified, LibraryFormat, path_of

FILE = "model.safetensors"


class TorchvisionFormat(LibraryFormat):
    """A classifier of torchvision."""

    library = "torchvision"

    def with_classifier(self, model: nn.Module, outputs: int) -> Classified | None:
        layer = describe(model).classifier
        path = path_of(model, layer)
        if path is None or not isinstance(layer, nn.Linear):
            return None
        model.set_submodule(path, nn.Linear(layer.in_features, outputs))
        return Classified(model, (path,))

    def output(self, model: nn.Module, images: Tensor) -> Tensor:
        out: Tensor = model(images)
        return out

    def write(self, model: nn.Module, folder: Path, labels: Sequence[str], preprocessing: dict[str, Any]) -> None:
        tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        save_file(tensors, folder / FILE)

    def read(self, folder: Path, like: nn.Module) -> nn.Module:
        name = _known(like)
        tensors = load_file(folder / FILE)
        made = like if name is None else get_model(name, weights=None, num_classes=_classes(like))
        made.load_state_dict(tensors)
        found: nn.Module = made.eval()
        return found

    def usage(self, model: nn.Module, folder: Path) -> str:
        return (
            f"model = torchvision.models.get_model({_known(model) or 'NAME'!r}, num_classes={_classes(model)})\n"
            f"model.load_state_dict(safetensors.torch.load_file({str(folder / FILE)!r}))"
        )

    def creation(self, model: nn.Module, outputs: int | None) -> str:
        name = _known(model) or "NAME"
        replaced = "" if outputs is None else f"  # with a classifier for {outputs} classes in place of its own"
        return f"torchvision.models.get_model({name!r}, weights='DEFAULT'){replaced}"


def _known(model: nn.Module) -> str | None:
    origin = origin_of(model)
    name = "" if origin is None else origin.name
    return name.removeprefix(TORCHVISION).partition(".")[0] if name.startswith(TORCHVISION) else None


def _classes(model: nn.Module) -> int:
    layer = describe(model).classifier
    return layer.out_features if isinstance(layer, nn.Linear) else 1000
