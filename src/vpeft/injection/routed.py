"""A batch whose images go through different adapters, in one pass through the backbone where that is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import VpeftError
from .adapters import evaluating
from .forward_pass import Within
from .node import AdapterError
from .operations import EditWeight
from .own_tensors import OwnTensors
from .placed import Placed
from .switch import Shares

if TYPE_CHECKING:
    from .tuned_model import TunedModel

# Largest difference of a feature from that of the adapter alone, relative to the largest; what goes wrong is as large
# as the edits, which are made large for the trial.
TOLERANCE = 1e-3
TOLERANCE_16 = 0.1
NOISE = 0.1


Company = Literal["any", "alike", "none"]


class Routing:
    """Sends each image of a batch through its adapter, and remembers which adapters can share a pass."""

    def __init__(self) -> None:
        self._company: dict[str, Company] = {}
        self._tried: list[tuple[tuple[Placed, ...], Company]] = []  # equal methods keep equal company
        self._kind: dict[str, int] = {}  # which of these an adapter's methods are
        self._own = OwnTensors()

    def forget(self, name: str) -> None:
        """The adapter of this name is gone."""
        self._own.forget(name)
        self._company.pop(name, None)
        self._kind.pop(name, None)

    def __call__(self, tuned: TunedModel, images: Tensor, names: Sequence[str]) -> Tensor:
        """Images (B, C, H, W), each through its own adapter -> outputs (B, ...) in the order of the images.

        Raises:
            AdapterError: there are more or fewer names than images, or the heads' outputs differ in shape.
        """
        outputs = self.each(tuned, images, names)
        shapes = {tuple(out.shape) for out in outputs}
        if len(shapes) > 1:
            raise AdapterError(
                f"The heads of {', '.join(dict.fromkeys(names))} give outputs of different shapes: {sorted(shapes)}."
                " `tuned.each(images, names)` gives one output for each image."
            )
        return torch.stack(outputs)

    def each(self, tuned: TunedModel, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Images (B, C, H, W), each through its own adapter -> the output of each, of whatever shape.

        Raises:
            AdapterError: there are more or fewer names than images.
        """
        several = [name for name in dict.fromkeys(names) if name in tuned._wiring.switch.tasks]
        if several:
            raise AdapterError(
                f"The adapter {several[0]!r} serves the tasks {', '.join(tuned.tasks(several[0]))}, so it cannot stand"
                " beside others in one batch. Enable it alone."
            )
        if len(names) != images.shape[0]:
            raise AdapterError(f"A batch of {images.shape[0]} images needs as many adapters, not {len(names)}.")
        found = dict[int, Tensor]()
        for group in self.passes(tuned, images, names):
            # those of equal methods beside each other: where they do not act, their rows pass in one piece
            group = sorted(group, key=lambda name: self._kind.get(name, -1))
            places = [[i for i, wanted in enumerate(names) if wanted == name] for name in group]
            rows = torch.tensor([place for some in places for place in some], device=images.device)
            shares = Shares(tuple((name, len(some)) for name, some in zip(group, places, strict=True)))
            for some, outputs in zip(places, outputs_of(tuned, images[rows], shares), strict=True):
                found |= zip(some, outputs, strict=True)
        return [found[place] for place in range(len(names))]

    def passes(self, tuned: TunedModel, images: Tensor, names: Sequence[str]) -> list[list[str]]:
        """The adapters by pass."""
        wanted = list(dict.fromkeys(names))
        passes, kinds = list[list[str]](), list[object]()
        for name in wanted:
            company = self.company(tuned, name, images) if len(wanted) > 1 else "none"
            kind = {"any": "any", "alike": tuned.methods(name), "none": (name,)}[company]
            if kind not in kinds:
                kinds.append(kind)
                passes.append([])
            passes[kinds.index(kind)].append(name)
        return passes

    def company(self, tuned: TunedModel, name: str, images: Tensor) -> Company:
        """Beside whose images this adapter's can run: any, those of adapters with equal methods, or none.

        Tried once for each set of methods, on two of the images. While accelerations are on, which are made for one
        adapter, or the model is compiled for one, it is none; so too while the adapter is merged, where it has
        statistics of its own, or, while gradients are recorded, where it changes tensors of the backbone.
        """
        adapter = tuned.adapter(name)
        if adapter.moving or name in tuned._merged or tuned._rewritten or tuned._compiled:
            return "none"
        if torch.is_grad_enabled() and (adapter.unfrozen.targets or _edits_weights(tuned, name)):
            return "none"
        if name not in self._company:
            placed = tuned.placed(name)
            kind = next((number for number, (methods, _) in enumerate(self._tried) if methods == placed), None)
            if (kind is None or self._tried[kind][1] != "none") and adapter.unfrozen.targets:
                installed = self._own.install(name, adapter.unfrozen, tuned._wiring.switch)
            else:
                installed = True
            if kind is None:
                if installed and _exact(tuned, name, None, images[:2]) and self._own.acted(name):
                    company: Company = "any"
                else:  # inserted tokens, for instance: as many in each row
                    together = installed and _exact(tuned, name, name, images[:2]) and self._own.acted(name)
                    company = "alike" if together else "none"
                if company == "none":
                    self._own.forget(name)
                kind = len(self._tried)
                self._tried.append((placed, company))
            self._kind[name], self._company[name] = kind, self._tried[kind][1] if installed else "none"
        return self._company[name]


