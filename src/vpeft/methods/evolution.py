"""What a search over a method's settings is given and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from .method import Method


class Evolution(BaseModel):
    """Sizes of an evolutionary search; the defaults are NOAH's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=15, ge=0, description="Rounds after the first population.")
    population: int = Field(default=50, gt=0, description="New candidates of the first population and of each round.")
    parents: int = Field(default=10, gt=0, description="Best candidates that a round starts from.")
    crossovers: int = Field(default=25, ge=0, description="Candidates of a round that mix two parents.")
    mutations: int = Field(default=25, ge=0, description="Candidates of a round that change one parent.")
    mutate: float = Field(default=0.2, ge=0.0, le=1.0, description="Probability that a part of a candidate changes.")
    redraw_depth: float = Field(default=0.4, ge=0.0, le=1.0, description="Probability that its depth is drawn anew.")
    resample: bool = Field(default=False, description="Also draw each width anew, as the paper says, not the code.")


@dataclass(frozen=True)
class Found:
    """A candidate: the method that trains it alone, its parameters without the head, its score (higher is better)."""

    method: Method
    parameters: int
    score: float
