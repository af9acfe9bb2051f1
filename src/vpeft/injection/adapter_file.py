"""The adapter file: one safetensors file with the tensors by place, and a manifest that says what they belong to.

Nothing is pickled. The manifest is JSON in the file's metadata: methods with all their fields, the backbone and the
digest of its weights, head and labels, preprocessing, scores, versions, and the outputs for a fixed probe input, which
`load` recomputes.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..backbones import digest
from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..backbones.origin import Origin, origin_of
from ..errors import VpeftError
from ..method import Method, get_method
from ..version import __version__
from .other_layout import relaid

if TYPE_CHECKING:
    from .tuned_model import TunedModel

FORMAT = 1
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


class Head(BaseModel):
    """The head that the file holds: a linear one is made again from its shape; any other must be passed to `load`."""

    model_config = ConfigDict(extra="forbid")
    kind: str
    width: int | None = None
    classes: int | None = None


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
    head: Head | None = None
    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    task: str = "classification"
    scores: dict[str, float] = Field(default_factory=dict)
    parameters: int
    tensors_digest: str
    probe: list[float]
    base_probe: list[float] = Field(default_factory=list)
    versions: dict[str, str]
    extra: dict[str, Any] = Field(default_factory=dict)


def weights_digest(description: Backbone, tuned: TunedModel | None = None) -> str:
    """sha256 over names, types, shapes and bytes of the backbone's frozen tensors, its classifier left out.

    Where an adapter trains the backbone's own weights in place, it is the digest from before that adapter came.
    """
    if tuned is not None and tuned.origin is not None:
        return tuned.origin
    with nullcontext() if tuned is None else tuned.disable():  # no stand-ins and no merge are in the modules then
        return digest.weights_digest(description)


def probe_images(description: Backbone) -> Tensor:
    """A fixed input (1, C, H, W) made of waves, equal on every machine, with values about in [-1, 1].

    Where the model takes no images, it is the first of its made-up inputs.
    """
    if description.example is not None:
        return description.example(1)
    channels, (height, width) = description.pixels.width, description.facts.image_size
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64)[None, :] / width
    waves = [torch.sin(6.0 * (c + 1) * rows + 4.0 * columns) * torch.cos(9.0 * columns - c) for c in range(channels)]
    return torch.stack(waves)[None].float()


@torch.no_grad()
def probe(tuned: TunedModel, name: str | None) -> list[float]:
    """The first outputs (16 at most) for the probe input, in eval mode; without a name, the frozen model's features."""
    modes = {module: module.training for module in tuned.modules()}
    like = next(p for p in tuned.backbone.parameters() if p.is_floating_point())
    try:
        tuned.eval()
        with tuned.disable() if name is None else tuned.enable(name):
            inputs = probe_images(tuned.description)
            inputs = inputs.to(device=like.device, dtype=like.dtype if inputs.is_floating_point() else None)
            out = tuned.features(inputs) if name is None else tuned(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [float(value) for value in out.flatten()[:16].float().cpu()]


def save(
    tuned: TunedModel,
    name: str,
    path: Path,
    labels: Sequence[str] | None,
    preprocessing: dict[str, Any] | None,
    task: str,
    scores: dict[str, float] | None,
    extra: dict[str, Any] | None,
) -> Path:
    """Write one adapter atomically: a reader sees the old file or the new one, never half of one."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tuned.adapter_state(name).items()}
    head = tuned.adapter(name).head
    description = tuned.description
    config: dict[str, Any] = getattr(tuned.backbone, "pretrained_cfg", None) or {}
    kind = None
    if head is not None:
        linear = type(head) is nn.Linear
        kind = Head(
            kind="linear" if linear else type(head).__qualname__,
            width=head.in_features if isinstance(head, nn.Linear) else None,
            classes=head.out_features if isinstance(head, nn.Linear) else None,
        )
        if labels is not None and kind.classes is not None and len(labels) != kind.classes:
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
        task=task,
        scores=scores or {},
        parameters=sum(value.numel() for value in tensors.values()),
        tensors_digest=digest.tensors_digest(tensors),
        probe=probe(tuned, name),
        # of the weights as they were given: not once training in place or rounding has changed them
        base_probe=probe(tuned, None) if tuned.origin is None else [],
        versions={"vpeft": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        extra=extra or {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(to_bytes(tensors, metadata={KEY: manifest.model_dump_json()}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and tensors of an adapter file.

    Raises:
        BadAdapterFile: no such file, no adapter, damaged, edited, or of another format version.
    """
    manifest = read_manifest(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if digest.tensors_digest(tensors) != manifest.tensors_digest:
        raise BadAdapterFile(
            f"{path}: the tensors are not those that were saved (their checksum differs). Get the file again."
        )
    return manifest, tensors


def read_manifest(path: str | Path) -> Manifest:
    """The manifest alone; the same errors as `read`."""
    if not Path(path).is_file():
        raise BadAdapterFile(f"There is no adapter file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise BadAdapterFile(f"{path} is no complete safetensors file ({error}). Get the file again.") from None
    if KEY not in metadata:
        raise BadAdapterFile(f"{path} is a safetensors file, but not an adapter of vpeft: it has no manifest.")
    try:
        raw = json.loads(metadata[KEY])
        version = raw.get("format")
    except (json.JSONDecodeError, AttributeError):
        raise BadAdapterFile(f"{path}: the manifest is damaged. Get the file again.") from None
    if version != FORMAT:
        raise BadAdapterFile(
            f"{path} has format version {version}; this vpeft reads version {FORMAT}. Install a vpeft that reads it."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        where = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
        raise BadAdapterFile(f"{path}: the manifest has missing or unknown fields: {where}.") from None


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
) -> TunedModel:
    """Put a saved adapter on its backbone.

    Args:
        model: the same pre-trained model as at saving, or a TunedModel of it, which gains one more adapter.
        path: the adapter file.
        name: the adapter's name here; the saved one by default.
        head: needed where the saved head was not a linear one.
        check: recompute the probe outputs and compare them with the saved ones. Where the adapter was trained on
            quantised weights, the backbone is quantised in the same way; False leaves it in full precision.
        other_library: the model holds the same weights as another library lays them out, for instance transformers'
            ViTModel for an adapter made on timm's VisionTransformer. Digests cannot agree then; in their place the
            features of the frozen model and the outputs with the adapter must equal the saved ones.

    Raises:
        BadAdapterFile: damaged, or made for other weights; the message names both sides.
    """
    from .heads import new_head
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
        if manifest.head.kind != "linear" or manifest.head.classes is None:
            raise BadAdapterFile(
                f"{path} holds a head of the class {manifest.head.kind}; pass such a module as `head`."
            )
        head = new_head(manifest.head.width or description.facts.width, manifest.head.classes)
    elif isinstance(head, nn.Linear) and manifest.head is not None and head.out_features != manifest.head.classes:
        raise BadAdapterFile(
            f"{path} has a head for {manifest.head.classes} classes, but the given head is for {head.out_features}."
        )
    key = name or manifest.name
    tuned.attach(*methods_of(manifest), name=key, head=head, statistics=manifest.statistics)
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
