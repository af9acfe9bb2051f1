"""What a search may try: keys of a recipe, each with a range or a list of values.

    lr=log(1e-4, 1e-1)          a number between these two, even in its logarithm
    warmup=uniform(0, 0.3)      a number between these two
    method.rank=int(1, 16)      a whole number; both ends are tried
    method=choice(lora, ssf)    one of these values

A key is a dotted key of the recipe (`optimisation.lr`, `method.rank`, `task.label_smoothing`); its last part is enough
where only one key ends so. A third number in the brackets is how many points a grid has there.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from vpeft.errors import VpeftError, nearest
from vpeft.guarded import short
from vpeft.method_spec import BadMethodSpec, parse_values, text_of_value
from vpeft.training.recipe import BadRecipe, Recipe

_FORM = re.compile(r"\s*(?P<key>[A-Za-z_][\w.\-]*)\s*=\s*(?P<kind>[A-Za-z_]+)\s*\((?P<values>.*)\)\s*", re.DOTALL)
# What no search may choose, and why.
_REFUSED = {
    "out": "each trial has its own folder in that of the search",
    "optimisation.seed": "a seed that is chosen by its score is luck; compare seeds after the search",
    "data.seed": "it moves samples between training and validation, so scores could not be compared",
    "data.source": "scores on other data could not be compared",
}
# Points of a grid beyond which nobody waits for its end.
_MOST_POINTS = 10_000


class BadSpace(VpeftError):
    """A search space that cannot be read, names no key of the recipe, or holds values that the recipe refuses."""


class Range(ABC):
    """The values that one key may take."""

    @abstractmethod
    def grid(self) -> tuple[Any, ...]:
        """Return all values of a grid, in order. Raises `BadSpace` where their number is not stated."""

    @abstractmethod
    def draw(self, random: Random) -> Any:
        """Return a random value."""

    @abstractmethod
    def extremes(self) -> tuple[Any, ...]:
        """Return the values by which the range is checked against the recipe: both ends, or every choice."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the text that gives this range."""


@dataclass(frozen=True)
class Choice(Range):
    """One of several values, which have no order."""

    options: tuple[Any, ...]

    def grid(self) -> tuple[Any, ...]:
        return self.options

    def draw(self, random: Random) -> Any:
        return self.options[random.randrange(len(self.options))]

    def extremes(self) -> tuple[Any, ...]:
        return self.options

    def __str__(self) -> str:
        return f"choice({', '.join(map(text_of_value, self.options))})"


@dataclass(frozen=True)
class Number(Range):
    """A number between two others, both included: even in the number itself, or (`log`) in its logarithm.

    Attributes:
        low, high: the ends.
        log: whether it is even in its logarithm.
        whole: whether it is a whole number.
        points: of a grid; None for all whole numbers, and not stated for others.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    points: int | None = None

    def grid(self) -> tuple[Any, ...]:
        if self.points is None:
            if not self.whole:
                raise BadSpace(
                    f"A grid needs to know how many points {self} has. State it as the third number, for instance"
                    f" {self._text((self.low, self.high, 4))}, or search by random or optuna."
                )
            return tuple(range(int(self.low), int(self.high) + 1))
        spread = (self._at(place / (self.points - 1)) for place in range(self.points))
        return tuple(dict.fromkeys(spread))  # whole numbers that are rounded may meet

    def draw(self, random: Random) -> Any:
        if self.whole:
            return random.randint(int(self.low), int(self.high))
        return self._at(random.random())

    def extremes(self) -> tuple[Any, ...]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def _at(self, share: float) -> float | int:
        """The number at a share of the way from the low end to the high one."""
        if share in (0, 1):  # exactly the end that was stated
            found = self.high if share else self.low
        elif self.log:
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        # Rounding must not lead out of the range.
        found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found

    def _text(self, values: Sequence[float]) -> str:
        kind = "int" if self.whole else "log" if self.log else "uniform"
        return f"{kind}({', '.join(f'{value:g}' if value == float(f'{value:g}') else repr(value) for value in values)})"

    def __str__(self) -> str:
        return self._text((self.low, self.high, *(() if self.points is None else (self.points,))))


@dataclass(frozen=True)
class Space:
    """The keys of a search with their ranges, in the order in which they were given."""

    ranges: tuple[tuple[str, Range], ...]

    @classmethod
    def parse(cls, texts: Sequence[str], recipe: Recipe) -> Space:
        """Return the space that `texts` state, one key each.

        Raises:
            BadSpace: a text is not `key=kind(...)`, a key does not exist or stands there twice, a range is empty, or
                the recipe refuses one of its ends; the message says which and why.
        """
        if not texts:
            raise BadSpace("There is nothing to search. State keys with ranges, for instance: lr=log(1e-4, 1e-1)")
        known = recipe.keys()
        ranges: dict[str, Range] = {}
        for text in texts:
            match = _FORM.fullmatch(text)
            if match is None:
                raise BadSpace(
                    f"{short(text.strip(), 99)} is no key with a range. Write for instance lr=log(1e-4, 1e-1),"
                    " method.rank=int(1, 16) or batch=choice(16, 32)."
                )
            key = _full_key(match["key"].replace("-", "_"), known)
            if key in ranges:
                raise BadSpace(f"{key} stands in the space twice. State one range for it.")
            ranges[key] = _range(match["kind"].lower(), match["values"], text.strip())
        whole = next((key for key in ("method", "task") if key in ranges), None)
        inside = next((key for key in ranges if whole and key.startswith(f"{whole}.")), None)
        if inside is not None:
            raise BadSpace(
                f"The space has both {whole} and {inside}, which not every {whole} may have. Write the settings into"
                f" the choices, for instance {whole}=choice(a, b(rank=4), b(rank=8))."
            )
        space = cls(tuple(ranges.items()))
        space._must_fit(recipe)
        return space

    def _must_fit(self, recipe: Recipe) -> None:
        """Raise `BadSpace` where the recipe refuses a value at the end of a range."""
        for key, values in self.ranges:
            for value in values.extremes():
                try:
                    recipe.changed({key: value})
                except BadRecipe as error:
                    said = str(error).partition("\n")[2].strip() or str(error)
                    raise BadSpace(f"{key}={values} goes to {value!r}, which the recipe refuses: {said}") from None

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination; the last key changes fastest. Raises `BadSpace` for endless or huge ones."""
        axes = [values.grid() for _, values in self.ranges]
        count = math.prod(map(len, axes))
        if count > _MOST_POINTS:
            raise BadSpace(
                f"The grid has {count:,} points. State fewer (at most {_MOST_POINTS:,}), or search by random."
            )
        names = [key for key, _ in self.ranges]
        return [dict(zip(names, point, strict=True)) for point in itertools.product(*axes)]

    def draw(self, seed: int, number: int) -> dict[str, Any]:
        """Return random values, a function of the seed and the number of the trial."""
        random = Random(f"{seed} {number}")
        return {key: values.draw(random) for key, values in self.ranges}

    def stated(self) -> dict[str, str]:
        """Return the space as text by key, for records."""
        return {key: str(values) for key, values in self.ranges}


