"""The adapter file: one safetensors file with the tensors by place, and a manifest that says what they belong to.

Nothing is pickled. The manifest is JSON in the file's metadata: methods with all their fields, the backbone and the
digest of its weights, head and labels, preprocessing, scores, versions, and the outputs for a fixed probe input, which
`load` recomputes. The seal in the manifest is the digest of the whole file, so that no byte can be exchanged unseen;
it is no signature: whoever makes a file can seal it. What a stranger's file may ask for is bounded, see
manifest_limits.py and implied.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..arguments import PATH, require
from ..atomic import replace_file
from ..backbones import digest
from ..backbones.backbone import Backbone
from ..backbones.inputs import fitted_to
from ..backbones.origin import Origin, origin_of
from ..errors import VpeftError
from ..guarded import TENSOR_BYTES, TensorEntry, parse_json, parse_tensor_header, printable, read_bytes, short
from ..head import Head, get_head, raw_outputs
from ..method import get_method
from ..task import all_tasks
from ..version import __version__
from .adapters import evaluating
from .heads import Heads, new_head
from .implied import budget
from .manifest_limits import check_entries, check_labels, check_manifest
from .outputs import one_tensor
from .placed import MethodLike
from .weights_digest import weights_digest

if TYPE_CHECKING:
    from .tuned_model import TunedModel

FORMAT = 2
BLANK = "0" * 64  # in the seal's place while the seal is computed
READ = (1, 2)  # formats that this version reads
KEY = "vpeft"


class BadAdapterFile(VpeftError):
    """A file that is no adapter, is damaged, or belongs to another backbone."""


class CannotTell(BadAdapterFile):
    """What a manifest implies could not be computed."""


class MethodEntry(BaseModel):
    """A method and every one of its fields; `tower` is the one that it is on, where the model has several."""

    model_config = ConfigDict(extra="forbid")
    name: str
    fields: dict[str, Any]
    # left out of files that do not need it, which are then as they were before there were towers
    tower: str = Field(default="", exclude_if=lambda tower: not tower)


class HeadEntry(BaseModel):
    """The head that the file holds.

    A head of vpeft/heads is made again from its kind and settings, several heads each by itself; a module of any other
    class must be passed to `load`. `width` and `classes` are those of a linear head, as format 1 has them.
    """

    model_config = ConfigDict(extra="forbid")
    kind: str
    width: int | None = None
    classes: int | None = None
    settings: dict[str, Any] | None = None
    several: dict[str, HeadEntry] | None = None


class TaskEntry(BaseModel):
    """What was learnt: the task's name and all its options, what it took from the training data included."""

    model_config = ConfigDict(extra="forbid")
    name: str = "classification"
    fields: dict[str, Any] = Field(default_factory=dict)


