"""A method's search as three runs in one folder: the supernet, the candidates, and the training of the best one.

    supernet/     a run of the method, whose weights the candidates share
    search.json   every candidate that was scored on the validation images, best first
    found/        a run of the best candidate within the budget, from the pre-trained weights

Each part continues after an interruption: the runs from their checkpoints, the search by repeating it with the scores
on disk, which takes no time and gives the same candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vpeft.atomic import write_json
from vpeft.errors import VpeftError
from vpeft.guarded import read_json
from vpeft.method import Evolution, Found, Method, NoSearch
from vpeft.training.batches import Samples
from vpeft.training.evaluate import evaluate
from vpeft.training.modes import evaluation_mode
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import display
from vpeft.training.recipe import MethodChoice, Recipe
from vpeft.training.result import shown
from vpeft.training.run import RunOutcome, run_recipe

RECORD = "search.json"
LONGER, SLOWER = 5, 0.5  # NOAH's supernet: 500 epochs at 5e-4, where the sub-network has 100 at 1e-3
_HELD = 2**30  # bytes of decoded validation images that are kept between candidates
_SAID_EVERY = 25  # candidates between two lines of progress


class CannotSearch(VpeftError):
    """The run lacks something that a search needs."""


@dataclass(frozen=True)
class SearchOutcome:
    """The outcome of a search; `found` is empty and `retrained` None if it was interrupted before.

    Attributes:
        supernet: the first run.
        found: all candidates, best first.
        retrained: the run of the best one.
        record: the file with the candidates.
    """

    supernet: RunOutcome
    found: tuple[Found, ...]
    retrained: RunOutcome | None
    record: Path

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it early; the same call continues it."""
        return self.retrained is None or self.retrained.state == "stopped"


def run_search(
    recipe: Recipe,
    budget: int,
    *,
    evolution: Evolution | None = None,
    supernet_epochs: int | None = None,
    supernet_lr: float | None = None,
    resume: bool = True,
    progress: bool = True,
    show: bool = True,
    trust_code: bool = False,
    allow_download: bool = False,
) -> SearchOutcome:
    """Train the supernet of `recipe.method`, search it on the validation images, and train the best candidate.

    Args:
        recipe: data, backbone, method and output folder; its optimisation is that of the best candidate.
        budget: largest number of trained parameters of a candidate, without the head.
        evolution: sizes of the search.
        supernet_epochs, supernet_lr: of the supernet; by default five times the epochs at half the learning rate.
        resume: continue an interrupted call from its files in the folder.
        progress: show progress on standard error.
        show: print the plans.

    Raises:
        NoSearch: the method offers no search.
        CannotSearch: no output folder, further methods, or no validation images.
        VpeftError: an error of the runs.
    """
    evolution = evolution or Evolution()
    method, out = recipe.method.build(), recipe.out
    if type(method).search is Method.search:
        raise NoSearch(f"{method.name} offers no search; these do: {', '.join(searchable())}.")
    if out is None:
        raise CannotSearch("A search writes two runs and a record. Name a folder for them (`out`).")
    if recipe.also:
        raise CannotSearch("A search takes one method. Leave out the further ones.")
    stated = recipe.optimisation
    longer = {
        "epochs": supernet_epochs if supernet_epochs is not None else LONGER * stated.epochs,
        "lr": supernet_lr if supernet_lr is not None else SLOWER * stated.lr,
    }
    slow = Optimisation.model_validate({**stated.model_dump(), **longer})
    first = recipe.model_copy(update={"out": out / "supernet", "optimisation": slow})
    supernet = run_recipe(
        first,
        resume=resume,
        progress=progress,
        show=show,
        test=False,
        trust_code=trust_code,
        allow_download=allow_download,
    )
    if supernet.state == "stopped":
        return SearchOutcome(supernet, (), None, out / RECORD)
    if supernet.data.val is None:
        raise CannotSearch(
            "A search compares candidates on validation images, and there are none. Set data.val_fraction."
        )
    tuned, task = supernet.tuned, supernet.task
    validation = _held(task.dataset(supernet.data.val, False))
    direction = 1.0 if task.leading.higher_is_better else -1.0
    notes = _Notes(out / RECORD, _identity(supernet), resume, display(progress).say)

    def score(candidate: Method) -> float:
        return direction * evaluate(tuned, validation, task=task, batch=stated.batch).value

    with evaluation_mode(tuned):
        found = method.search(tuned, notes.remembering(score), budget, evolution, recipe.seed)
    notes.write(found, budget, evolution)
    best = MethodChoice(name=method.name, fields=found[0].method.model_dump(mode="json"))
    second = recipe.model_copy(update={"out": out / "found", "method": best})
    retrained = run_recipe(
        second, resume=resume, progress=progress, show=show, trust_code=trust_code, allow_download=allow_download
    )
    return SearchOutcome(supernet, tuple(found), retrained, out / RECORD)


