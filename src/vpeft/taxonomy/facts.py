"""What is known of a method from its literature: recipe, traps, published figures; one TOML file for each method.

    recipe = "AdamW, ..."
    traps = ["..."]

    [[published]]
    figure = "VTAB-1k, mean of 19: 74.44"
    source = "README of github.com/..."

All of it is optional, and so is the file. Figures stand here only if they were read where `source` says; whole tables
live in `vpeft.report.published`.
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


class Facts(BaseModel):
    """What `vpeft explain` and the method's page tell beside the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = ""
    """how the authors train it"""
    traps: tuple[str, ...] = ()
    """where a port, a paper or a released code goes wrong"""
    published: tuple[PublishedFigure, ...] = ()
    """figures that are in none of the whole tables"""


def facts_of(method: str) -> Facts:
    """The facts of a registered method; empty ones where no file is there."""
    file = files("vpeft.taxonomy") / "facts" / f"{method}.toml"
    return Facts.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Facts()
