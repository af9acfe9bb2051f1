"""`vpeft search METHOD`: supernet, search and final training in one command, for a method that offers a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import Group
from pydantic import ValidationError
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.failure import INTERRUPTED, say_warning
from vpeft.cli.flags import Switch, flags_of, mistakes, nested, with_flags
from vpeft.cli.recipe_flags import recipe_flags, recipe_from
from vpeft.cli.train import summary
from vpeft.method import Evolution
from vpeft.methods import get
from vpeft.training.search import SearchOutcome, run_search

_EVOLUTION = tuple(flags_of(Evolution, group=Group("The search", sort_key=5), path=("evolution",)))


def _search(
    method: str,
    /,
    *,
    budget: int,
    recipe: Path | None = None,
    supernet_epochs: int | None = None,
    supernet_lr: float | None = None,
    resume: bool = True,
    json: Switch = False,
    trust_code: Switch = False,
    allow_download: Switch = False,
    given: dict[str, Any],
) -> int:
    """Train a method's supernet, search it under a parameter budget, and train the best candidate.

    vpeft search noah --data pocket/count --budget 300000 --out runs/noah

    Candidates are compared on the validation images; the best one is evaluated once on the test images. After an
    interruption, the same command continues where it stopped.

    Parameters
    ----------
    method:
        A method that offers a search.
    budget:
        Largest number of trained parameters of a candidate, without the head.
    recipe:
        A TOML file with any of the settings below; flags override it.
    supernet_epochs:
        Epochs of the supernet; by default five times those of the final training.
    supernet_lr:
        Learning rate of the supernet; by default half of `--lr`.
    resume:
        Continue an interrupted search from the folder; otherwise start again.
    json:
        Print the figures as JSON instead of sentences.
    trust_code:
        Run the code of a backbone py:FILE.py:NAME that a recipe file names.
    allow_download:
        Download a backbone hf:ID that a recipe file names.
    """
    get(method)  # so that a mistyped name is said first
    stated = {"backbone": "pocket_vit"} if recipe is None else {}
    try:
        evolution = Evolution.model_validate(nested(_EVOLUTION, given).get("evolution", {}))
    except ValidationError as error:
        raise mistakes(error, _EVOLUTION) from None
    outcome = run_search(
        recipe_from(recipe, {**stated, **given, "method": method}),
        budget,
        evolution=evolution,
        supernet_epochs=supernet_epochs,
        supernet_lr=supernet_lr,
        resume=resume,
        trust_code=trust_code,
        allow_download=allow_download,
        show=False,
    )
    if outcome.stopped:
        say_warning("stopped. Run the same command again to continue.")
        return INTERRUPTED
    if json:
        show.as_json(_figures(outcome))
    else:
        show.console().print(Text(_sentences(outcome)))
    return 0


def _figures(outcome: SearchOutcome) -> dict[str, Any]:
    best = outcome.found[0]
    assert outcome.retrained is not None
    return {
        "candidates": len(outcome.found),
        "best": best.method.model_dump(mode="json"),
        "parameters": best.parameters,
        "inherited_score": best.score,
        "search": str(outcome.record),
        **summary(outcome.retrained),
    }


def _sentences(outcome: SearchOutcome) -> str:
    figures = _figures(outcome)
    retrained = outcome.retrained
    assert retrained is not None
    scores = [
        f"{split} {given.sentence()}"
        for split, given in (("validation", retrained.result.val), ("test", retrained.test))
        if given is not None
    ]
    return (
        f"{figures['candidates']} candidates were scored; the best has {figures['parameters']:,} parameters and"
        f" scores {figures['inherited_score']:.4g} on the validation images with the supernet's weights.\n"
        f"{outcome.found[0].method!r}\n"
        f"Trained from the pre-trained weights: {', '.join(scores)}.\n"
        f"adapter: {figures['adapter']}; record: {figures['record']}; candidates: {figures['search']}"
    )


search = with_flags(
    _search, (*_EVOLUTION, *(flag for flag in recipe_flags() if flag.path not in (("method",), ("also",))))
)
