"""For transformers: an adapted model that its `Trainer` trains, saves, reloads and resumes.

    model = vpeft.hf.wrap(tuned, task)
    Trainer(model, TrainingArguments(...), train_dataset=...).train()
    tuned.save("a.safetensors")

Its checkpoints hold the adapter alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch, run_model
from ..errors import VpeftError
from ..injection.adapter import AdapterError
from ..injection.tuned_model import TunedModel
from ..task import DEFAULT, Task, get_task


class NotTrainable(VpeftError):
    """A model or task that the Trainer cannot be given."""


class ForTrainer(nn.Module):
    """A TunedModel as the Trainer of transformers wants a model: `forward(pixel_values, labels)` -> loss and logits.

    Its state dict is the adapter's: checkpoints hold no backbone. The loss is the sum of the task's parts and of the
    methods' penalties.
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is a mean over the batch

    def __init__(self, tuned: TunedModel, task: Task) -> None:
        super().__init__()
        self.tuned = tuned
        self.task = task

    def forward(self, pixel_values: Tensor, labels: Any = None) -> dict[str, Any]:
        """Images (B, C, H, W) -> {"logits": outputs}, and with targets {"loss": scalar} in front."""
        batch = Batch(pixel_values, labels)
        outputs = run_model(self.tuned, batch)
        if labels is None:
            return {"logits": outputs}
        parts = list(self.task.loss(outputs, batch).values())
        penalty = self.tuned.penalty() if self.training else None
        loss = torch.stack([*parts, *([] if penalty is None else [penalty])]).sum()
        return {"loss": loss, "logits": outputs}

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The adapter's tensors by place, each a copy of its own."""
        found = {} if destination is None else destination
        for key, value in self.tuned.adapter_state().items():
            found[prefix + key] = value if keep_vars else value.detach().clone()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy an adapter's tensors in.

        Raises:
            AdapterError: names or shapes differ; the message lists both sides.
        """
        self.tuned.load_adapter_state(dict(state_dict))
        return torch.nn.modules.module._IncompatibleKeys([], [])


def wrap(tuned: TunedModel, task: Task | str | None = None) -> ForTrainer:
    """Return a tuned model for the Trainer of transformers; it trains `tuned` itself.

    Args:
        tuned: with an adapter that is on.
        task: what is learnt; by default the adapter's own task, or classification.

    Raises:
        NotTrainable: no adapter is on, or a sample of the task has several images.
        UnknownTask: there is no task of this name.
    """
    try:
        tuned.adapter()
    except AdapterError as error:
        raise NotTrainable(f"The Trainer trains an adapter: {error}") from None
    if task is None:
        task = tuned.task
    made: Any = get_task(task or DEFAULT)() if task is None or isinstance(task, str) else task
    if getattr(made, "images_per_sample", 1) != 1:
        raise NotTrainable(
            f"A sample of the task {made.name!r} has {made.images_per_sample} images, and the Trainer's models take one"
            " as pixel_values. Train with vpeft.fit."
        )
    tuned.task = made
    return ForTrainer(tuned, made)
