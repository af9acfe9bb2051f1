"""`vpeft train`: train from recipe files, flags, or both; flags override files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from vpeft.backbones.own_code import OWN_CODE
from vpeft.cli import show
from vpeft.cli.failure import DONE, INTERRUPTED, MISTAKE, say_warning
from vpeft.cli.flags import Switch, with_flags
from vpeft.cli.recipe_flags import recipe_flags, recipe_from, recipes_from
from vpeft.errors import VpeftError
from vpeft.interop.tracker import Tracked, tracker
from vpeft.training.processes import launched
from vpeft.training.recipe import Recipe
from vpeft.training.run import RunOutcome, run_recipe
from vpeft.training.runs import run_recipes


class OneRunAtATime(VpeftError):
    """A flag is for one run, and several were asked for."""


def _train(
    *recipes: Path,
    resume: bool = True,
    json: Switch = False,
    trust_code: Switch = False,
    allow_download: Switch = False,
    track: str | None = None,
    given: dict[str, Any],
) -> int:
    """Adapt a backbone to your images; writes one small adapter file and the record of the run.

    vpeft train --data photos/ --backbone pocket_vit --method lora --epochs 20 --out runs/a

    After an interruption, the same command continues where it stopped.

    vpeft train probe.toml lora.toml side.toml --out runs

    `--help-all` shows every setting, `vpeft methods lora` and `vpeft tasks regression` those of one method or task.

    torchrun --nproc-per-node 4 -m vpeft train lora.toml --out runs/b

    One run on several devices: each process computes its share of every batch. See docs/many_devices.md.

    Several recipes make several runs, each with the numbers and files of a single run, here in `runs/probe`,
    `runs/lora` and `runs/side`. Runs that read the same images in the same way share one pass over them, and frozen
    parts that they share are computed once. If a run fails, the others go on, and the exit code is 1.

    Parameters
    ----------
    recipes:
        TOML files with any of the settings below; flags override them. With several files, `--out FOLDER` means
        `FOLDER/NAME` for each.
    resume:
        Continue an interrupted run from the folder; otherwise start again.
    json:
        Print the scores as JSON instead of sentences: a list if there are several recipes.
    trust_code:
        Run the code of a backbone py:FILE.py:NAME that a recipe file names.
    allow_download:
        Download a backbone hf:ID that a recipe file names.
    track:
        Also hand the numbers of each epoch to tensorboard, wandb, mlflow or trackio, which write into `OUT/track`.
    """
    if len(recipes) > 1:
        if track is not None:
            raise OneRunAtATime("--track is for one recipe. Give the recipes one by one.")
        return _several(recipes, resume, json, trust_code, allow_download, given)
    recipe = recipe_from(recipes[0] if recipes else None, given)
    main = launched()[0] == 0  # of the processes of one run, the first one talks
    tracked = None if track is None or not main else _tracked(recipe, track)
    outcome = run_recipe(
        recipe,
        resume=resume,
        show=not json,
        trust_code=trust_code,
        allow_download=allow_download,
        after_epoch=tracked,
    )
    if tracked is not None:
        tracked.finish({} if outcome.test is None else outcome.test.values, len(outcome.result.history))
    if not main:
        return INTERRUPTED if outcome.state == "stopped" else DONE
    if outcome.state == "stopped":
        say_warning(f"{outcome.result.reason or 'stopped'}. Give the same command again to go on.")
        return INTERRUPTED
    if json:
        show.as_json(summary(outcome))
    else:
        show.console().print(Text("\n".join(_sentences(outcome))))
    return 0


def _tracked(recipe: Recipe, kind: str) -> Tracked:
    """The tracker of one run, in the folder `track` of the run's folder."""
    folder = (recipe.out or Path()) / "track"
    facts = {"method": recipe.method.name, **recipe.method.fields, "backbone": recipe.backbone}
    return Tracked(tracker(kind, folder, (recipe.out or Path("vpeft")).name), facts)


def _several(
    files: Sequence[Path], resume: bool, json: bool, trust_code: bool, allow_download: bool, given: dict[str, Any]
) -> int:
    names, recipes = recipes_from(files, given)
    outcomes = run_recipes(
        recipes,
        names=names,
        resume=resume,
        show=not json,
        trust_code=trust_code,
        allow_download=allow_download,
    )
    if json:
        show.as_json(
            [
                {"recipe": str(file), "state": one.state, "reason": one.result.reason, **summary(one)}
                for file, one in zip(files, outcomes, strict=True)
            ]
        )
    for name, one in zip(names, outcomes, strict=True):
        if one.state == "done" and not json:
            show.console().print(Text("\n  ".join([f"{name}:", *_sentences(one)])))
        elif one.state != "done":
            say_warning(f"{name}: {one.state}: {one.result.reason}")
    states = {one.state for one in outcomes}
    if "stopped" in states:
        say_warning("Give the same command again to go on.")
        return INTERRUPTED
    return MISTAKE if "failed" in states else DONE


def summary(outcome: RunOutcome) -> dict[str, Any]:
    """Return the figures of a run: scores, parameters, time and files."""
    plan = outcome.tuned.plan()
    return {
        "method": outcome.recipe.method.name,
        "backbone": outcome.recipe.backbone,
        "task": outcome.task.name,
        "metric": outcome.task.leading.name,
        **{
            f"{split}_{name}": value
            for split, scores in (("val", outcome.result.val), ("test", outcome.test))
            if scores is not None
            for name, value in scores.values.items()
        },
        "trainable": plan.trainable,
        "trainable_with_head": plan.trainable_with_head,
        "share": plan.share,
        "epochs": len(outcome.result.history),
        "seconds": round(outcome.result.seconds, 3),
        "adapter": str(outcome.adapter) if outcome.adapter else None,
        "adapter_bytes": outcome.adapter.stat().st_size if outcome.adapter else None,
        "record": str(outcome.record) if outcome.record else None,
    }


def _sentences(outcome: RunOutcome) -> list[str]:
    scores = [
        f"{name} {given.sentence()}"
        for name, given in (("validation", outcome.result.val), ("test", outcome.test))
        if given is not None
    ]
    lines = [", ".join(scores) if scores else "no images were held out, so there is no score"]
    if outcome.adapter is not None:
        size = outcome.adapter.stat().st_size / 1e6
        lines.append(f"adapter: {outcome.adapter} ({size:.2f} MB); record: {outcome.record}")
        name = outcome.recipe.backbone
        named = f" --backbone {name}" if name.startswith(OWN_CODE) else ""
        given = "IMAGES" if outcome.preprocessing.clip is None else "VIDEOS"
        lines.append(f"use it: vpeft predict {outcome.adapter} {given}{named}")
    return lines


train = with_flags(_train, recipe_flags())
