"""The tokens of `pocket_clip`: a few hundred words, and single letters for any other word."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from .texts import TooLongText

LENGTH = 24  # tokens in a row, start and end included
PAD, START, END = 0, 1, 2
_SPLIT = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")
_WORDS = """
a an and are as at away back bad ball balls bar bars bay below between big bird blue boat boats bottom bricks brown by
capital cat centre circle circles close coast coffee coins column corner crack cross crosses dark defect degrees digit
digits disc discs distance down drawing east eight eighty eleven empty far fifth figure figures first five flaw flower
form four fourth from galaxies good grass gravel green grey ground half handwritten has heading hole image in ink is
island isthmus it lake land left letter light lines lorry low many map material metres middle missing near next nine
no none north northeast northwest number of on one orange out palace peninsula photo photograph picture plane planes
pointing purple rectangle red retina right ring rings road rocket row rows scratch second seen seven shape shapes
shifted ship ships six sketch small sound south southeast southwest square squares stain stains strait surface ten
texture that the there third this three tissue to top toward towards triangle triangles turned two type up upper view
water west white with without worn written yellow zero black car van astronaut
"""
_OTHERS = [*string.ascii_lowercase, *string.digits, *".,:;!?'\"-()/&+%"]
# Letters are tokens of their own; `a` is a word as well, and one token stands for both.
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(["<pad>", "<start>", "<end>", "<other>", *_OTHERS, *_WORDS.split()]))
_NUMBER = {token: number for number, token in enumerate(VOCABULARY)}


def pieces(text: str) -> list[int]:
    """The tokens of a text without start and end: known words whole, any other word letter by letter."""
    found: list[int] = []
    for part in _SPLIT.findall(text.lower()):
        if part in _NUMBER:
            found.append(_NUMBER[part])
        else:
            found += [_NUMBER.get(letter, _NUMBER["<other>"]) for letter in part]
    return found


class PocketTokenizer:
    """Texts -> token numbers (n, L): start, words, end, padding.

    Args:
        length: L.
    """

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See the class.

        Raises:
            TooLongText: a text has more than L - 2 tokens.
        """
        rows = torch.full((len(texts), self.length), PAD, dtype=torch.int64)
        for number, text in enumerate(texts):
            row = [START, *pieces(text), END]
            if len(row) > self.length:
                raise TooLongText(
                    f"The text {text[:80]!r} has {len(row)} tokens, start and end included, and pocket_clip reads"
                    f" {self.length}; a word that it does not know is read letter by letter. Shorten it."
                )
            rows[number, : len(row)] = torch.tensor(row)
        return rows
