"""The inputs of a text tower: rows of token numbers, how a tokenizer makes them, and where a text ends in its row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import VpeftError, need_extra
from .inputs import BadInputSpec, InputSpec
from .places import Site
from .points import Layout, Point

Tokenizer = Callable[[Sequence[str]], Tensor]
"""Texts -> token numbers (n, L), int64, each row padded to one length."""


class NoTokenizer(VpeftError):
    """A text tower was given words, and nothing says how to make tokens of them."""


class WrongTokenizer(VpeftError):
    """A tokenizer that belongs to another model: its numbers or its length are not those of the text tower."""


class TooLongText(VpeftError):
    """A text has more tokens than the text tower reads."""


@dataclass(frozen=True)
class TextSpec(InputSpec):
    """The inputs of a text tower: token numbers (n, L).

    Attributes:
        start: tokens in front of the words: 1 where a start token is, else 0.
        end: the token that ends a text; None where a text ends with its last token that is no padding.
        pad: the token that fills the row behind the text.
        vocabulary: how many tokens there are.
        embedding: the tower's table of token embeddings (vocabulary, D).
        tokenizer: texts -> (n, L); None where it is not known.
    """

    start: int = 1
    end: int | None = None
    pad: int = 0
    vocabulary: int = 0
    embedding: nn.Embedding | None = field(default=None, compare=False, repr=False)
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout != "tokens":
            raise BadInputSpec(f"A TextSpec is for the layout 'tokens', not {self.layout!r}.")

    @property
    def length(self) -> int:
        """L, the tokens in a row."""
        return self.size[1]

    def ends(self, ids: Tensor) -> Tensor:
        """Token numbers (n, L) -> the position (n,) of the last token of each text, its end token where there is one.

        The first end token counts, as some tokenizers pad with it.
        """
        if self.end is not None:
            return (ids == self.end).int().argmax(dim=1)
        positions = torch.arange(ids.shape[1], device=ids.device)
        return torch.where(ids == self.pad, -1, positions).amax(dim=1).clamp(min=0)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token numbers (n, L), int64, of texts.

        Raises:
            NoTokenizer: the tower has none.
            TooLongText: a text has more than L tokens, its start and end token included.
            WrongTokenizer: the tokenizer belongs to another model.
        """
        if self.tokenizer is None:
            raise NoTokenizer(
                "This text tower comes without a tokenizer, so words cannot be turned into tokens. Give it the one that"
                " it was trained with: vpeft.describe(model).with_tokenizer(tokenizer), where tokenizer(texts) gives"
                f" token numbers (n, {self.length}); or load the model by name, which brings its tokenizer."
            )
        found = self.tokenizer(list(texts))
        return self.checked(found, texts)

    def checked(self, given: Any, texts: Sequence[str]) -> Tensor:
        """The token numbers, if they can be numbers of this tower's.

        Raises:
            WrongTokenizer, TooLongText: see `ids`.
        """
        ids = torch.as_tensor(given)
        if ids.is_floating_point() or ids.dim() != 2 or len(ids) != len(texts):
            raise WrongTokenizer(
                f"The tokenizer gave {tuple(ids.shape)} of {ids.dtype} for {len(texts)} texts; wanted are token numbers"
                f" ({len(texts)}, {self.length}), whole numbers."
            )
        ids = ids.long()
        if ids.shape[1] > self.length:
            rest = ids[:, self.length :]
            filled = torch.nonzero((rest != self.pad).any(dim=1)).flatten()
            if len(filled):
                said = texts[int(filled[0])]
                raise TooLongText(
                    f"The text {said[:80]!r} has more tokens than this text tower reads, {self.length}. Shorten it, or"
                    " take a shorter template."
                )
            raise WrongTokenizer(
                f"The tokenizer gives rows of {ids.shape[1]} tokens, and this text tower reads {self.length}. Set its"
                f" length to {self.length}."
            )
        if ids.shape[1] < self.length:
            ids = nn.functional.pad(ids, (0, self.length - ids.shape[1]), value=self.pad)
        low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if low < 0 or high >= self.vocabulary:
            raise WrongTokenizer(
                f"The tokenizer gives the token {high if low >= 0 else low}, and this text tower knows"
                f" {self.vocabulary} (0 to {self.vocabulary - 1}): it belongs to another model."
            )
        if self.end is not None:
            endless = torch.nonzero(~(ids == self.end).any(dim=1)).flatten()
            if len(endless):
                row = int(endless[0])
                if bool((ids[row] != self.pad).all()):
                    raise TooLongText(
                        f"The text {texts[row][:80]!r} fills all {self.length} tokens of this text tower and has no"
                        " end. Shorten it."
                    )
                raise WrongTokenizer(
                    f"The tokens of {texts[row][:80]!r} hold no end token, {self.end}, at which this text tower pools:"
                    " the tokenizer belongs to another model, or adds no special tokens."
                )
        return ids

    def embedded(self, words: str) -> Tensor:
        """The frozen embeddings (n, D) of words, without start and end token, at the positions that they have.

        Raises:
            NoTokenizer: see `ids`.
        """
        assert self.embedding is not None
        ids = self.ids([words])
        last = int(self.ends(ids)[0]) + (0 if self.end is not None else 1)
        table = self.embedding.weight.detach()
        found: Tensor = table[ids[0, self.start : last].to(table.device)].clone()
        return found


