"""`vpeft train`: a recipe file, flags, or both; the flags go first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from vpeft.backbones.own_code import OWN_CODE
from vpeft.cli import show
from vpeft.cli.failure import INTERRUPTED, say_warning
from vpeft.cli.flags import Switch, with_flags
from vpeft.cli.recipe_flags import recipe_flags, recipe_from
from vpeft.training.run import RunOutcome, run_recipe


def _train(recipe: Path | None = None, /, *, resume: bool = True, json: Switch = False, given: dict[str, Any]) -> int:
    """Adapt a backbone to labelled images; leaves one small adapter file and the record of the run.

    vpeft train --data photos/ --backbone pocket_vit --method lora --epochs 20 --out runs/a

    Called again after an interruption, the same command goes on where it was.

    Parameters
    ----------
    recipe:
        A TOML file with any of the settings below; a flag goes before what the file says.
    resume:
        Go on with what an interrupted run left in the folder; otherwise start afresh.
    json:
        Print the scores as JSON instead of sentences.
    """
    outcome = run_recipe(recipe_from(recipe, given), resume=resume, show=not json)
    if outcome.state == "stopped":
        say_warning(f"{outcome.result.reason or 'stopped'}. Give the same command again to go on.")
        return INTERRUPTED
    if json:
        show.as_json(summary(outcome))
    else:
        show.console().print(Text("\n".join(_sentences(outcome))))
    return 0


def summary(outcome: RunOutcome) -> dict[str, Any]:
    """The figures of a finished run: scores, parameters, time and files."""
    plan = outcome.tuned.plan()
    return {
        "method": outcome.recipe.method.name,
        "backbone": outcome.recipe.backbone,
        "val_top1": outcome.result.val.top1 if outcome.result.val else None,
        "test_top1": outcome.test.top1 if outcome.test else None,
        "test_mean_per_class": outcome.test.mean_per_class if outcome.test else None,
        "trainable": plan.trainable,
        "trainable_with_head": plan.trainable_with_head,
        "share": plan.share,
        "epochs": len(outcome.result.history),
        "seconds": round(outcome.result.seconds, 3),
        "adapter": str(outcome.adapter),
        "adapter_bytes": outcome.adapter.stat().st_size if outcome.adapter else None,
        "record": str(outcome.record),
    }


def _sentences(outcome: RunOutcome) -> list[str]:
    scores = [
        f"{name} {given.top1:.2%} of {given.count} images"
        for name, given in (("validation", outcome.result.val), ("test", outcome.test))
        if given is not None
    ]
    lines = [f"right: {', '.join(scores)}" if scores else "no images were held out, so there is no score"]
    if outcome.adapter is not None:
        size = outcome.adapter.stat().st_size / 1e6
        lines.append(f"adapter: {outcome.adapter} ({size:.2f} MB); record: {outcome.record}")
        name = outcome.recipe.backbone
        named = f" --backbone {name}" if name.startswith(OWN_CODE) else ""
        lines.append(f"use it: vpeft predict {outcome.adapter} IMAGES{named}")
    return lines


train = with_flags(_train, recipe_flags())