def _full_key(key: str, known: Sequence[str]) -> str:
    """The dotted key that `key` means. Raises `BadSpace`."""
    full = [key] if key in known else [one for one in known if one.rpartition(".")[2] == key]
    if not full:
        ends = {one.rpartition(".")[2] for one in known}
        raise BadSpace(f"The recipe has no key {short(key)}. {nearest(key, {*known, *ends})}")
    if len(full) > 1:
        raise BadSpace(f"{key} is {' or '.join(full)}. Write the whole key.")
    if full[0] in _REFUSED:
        raise BadSpace(f"{full[0]} cannot be searched: {_REFUSED[full[0]]}.")
    return full[0]


def _range(kind: str, inside: str, text: str) -> Range:
    try:
        values = parse_values(inside)
    except BadMethodSpec as error:
        raise BadSpace(f"{short(text, 99)}: {error}") from None
    if kind == "choice":
        if not values:
            raise BadSpace(f"{short(text, 99)} has no values to choose from.")
        repeated = [value for place, value in enumerate(values) if value in values[:place]]
        if repeated:
            raise BadSpace(f"{short(text, 99)} has {repeated[0]!r} twice.")
        return Choice(tuple(values))
    if kind not in ("log", "uniform", "int"):
        raise BadSpace(
            f"There is no range {kind!r} ({short(text, 99)}). {nearest(kind, ('log', 'uniform', 'int', 'choice'))}"
        )
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) != len(values) or len(values) not in (2, 3) or not all(map(math.isfinite, numbers)):
        raise BadSpace(f"{short(text, 99)}: {kind} takes two numbers, low and high, and perhaps the points of a grid.")
    low, high = numbers[:2]
    if low >= high:
        raise BadSpace(f"{short(text, 99)}: {low:g} is not below {high:g}.")
    if kind == "log" and low <= 0:
        raise BadSpace(f"{short(text, 99)}: a logarithm needs numbers above 0. Use uniform, or begin above 0.")
    if kind == "int" and not all(float(number).is_integer() for number in (low, high)):
        raise BadSpace(f"{short(text, 99)}: int takes whole numbers.")
    points = numbers[2] if len(numbers) == 3 else None
    if points is not None and (not isinstance(points, int) or not 2 <= points <= _MOST_POINTS):
        raise BadSpace(f"{short(text, 99)}: the points of a grid are a whole number from 2 to {_MOST_POINTS:,}.")
    return Number(low, high, log=kind == "log", whole=kind == "int", points=points)
