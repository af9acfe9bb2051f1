"""The first forward passes of a host: do they execute every edit, and can every edit learn from what they give?

`verify` runs the tower alone, since only the host's user knows its inputs. What the host does with the tower shows when
it is run: it may execute a part of the tower only, read an early block, or run the tower without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.blocks import Block
from .outputs import tensors_in
from .verify import DeadPlace, require_all_ran

if TYPE_CHECKING:
    from .tuned_model import TunedModel


def checked_pass(tuned: TunedModel, name: str, run: Callable[[], Any]) -> tuple[Any, bool]:
    """Run the host, and look at what it did; in training with gradients also at what the outputs depend on.

    Args:
        tuned: with a host.
        name: of the adapter that is on.
        run: runs the host.

    Returns:
        What the host gave, and whether all was looked at, so that later passes need not be.

    Raises:
        DeadPlace: an edit is not executed; or the outputs do not depend on blocks that are edited.
    """
    switch, ran = tuned._wiring.switch, list[object]()
    before, switch.watched = switch.watched, ran
    learns = tuned.training and torch.is_grad_enabled()
    described = (*tuned.description.towers.values(), *tuned.description.parts.values())
    blocks = [block for one in described for block in one.blocks] if learns else []
    ends: dict[str, Any] = {}
    handles = [
        block.exit.module.register_forward_hook(partial(_note, ends, block))
        for block in blocks
        if block.exit is not None
    ]
    try:
        out = run()
    finally:
        switch.watched = before
        for handle in handles:
            handle.remove()
    require_all_ran(tuned, name, ran, training=tuned.training)
    if learns:
        _require_read(tuned, name, blocks, ends, out)
    return out, learns


def _note(ends: dict[str, Any], block: Block, module: nn.Module, args: Any, output: Any) -> None:
    """Keep the step of the gradient's graph in which a block ended; None where nothing is recorded."""
    at = block.exit.item if block.exit is not None and isinstance(block.exit.item, int) else 0
    tensor = output[at] if isinstance(output, tuple) else output
    ends[block.name] = tensor.grad_fn if isinstance(tensor, Tensor) else None


def _require_read(tuned: TunedModel, name: str, blocks: list[Block], ends: dict[str, Any], out: Any) -> None:
    """Raise `DeadPlace` where an edit is on a block that the host runs and whose output it does not use."""
    host = type(tuned.backbone).__name__
    given = [tensor.grad_fn for tensor in _results(out) if tensor.grad_fn is not None]
    edited = {edit.place.name for edit in tuned.adapter(name).edits}
    inside = [block for block in blocks if block.name in ends and _edited(block, edited)]
    if not given or not inside:
        return
    if all(ends[block.name] is None for block in inside):
        raise DeadPlace(
            f"{host} runs its tower without gradients, so the edits there cannot learn. Let it record gradients (some"
            " models have an option that freezes the tower), or tune the tower alone with a head."
        )
    reached = _reached(given)
    idle = [block.name for block in inside if ends[block.name] is not None and ends[block.name] not in reached]
    if idle:
        raise DeadPlace(
            f"What {host} gives does not depend on the output of {', '.join(idle)}, so edits there change nothing."
            f" Choose the blocks that {host} uses, or let it use these (an option of the model such as"
            " vision_feature_layer or out_features)."
        )


def _results(out: Any) -> list[Tensor]:
    """The tensors that a host is run for: its loss, else those that lie beside each other at the top, else all.

    Some models also hand out everything that was computed inside, in mappings of their own.
    """
    if isinstance(out, Mapping):
        if isinstance(out.get("loss"), Tensor):
            return [out["loss"]]
        top = [value for value in out.values() if isinstance(value, Tensor)]
        return top or list(tensors_in(out))
    return list(tensors_in(out))


def _edited(block: Block, edited: set[str]) -> bool:
    return any(part.name in edited for part in block.walk())


def _reached(given: list[Any]) -> set[Any]:
    """Every step of the gradient's graph that the outputs depend on."""
    seen, waiting = set(given), list(given)
    while waiting:
        for step, _ in waiting.pop().next_functions:
            if step is not None and step not in seen:
                seen.add(step)
                waiting.append(step)
    return seen
