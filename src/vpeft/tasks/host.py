"""The loss that a whole model computes by itself: a detector's, a segmenter's, a language model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchmetrics import Metric

from ..backbones.points import MissingPlace
from ..batch import Batch, as_sample, run_model, stacked
from ..task import Leading, Prediction, Task, UnsuitableTargets, register_task

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# Layers that draw at random in training, of libraries that do not derive them from torch's dropout.
RANDOM = ("DropPath", "DropBlock2d", "StochasticDepth")
# Models that were seen to give losses in training mode alone.
_IN_TRAINING_ONLY: WeakSet[nn.Module] = WeakSet()


@register_task("host")
class HostTask(Task):
    """The loss of the host itself, for a tower that is tuned inside a larger model with a forward pass of its own.

    A sample is what the host's forward takes: an image and its targets, in the order of its arguments, or a mapping of
    its named arguments. The host answers with a mapping of named losses (torchvision's detectors), with a mapping that
    has a `loss` (transformers, given labels), or with a scalar. Validation gives the means of these; lower is better.

    Detectors of torchvision give losses in training mode alone. Validation runs them so, with BatchNorm on its running
    statistics and every dropout and drop path off, and without gradients: nothing moves and only their sampling of
    proposals draws, from the same seed each time.
    """

    stacks_inputs: ClassVar[bool] = False

    @property
    def leading(self) -> Leading:
        return Leading("loss", higher_is_better=False)

    def head(self, backbone: Backbone, width: int) -> None:
        """None: the host keeps its own head.

        Raises:
            MissingPlace: the model is a bare backbone, which has no loss.
        """
        if backbone.host is None:
            raise MissingPlace(
                f"{backbone.facts.architecture} is a bare backbone and has no loss of its own, which the task 'host'"
                " learns by. Give the whole model that it is a part of, or take a task that makes a head."
            )

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples as the host's arguments.

        Named arguments: tensors of one shape and numbers are stacked, anything else stays a list. Arguments in order:
        the same, but images whose targets are mappings (boxes and labels) stay a list, as detectors want them.
        """
        whole = [as_sample(sample) for sample in samples]
        ids = tuple(sample.id for sample in whole)
        inputs: Any
        if isinstance(whole[0].input, Mapping):
            inputs = {name: _together([sample.input[name] for sample in whole]) for name in whole[0].input}
            if whole[0].target is not None:
                inputs["labels"] = _together([sample.target for sample in whole])
        else:
            images, targets = [sample.input for sample in whole], [sample.target for sample in whole]
            if targets[0] is None:
                inputs = (_together(images),)
            elif isinstance(targets[0], Mapping):
                inputs = (images, targets)
            else:
                inputs = (_together(images), _together(targets))
        return Batch(inputs, ids=ids if any(ids) else (), size=len(whole))

    def run(self, model: Any, batch: Batch) -> Any:
        """What the host gives for a batch; in evaluation mode it is made to give its losses."""
        if model.training:
            return run_model(model, batch)
        host = getattr(model, "backbone", model)
        if host not in _IN_TRAINING_ONLY:
            outputs = run_model(model, batch)
            if _losses(outputs) is not None:
                return outputs
            _IN_TRAINING_ONLY.add(host)
        with held_still(model), torch.no_grad():
            return run_model(model, batch)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        found = _losses(outputs)
        if found is None:
            raise UnsuitableTargets(
                f"The model gave {_described(outputs)}, and no loss: neither a mapping of scalars, nor one with a"
                " `loss`, nor a scalar. Give it the targets that it computes its loss from (torchvision: a list of"
                " mappings; transformers: `labels`), or write a task with the loss that you want."
            )
        return {name: value.float() for name, value in found.items()}

    def metric(self) -> Metric:
        return HostLosses(self)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        raise UnsuitableTargets(
            "The task 'host' knows the loss of a model and not what its outputs mean: call the model itself in"
            " evaluation mode for its predictions."
        )


def _together(values: list[Any]) -> Any:
    return values if isinstance(values[0], (Mapping, list, str)) else stacked(values)


def _losses(outputs: Any) -> dict[str, Tensor] | None:
    """Named scalars among the outputs that are to be minimised; None where there are none."""
    if isinstance(outputs, Tensor):
        return {"loss": outputs.squeeze()} if outputs.numel() == 1 and outputs.is_floating_point() else None
    if not isinstance(outputs, Mapping):
        return None
    named = outputs.get("loss")
    if isinstance(named, Tensor):
        return {"loss": named.squeeze()} if named.numel() == 1 else None
    found = {str(name): value for name, value in outputs.items()}
    if not found or not all(isinstance(value, Tensor) and value.numel() == 1 for value in found.values()):
        return None
    return {name: value.squeeze() for name, value in found.items()}


def _described(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} of {', '.join(map(str, outputs)) or 'nothing'}"
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    return f"a {type(outputs).__name__}"


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Training mode, in which neither running statistics move nor layers draw; afterwards each mode is as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            still = isinstance(module, (_BatchNorm, _DropoutNd)) or type(module).__name__ in RANDOM
            module.training = not still
        yield
    finally:
        for module, training in before:
            module.training = training


class HostLosses(Metric):
    """Means over the samples of a model's own losses: `loss`, their sum, and each by its name where there are several.

    A batch's losses are taken to be means over its samples.
    """

    full_state_update = False

    def __init__(self, task: HostTask) -> None:
        super().__init__()
        self.task = task
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        parts = self.task.loss(outputs, batch)
        for name, value in parts.items():
            key = f"part_{name}"
            if len(parts) > 1 and key not in self._defaults:
                self.add_state(key, torch.zeros((), dtype=torch.float64, device=self.device), dist_reduce_fx="sum")
            if len(parts) > 1:
                setattr(self, key, getattr(self, key) + value.double() * len(batch))
            self.total = self.total + value.double() * len(batch)
        self.count = self.count + len(batch)

    def compute(self) -> dict[str, Tensor]:
        """The means."""
        count = self.count.clamp(min=1)
        parts = {key.removeprefix("part_"): getattr(self, key) / count for key in self._defaults if key[:5] == "part_"}
        return {**parts, "loss": self.total / count}
