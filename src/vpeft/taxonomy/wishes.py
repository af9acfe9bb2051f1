"""Queries such as "merges, no latency, under 0.5 % parameters, good on structured".

A query is wishes with commas (or `and`) between them; a method must fit all. A wish is one of

    WORD                                     what holds of it: merges, latency, tokens ... (`WORDS`), or a family
    no WORD (not, without)                   the contrary
    under | at most | over | at least NUMBER [% | K | M] parameters | memory
                                             `%` of parameters: of the backbone's; of memory: of full fine-tuning's
    good on NAME                             in the upper third on a task or group of tasks that it was measured on
    since YEAR | before YEAR                 when it was published
    like METHOD                              near that one by the pattern of its edits

Words such as `is`, `has`, `adds` may stand before WORD. Each wish but `good on` and `like` is a filter of
`vpeft methods --where`, and is shown as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from vpeft.errors import VpeftError, nearest
from vpeft.method import Category, Family

from .neighbours import NEAR, likeness
from .properties import Properties
from .results import Results, Standing
from .where import Filter

WORDS: dict[str, tuple[str, str]] = {
    "merges": ("mergeable", "folds into the weights"),
    "mergeable": ("mergeable", "folds into the weights"),
    "latency": ("latency", "adds work at inference"),
    "identity": ("identity", "starts as the frozen backbone"),
    "modules": ("adds_modules", "has layers of its own"),
    "structure": ("keeps_structure", "leaves the way through the blocks as it is"),
    "gradients": ("reach != 'none'", "has gradients in the frozen backbone"),
    "tokens": ("'insert_tokens' in verbs", "adds tokens"),
    "sharing": ("shares", "has tensors that serve several places"),
    "data": ("reads_data", "looks at images before it trains"),
    "attention": ("'attn' in places", "acts at attention"),
    "mlp": ("'mlp' in places", "acts at the MLP"),
    "norms": ("'norm' in places", "acts at norms"),
    "pixels": ("'pixels' in places", "acts on the image"),
}
_FAMILIES: dict[str, str] = {
    **{name: f"category == '{name}'" for name in get_args(Category)},
    **{name: f"family == '{name}'" for name in get_args(Family)},
}
_NO = ("no", "not", "without")
_SILENT = frozenset(
    ["is", "are", "a", "an", "the", "has", "with", "adds", "keeps", "needs", "acts", "at", "on", "starts", "as", "does"]
)
_LIMIT = re.compile(
    r"(?P<side>under|below|less than|at most|over|above|more than|at least)\s+(?P<number>[\d.,]+)\s*(?P<unit>%|[km])?"
    r"\s*(?:of\s+)?(?P<what>parameters|memory)"
)
_SIGNS = {
    "under": "<",
    "below": "<",
    "less than": "<",
    "at most": "<=",
    "over": ">",
    "above": ">",
    "more than": ">",
    "at least": ">=",
}
_UNITS = {"%": 0.01, "k": 1e3, "m": 1e6, None: 1.0}
_LONGEST = 500


class BadWish(VpeftError):
    """A query with a part that is no wish."""


@dataclass(frozen=True)
class Wish:
    """One part of a query.

    Attributes:
        text: as it was asked.
        filter: the same for `--where`, or None where that has no such thing.
        fits: whether a method fits; None where that is not known, since it was never measured there.
        on: for `good on`: the task or group.
    """

    text: str
    filter: str | None
    fits: Callable[[Properties], bool | None]
    on: str | None = None


@dataclass(frozen=True)
class Fit:
    """A method and how it does on each task or group that the query names."""

    properties: Properties
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a query finds.

    Attributes:
        fits: the methods that fit all wishes; by rank where the query has `good on`, else by trained parameters.
        unmeasured: those that fit all but were never measured where the query says `good on`.
        missing: where none fits: method -> the only wish that it misses.
    """

    fits: tuple[Fit, ...]
    unmeasured: tuple[str, ...]
    missing: dict[str, str]


