"""`vpeft import`: an adapter file of a folder of Hugging Face peft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from vpeft.backbones.create import create_backbone
from vpeft.cli import show
from vpeft.cli.flags import Switch, split_list
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.interop.peft_import import import_peft as made_of
from vpeft.tasks.classification import Classification


class WrongLabels(VpeftError):
    """The names are not as many as the classes."""


def import_peft(
    folder: Path,
    /,
    *,
    backbone: Annotated[str, Parameter(alias="-b")],
    out: Path,
    labels: str | None = None,
    weights: Path | None = None,
    json: Switch = False,
) -> None:
    """Make an adapter file of a peft folder. peft loads it too, and both must compute the same, to 1e-5.

    Methods of peft: LoRA, DoRA, LoHa, LoKr, IA3, OFT, BOFT, HRA, VeRA, FourierFT, AdaLoRA; the head, if the folder has
    one, comes from `modules_to_save`.

    Parameters
    ----------
    folder:
        What peft's save_pretrained wrote, with adapter_model.safetensors.
    backbone:
        The backbone that it was trained on: a name from `vpeft backbones`, or hf:ID.
    out:
        The adapter file to write.
    labels:
        Names of the classes, separated by commas; numbers by default.
    weights:
        A file of weights of the backbone.
    json:
        Print what was made as JSON.
    """
    model = create_backbone(backbone, pretrained=weights is None, weights=weights)
    preprocessing = Preprocessing.from_model(model)
    made = made_of(model, folder, name="imported")
    classes = getattr(made.tuned.head, "out_features", None)
    names = None if labels is None else split_list(labels)
    if classes is None and names is not None:
        raise WrongLabels("The folder holds no head, so there are no classes to name. Leave out --labels.")
    if classes is not None:
        names = names or [str(number) for number in range(classes)]
        if len(names) != classes:
            raise WrongLabels(f"{len(names)} labels were given, and the head has {classes} classes.")
        made.tuned.task = Classification(labels=tuple(names))
    made.tuned.save(out, preprocessing=preprocessing.model_dump(mode="json"), extra={"imported": made.kind})
    if json:
        show.as_json(
            {"out": str(out), "kind": made.kind, "layers": made.layers, "idle": made.idle, "error": made.error}
        )
        return
    idle = f"; {made.idle} further layers of the same kind are left as they are" if made.idle else ""
    head = "without a head" if classes is None else f"with a head for {classes} classes"
    show.console().print(
        Text(
            f"written: {out}, {made.kind} of {made.layers} layers, {head}{idle}\n"
            f"outputs differ from peft's by {made.error:.1e}"
        )
    )
