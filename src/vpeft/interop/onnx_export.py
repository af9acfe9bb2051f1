"""An adapted model as an ONNX graph: merged or not, or with the adapter's tensors as inputs of the graph.

A graph with the tensors as inputs serves every adapter of the same backbone, method and shape: its inputs are named as
the tensors of an adapter file, so a runtime feeds it the file, and switches adapters by feeding another one.
The graph is run in onnxruntime on batches of other sizes and compared with the model before it is written.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..atomic import replace_file
from ..errors import need_extra
from ..guarded import printable
from ..head import raw_outputs
from ..injection.outputs import tensors_in
from ..injection.tuned_model import TunedModel
from .library_format import CannotExport

TOLERANCE = 1e-4
IMAGES, OUTPUT = "images", "output"
# One file of ONNX holds at most 2 GiB.
LIMIT = 2**31 - 2**20

Weights = Literal["merged", "unmerged", "inputs"]


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        file: the graph.
        weights: "merged" into the backbone, "unmerged" beside it, or "inputs" of the graph.
        inputs: names of the inputs, the images first.
        outputs: names of the outputs.
        error: the largest difference from the model in onnxruntime, in parts of the largest output (at least 1).
        batches: the batch sizes at which it was compared.
    """

    file: Path
    weights: Weights
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    error: float
    batches: tuple[int, ...]


class _Outputs(nn.Module):
    """The model as a function of its images, with its outputs as a flat tuple."""

    def __init__(self, tuned: TunedModel) -> None:
        super().__init__()
        self.tuned = tuned

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.tuned(images)))


class _OfTensors(nn.Module):
    """The model as a function of its images and of the adapter's tensors."""

    def __init__(self, tuned: TunedModel, places: Mapping[str, str]) -> None:
        super().__init__()
        self.tuned, self.places = tuned, dict(places)

    def forward(self, images: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.places.values(), tensors, strict=True))
        return tuple(tensors_in(functional_call(self.tuned, given, (images,))))


def export_onnx(
    tuned: TunedModel,
    file: str | Path,
    *,
    name: str | None = None,
    weights: Weights | None = None,
    labels: Sequence[str] = (),
    preprocessing: dict[str, Any] | None = None,
    task: str | None = None,
) -> OnnxExport:
    """Write an adapter with its backbone and head as an ONNX graph with a dynamic batch.

    Args:
        tuned: the model; it stays as it is.
        file: where to write.
        name: the adapter; the active one by default.
        weights: "merged", "unmerged" or "inputs" (the adapter's tensors, named as in its file); by default merged where
            the method can be, otherwise unmerged.
        labels, preprocessing, task: for the metadata of the graph, as JSON under `vpeft.labels` and so on.

    Raises:
        CannotMerge: weights="merged", and an edit cannot be; the message lists them.
        CannotExport: the graph cannot be made, or computes something else; nothing is written then.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    onnx: Any = need_extra("onnx", "onnx")
    need_extra("onnxscript", "onnx")
    runtime: Any = need_extra("onnxruntime", "onnx")
    if tuned.description.host is not None and tuned.adapter(name).head is None:
        raise CannotExport(
            f"{type(tuned.backbone).__name__} is a host with outputs of its own; export takes adapters with a head on"
            " the backbone. Merge it in Python (tuned.merge()) and export the host with its own library."
        )
    twin = copy.deepcopy(tuned).cpu().float().eval().requires_grad_(False)
    twin.enable(twin.adapter(name).name)
    if weights is None:
        weights = "merged" if twin.plan().mergeable else "unmerged"
    examples = {count: _example(twin, count) for count in (2, 1, 3)}
    places = _places(twin) if weights == "inputs" else {}
    values = [twin.adapter_state()[key].clone() for key in places]
    with raw_outputs(), torch.no_grad():
        expected = {count: tuple(tensors_in(twin(images))) for count, images in examples.items()}
    if weights == "merged":
        twin.merge()
    module = _OfTensors(twin, places) if places else _Outputs(twin)
    inputs = (IMAGES, *places)
    count = len(expected[2])
    outputs = (OUTPUT,) if count == 1 else tuple(f"{OUTPUT}.{number}" for number in range(count))
    graph = _graph(module, (examples[2], *values), inputs, outputs)
    for key, value in _metadata(tuned, name, weights, labels, preprocessing, task).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    if graph.ByteSize() > LIMIT:
        raise CannotExport("The graph has more than 2 GiB, which one ONNX file cannot hold. Take a smaller backbone.")
    onnx.checker.check_model(graph)
    data = graph.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    worst = 0.0
    for size, images in examples.items():
        feed = {IMAGES: images, **dict(zip(places, values, strict=True))}
        seen = session.run(None, {key: value.numpy() for key, value in feed.items() if key in known})
        for found, wanted in zip(seen, expected[size], strict=True):
            worst = max(worst, _difference(torch.from_numpy(found), wanted))
    if not worst <= TOLERANCE:
        raise CannotExport(
            f"onnxruntime computes outputs that differ by {worst:.1e} from the model's, so nothing was written."
        )
    lost = [key for key in inputs if key not in known]
    if lost:
        raise CannotExport(f"The graph does not depend on {', '.join(lost[:4])}, so it would not serve other adapters.")
    target = Path(file)
    replace_file(target, lambda fresh: _write(fresh, data))
    return OnnxExport(target, weights, inputs, outputs, worst, tuple(examples))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _example(tuned: TunedModel, count: int) -> Tensor:
    rows = count * tuned.rows_per_sample
    return tuned.description.inputs.example(rows, torch.Generator().manual_seed(count))


def _places(tuned: TunedModel) -> dict[str, str]:
    """For each tensor of the adapter by its name in the file, its name in the TunedModel."""
    names = {id(value): key for key, value in tuned.named_parameters()}
    names |= {id(value): key for key, value in tuned.named_buffers()}
    adapter = tuned.adapter()
    own = dict(adapter.owned()) | dict(adapter.named_buffers())
    return {key: names[id(own[key])] for key in tuned.adapter_state()}


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1.0))


def _graph(module: nn.Module, given: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The graph of a module with the first axis of the images dynamic, as onnx's ModelProto.

    Raises:
        CannotExport: torch cannot export it.
    """
    batch = torch.export.Dim("batch", min=1, max=65536)
    free: Any = ({0: batch}, *({} for _ in given[1:]))
    if len(given) > 1:
        free = ({0: batch}, tuple({} for _ in given[1:]))
    with raw_outputs(), _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(module, given, dynamic_shapes=free, strict=False)
            program: Any = torch.onnx.export(
                exported, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
            )
        except Exception as error:
            deepest: BaseException = error
            while deepest.__cause__ is not None:
                deepest = deepest.__cause__
            said = printable(str(deepest).strip().partition("\n")[0], 300)
            raise CannotExport(
                f"torch cannot export this model with a batch of any size ({type(error).__name__}: {said})."
            ) from error
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _metadata(
    tuned: TunedModel,
    name: str | None,
    weights: Weights,
    labels: Sequence[str],
    preprocessing: dict[str, Any] | None,
    task: str | None,
) -> dict[str, str]:
    methods = [method.name for method in tuned.methods(name)]
    stated: dict[str, Any] = {
        "vpeft.backbone": tuned.description.facts.architecture,
        "vpeft.methods": methods,
        "vpeft.weights": weights,
        "vpeft.labels": list(labels) or None,
        "vpeft.preprocessing": preprocessing,
        "vpeft.task": task,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in stated.items() if value is not None}