@dataclass
class TextPooling:
    """Token numbers (n, L) -> features (n, E): through an identity, so that the numbers are a place, then the tower.

    Attributes:
        read: model and token numbers -> features.
        anchor: the identity.
    """

    read: Callable[[nn.Module, Tensor], Tensor]
    anchor: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, model: nn.Module, texts: Tensor) -> Tensor:
        return self.read(model, self.anchor(texts))


def text_places(anchor: nn.Module, embedding: nn.Module, width: int, start: int, length: int) -> list[Site]:
    """The places in front of a text tower's blocks: `tokens`, the numbers (n, L), and `words`, their embeddings.

    `words` is (n, L, D), before positions are added.
    """
    alike: dict[str, Any] = {"verbs": frozenset({"after", "tap"}), "depth": -1}
    return [
        Site(
            name="tokens",
            width=length,
            layout=Layout.VECTOR,
            enter=Point(anchor, "input"),
            exit=Point(anchor, "output"),
            **alike,
        ),
        Site(
            name="words",
            width=width,
            layout=Layout.TOKENS,
            enter=None,
            exit=Point(embedding, "output"),
            prefix=start,
            **alike,
        ),
    ]


class OpenClipTokenizer:
    """The byte-pair tokenizer that open_clip ships, made on first use; it refuses what it would cut off silently."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (n, L).

        Raises:
            TooLongText: a text has more tokens than fit between start and end token.
        """
        made = _byte_pairs(self.length)
        for text in texts:
            _require_room(text, len(made.encode(text)) + 2, self.length)
        found: Tensor = made(list(texts))
        return found


@lru_cache(maxsize=4)
def _byte_pairs(length: int) -> Any:
    return need_extra("open_clip", "clip").SimpleTokenizer(context_length=length)


class HfTokenizer:
    """A tokenizer of transformers, or the folder of a checkpoint in which it lies and from which it is read once."""

    def __init__(self, source: Any, length: int) -> None:
        self.source, self.length = source, length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (n, L), padded as the checkpoint's own processor pads.

        Raises:
            NoTokenizer: the folder holds none.
            TooLongText: a text has more than L tokens.
        """
        if isinstance(self.source, str):
            from transformers import AutoTokenizer

            try:
                self.source = AutoTokenizer.from_pretrained(self.source, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise NoTokenizer(
                    f"No tokenizer can be read from {self.source}: {str(error).strip().splitlines()[0]}. Save it beside"
                    " the model (tokenizer.save_pretrained), or give one: describe(model).with_tokenizer(tokenizer)."
                ) from None
        rows = self.source(list(texts), padding=False, truncation=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            _require_room(text, len(row), self.length)
        made = self.source(list(texts), padding="max_length", max_length=self.length, return_tensors="pt")
        found: Tensor = made["input_ids"]
        return found


def _require_room(text: str, needed: int, length: int) -> None:
    if needed > length:
        raise TooLongText(
            f"The text {text[:80]!r} has {needed} tokens, start and end included, and this text tower reads {length}."
            " Shorten it, or take a shorter template."
        )


def as_tokenizer(given: Any, length: int) -> Tokenizer:
    """A tokenizer of open_clip or transformers, or a function of your own, as one that refuses texts that do not fit.

    Raises:
        NoTokenizer: it is nothing that can be called.
    """
    if type(given).__module__.startswith("open_clip.") and type(given).__name__ == "SimpleTokenizer":
        return OpenClipTokenizer(length)
    inner = getattr(given, "tokenizer", None)
    if hasattr(inner, "convert_tokens_to_ids"):  # open_clip's HFTokenizer and processors of transformers hold one
        given = inner
    if hasattr(given, "convert_tokens_to_ids"):
        return HfTokenizer(given, length)
    if not callable(given):
        raise NoTokenizer(f"A tokenizer is called with a list of texts; {type(given).__name__} cannot be called.")
    made: Tokenizer = given
    return made
