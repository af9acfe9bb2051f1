"""A classifier made of names alone, for `predict --names`: a whole image-text model, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.host_create import host_name
from vpeft.backbones.names import HOST, OPEN_CLIP, TRANSFORMERS, one_form
from vpeft.backbones.trust import TYPED
from vpeft.cli.loaded import Device, Loaded, pick_device
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.heads.class_names import PLAIN
from vpeft.injection.tune import tune
from vpeft.method import get_method
from vpeft.tasks.classification_by_name import ClassificationByName


class NoNames(VpeftError):
    """Names of classes are missing, or the model that compares images with them."""


def split_names(text: str) -> list[str]:
    """Names from a text with commas between them.

    Raises:
        NoNames: there are fewer than two.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2:
        raise NoNames(f'{text!r} names {len(names)} of at least two classes. Write --names "cat,dog,other animal".')
    return names


def by_names(
    names: str,
    *,
    templates: Sequence[str] = (),
    backbone: str | None,
    device: Device = "auto",
    weights: Path | None = None,
) -> Loaded:
    """A whole image-text model as a classifier of these names, in evaluation mode.

    Args:
        names: of the classes, with commas between them.
        templates: texts with {} for the name; CLIP's "a photo of a {}." by default.
        backbone: its name: pocket_clip, hf:FOLDER or open_clip:NAME/WEIGHTS.
        device: where to compute.
        weights: a file of weights to load instead.

    Raises:
        NoNames: no model is named, or fewer than two classes.
        MissingPlace: it is no image-text model.
    """
    if backbone is None:
        raise NoNames("Say which image-text model compares the names: --backbone pocket_clip, or hf:FOLDER.")
    name = one_form(backbone)
    if name.startswith((TRANSFORMERS, OPEN_CLIP)) and not name.startswith(HOST):
        name = host_name(name)  # of a checkpoint with both towers the whole, not its image tower
    chosen = pick_device(device)
    base = create_backbone(name, pretrained=weights is None, weights=weights, trust=TYPED)
    description = describe(base)
    task = ClassificationByName(split_names(names), templates=tuple(templates) or (PLAIN,))
    idle = get_method("linear_probe")()  # adds nothing, and the head has nothing to train
    placed = {"image": idle} if "image" in description.towers else None
    model = tune(description, idle if placed is None else placed, task=task, verify=False).to(chosen).eval()
    return Loaded(model, None, Preprocessing.from_model(base), task, chosen, Path(name))
