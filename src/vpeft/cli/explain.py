"""`vpeft explain METHOD --backbone B`: the plan of a method on a backbone, made without weights or memory for them."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from cyclopts import Parameter

from vpeft.backbones.create import create_backbone
from vpeft.cli import show
from vpeft.cli.flags import Switch, with_flags
from vpeft.cli.method_flags import all_method_flags, chosen_fields
from vpeft.injection.tune import tune
from vpeft.methods import get


def _explain(
    method: str,
    /,
    *,
    backbone: Annotated[str, Parameter(alias="-b")] = "pocket_vit",
    classes: int = 1000,
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Show what a method does to a backbone: each place, layer, shape and parameter count, without weights.

    Parameters
    ----------
    method:
        A name from `vpeft methods`.
    backbone:
        A name from `vpeft backbones`.
    classes:
        Number of classes of the head.
    json:
        Print JSON instead of a table.
    """
    kind = get(method)
    configured = kind(**chosen_fields(method, given))
    with torch.device("meta"):
        tuned = tune(
            create_backbone(backbone, pretrained=False), configured, num_classes=classes, verify=False, show=False
        )
    plan = tuned.plan()
    if json:
        show.as_json({"method": {"name": method, **configured.model_dump(mode="json")}, **plan.as_dict()})
    else:
        show.console().print(plan)


explain = with_flags(_explain, all_method_flags())
explain.__name__ = "explain"
