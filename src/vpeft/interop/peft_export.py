"""An adapter as a stock LoRA folder of Hugging Face peft.

The change of each linear layer or convolution is factored by its singular values; the rank is that of the change where
it has a low one, and otherwise the least that keeps a share of its energy (the sum of squared singular values). Biases
become the biases of LoRA's second factor. What peft has no low rank for (norms, scales, grouped convolutions, layers
whose weight the model reads without calling them) is saved whole, as `modules_to_save`, and so is the head.
"""

from __future__ import annotations

import copy
import importlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.origin import origin_of
from ..errors import need_extra
from ..injection.tuned_model import TunedModel
from .library_format import CannotExport
from .plain_model import PlainModel, difference, plain_model, put, unsaved

# Energy below this share is rounding: a relative error of 1e-6.
ROUNDING = 1e-12
# Of exact factors, in parts of the largest output: the rounding of many layers adds up.
TOLERANCE = 1e-4
ENERGY = 0.999


@dataclass(frozen=True)
class FactoredLayer:
    """One layer of the folder.

    Attributes:
        layer: the dotted name in the library's model.
        rank: of the factors.
        full: the largest rank that the layer could have.
        error: the part of the change that is lost, |dW - B A| / |dW|, Frobenius norms.
    """

    layer: str
    rank: int
    full: int
    error: float


@dataclass(frozen=True)
class PeftExport:
    """What was written.

    Attributes:
        folder: where it lies.
        layers: the factored layers.
        whole: the modules that are saved whole, the classifier among them.
        error: the largest difference of the outputs from the adapter's, in parts of the largest output (at least 1).
        usage: lines of Python that load the folder with peft alone.
    """

    folder: Path
    layers: tuple[FactoredLayer, ...]
    whole: tuple[str, ...]
    error: float
    usage: str

    @property
    def exact(self) -> bool:
        """Whether every change is there up to rounding."""
        return all(layer.error <= 1e-5 for layer in self.layers)


@dataclass(frozen=True)
class _Change:
    """What happens to one layer: a matrix of the weight's change, its shape, and the shift of the bias."""

    delta: Tensor
    shape: tuple[int, ...]
    shift: Tensor | None


def export_peft(
    tuned: TunedModel, folder: str | Path, *, name: str | None = None, energy: float = ENERGY
) -> PeftExport:
    """Write an adapter (the active one by default) as a LoRA folder of peft, after peft itself has loaded it.

    Args:
        tuned: the model; it stays as it is.
        folder: where to write; it must not exist, or be empty.
        name: the adapter.
        energy: for changes without a low rank, the share of the energy that the factors keep, in (0, 1]; 1 keeps all.

    Raises:
        CannotMerge: an edit depends on the images or cannot be a change of weights; the message lists them.
        CannotExport: peft has no form for it, or computes something else with it; nothing is written then.
        MissingExtra: peft is not installed.
    """
    if not 0 < energy <= 1:
        raise CannotExport(f"The share of energy is {energy}; it must be above 0 and at most 1.")
    peft: Any = need_extra("peft", "peft")
    target = require_empty(folder)
    plain = plain_model(tuned, name)
    if not plain.exact:
        raise CannotExport(
            "This adapter trained the backbone's weights in place, so the change is not known. Export with --to"
            " backbone instead."
        )
    if plain.head is not None:
        raise CannotExport(
            f"{tuned.description.facts.architecture} has no classifier in its library that reads what the head reads,"
            " and peft saves modules of the model alone. Export with --to backbone, which writes the head beside the"
            " weights, or load the checkpoint as the library's classifier and train on that."
        )
    changes, whole = _split(plain)
    factors = {path: _factored(change, energy) for path, change in changes.items()}
    shifted = any(change.shift is not None for change in changes.values())
    if not changes:
        path = _idle_layer(plain, whole)
        layer: Any = plain.model.get_submodule(path)
        shape = tuple(layer.weight.shape)
        changes = {path: _Change(torch.zeros(shape[0], layer.weight[0].numel()).double(), shape, None)}
        factors = {path: (torch.zeros(1, layer.weight[0].numel()), torch.zeros(shape[0], 1), 0.0)}
    ranks = {path: len(factors[path][0]) for path in changes}
    config = peft.LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        lora_dropout=0.0,
        target_modules="|".join(re.escape(path) for path in changes),
        rank_pattern={f"^{re.escape(path)}": rank for path, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(path)}": rank for path, rank in ranks.items()},
        lora_bias=shifted,
        modules_to_save=sorted(whole) or None,
        bias="none",
        base_model_name_or_path=_named(plain),
    )
    reference = _merged_reference(plain)
    outputs = len(plain.images), plain.outputs
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch, _quiet():
        written = Path(scratch) / "peft"
        made = peft.get_peft_model(copy.deepcopy(plain.model), config).eval()
        _fill(made, changes, factors, whole, plain)
        made.save_pretrained(str(written), safe_serialization=True, save_embedding_layers=False)
        base = copy.deepcopy(plain.model)
        for path in plain.classifiers:
            nn.init.normal_(base.get_submodule(path).weight)  # type: ignore[arg-type]
        with torch.no_grad():
            again = peft.PeftModel.from_pretrained(base, str(written)).eval()
            seen = plain.format.output(again, plain.images)
            expected = plain.format.output(reference, plain.images)
        error = difference(seen, expected)
        layers = tuple(
            FactoredLayer(path, ranks[path], min(changes[path].delta.shape), factors[path][2]) for path in changes
        )
        if all(layer.error <= 1e-5 for layer in layers) and not error <= TOLERANCE:
            raise CannotExport(
                f"peft computes outputs of {outputs} that differ by {error:.1e} from the adapter's, so nothing was"
                f" written.{unsaved(plain.model, plain.changed)} Export with --to onnx."
            )
        usage = _usage(plain, target)
        (written / "README.md").write_text(_readme(plain, usage, layers, sorted(whole), error))
        if target.exists():
            target.rmdir()
        shutil.move(str(written), str(target))
    return PeftExport(target, layers, tuple(sorted(whole)), error, usage)