def _edits_weights(tuned: TunedModel, name: str) -> bool:
    return any(isinstance(operation, EditWeight) for operation in tuned._wiring.operations(name))


def outputs_of(tuned: TunedModel, images: Tensor, shares: Shares, within: Within | None = None) -> list[Any]:
    """What each adapter's head gives for its own images, which stand in the order of the shares."""
    if len(shares.counts) == 1:
        (name, _) = shares.counts[0]
        with _on(tuned, name):
            return [tuned(images)]
    outputs, first = [], 0
    with tuned._pass((images,), shares=shares, within=within) as now:
        features = torch.split(tuned._pooled(images), [count for _, count in shares.counts])
        for (name, count), feature in zip(shares.counts, features, strict=True):
            now.shares, now.on, now.rows = None, name, slice(first, first + count)
            first += count
            with _on(tuned, name), now.within.get(name, nullcontext)():
                outputs.append(tuned.outputs(feature))
    return outputs


def features_of(tuned: TunedModel, images: Tensor, shares: Shares) -> Tensor:
    """Pooled features (B, D) of images that stand in the order of the shares."""
    if len(shares.counts) == 1:
        with _on(tuned, shares.counts[0][0]):
            return tuned.features(images)
    with tuned._pass((images,), shares=shares):
        return tuned._pooled(images)


def _on(tuned: TunedModel, name: str | None) -> AbstractContextManager[TunedModel]:
    return tuned.disable() if name is None else tuned.enable(name)


@torch.no_grad()
def _exact(tuned: TunedModel, name: str, other: str | None, images: Tensor) -> bool:
    """Whether an image through the adapter, beside one through the other or none, gives what each gives alone."""
    with tuned._wiring.switch.guard.alone(), _for_trial(tuned, name):
        try:
            alone = [features_of(tuned, images[i : i + 1], Shares(((one, 1),))) for i, one in enumerate((name, other))]
            beside = features_of(tuned, images, Shares(((name, 1), (other, 1))))
        except (RuntimeError, IndexError, ValueError, TypeError, VpeftError):
            return False  # tokens are more than those of its neighbour, a weight is everyone's: it goes by itself
    if alone[0].shape != alone[1].shape or beside.shape[1:] != alone[0].shape[1:]:
        return False
    expected = torch.cat(alone).float()
    tolerance = TOLERANCE if alone[0].dtype in (torch.float32, torch.float64) else TOLERANCE_16
    return bool((beside.float() - expected).abs().max() <= tolerance * expected.abs().max())


def noise_for(value: Tensor, generator: torch.Generator) -> Tensor:
    """Something to add to a trained tensor, so that a layer that starts at zero shows what it does; for trials."""
    noise = torch.randn(value.shape, generator=generator).to(device=value.device, dtype=value.dtype)
    return noise * float(value.abs().mean().clamp(min=0.1)) * NOISE


@contextmanager
def _for_trial(tuned: TunedModel, name: str) -> Iterator[None]:
    """Inside: everything evaluates, and the adapter's parameters are off zero, so that its edits can be seen.

    Other tensors take the place of the parameters' own, as a backward pass may still need those as they are.
    """
    parameters = [(parameter, parameter.data) for _, parameter in tuned.trainable(name)]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), evaluating(tuned, name):
        try:
            for parameter, value in parameters:
                parameter.data = value + noise_for(value, generator)
            yield
        finally:
            for parameter, value in parameters:
                parameter.data = value
