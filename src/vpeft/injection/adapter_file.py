"""The adapter file: one safetensors file with the tensors by place, and a manifest that says what they belong to.

Nothing is pickled. The manifest is JSON in the file's metadata: methods with all their fields, the backbone and the
digest of its weights, head and labels, preprocessing, scores, versions, and the outputs for a fixed probe input, which
`load` recomputes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..backbones import digest
from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..backbones.inputs import fitted_to
from ..backbones.origin import Origin, origin_of
from ..errors import VpeftError
from ..head import Head, get_head
from ..method import Method, get_method
from ..task import all_tasks
from ..version import __version__
from .heads import Heads, new_head
from .other_layout import relaid
from .outputs import one_tensor

if TYPE_CHECKING:
    from .tuned_model import TunedModel

FORMAT = 2
READ = (1, 2)  # formats that this version reads
KEY = "vpeft"
PROBE_TOLERANCE = 1e-3
# Two libraries add the same numbers in another order; other weights differ by far more.
LAYOUT_TOLERANCE = 1e-4


class BadAdapterFile(VpeftError):
    """A file that is no adapter, is damaged, or belongs to another backbone."""


class MethodEntry(BaseModel):
    """A method and every one of its fields."""

    model_config = ConfigDict(extra="forbid")
    name: str
    fields: dict[str, Any]


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

    def sealed(self) -> Manifest:
        """The manifest with the digest of all that it says, the digest of the tensors included."""
        return self.model_copy(update={"seal": self.digest()})

    def digest(self) -> str:
        """sha256 over everything but the seal itself."""
        said = self.model_dump(mode="json", exclude={"seal"})
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_digest(description: Backbone, tuned: TunedModel | None = None) -> str:
    """sha256 over names, types, shapes and bytes of the backbone's frozen tensors, its classifier left out.

    Where an adapter trains the backbone's own weights in place, it is the digest from before that adapter came.
    """
    if tuned is not None and tuned.origin is not None:
        return tuned.origin
    with nullcontext() if tuned is None else tuned.disable():  # no stand-ins and no merge are in the modules then
        return digest.weights_digest(description)


def probe_images(description: Backbone) -> Tensor:
    """The fixed input (1, C, H, W) for which an adapter file keeps the outputs; see `InputSpec.probe`."""
    return description.inputs.probe()


@torch.no_grad()
def probe(tuned: TunedModel, name: str | None) -> list[float]:
    """The first outputs (16 at most) for the probe input, in eval mode; without a name, the frozen model's features."""
    modes = {module: module.training for module in tuned.modules()}
    try:
        tuned.eval()
        with tuned.disable() if name is None else tuned.enable(name):
            inputs = fitted_to(probe_images(tuned.description), tuned.backbone)
            if tuned.rows_per_sample > 1:  # several images that differ
                inputs = torch.cat([inputs.roll(step, -1) for step in range(tuned.rows_per_sample)])
            out = tuned.features(inputs) if name is None else tuned(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
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
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tuned.adapter_state(name).items()}
    head = tuned.adapter(name).head
    description = tuned.description
    config: dict[str, Any] = getattr(tuned.backbone, "pretrained_cfg", None) or {}
    task = tuned.adapter(name).task if task is None else task
    if labels is None:
        labels = list(getattr(task, "labels", ())) or None
    kind = None if head is None else head_entry(head)
    linear = kind is not None and kind.kind == "linear" and task is None
    if labels is not None and linear and kind is not None and len(labels) != kind.classes:
        raise BadAdapterFile(f"{len(labels)} labels were given for a head of {kind.classes} classes.")
    manifest = Manifest(
        name=name,
        methods=[MethodEntry(name=m.name, fields=m.model_dump(mode="json")) for m in tuned.methods(name)],
        backbone=description.facts.architecture,
        family=description.facts.family,
        anatomy=description.anatomy,
        statistics="adapt" if tuned.adapter(name).moving else "frozen",
        base_digest=weights_digest(description, tuned),
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
    ).sealed()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(to_bytes(tensors, metadata={KEY: manifest.model_dump_json()}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def task_entry(task: Any) -> TaskEntry:
    """A task, or the name of one, as the file keeps it."""
    if task is None or isinstance(task, str):
        return TaskEntry() if task is None else TaskEntry(name=task)
    return TaskEntry(name=task.name, fields=task.model_dump(mode="json"))


def head_entry(head: nn.Module) -> HeadEntry:
    """A head as the file keeps it."""
    if isinstance(head, Heads):
        return HeadEntry(kind="several", several={name: head_entry(one) for name, one in head.named_children()})
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
    if not Path(path).is_file():
        raise BadAdapterFile(f"There is no adapter file {str(path)!r}.")
    # Read once into memory: a file that is mapped can change after it was checked.
    data = Path(path).read_bytes()
    manifest = _manifest_in(data, path)
    try:
        tensors = from_bytes(data)
    except (SafetensorError, ValueError) as error:
        raise BadAdapterFile(f"{path} is no complete safetensors file ({error}). Get the file again.") from None
    if digest.tensors_digest(tensors) != manifest.tensors_digest:
        raise BadAdapterFile(
            f"{path}: the tensors are not those that were saved (their checksum differs). Get the file again."
        )
    return manifest, tensors


def read_manifest(path: str | Path) -> Manifest:
    """The manifest alone; the same errors as `read`."""
    if not Path(path).is_file():
        raise BadAdapterFile(f"There is no adapter file {str(path)!r}.")
    return _manifest_in(Path(path).read_bytes(), path)


def _manifest_in(data: bytes, path: str | Path) -> Manifest:
    """The manifest in the bytes of a file."""
    try:
        # The format: eight bytes of length (little endian), then a JSON header of that length.
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("it is shorter than its header says")
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("its header is no mapping")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadAdapterFile(f"{path} is no complete safetensors file ({error}). Get the file again.") from None
    if KEY not in metadata:
        raise BadAdapterFile(f"{path} is a safetensors file, but not an adapter of vpeft: it has no manifest.")
    try:
        raw = json.loads(metadata[KEY])
        version = raw.get("format")
    except (json.JSONDecodeError, AttributeError, TypeError, RecursionError):
        raise BadAdapterFile(f"{path}: the manifest is damaged. Get the file again.") from None
    if version not in READ:
        known = " and ".join(map(str, READ))
        raise BadAdapterFile(
            f"{path} has format version {version}; this vpeft reads {known}. Install a vpeft that reads it."
        )
    try:
        manifest = Manifest.model_validate(raw)
        if version >= 2 and manifest.seal != manifest.digest():
            raise BadAdapterFile(f"{path}: the manifest is not the one that was saved: its seal differs.")
        return manifest
    except ValidationError as error:
        where = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
        raise BadAdapterFile(f"{path}: the manifest has missing or unknown fields: {where}.") from None


def task_of(manifest: Manifest) -> Any:
    """The task that the file names, with its options; None where it is one that is not known here.

    Format 1 knows the labels alone.
    """
    fields = dict(manifest.task.fields)
    if not fields and manifest.labels:
        fields = {"labels": manifest.labels}
    known = all_tasks()
    return known[manifest.task.name](**fields) if fields and manifest.task.name in known else None


def methods_of(manifest: Manifest) -> Iterable[Method]:
    """The methods as they were configured."""
    for entry in manifest.methods:
        yield get_method(entry.name)(**entry.fields)


def load(
    model: nn.Module | Backbone | TunedModel,
    path: str | Path,
    *,
    name: str | None = None,
    head: nn.Module | None = None,
    check: bool = True,
    other_library: bool = False,
    task: Any = None,
) -> TunedModel:
    """Put a saved adapter on its backbone.

    Args:
        model: the same pre-trained model as at saving, or a TunedModel of it, which gains one more adapter.
        path: the adapter file.
        name: the adapter's name here; the saved one by default.
        head: needed where the saved head was of no class that vpeft knows.
        check: recompute the probe outputs and compare them with the saved ones. Where the adapter was trained on
            quantised weights, the backbone is quantised in the same way; False leaves it in full precision.
        other_library: the model holds the same weights as another library lays them out, for instance transformers'
            ViTModel for an adapter made on timm's VisionTransformer. Digests cannot agree then; in their place the
            features of the frozen model and the outputs with the adapter must equal the saved ones.
        task: in place of the one that the file names, for instance one of your own that vpeft does not know.

    Raises:
        BadAdapterFile: damaged, or made for other weights; the message names both sides.
    """
    from .quantise import quantise
    from .tuned_model import TunedModel

    manifest, tensors = read(path)
    tuned = (
        model
        if isinstance(model, TunedModel)
        else TunedModel(model if isinstance(model, Backbone) else describe(model, manifest.anatomy))
    )
    description = tuned.description
    found = weights_digest(description, tuned)
    elsewhere = found != manifest.base_digest and other_library and description.facts.family != manifest.family
    if elsewhere:
        _check_layout(tuned, manifest, path, check)
    elif found != manifest.base_digest:
        hint = (
            f" If these are the same weights as {description.facts.library} lays them out, pass other_library=True."
            if description.facts.family != manifest.family and not other_library
            else ""
        )
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} with weights {manifest.base_digest[:12]}, but this is"
            f" {description.facts.architecture} with weights {found[:12]}. Load the backbone {manifest.backbone!r}"
            f" with its pre-trained weights.{hint}"
        )
    if head is None and manifest.head is not None:
        head = made_again(manifest.head, description.facts.width, path)
    elif isinstance(head, nn.Linear) and manifest.head is not None and head.out_features != manifest.head.classes:
        raise BadAdapterFile(
            f"{path} has a head for {manifest.head.classes} classes, but the given head is for {head.out_features}."
        )
    key = name or manifest.name
    tuned.attach(*methods_of(manifest), name=key, head=head, statistics=manifest.statistics, train=manifest.train)
    tuned.adapter(key).task = task if task is not None else task_of(manifest)
    try:
        tuned.load_adapter_state(relaid(tensors, tuned.adapter_state(key)) if elsewhere else tensors, key)
        if manifest.quantised is not None and check:
            quantise(tuned, manifest.quantised)
        if check:
            _compare(
                probe(tuned, key), manifest.probe, LAYOUT_TOLERANCE if elsewhere else PROBE_TOLERANCE, manifest, path
            )
    except VpeftError:
        if tuned.adapter(key).unfrozen.exact:
            tuned.detach(key)
        raise
    tuned.manifest = manifest
    return tuned