def require_empty(folder: str | Path) -> Path:
    """The folder as a path, if it does not exist or is empty.

    Raises:
        CannotExport: a file or a folder with something in it is in the way.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CannotExport(f"{target} exists and is not an empty folder. Name a new folder.")
    return target


def _existing(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotExport(f"The folder {folder} cannot be made: {error.strerror}.") from None
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _merged_reference(plain: PlainModel) -> nn.Module:
    """The merged model; a bias that the architecture lacks is put in here, where nothing has to be loaded."""
    made = copy.deepcopy(plain.model)
    for key, (before, after) in plain.changed.items():
        if before is not None:
            put(made, {key: after})
            continue
        owner, _, attribute = key.rpartition(".")
        made.get_submodule(owner)._parameters[attribute] = nn.Parameter(after.float(), requires_grad=False)
    return made


def called_modules(model: nn.Module, run: Any) -> set[str]:
    """The paths of the modules whose forward pass `run(model)` calls."""
    called: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _module, _given, path=path: called.add(path))
        for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _split(plain: PlainModel) -> tuple[dict[str, _Change], set[str]]:
    """The layers that get factors, and the modules that are saved whole."""
    model = plain.model
    called = called_modules(model, lambda one: plain.format.output(one, plain.images))
    by_owner: dict[str, dict[str, tuple[Tensor | None, Tensor]]] = {}
    for key, values in plain.changed.items():
        owner, _, attribute = key.rpartition(".")
        by_owner.setdefault(owner, {})[attribute] = values
    whole = set(plain.classifiers)
    changes: dict[str, _Change] = {}
    for owner, changed in by_owner.items():
        module = model.get_submodule(owner)
        if owner in called and _takes_factors(module) and set(changed) <= {"weight", "bias"}:
            changes[owner] = _change(module, changed)
        else:
            whole.add(_called_owner(owner, called, changed))
    whole = _as_peft_matches(model, whole)
    return {path: change for path, change in changes.items() if not _inside(path, whole)}, whole


def _takes_factors(module: nn.Module) -> bool:
    """Whether peft's LoRA computes exactly this layer with a changed weight."""
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and bool(module.groups == 1) and bool(module.padding_mode == "zeros")


def _change(module: nn.Module, values: Mapping[str, tuple[Tensor | None, Tensor]]) -> _Change:
    weight: Any = module._parameters["weight"]
    shape = tuple(weight.shape)
    before, after = values.get("weight", (None, torch.zeros(())))
    delta = torch.zeros(shape, dtype=torch.float64) if before is None else (after - before).cpu()
    shift = None
    if "bias" in values:
        old, new = values["bias"]
        shift = new.cpu() if old is None else (new - old).cpu()
    return _Change(delta.flatten(1), shape, shift)


