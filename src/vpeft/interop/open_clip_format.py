"""open_clip's form of an image tower: the state dict of `model.visual`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..backbones.names import OPEN_CLIP
from ..backbones.origin import origin_of
from .library_format import Classified, LibraryFormat

FILE = "visual.safetensors"


class OpenClipFormat(LibraryFormat):
    """The image tower of a model of open_clip, which has no classifier."""

    library = "open_clip"

    def with_classifier(self, model: nn.Module, outputs: int) -> Classified | None:
        return None

    def output(self, model: nn.Module, images: Tensor) -> Tensor:
        out = model(images)
        found: Tensor = out[0] if isinstance(out, (tuple, list)) else out
        return found

    def write(self, model: nn.Module, folder: Path, labels: Sequence[str], preprocessing: dict[str, Any]) -> None:
        save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, folder / FILE)

    def read(self, folder: Path, like: nn.Module) -> nn.Module:
        like.load_state_dict(load_file(folder / FILE))
        return like.eval()

    def usage(self, model: nn.Module, folder: Path) -> str:
        return (
            f"model = {self.creation(model, None)}\n"
            f"model.visual.load_state_dict(safetensors.torch.load_file({str(folder / FILE)!r}))"
        )

    def creation(self, model: nn.Module, outputs: int | None) -> str:
        origin = origin_of(model)
        name = "NAME" if origin is None else origin.name.removeprefix(OPEN_CLIP).partition("/")[0]
        return f"open_clip.create_model({name!r})"