def start_from(tuned: TunedModel, path: str | Path) -> str:
    """Give the active adapter the tensors of a saved one with the same methods; says what was taken.

    The head is taken too where its tensors have the same shapes; otherwise it stays as it was made.

    Raises:
        BadAdapterFile: the file is no adapter, or of other weights or methods.
    """
    manifest, tensors = read(path)
    found = weights_digest(tuned.description, tuned)
    if found != manifest.base_digest:
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} with weights {manifest.base_digest[:12]}, but this is"
            f" {tuned.description.facts.architecture} with weights {found[:12]}. Take an adapter of this backbone."
        )
    own = tuned.adapter_state()
    inside = {key for key in own if key.split(".")[0] != "head"}
    lacking = sorted(key for key in inside if key not in tensors or tensors[key].shape != own[key].shape)
    if lacking or not inside:
        theirs = " + ".join(entry.name for entry in manifest.methods)
        raise BadAdapterFile(
            f"{path} holds {theirs}, which does not have the tensors of this adapter"
            f" ({', '.join(lacking[:4]) or 'it has none'}). Start from an adapter with the same method and settings."
        )
    heads = [key for key in own if key not in inside]
    same = all(key in tensors and tensors[key].shape == own[key].shape for key in heads)
    tuned.load_adapter_state({key: tensors[key] if key in inside or same else own[key] for key in own})
    head = "its head included" if same and heads else "with a new head" if heads else "without a head"
    return f"starts from {path}, {head}"


