"""An adapter merged into its backbone, written in the library's own form: loaded there without vpeft, at no cost."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..backbones.describe import describe
from ..injection.tuned_model import TunedModel
from .library_format import CannotExport
from .peft_export import require_empty
from .plain_model import PlainModel, difference, plain_model, unsaved

HEAD = "head.safetensors"
TOLERANCE = 1e-5
# In 16 bits the merged weights are rounded once more.
COARSE = 2e-2


@dataclass(frozen=True)
class BackboneExport:
    """What was written.

    Attributes:
        folder: where it lies.
        library: whose form it has.
        head_apart: whether the head lies beside the model, because the library's model has no classifier for it.
        error: the largest difference of the outputs from the adapter's, in parts of the largest output (at least 1).
        usage: lines of Python that load it without vpeft.
    """

    folder: Path
    library: str
    head_apart: bool
    error: float
    usage: str


def export_backbone(
    tuned: TunedModel,
    folder: str | Path,
    *,
    name: str | None = None,
    labels: Sequence[str] = (),
    preprocessing: dict[str, Any] | None = None,
) -> BackboneExport:
    """Write the merged model (of the active adapter by default) in its library's form, after reading it back.

    Args:
        tuned: the model; it stays as it is.
        folder: where to write; it must not exist, or be empty.
        name: the adapter.
        labels: names of the classes, for libraries whose files hold them.
        preprocessing: as adapter files keep it, for the same.

    Raises:
        CannotMerge: an edit depends on the images or cannot be a change of weights; the message lists them.
        CannotExport: the library has no form for it, or computes something else with it; nothing is written then.
    """
    target = require_empty(folder)
    plain = plain_model(tuned, name)
    merged = plain.merged()
    like = copy.deepcopy(plain.model)
    with torch.no_grad():
        for parameter in like.parameters():
            if parameter.is_floating_point():
                parameter.zero_()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotExport(f"The folder {target.parent} cannot be made: {error.strerror}.") from None
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, torch.no_grad():
        written = Path(scratch) / "model"
        written.mkdir()
        plain.format.write(copy.deepcopy(merged), written, labels, preprocessing or {})
        again = plain.format.read(written, like).to(plain.images.device)
        again = again.to(plain.images.dtype)
        seen = plain.format.output(again, plain.images)
        expected = plain.format.output(merged, plain.images)
        error_ = max(difference(seen, expected), _against(tuned, name, merged, plain))
        half = plain.images.dtype in (torch.float16, torch.bfloat16)
        if not error_ <= (COARSE if half else TOLERANCE):
            raise CannotExport(
                f"The written model computes outputs that differ by {error_:.1e} from the adapter's, so nothing was"
                f" kept.{unsaved(plain.model, plain.changed)} Export with --to onnx instead."
            )
        if plain.head is not None:
            save_file({"weight": plain.head.weight, "bias": plain.head.bias}, written / HEAD)
        if target.exists():
            target.rmdir()
        shutil.move(str(written), str(target))
    usage = plain.format.usage(plain.model, target)
    if plain.head is not None:
        usage += f"\nhead = safetensors.torch.load_file({str(target / HEAD)!r})  # logits: features @ weight.T + bias"
    return BackboneExport(target, plain.format.library, plain.head is not None, error_, usage)


def _against(tuned: TunedModel, name: str | None, merged: nn.Module, plain: PlainModel) -> float:
    """How far the merged model is from the adapter that it was made from."""
    mode = tuned.training
    try:
        tuned.eval()
        with tuned.enable(tuned.adapter(name).name):
            if plain.classifiers:
                return difference(plain.format.output(merged, plain.images), tuned(plain.images))
            return difference(describe(merged).pooled(plain.images), tuned.features(plain.images))
    finally:
        tuned.train(mode)
