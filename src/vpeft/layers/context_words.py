"""Learnable words in the texts of a text tower: room for them among the token ids, and their vectors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbones.texts import TextSpec, TooLongText


class Room(nn.Module):
    """ids (R, L) -> ids (R, L) with n placeholders among them, behind which everything moves up by n.

    Args:
        before: placeholders right behind the start token, before the text.
        behind: placeholders before the last word, which is the full stop of "name.".
        spec: the inputs of the tower; tells where a text starts and ends.
    """

    def __init__(self, before: int, behind: int, spec: TextSpec) -> None:
        super().__init__()
        self.before, self.behind, self.spec = before, behind, _bare(spec)

    def forward(self, ids: Tensor) -> Tensor:
        length, more = ids.shape[1], self.before + self.behind
        ends = self.spec.ends(ids)
        if bool((ends + more >= length).any()):
            longest = int(ends.max()) + 1
            raise TooLongText(
                f"A text has {longest} tokens with its start and end, and {more} learnable words do not fit beside it:"
                f" the text tower takes {length} tokens. Take shorter texts or fewer words."
            )
        return _with_room(ids, ids[:, :1].expand(-1, more), self.spec.start, self.before, ends - 1)


class ContextWords(nn.Module):
    """words (R, L, D) and their ids (R, L), which have room -> words with the n context vectors in that room.

    Args:
        vectors: V, (n, D), or (C, n, D) with vectors of its own for each class.
        before: how many stand before the text; the others stand before its last word.
        spec: the inputs of the tower.
    """

    def __init__(self, vectors: Tensor, before: int, spec: TextSpec) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.before, self.spec = before, _bare(spec)

    def forward(self, words: Tensor, ids: Tensor) -> Tensor:
        return self.placed(words, ids, self.of_rows(len(words)))

    def of_rows(self, rows: int) -> Tensor:
        """V for each text: (R, n, D)."""
        if self.vectors.dim() == 2:
            return self.vectors.expand(rows, -1, -1)
        classes = len(self.vectors)
        if rows % classes:
            raise TooLongText(
                f"There are context words for {classes} classes, and {rows} texts, which is no multiple. Set the"
                " number of classes of the method to that of the names."
            )
        return self.vectors.repeat(rows // classes, 1, 1)

    def placed(self, words: Tensor, ids: Tensor, vectors: Tensor) -> Tensor:
        """words (R, L, D) with vectors (R, n, D) in the room that the ids (R, L) have for them."""
        vectors = vectors.to(words.dtype)
        start, behind = self.spec.start, vectors.shape[1] - self.before
        first, last = vectors[:, : self.before], vectors[:, self.before :]
        words = torch.cat([words[:, :start], first, words[:, start + self.before :]], dim=1)
        if not behind:
            return words
        at = (self.spec.ends(ids) - 1 - behind)[:, None] + torch.arange(behind, device=ids.device)
        return words.scatter(1, at[:, :, None].expand_as(last), last)


class ReplaceWords(nn.Module):
    """h (R, L, D) -> h with its first n words replaced by the same n vectors for every text.

    Args:
        vectors: P, (n, D).
        start: tokens before the first word, which stay.
    """

    def __init__(self, vectors: Tensor, start: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.start = start

    def forward(self, hidden: Tensor) -> Tensor:
        return replaced(hidden, self.vectors.expand(len(hidden), -1, -1), self.start)


def replaced(hidden: Tensor, tokens: Tensor, start: int) -> Tensor:
    """(B, N, D) with the tokens (B, n, D) in place of those from `start` on."""
    return torch.cat([hidden[:, :start], tokens.to(hidden.dtype), hidden[:, start + tokens.shape[1] :]], dim=1)


def _bare(spec: TextSpec) -> TextSpec:
    """The inputs without the tower's table and tokenizer, which a copy of a layer would copy too."""
    return replace(spec, embedding=None, tokenizer=None)


def _with_room(ids: Tensor, placeholders: Tensor, start: int, before: int, last: Tensor) -> Tensor:
    """ids (R, L) with `before` placeholders at `start`, and the others before what stood at `last` (R,)."""
    length, more = ids.shape[1], placeholders.shape[1]
    column = torch.arange(length, device=ids.device)[None]
    # where the second group begins; without one every later column has simply moved up
    second = last[:, None] + before
    source = torch.where(column < start, column, column - before)
    source = torch.where(column >= second + more - before, column - more, source)
    found = ids.gather(1, source.clamp(min=0).expand(len(ids), -1))
    first = (column >= start) & (column < start + before)
    behind = (column >= second) & (column < second + more - before)
    return torch.where(first | behind, placeholders[:, :1], found)
