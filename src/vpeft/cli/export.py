"""`vpeft export`: an adapter for other libraries: peft, a plain checkpoint, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch
from vpeft.cli.loaded import Loaded, open_adapter
from vpeft.errors import VpeftError
from vpeft.interop.backbone_export import export_backbone
from vpeft.interop.onnx_export import export_onnx
from vpeft.interop.peft_export import ENERGY, export_peft

Weights = Literal["merged", "unmerged", "inputs"]


class NotOfThisForm(VpeftError):
    """A flag belongs to another form."""


def export(
    adapter: Path,
    out: Path,
    /,
    *,
    to: Literal["peft", "backbone", "onnx"],
    energy: float | None = None,
    onnx_weights: Annotated[Weights | None, Parameter(name="--onnx-weights")] = None,
    backbone: str | None = None,
    weights: Path | None = None,
    allow_download: Switch = False,
    json: Switch = False,
) -> None:
    """Write a saved adapter for another library. The other side is run, and compared, before anything is kept.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved.
    out:
        The folder (peft, backbone) or file (onnx) to write.
    to:
        peft: a LoRA folder, from any method that can be merged. backbone: the merged model in its library's own format,
        loaded there without vpeft. onnx: a graph with a batch of any size.
    energy:
        For peft: the share of a change without a low rank that the factors keep; 0.999 by default, 1 for all.
    onnx_weights:
        merged into the backbone, unmerged beside it, or inputs of the graph, so that one graph serves all adapters of
        this method and shape; merged by default, where the method can be.
    backbone:
        The backbone, if the adapter file cannot create it: py:FILE.py:NAME for your own code.
    weights:
        The backbone's file of weights, if it has moved since training.
    allow_download:
        Download a backbone hf:ID that the adapter names, if it is not on this machine.
    json:
        Print what was written as JSON.
    """
    if energy is not None and to != "peft":
        raise NotOfThisForm("--energy is for --to peft.")
    if onnx_weights is not None and to != "onnx":
        raise NotOfThisForm("--onnx-weights is for --to onnx.")
    loaded = open_adapter(adapter, device="cpu", weights=weights, backbone=backbone, allow_download=allow_download)
    if loaded.unsealed is not None:
        say_warning(loaded.unsealed)
    told, facts = {"peft": _peft, "backbone": _backbone, "onnx": _onnx}[to](loaded, out, energy, onnx_weights)
    if json:
        show.as_json({"to": to, "out": str(out), **facts})
    else:
        show.console().print(Text(told))


def _peft(loaded: Loaded, out: Path, energy: float | None, _: Weights | None) -> tuple[str, dict[str, object]]:
    made = export_peft(loaded.model, out, energy=ENERGY if energy is None else energy)
    ranks = sorted({layer.rank for layer in made.layers})
    worst = max((layer.error for layer in made.layers), default=0.0)
    lost = "every change exactly" if made.exact else f"of the changes all but {worst:.1e} (Frobenius norm) at most"
    told = (
        f"written: {made.folder}, a LoRA of peft with {len(made.layers)} layers of rank"
        f" {ranks[0] if len(ranks) == 1 else f'{ranks[0]} to {ranks[-1]}'}, which holds {lost}\n"
        f"saved whole: {', '.join(made.whole) or 'nothing'}\n"
        f"outputs of peft differ by {made.error:.1e}\n\n{made.usage}"
    )
    layers = [layer.__dict__ for layer in made.layers]
    return told, {"layers": layers, "whole": list(made.whole), "error": made.error, "usage": made.usage}


def _backbone(loaded: Loaded, out: Path, _: float | None, __: Weights | None) -> tuple[str, dict[str, object]]:
    stated = loaded.preprocessing.model_dump(mode="json")
    made = export_backbone(loaded.model, out, labels=loaded.labels, preprocessing=stated)
    head = "; the head lies beside the weights" if made.head_apart else ""
    told = (
        f"written: {made.folder}, a model of {made.library}{head}\noutputs differ by {made.error:.1e}\n\n{made.usage}"
    )
    return told, {"library": made.library, "head_apart": made.head_apart, "error": made.error, "usage": made.usage}


def _onnx(loaded: Loaded, out: Path, _: float | None, weights: Weights | None) -> tuple[str, dict[str, object]]:
    stated = loaded.preprocessing.model_dump(mode="json")
    made = export_onnx(
        loaded.model, out, weights=weights, labels=loaded.labels, preprocessing=stated, task=loaded.task.name
    )
    batches = ", ".join(map(str, made.batches))
    told = (
        f"written: {made.file}, weights {made.weights}, {len(made.inputs)} inputs\n"
        f"outputs in onnxruntime differ by {made.error:.1e} (batches of {batches})"
    )
    return told, {
        "weights": made.weights,
        "inputs": list(made.inputs),
        "outputs": list(made.outputs),
        "error": made.error,
    }
