"""How a TunedModel is called: by position, and by the names that other libraries use."""

from __future__ import annotations

from typing import Any

import torch

from ..backbones.backbone import Backbone
from ..batch import Batch, run_model
from ..task import DEFAULT, get_task
from .node import AdapterError

# What timm, torchvision, transformers and open_clip call their inputs.
NAMES = ("pixel_values", "images", "image", "x", "input", "inputs", "input_ids", "text")


def by_position(description: Backbone, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """The one input of a backbone that is no host, whatever name it was given by.

    Raises:
        AdapterError: there is no input, or there are several.
    """
    given = {name: value for name, value in named.items() if value is not None}
    if len(inputs) == 1 and not given:
        return inputs
    known = dict.fromkeys((*description.inputs.names, *NAMES))
    if not inputs and len(given) == 1 and next(iter(given)) in known:
        return tuple(given.values())
    told = ", ".join([f"{len(inputs)} by position"] * bool(inputs) + [f"{name}=" for name in given]) or "nothing"
    raise AdapterError(
        f"This model takes one input, {description.inputs.layout} of the shape (B, ...), by position or as"
        f" pixel_values=; it was given {told}."
    )


def with_loss(model: Any, inputs: tuple[Any, ...], named: dict[str, Any], labels: Any) -> dict[str, Any]:
    """The loss and the outputs of a TunedModel for one batch, as the `Trainer` of transformers wants them."""
    batch = Batch(named or inputs[0], labels)
    outputs = run_model(model, batch)
    task = model.task if model.task is not None else get_task(DEFAULT)()
    parts = task.loss(outputs, batch)
    return {"loss": torch.stack(list(parts.values())).sum(), "logits": outputs}
