"""The survey's four-way table (arXiv 2402.02242, version 2) beside the same table computed.

The survey gives one line to a family; here each method has its own answers, so a cell of a family may be divided. The
survey's text was read in translation, so its "keeps structure" column is likely and not certain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .properties import Properties

ASPECTS = {
    "NAM": "adds no module",
    "SP": "keeps the structure of the backbone",
    "IE": "no further latency at inference",
    "ME": "saves memory in training",
}
SURVEY: dict[str, dict[str, bool]] = {
    "adapter": {"NAM": False, "SP": False, "IE": False, "ME": False},
    "prompt": {"NAM": False, "SP": True, "IE": False, "ME": False},
    "prefix": {"NAM": False, "SP": True, "IE": False, "ME": False},
    "side": {"NAM": False, "SP": True, "IE": False, "ME": True},
    "specification": {"NAM": True, "SP": True, "IE": True, "ME": False},
    "reparameter": {"NAM": False, "SP": True, "IE": True, "ME": False},
}
HALF = 0.5


@dataclass(frozen=True)
class Disagreement:
    """A method whose computed answer is not that of its family in the survey."""

    method: str
    family: str
    aspect: str
    survey: bool
    because: str


def answers(properties: Properties) -> dict[str, bool]:
    """The four answers for one method; memory counts as saved when less than half of full fine-tuning's is kept."""
    return {
        "NAM": not properties.adds_modules,
        "SP": properties.keeps_structure,
        "IE": not properties.latency,
        "ME": properties.memory < HALF,
    }


def reason(properties: Properties, aspect: str) -> str:
    """What the answer rests on."""
    if aspect == "NAM":
        return "some edit has a layer of its own" if properties.adds_modules else "weights train, or the head alone"
    if aspect == "SP":
        if properties.keeps_structure:
            return "folds into the weights" if properties.mergeable else "leaves the way through the blocks as it is"
        return f"does not fold, and stands inside the blocks ({', '.join(properties.verbs)})"
    if aspect == "IE":
        return "does not fold into the weights" if properties.latency else "folds into the weights"
    return f"keeps {properties.memory:.2f} of full fine-tuning's bytes; gradients reach: {properties.reach}"


def disagreements(methods: Iterable[Properties]) -> list[Disagreement]:
    """Every cell in which a method differs from its family's line; families without a line are left out."""
    return [
        Disagreement(one.name, one.family, aspect, SURVEY[one.family][aspect], reason(one, aspect))
        for one in methods
        if one.family in SURVEY
        for aspect, answer in answers(one).items()
        if answer != SURVEY[one.family][aspect]
    ]


def computed(methods: Iterable[Properties]) -> dict[str, dict[str, tuple[int, int]]]:
    """family -> aspect -> (methods that say yes, methods of the family)."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for one in methods:
        line = table.setdefault(one.family, dict.fromkeys(ASPECTS, (0, 0)))
        for aspect, answer in answers(one).items():
            yes, count = line[aspect]
            line[aspect] = (yes + answer, count + 1)
    return table
