"""Load a saved adapter onto its backbone, for `predict`, `evaluate` and `demo`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.origin import Origin, origin_of
from vpeft.backbones.own_code import OWN_CODE
from vpeft.backbones.positions import ResizedPositions
from vpeft.backbones.trust import TYPED, Trust
from vpeft.backbones.weights import file_digest
from vpeft.batch import Batch, Sample
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.used_images import UsedImages
from vpeft.errors import VpeftError
from vpeft.guarded import printable, short
from vpeft.injection.adapter_file import CannotTell, Manifest, read
from vpeft.injection.implied import SLACK, TooMuch, budget
from vpeft.injection.load_adapter import load, require_implied
from vpeft.injection.rename_classes import rename_classes
from vpeft.injection.tuned_model import TunedModel
from vpeft.interop.hub import adapter_path
from vpeft.regimes.one_task import OneTask, task_named
from vpeft.task import Prediction, Task, all_tasks
from vpeft.training.evaluate import on_processor
from vpeft.training.randomness import seed_everything, untouched_randomness
from vpeft.training.run import USED

Device = Literal["auto", "cpu", "cuda", "mps"]
# Numbers in a backbone that a file, and not the user, names: 8 GB in single precision, and 1.6 GB.
MOST, LARGE = 2_000_000_000, 400_000_000
PARTS = 10_000  # modules and tensors of such a backbone; the largest of timm has 6,000


class NoSuchDevice(VpeftError):
    """The machine has no such device."""


@dataclass(frozen=True)
class Loaded:
    """An adapted model in evaluation mode on `device`, with the task and the preprocessing of its training.

    `manifest` is that of its file; None for a model that was not trained, whose `path` is then its name.
    """

    model: TunedModel
    manifest: Manifest | None
    preprocessing: Preprocessing
    task: Task
    device: torch.device
    path: Path
    of_task: str | None = None
    """which of the adapter's several tasks was chosen, and is `task`"""

    @property
    def answering(self) -> nn.Module:
        """The model, whose head of the chosen task alone answers where one was chosen."""
        return self.model if self.of_task is None else OneTask(self.model, self.of_task)

    @property
    def unsealed(self) -> str | None:
        """Return a sentence if the file has no seal, because labels or preprocessing may have been edited."""
        if self.manifest is None or self.manifest.seal is not None:
            return None
        return (
            f"{self.path} is of format {self.manifest.format}, which has no seal, so edited labels would not be noticed"
        )

    @property
    def used_images(self) -> UsedImages | None:
        """The images that trained the adapter, if its file says so."""
        stated = None if self.manifest is None else self.manifest.extra.get(USED)
        try:
            return None if stated is None else UsedImages.model_validate(stated)
        except ValidationError:
            raise VpeftError(f"{self.path}: what it says about the images of its training is not usable.") from None

    @property
    def labels(self) -> list[str]:
        """The names of the task's outputs."""
        return list(self.task.labels)

    def renamed(self, labels: Sequence[str]) -> Loaded:
        """The same model for other classes, by their names; see `rename_classes`."""
        return replace(self, task=rename_classes(self.model, labels).task)

    def asking(self, question: str) -> Loaded:
        """The same model with a question that is asked of each image.

        Raises:
            VpeftError: its task answers no questions.
        """
        if "question" not in type(self.task).model_fields:
            able = [name for name, kind in all_tasks().items() if "question" in kind.model_fields]
            raise VpeftError(
                f"The task {self.task.name} of {self.path} answers no questions; {', '.join(able)} does. Leave"
                " --question out."
            )
        return replace(self, task=self.task.model_copy(update={"question": question}))

    def predictions(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Return the predictions for preprocessed samples, such as images (C, H, W), in their order."""
        outputs, batch = self.outputs(samples)
        return self.task.predictions(outputs, batch)

    def outputs(self, samples: Sequence[Sample]) -> tuple[Any, Batch]:
        """Return the model's outputs for preprocessed samples, on the processor, and the samples as a batch."""
        batch = self.task.collate(samples)
        with torch.inference_mode():
            return on_processor(self.task.run(self.answering, batch.to(self.device))), batch


def open_adapter(
    path: Path,
    *,
    device: Device = "auto",
    backbone: nn.Module | str | None = None,
    weights: Path | None = None,
    allow_download: bool = False,
    of_task: str | None = None,
) -> Loaded:
    """Create the backbone that the file names, load the adapter onto it, and prepare it for prediction.

    Args:
        path: the adapter file, or hf:USER/NAME of the Hub.
        device: where to compute.
        backbone: the backbone or its name, if the file cannot create it. Your own code runs only if it is named here,
            never because a file names it.
        weights: the backbone's file of weights, if it has moved since training.
        allow_download: download a backbone `hf:ID` that the file names, if it is not on this machine.
        of_task: which of several tasks of the adapter is wanted; None for what it does as a whole.

    Raises:
        VpeftError: the file is no adapter, is damaged, or does not fit the backbone; or the device does not exist.
    """
    path = adapter_path(path)
    manifest, tensors = read(path)
    chosen = pick_device(device)
    if isinstance(backbone, nn.Module):
        base = backbone
    else:
        if backbone is None:
            _require_fits(manifest, tensors, path)
        base = _made_again(manifest, path, weights, backbone, allow_download)
    del tensors
    model = load(base, path).to(chosen).eval()
    task = model.task
    if task is None:
        raise VpeftError(
            f"{path} does not say what its outputs mean: {_unknown_task(manifest)}."
            " Save it with task=... or labels=[...]."
        )
    if of_task is not None:
        task = task_named(task, of_task)
    stated = manifest.preprocessing
    try:
        preprocessing = Preprocessing.model_validate(stated) if stated else Preprocessing.from_model(base)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise VpeftError(f"{path}: its preprocessing is not usable: {printable(where, 300)}.") from None
    return Loaded(model, manifest, preprocessing, task, chosen, path, of_task)


def backbone_of(
    path: Path | None, *, backbone: str | None, weights: Path | None = None, allow_download: bool = False
) -> nn.Module:
    """The backbone of an adapter file as it was in training, or one by its name alone; for a server of many adapters.

    Args:
        path: an adapter file; None where there is none yet.
        backbone: the backbone's name, if the file cannot create it or there is none.
        weights: its file of weights, if it has moved since training.
        allow_download: download a backbone `hf:ID` that the file names.

    Raises:
        VpeftError: it cannot be made.
    """
    if path is None:
        return create_backbone(backbone or "", pretrained=weights is None, weights=weights, trust=TYPED)
    manifest, tensors = read(path)
    if backbone is None:
        _require_fits(manifest, tensors, path)
    return _made_again(manifest, path, weights, backbone, allow_download)


def _unknown_task(manifest: Manifest) -> str:
    name = manifest.task.name
    return "it has no labels" if name in all_tasks() else f"the task {name!r} is not known here"


def _require_fits(manifest: Manifest, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check the backbone that a file names on the meta device, before memory of its size is allocated.

    Raises:
        VpeftError: the tensors do not fit this model, or it is so large that the user must name it.
    """
    origin = manifest.origin or Origin(name=manifest.backbone)
    if origin.name.startswith(OWN_CODE):
        return  # refused unless it is named
    options: dict[str, Any] = {
        "pretrained": False,
        "image_size": origin.image_size,
        "any_size": origin.any_size,
        "channels": origin.channels,
        "channels_rule": origin.channels_rule,
        "frames": origin.frames,
        "frames_rule": origin.frames_rule,
        "described": manifest.anatomy is None,
        "trust": Trust(code=False, download=False),
    }
    named = f"If it is the right one, say --backbone {printable(origin.name, 100)}."
    try:
        model = _made_within(origin.name, options, "meta")
    except TooMuch:
        raise VpeftError(f"{path} names a backbone of more than {MOST:.1e} numbers. {named}") from None
    except VpeftError:
        return  # nobody knows it, or it must be fetched: that is said, or done, when it is made
    except Exception:  # a model that looks at what it makes: it is made in earnest, but no larger than this
        try:
            model = _made_within(origin.name, options, None)
        except TooMuch:
            raise VpeftError(f"{path} names a backbone of more than {LARGE:.1e} numbers. {named}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > LARGE and not origin.pretrained and origin.weights is None:
        raise VpeftError(f"{path} names a backbone with {count:.1e} random numbers. {named}")
    try:
        description = describe(model)
    except VpeftError:
        return  # an anatomy describes it, for which it must run
    if description.facts.architecture != manifest.backbone:
        raise VpeftError(
            f"{path} was made on {short(manifest.backbone)}, and the backbone that it names,"
            f" {short(origin.name)}, is {description.facts.architecture}."
        )
    try:
        require_implied(manifest, tensors, description, path)
    except CannotTell:
        if count > LARGE:
            raise VpeftError(f"{path} names a backbone with {count:.1e} numbers. {named}") from None


def _made_within(name: str, options: Mapping[str, Any], device: str | None) -> nn.Module:
    """Create the model by name within a budget: at most `MOST` numbers on the meta device, else `LARGE`."""
    most = MOST if device == "meta" else LARGE
    # each number is counted when it is made and when a module gets it
    with warnings.catch_warnings(), budget(PARTS, (2 * most) // SLACK, device):
        warnings.simplefilter("ignore")
        return create_backbone(name, **options)


def _made_again(
    manifest: Manifest, path: Path, weights: Path | None, named: str | None, allow_download: bool = False
) -> nn.Module:
    """Create the backbone as it was in training."""
    trust = TYPED if named is not None else Trust(code=False, download=allow_download)
    origin, described = manifest.origin, manifest.anatomy is None
    stated = manifest.backbone if origin is None else origin.name
    if named is None and stated.startswith(OWN_CODE):
        raise VpeftError(
            f"{path} was made on {stated}, and code is not run because a file names it. If you trust that code,"
            f" add --backbone {stated}."
        )
    if origin is None:
        if named is None and not described:
            raise VpeftError(
                f"{path} was made on {stated}, a model of your own, and does not name the code that creates it. Add"
                f" --backbone {OWN_CODE}FILE.py:NAME."
            )
        return create_backbone(
            named or stated, pretrained=weights is None, weights=weights, described=described, trust=trust
        )
    file = weights if weights is not None else None if origin.weights is None else Path(origin.weights)
    if weights is None and file is not None and not file.is_file():
        raise VpeftError(
            f"{path} was made on {origin.name} with the weights of {origin.weights} (sha256"
            f" {(origin.weights_sha256 or '')[:12]}), and that file does not exist. Name it with --weights FILE."
        )
    if weights is None and file is not None and file_digest(file) != origin.weights_sha256:
        raise VpeftError(
            f"{path} was made on {origin.name} with the weights of {origin.weights}, and that file has changed since."
            " Name the right one with --weights FILE."
        )
    with untouched_randomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResizedPositions)  # it was said when the adapter was trained
        if origin.seed is not None:
            seed_everything(origin.seed)
        model = create_backbone(
            named or origin.name,
            pretrained=origin.pretrained,
            weights=file,
            prefix=origin.prefix,
            allow=origin.allow,
            image_size=origin.image_size,
            any_size=origin.any_size,
            channels=origin.channels,
            channels_rule=origin.channels_rule,
            frames=origin.frames,
            frames_rule=origin.frames_rule,
            described=described,
            trust=trust,
        )
    read = origin_of(model)
    if weights is None and file is not None and (read is None or read.weights_sha256 != origin.weights_sha256):
        raise VpeftError(f"{file} changed while it was read. Wait until it is written, and try again.")
    return model


def pick_device(device: Device) -> torch.device:
    """Return the requested device, or the best one for `auto`; raises `NoSuchDevice`."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there[device]:
        have = ", ".join(name for name, exists in there.items() if exists)
        raise NoSuchDevice(f"This machine has no {device} that torch can use. It has: {have}.")
    return torch.device(device)
