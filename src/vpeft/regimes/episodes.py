"""Few-shot episodes: a few classes, a few labelled images of each (the support), and others to tell apart (queries)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vpeft.data.image_set import ImageSet
from vpeft.errors import VpeftError
from vpeft.training.randomness import derived_seed


class BadEpisodes(VpeftError):
    """More classes or images than there are."""


class EpisodeSizes(BaseModel):
    """How many classes and images an episode has; with a `most_...` the number is drawn for each, up to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: int = Field(default=5, ge=2, description="Classes of an episode.")
    most_ways: int | None = Field(default=None, ge=2, description="Draw the classes from way to this number.")
    shot: int = Field(default=1, ge=1, description="Support images of each class.")
    most_shots: int | None = Field(default=None, ge=1, description="Draw the support images from shot to this number.")
    queries: int = Field(default=15, ge=1, description="Query images of each class.")

    @model_validator(mode="after")
    def _in_order(self) -> EpisodeSizes:
        if (self.most_ways or self.way) < self.way or (self.most_shots or self.shot) < self.shot:
            raise ValueError("most_ways and most_shots are not below way and shot")
        return self


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        number: from 0.
        classes: in the order in which targets count.
        support, queries: images with these labels.
    """

    number: int
    classes: tuple[str, ...]
    support: ImageSet
    queries: ImageSet


def episodes_of(images: ImageSet, sizes: EpisodeSizes, count: int, seed: int = 0) -> Iterator[Episode]:
    """`count` episodes; each is a function of the images, the sizes, the seed and its number.

    Raises:
        BadEpisodes: there are fewer classes with enough images than an episode may need.
    """
    members: dict[str, list[int]] = {}
    for index, target in enumerate(images.targets):
        members.setdefault(images.labels[target], []).append(index)
    most_ways, most_shots = sizes.most_ways or sizes.way, sizes.most_shots or sizes.shot
    names = [name for name in images.labels if len(members.get(name, ())) >= most_shots + sizes.queries]
    if len(names) < most_ways:
        raise BadEpisodes(
            f"An episode has up to {most_ways} classes with {most_shots} support and {sizes.queries} query images each,"
            f" and {len(names)} of the {len(members)} classes here have so many. Lower --way, --shot or --queries."
        )
    for number in range(count):
        draw = np.random.Generator(np.random.PCG64(derived_seed(seed, "episode", number)))
        way = int(draw.integers(sizes.way, most_ways + 1))
        classes = [names[index] for index in draw.permutation(len(names))[:way]]
        support, queries = list[int](), list[int]()
        for name in classes:
            shot = int(draw.integers(sizes.shot, most_shots + 1))
            chosen = [members[name][index] for index in draw.permutation(len(members[name]))]
            support += chosen[:shot]
            queries += chosen[shot : shot + sizes.queries]
        yield Episode(
            number,
            tuple(classes),
            images.subset(support).relabelled(classes),
            images.subset(queries).relabelled(classes),
        )
