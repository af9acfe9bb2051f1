"""What is known of a method from its literature: title, lineage, recipe, traps, published figures; a TOML file each.

    title = "LoRA: ..."
    recipe = "AdamW, ..."
    traps = ["..."]

    [[published]]
    figure = "VTAB-1k, mean of 19: 74.44"
    source = "README of github.com/..."

    [[builds_on]]
    method = "lora"
    difference = "LoRA with a diagonal between its two matrices."

    [[beside]]
    method = "ia3"
    difference = "..."

All of it is optional, and so is the file. `builds_on` states descent: the paper begins from that method. `beside`
states likeness alone. Figures stand here only if they were read where `source` says; whole tables live in
`vpeft.report.published`.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field


class PublishedFigure(BaseModel):
    """One figure of the literature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: str = Field(min_length=1)
    """what was measured on what, and the number as printed"""
    source: str = Field(min_length=1)
    """where it was read"""


class Relation(BaseModel):
    """How a method differs from another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(min_length=1)
    """the other one, by its registered name"""
    difference: str = Field(min_length=1)
    """a sentence about the method whose file this is"""


class Facts(BaseModel):
    """What `vpeft explain` and the method's page tell beside the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    """of the paper; empty for what has none of its own"""
    recipe: str = ""
    """how the authors train it"""
    traps: tuple[str, ...] = ()
    """where a port, a paper or a released code goes wrong"""
    published: tuple[PublishedFigure, ...] = ()
    """figures that are in none of the whole tables"""
    builds_on: tuple[Relation, ...] = ()
    """the methods that the paper begins from"""
    beside: tuple[Relation, ...] = ()
    """methods that are alike without descent"""

    def difference_from(self, method: str) -> str | None:
        """The sentence about another method, if the file has one."""
        found = (one.difference for one in (*self.builds_on, *self.beside) if one.method == method)
        return next(found, None)


def facts_of(method: str) -> Facts:
    """The facts of a registered method; empty ones where no file is there."""
    file = files("vpeft.taxonomy") / "facts" / f"{method}.toml"
    return Facts.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Facts()
