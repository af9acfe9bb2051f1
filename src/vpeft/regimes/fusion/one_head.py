"""The heads of several classifiers as one head over all classes, for images of which nobody says the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vpeft.heads.linear import LinearHead
from vpeft.regimes.fusion.sources import CannotFuse, Source
from vpeft.tasks.classification import Classification


def joined_heads(sources: Sequence[Source]) -> tuple[nn.Module, Classification]:
    """One linear head whose outputs are those of all heads, one behind the other, and its task.

    Raises:
        CannotFuse: a head is not linear, a task does not tell classes apart, or two tasks share the name of a class.
    """
    first: dict[str, str] = {}
    for source in sources:
        if not isinstance(source.head, nn.Linear) or not isinstance(source.task, Classification):
            raise CannotFuse(
                f"One head over all classes is for classifiers with linear heads; {source.name!r} is of the task"
                f" {source.task.name} with the head {type(source.head).__name__}. Keep a head for each task."
            )
        shared = [label for label in source.task.labels if label in first]
        if shared:
            raise CannotFuse(
                f"{source.name!r} and {first[shared[0]]!r} both have the class {shared[0]!r}"
                f"{f' and {len(shared) - 1} more' if len(shared) > 1 else ''}, so one head could not tell whose it is."
                " Rename the classes, or keep a head for each task."
            )
        first |= dict.fromkeys(source.task.labels, source.name)
    linear = [source.head for source in sources if isinstance(source.head, nn.Linear)]
    head = LinearHead(linear[0].in_features, sum(one.out_features for one in linear))
    with torch.no_grad():
        head.weight.copy_(torch.cat([one.weight for one in linear]))
        head.bias.copy_(
            torch.cat([one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in linear])
        )
    return head, Classification(labels=tuple(first))