def searchable() -> list[str]:
    """Return the names of the methods that offer a search."""
    from vpeft.methods import all_methods

    return [name for name, kind in all_methods().items() if kind.search is not Method.search]


class BadNotes(VpeftError):
    """What a search has written down cannot be read."""


class _Notes:
    """The known scores, which are written to disk after each new one."""

    def __init__(self, path: Path, identity: str, resume: bool, say: Callable[[str], None]) -> None:
        self.path, self.identity, self.say = path, identity, say
        self.known: dict[str, float] = {}
        self.best = float("-inf")
        if resume and path.exists():
            stored = read_json(path, f"The search's notes {path}", BadNotes)
            try:
                if stored["supernet"] == identity:  # scores of other weights or images say nothing
                    self.known = {_key(one["method"]): float(one["score"]) for one in stored["candidates"]}
            except (KeyError, TypeError, ValueError, AttributeError):
                raise BadNotes(f"The search's notes {path} are damaged. Delete the file to score again.") from None
            if self.known:
                say(f"search: {len(self.known)} candidates are scored already")

    def remembering(self, score: Callable[[Method], float]) -> Callable[[Method], float]:
        """Return `score` with a cache of known scores."""

        def scored(candidate: Method) -> float:
            key = _key(candidate.model_dump(mode="json"))
            if key not in self.known:
                self.known[key] = score(candidate)
                self._save([{"method": json.loads(one), "score": value} for one, value in self.known.items()])
                if self.known[key] > self.best or len(self.known) % _SAID_EVERY == 0:
                    self.best = max(self.best, self.known[key])
                    self.say(f"search: {len(self.known)} candidates scored, the best {shown(self.best)}")
            self.best = max(self.best, self.known[key])
            return self.known[key]

        return scored

    def write(self, found: list[Found], budget: int, evolution: Evolution) -> None:
        """Write the record of the whole search."""
        listed = [
            {"method": one.method.model_dump(mode="json"), "parameters": one.parameters, "score": one.score}
            for one in found
        ]
        self._save(listed, budget=budget, evolution=evolution.model_dump())

    def _save(self, candidates: list[dict[str, Any]], **facts: Any) -> None:
        write_json(self.path, {"format": 1, "supernet": self.identity, **facts, "candidates": candidates})


def _key(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def _identity(supernet: RunOutcome) -> str:
    """Return the facts that the scores depend on: the supernet's weights and the images."""
    digest = hashlib.sha256(supernet.data.manifest.digest.encode())
    for name, tensor in sorted(supernet.tuned.adapter_state().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _held(images: Samples) -> Samples:
    """Return the images decoded once for all candidates, if they fit into memory."""
    first, _ = images[0]
    size = first.numel() * first.element_size() * len(images)
    return images if size > _HELD else _InMemory([images[index] for index in range(len(images))])


class _InMemory(list[tuple[Tensor, int]]):
    """Decoded images and their labels."""