class Query:
    """A query over methods.

    Args:
        text: the wishes.
        known: the properties of the methods that `like METHOD` may name.
        results: what `good on NAME` reads.

    Raises:
        BadWish: a part is no wish; it lists those that exist.
    """

    def __init__(self, text: str, known: Sequence[Properties], results: Results) -> None:
        if len(text) > _LONGEST:
            raise BadWish(f"The query has {len(text):,} characters; {_LONGEST} are the most.")
        self._known, self._results = {one.name: one for one in known}, results
        parts = [part.strip() for part in re.split(r",(?!\d)|;|\band\b", text.lower())]
        self.wishes = tuple(self._wish(part) for part in parts if part)
        if not self.wishes:
            raise BadWish(f"The query is empty. {self._grammar()}")

    @property
    def on(self) -> tuple[str, ...]:
        """The tasks and groups that are named by `good on`."""
        return tuple(wish.on for wish in self.wishes if wish.on is not None)

    def __call__(self, methods: Iterable[Properties]) -> Answer:
        """The methods that fit."""
        fits, unmeasured, missing = list[Fit](), list[str](), dict[str, str]()
        for one in methods:
            said = [wish.fits(one) for wish in self.wishes]
            failed = [wish.text for wish, answer in zip(self.wishes, said, strict=True) if answer is False]
            if not failed and None not in said:
                found = (self._results.standing(one.name, name) for name in self.on)
                fits.append(Fit(one, tuple(standing for standing in found if standing is not None)))
            elif not failed:
                unmeasured.append(one.name)
            elif len(failed) == 1 and None not in said:
                missing[one.name] = failed[0]
        fits.sort(key=lambda fit: (sum(s.rank / s.among for s in fit.standings), fit.properties.parameters))
        return Answer(tuple(fits), tuple(unmeasured), {} if fits else missing)

    def _wish(self, text: str) -> Wish:
        if found := _LIMIT.fullmatch(text):
            return self._filtered(text, _limit(found))
        first, _, rest = text.partition(" ")
        if first in ("since", "before") and rest.strip().isdigit():
            return self._filtered(text, f"year {'>=' if first == 'since' else '<'} {rest.strip()} and year > 0")
        if first in ("like", "near"):
            return self._alike(text, rest.strip())
        if first == "good":
            return self._good(text, rest.removeprefix("on ").removeprefix("at ").strip())
        words, contrary = text.split(), False
        while words and words[0] in (*_NO, *_SILENT):
            contrary ^= words.pop(0) in _NO
        word = " ".join(words)
        known = {**{name: one for name, (one, _) in WORDS.items()}, **_FAMILIES}
        name = next((form for form in (word, word.removesuffix("s"), f"{word}s") if form in known), None)
        if name is None:
            raise BadWish(f"The query does not know {text!r}. {nearest(word, known)} {self._grammar()}")
        if not contrary:
            return self._filtered(text, known[name])
        simple = re.fullmatch(r"\w+", known[name]) is not None
        return self._filtered(text, f"not {known[name]}" if simple else f"not ({known[name]})")

    def _filtered(self, text: str, expression: str) -> Wish:
        passes = Filter(expression, asdict(next(iter(self._known.values()))))
        return Wish(text, expression, lambda one: passes(asdict(one)))

    def _alike(self, text: str, name: str) -> Wish:
        name = name.replace("-", "_")
        if name not in self._known:
            raise BadWish(f"There is no method {name!r} that {text!r} could mean. {nearest(name, self._known)}")
        other = self._known[name]
        return Wish(text, None, lambda one: one.name != name and likeness(one, other) >= NEAR)

    def _good(self, text: str, name: str) -> Wish:
        results = self._results
        names = {one.lower(): one for one in results.names}
        if name not in names:
            there = ", ".join(results.names) or "none, as no results are at hand"
            raise BadWish(f"Nothing was measured on {name!r}, which {text!r} asks for. There are results on: {there}.")

        def good(one: Properties) -> bool | None:
            standing = results.standing(one.name, names[name])
            return None if standing is None else standing.good

        return Wish(text, None, good, on=names[name])

    def _grammar(self) -> str:
        words = ", ".join(dict.fromkeys([*WORDS, *_FAMILIES]))
        measured = ", ".join(self._results.names) or "no results are at hand"
        return (
            f"Wishes stand with commas between them. Words, also with `no` before them: {words}. Besides:"
            ' "under 0.5 % parameters", "at most 1M parameters", "under 50 % memory", "since 2023", "before 2023",'
            f' "like lora", and "good on NAME" ({measured}).'
        )


def _limit(found: re.Match[str]) -> str:
    """The filter of a limit; a share where the unit is %, else a number."""
    try:
        value = float(found["number"].replace(",", "")) * _UNITS[found["unit"]]
    except ValueError:
        raise BadWish(f"{found['number']!r} in {found[0]!r} is not a number. Write 0.5, or 1,000.") from None
    field = "memory" if found["what"] == "memory" else "share" if found["unit"] == "%" else "parameters"
    return f"{field} {_SIGNS[found['side']]} {value:.10g}"