def _called_owner(owner: str, called: set[str], values: Iterable[str]) -> str:
    """The nearest module around a tensor that the model calls, and which is not the whole model.

    Raises:
        CannotExport: only the whole model is.
    """
    path = owner
    while path and path not in called:
        path = path.rpartition(".")[0]
    if not path:
        listed = ", ".join(f"{owner}.{name}" if owner else name for name in values)
        raise CannotExport(
            f"peft saves modules, and {listed} belongs to the whole model. Export with --to backbone instead."
        )
    return path


def _inside(path: str, modules: Iterable[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _as_peft_matches(model: nn.Module, whole: set[str]) -> set[str]:
    """All modules that peft takes for these names, as it compares the ends of names; none inside another one."""
    found = set(whole)
    found |= {path for path, _ in model.named_modules(remove_duplicate=False) if any(path.endswith(w) for w in whole)}
    return {path for path in found if not _inside(path.rpartition(".")[0], found)}


def _idle_layer(plain: PlainModel, whole: set[str]) -> str:
    """A linear layer for factors of zeros: a LoRA folder needs one."""
    for path, module in plain.model.named_modules():
        if _takes_factors(module) and not _inside(path, whole):
            return str(path)
    raise CannotExport("The model has no linear layer or convolution that a LoRA folder could name.")


def _factored(change: _Change, energy: float) -> tuple[Tensor, Tensor, float]:
    """Factors A (R, in), B (out, R) of a change (out, in), and the part of it that they lack."""
    delta = change.delta
    rows, columns = delta.shape
    if not bool(delta.any()):
        return torch.zeros(1, columns), torch.zeros(rows, 1), 0.0
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    squares = s.square()
    lost = squares.sum() - squares.cumsum(0)  # after the first 1, 2, ... of them
    total = float(squares.sum())
    rank = int((lost > ROUNDING * total).sum()) + 1
    if rank * (rows + columns) >= rows * columns and energy < 1:  # factors would be larger than the weight
        rank = int((lost > (1 - energy) * total).sum()) + 1
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    a, b = (root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float()
    return a, b, float((delta - b.double() @ a.double()).norm() / total**0.5)


@torch.no_grad()
def _fill(
    made: Any,
    changes: Mapping[str, _Change],
    factors: Mapping[str, tuple[Tensor, Tensor, float]],
    whole: Iterable[str],
    plain: PlainModel,
) -> None:
    inner = made.base_model.model
    for path, change in changes.items():
        layer = inner.get_submodule(path)
        a, b, _ = factors[path]
        first, second = layer.lora_A["default"], layer.lora_B["default"]
        first.weight.copy_(a.reshape(first.weight.shape))
        second.weight.copy_(b.reshape(second.weight.shape))
        if second.bias is not None:
            second.bias.zero_() if change.shift is None else second.bias.copy_(change.shift)
    for path in whole:
        kept = inner.get_submodule(path).modules_to_save["default"]
        inside = {key: after for key, (_, after) in plain.changed.items() if _inside(key.rpartition(".")[0], [path])}
        lacking = [key for key in inside if plain.changed[key][0] is None]
        if lacking:
            raise CannotExport(
                f"Merged, this adapter needs a bias that the architecture does not have ({', '.join(lacking[:4])}),"
                " in a module that peft can only save whole."
            )
        put(kept, {key[len(path) + 1 :]: value for key, value in inside.items()})


def _named(plain: PlainModel) -> str | None:
    origin = origin_of(plain.model)
    return None if origin is None else str(origin.name).removeprefix("hf:")


def _usage(plain: PlainModel, folder: Path) -> str:
    return (
        f"model = {plain.format.creation(plain.model, plain.outputs)}\n"
        f"model = peft.PeftModel.from_pretrained(model, {str(folder)!r})"
    )


def _readme(plain: PlainModel, usage: str, layers: Sequence[FactoredLayer], whole: Sequence[str], error: float) -> str:
    worst = max((layer.error for layer in layers), default=0.0)
    rows = "\n".join(f"| {layer.layer} | {layer.rank} | {layer.full} | {layer.error:.1e} |" for layer in layers)
    peft: Any = importlib.import_module("peft")
    return (
        f"---\nlibrary_name: peft\n---\n\nA LoRA adapter, exported by vpeft for peft {peft.__version__}.\n\n"
        f"```python\n{usage}\n```\n\n"
        f"Outputs differ from the exported adapter's by {error:.1e}; the largest part of a change that is lost is"
        f" {worst:.1e}.\n\n| layer | rank | of | part lost |\n|---|---|---|---|\n{rows}\n\n"
        f"Saved whole: {', '.join(whole) or 'nothing'}.\n"
    )
