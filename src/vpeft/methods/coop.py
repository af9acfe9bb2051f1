"""CoOp: the words around a class name are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..backbones.texts import TextSpec
from ..layers.context_words import ContextWords, Room
from ..method import BadField, Method, register


@register("coop", category="addition", family="prompt", paper="2109.01134", year=2022, venue="IJCV")
class CoOp(Method):
    """n word vectors in front of, around or behind the name of every class; both towers of a CLIP stay frozen.

    The text of class c is [start; V; name_c; .; end] with V (n, D) in the space of the word embeddings, before
    positions are added; `middle` puts half of V behind the name, `front` all of it, before the full stop. Put it on the
    text tower, with the names as their own texts (templates=("{}.",)). V starts at N(0, 0.02), or at the embeddings of
    `words`: then step 0 is CLIP with these words written by hand.
    """

    variants = ({"tokens": 2},)

    tokens: int = Field(default=16, gt=0)
    """n; 4 where classes that were never seen are to be named"""
    words: str = ""
    """where V starts, such as "a photo of a"; it must have n tokens. Needs the tower's tokenizer"""
    position: Literal["end", "middle", "front"] = "end"
    """where the name stands among the learnt words"""
    classes: int | None = Field(default=None, gt=0)
    """number of classes, each with vectors of its own (the paper's CSC); None shares them"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        spec = text_inputs(backbone, type(self).__name__)
        vectors = start_vectors(backbone, spec, self.tokens, self.words)
        if self.classes is not None:
            shape = (self.classes, *vectors.shape)
            vectors = vectors.repeat(self.classes, 1, 1) if self.words else 0.02 * torch.randn(shape)
        before = {"end": self.tokens, "middle": self.tokens // 2, "front": 0}[self.position]
        yield backbone.tokens.after(Room(before, self.tokens - before, spec))
        yield backbone.words.after(ContextWords(vectors, before, spec), reads=(backbone.tokens,))

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """On the text tower; the image tower stays as it is."""
        for tower in towers.values():
            if tower.inputs.layout == "tokens":
                yield from self.edits(tower)


def text_inputs(backbone: Backbone, method: str) -> TextSpec:
    """The inputs of a text tower whose model has an image tower too.

    Raises:
        MissingPlace: the backbone is an image tower, or a text tower alone.
    """
    spec = backbone.inputs
    if not isinstance(spec, TextSpec) or backbone.host is None:
        is_it = "is such a tower alone" if isinstance(spec, TextSpec) else f"takes {spec.layout}"
        raise MissingPlace(
            f"{method} learns words for the text tower of a model that compares images and texts, and"
            f" {backbone.facts.architecture} {is_it}. Tune a whole CLIP or SigLIP, with the method on its text tower:"
            f" tune(clip, {{'text': {method}()}}, task=...)."
        )
    return spec


def start_vectors(backbone: Backbone, spec: TextSpec, count: int, words: str) -> torch.Tensor:
    """The vectors (n, D) that context words start at: the embeddings of words, or N(0, 0.02) without words.

    Raises:
        BadField: the words are not as many tokens as there are vectors.
        NoTokenizer: the tower has no tokenizer that could read the words.
    """
    if not words:
        return 0.02 * torch.randn(count, backbone.words.width)
    vectors = spec.embedded(words)
    if len(vectors) != count:
        raise BadField(
            f"The words {words!r} are {len(vectors)} tokens, and there are {count} vectors: set tokens to it."
        )
    return vectors.clone()