class Manifest(BaseModel):
    """What an adapter file says of itself."""

    model_config = ConfigDict(extra="forbid")
    format: int = FORMAT
    name: str
    methods: list[MethodEntry]
    backbone: str
    family: str
    anatomy: dict[str, Any] | None = None
    statistics: Literal["frozen", "adapt"] = "frozen"
    base_digest: str
    base_precision: str | None = None
    base_rounded: dict[str, str] = Field(default_factory=dict)
    base_values: list[float] = Field(default_factory=list)
    base_license: str | None = None
    base_source: str | None = None
    origin: Origin | None = None
    quantised: Literal["int8", "nf4"] | None = None
    head: HeadEntry | None = None
    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    task: TaskEntry = Field(default_factory=TaskEntry)
    train: list[str] = Field(default_factory=list)
    scores: dict[str, float] = Field(default_factory=dict)
    parameters: int
    tensors_digest: str
    probe: list[float]
    base_probe: list[float] = Field(default_factory=list)
    versions: dict[str, str]
    extra: dict[str, Any] = Field(default_factory=dict)
    seal: str | None = None

    @field_validator("task", mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        """Format 1 has the task's name and nothing more."""
        return {"name": given} if isinstance(given, str) else given


def probe_images(description: Backbone) -> Tensor:
    """The fixed input (1, C, H, W) for which an adapter file keeps the outputs; see `InputSpec.probe`."""
    return description.inputs.probe()


@torch.no_grad()
def probe(tuned: TunedModel, name: str | None) -> list[float]:
    """The first outputs (16 at most) for the probe input, in eval mode; without a name, the frozen model's features."""
    with evaluating(tuned, name), raw_outputs(), tuned.disable() if name is None else tuned.enable(name):
        inputs = fitted_to(probe_images(tuned.description), tuned.backbone)
        if tuned.rows_per_sample > 1:  # several images that differ
            inputs = torch.cat([inputs.roll(step, -1) for step in range(tuned.rows_per_sample)])
        # a host takes other inputs than its tower, whose features are looked at
        hosted = tuned.description.host is not None and tuned.head is None
        out = tuned.features(inputs) if name is None or hosted else tuned(inputs)
    return [float(value) for value in one_tensor(out).flatten()[:16].float().cpu()]


def save(
    tuned: TunedModel,
    name: str,
    path: Path,
    labels: Sequence[str] | None,
    preprocessing: dict[str, Any] | None,
    task: Any,
    scores: dict[str, float] | None,
    extra: dict[str, Any] | None,
) -> Path:
    """Write one adapter atomically: a reader sees the old file or the new one, never half of one."""
    left_out = tuned.adapter(name).only_for_training()
    state = {key: value for key, value in tuned.adapter_state(name).items() if key not in left_out}
    tensors = {key: digest.gathered(value.detach()).cpu().contiguous().clone() for key, value in state.items()}
    _require_finite(tensors, path)
    head = tuned.adapter(name).head
    description = tuned.description
    config: dict[str, Any] = getattr(description.module, "pretrained_cfg", None) or {}
    task = tuned.adapter(name).task if task is None else task
    if labels is None:
        labels = list(getattr(task, "labels", ())) or None
    kind = None if head is None else head_entry(head)
    linear = kind is not None and kind.kind == "linear" and task is None
    if labels is not None and linear and kind is not None and len(labels) != kind.classes:
        raise BadAdapterFile(f"{len(labels)} labels were given for a head of {kind.classes} classes.")
    manifest = Manifest(
        name=name,
        methods=[
            MethodEntry(name=one.method.name, fields=one.method.for_use().model_dump(mode="json"), tower=one.tower)
            for one in tuned.placed(name)
        ],
        backbone=description.facts.architecture,
        family=description.facts.family,
        anatomy=description.anatomy,
        statistics="adapt" if tuned.adapter(name).moving else "frozen",
        base_digest=weights_digest(description, tuned),
        **_in_other_precisions(tuned),
        base_license=config.get("license"),
        base_source=config.get("hf_hub_id") or config.get("url") or None,
        origin=origin_of(tuned.backbone),
        quantised=tuned.quantised,
        head=kind,
        labels=list(labels) if labels is not None else None,
        preprocessing=preprocessing,
        task=task_entry(task),
        train=list(tuned.adapter(name).train_too),
        scores=scores or {},
        parameters=sum(value.numel() for value in tensors.values()),
        tensors_digest=digest.tensors_digest(tensors),
        probe=probe(tuned, name),
        # of the weights as they were given: not once training in place or rounding has changed them
        base_probe=probe(tuned, None) if tuned.origin is None else [],
        versions={"vpeft": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        extra=extra or {},
        seal=BLANK,
    )
    data = sealed_bytes(manifest.model_dump(mode="json"), tensors)
    _checked(data, path)
    require_as_many_labels(manifest, description, path)
    replace_file(path, lambda fresh: _write(fresh, data))
    return path


def _in_other_precisions(tuned: TunedModel) -> dict[str, Any]:
    """By what the frozen weights are recognised in another precision; nothing once they are trained or rounded."""
    if tuned.origin is not None:
        return {}
    with tuned.disable():
        return {
            "base_precision": digest.precision_of(tuned.description),
            "base_rounded": digest.rounded_digests(tuned.description),
            "base_values": digest.compared_values(tuned.description),
        }


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def sealed_bytes(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """An adapter file of a manifest (plain data) and tensors, sealed by the digest of all its other bytes.

    Raises:
        BadAdapterFile: a value of the manifest is nothing that JSON can say.
    """
    try:
        said = json.dumps({**manifest, "seal": BLANK}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        data = to_bytes(dict(tensors), metadata={KEY: said})
    except (ValueError, TypeError, SafetensorError) as error:  # the format has a limit for its header
        raise BadAdapterFile(f"The manifest cannot be written as JSON: {error}.") from None
    at = _place_of(BLANK, data)
    if at is None:
        raise BadAdapterFile('A further field of the manifest is called "seal"; give it another name.')
    seal = hashlib.sha256(data).hexdigest()
    return data[:at] + seal.encode() + data[at + len(seal) :]


def _seal_holds(data: bytes, seal: Any) -> bool:
    """Whether the digest of the file, with the seal itself left blank, is the seal."""
    at = _place_of(seal, data) if isinstance(seal, str) and len(seal) == len(BLANK) and seal.isascii() else None
    if at is None:
        return False
    view = memoryview(data)
    found = hashlib.sha256(view[:at])
    found.update(BLANK.encode())
    found.update(view[at + len(BLANK) :])
    return bool(found.hexdigest() == seal)


def _place_of(seal: str, data: bytes) -> int | None:
    """Where the seal's digits begin in a file; None where they are not there, or several times."""
    # the manifest is a JSON text inside of a JSON text, so its quotes are escaped
    mark = b'\\"seal\\":\\"' + seal.encode() + b'\\"'
    end = 8 + int.from_bytes(data[:8], "little")
    first = data.find(mark, 0, end)
    if first < 0 or data.find(mark, first + 1, end) >= 0:
        return None
    return first + len(mark) - len(seal) - 2


def require_labels(labels: Sequence[str]) -> None:
    """Look at the names of classes before training, so that no adapter is trained that cannot be saved.

    Raises:
        BadAdapterFile: a name holds control characters, is there twice, or is too long.
    """
    try:
        check_labels(labels)
    except ValueError as error:
        raise BadAdapterFile(f"These labels cannot be kept in an adapter file: {error}.") from None


def task_entry(task: Any) -> TaskEntry:
    """A task, or the name of one, as the file keeps it."""
    if task is None or isinstance(task, str):
        return TaskEntry() if task is None else TaskEntry(name=task)
    return TaskEntry(name=task.name, fields=task.model_dump(mode="json"))


def head_entry(head: nn.Module) -> HeadEntry:
    """A head as the file keeps it."""
    if isinstance(head, Heads):
        return HeadEntry(kind="several", several={name: head_entry(head.get_submodule(name)) for name in head.tasks})
    if type(head) is nn.Linear or getattr(head, "kind", None) == "linear":
        linear: Any = head
        return HeadEntry(kind="linear", width=linear.in_features, classes=linear.out_features)
    if isinstance(head, Head) and head.kind:
        return HeadEntry(kind=head.kind, settings=head.settings)
    return HeadEntry(kind=type(head).__qualname__)


def made_again(entry: HeadEntry, width: int, path: str | Path) -> nn.Module:
    """The head that the file holds, with fresh tensors.

    Raises:
        BadAdapterFile: it is of a class that is no head of vpeft's, or its settings do not fit.
    """
    if entry.several is not None:
        return Heads({name: made_again(one, width, path) for name, one in entry.several.items()})
    if entry.kind == "linear" and entry.classes is not None:
        return new_head(entry.width or width, entry.classes)
    if entry.settings is None:
        raise BadAdapterFile(f"{path} holds a head of the class {entry.kind}; pass such a module as `head`.")
    try:
        return get_head(entry.kind)(**entry.settings)
    except (TypeError, ValueError) as error:
        raise BadAdapterFile(f"{path}: the head {entry.kind!r} cannot be made from its settings ({error}).") from None


def read(path: str | Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and tensors of an adapter file.

    Raises:
        BadAdapterFile: no such file, no adapter, damaged, edited, or of another format version.
    """
    return _checked(_bytes_of(path), path)


def _checked(data: bytes, path: str | Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and tensors in the bytes of a file, with everything checked that needs no backbone."""
    manifest, entries = _manifest_in(data, path)
    try:
        tensors = from_bytes(data)
    except (SafetensorError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise BadAdapterFile(f"{path} is no complete safetensors file ({error}). Get the file again.") from None
    if tensors.keys() != entries.keys() or digest.tensors_digest(tensors) != manifest.tensors_digest:
        raise BadAdapterFile(
            f"{path}: the tensors are not those that were saved (their checksum differs). Get the file again."
        )
    _require_finite(tensors, path)
    return manifest, tensors


def _require_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadAdapterFile(f"{path}: the tensor {short(name)} holds NaN or infinity. Train it again.")


def read_manifest(path: str | Path) -> Manifest:
    """The manifest alone; the same errors as `read`, but for those of the tensors' values."""
    return _manifest_in(_bytes_of(path), path)[0]


def _bytes_of(path: str | Path) -> bytes:
    """The file, read once into memory: a file that is mapped can change after it was checked."""
    require("load(model, path)", path=(path, PATH))
    if not os.path.exists(path):
        raise BadAdapterFile(f"There is no adapter file {str(path)!r}.")
    return read_bytes(path, str(path), BadAdapterFile, TENSOR_BYTES)


def _manifest_in(data: bytes, path: str | Path) -> tuple[Manifest, dict[str, TensorEntry]]:
    """The manifest in the bytes of a file, and the table of its tensors."""
    metadata, entries = parse_tensor_header(data, str(path), BadAdapterFile)
    if KEY not in metadata:
        raise BadAdapterFile(f"{path} is a safetensors file, but not an adapter of vpeft: it has no manifest.")
    raw = parse_json(metadata[KEY], f"{path}: the manifest", BadAdapterFile)
    version = raw.get("format") if isinstance(raw, dict) else None
    if type(version) is not int or version not in READ:
        known = " and ".join(map(str, READ))
        raise BadAdapterFile(
            f"{path} has format version {printable(str(version), 20)}; this vpeft reads {known}."
            " Install a vpeft that reads it."
        )
    if version >= 2 and not _seal_holds(data, raw.get("seal")):
        raise BadAdapterFile(f"{path} is not the file that was saved: its seal differs. Get the file again.")
    if version < 2 and raw.get("seal") is not None:
        raise BadAdapterFile(f"{path} is of format {version}, which has no seal, and has one. Get the file again.")
    try:
        check_entries(entries)
        check_manifest(raw)
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        where = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors()[:8])
        raise BadAdapterFile(f"{path}: the manifest has missing or unknown fields: {printable(where, 200)}.") from None
    except VpeftError as error:
        raise BadAdapterFile(f"{path}: {printable(str(error), 400)}") from None
    except (ValueError, RecursionError) as error:
        raise BadAdapterFile(f"{path}: {printable(str(error), 400)}.") from None
    held = sum(math.prod(entry.shape) for entry in entries.values())
    if manifest.parameters != held:
        raise BadAdapterFile(f"{path} says that it has {manifest.parameters} numbers and holds {held}. Get it again.")
    return manifest, entries


def task_of(manifest: Manifest) -> Any:
    """The task that the file names, with its options; None where it is one that is not known here.

    Format 1 knows the labels alone.
    """
    fields = dict(manifest.task.fields)
    if not fields and manifest.labels:
        fields = {"labels": manifest.labels}
    known = all_tasks()
    if not fields or manifest.task.name not in known:
        return None
    try:
        return known[manifest.task.name](**fields)
    except VpeftError as error:
        raise BadAdapterFile(f"The task of the file cannot be made: {printable(str(error), 400)}") from None


def methods_of(manifest: Manifest) -> Iterable[MethodLike]:
    """The methods as they were configured, and by tower where the model has several."""
    for entry in manifest.methods:
        method = get_method(entry.name)(**entry.fields)
        yield {entry.tower: method} if entry.tower else method


def require_as_many_labels(manifest: Manifest, description: Backbone, path: str | Path) -> None:
    """Compare the outputs of the file's head with those that the file's task, with its labels, would want.

    Raises:
        BadAdapterFile: they are of one kind, and differ in their number.
    """
    task = task_of(manifest)
    differing = differing_outputs(manifest.head, task, description, manifest.parameters)
    if differing is not None:
        wanted, stated = differing
        raise BadAdapterFile(
            f"{path} has {len(task.labels)} labels, for which its task {task.name!r} wants a head with {wanted}"
            f" outputs, and its head has {stated}."
        )


def differing_outputs(
    entry: HeadEntry | None, task: Any, description: Backbone, parameters: int
) -> tuple[Any, Any] | None:
    """Return the number of outputs that a task wants of a head and the one that the head has, where they differ.

    Args:
        entry: the head; None where there is none, and nothing differs.
        task: with its labels; None as well.
        description: of the backbone that the head is on.
        parameters: as many numbers as the head may be expected to have.
    """
    if entry is None or task is None:
        return None
    try:
        with budget(len(getattr(task, "labels", ())), parameters):
            wanted = head_entry(task.head(description, description.facts.width))
    except Exception:
        return None  # a task whose head cannot be told does not make one here either
    outputs, stated = _outputs(wanted), _outputs(entry)
    if wanted.kind != entry.kind or None in (outputs, stated) or outputs == stated:
        return None
    return outputs, stated


def _outputs(entry: HeadEntry) -> Any:
    return entry.classes if entry.classes is not None else (entry.settings or {}).get("outputs")