def _check_layout(tuned: TunedModel, manifest: Manifest, path: str | Path, check: bool) -> None:
    """Whether another library's model computes what the frozen weights computed at saving; nothing is attached yet."""
    if not check or not manifest.base_probe:
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} ({manifest.family}), and only a comparison of outputs can tell"
            f" whether {tuned.description.facts.family} holds the same weights; "
            + ("check=False forbids it." if not check else "the file has none of the frozen model. Save it again.")
        )
    seen = probe(tuned, None)
    scale = max(abs(value) for value in manifest.base_probe) or 1.0
    equal = len(seen) == len(manifest.base_probe)
    worst = max(abs(a - b) for a, b in zip(seen, manifest.base_probe, strict=False)) / scale
    if not equal or not worst <= LAYOUT_TOLERANCE:
        raise BadAdapterFile(
            f"{path} was made on {manifest.backbone} ({manifest.family}). This {tuned.description.facts.architecture}"
            f" ({tuned.description.facts.family}) does not hold the same weights: its features for the probe input"
            f" differ by {worst:.1e} of their size. Convert the weights, epsilons of the norms included."
        )


def _compare(seen: list[float], saved: list[float], limit: float, manifest: Manifest, path: str | Path) -> None:
    """The outputs of a loaded adapter against those that were saved with it."""
    scale = max((abs(value) for value in saved), default=1.0) or 1.0
    worst = max((abs(a - b) for a, b in zip(seen, saved, strict=True)), default=0.0) / scale
    if not worst <= limit:
        raise BadAdapterFile(
            f"{path}: the outputs for the probe input differ from the saved ones by {worst:.1e} of their size"
            f" (saved with torch {manifest.versions.get('torch')}, now {torch.__version__})."
            " Pass check=False to load anyway."
        )
