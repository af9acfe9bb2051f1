"""Inserted tokens in a causal language model, and what they have to do with its key-value cache.

Prompts stand in front of the text, at the positions -n ... -1, so that the text keeps its own positions. Every token of
the text sees them; they see the prompts before them and nothing of the text. What a block makes of them is therefore
the same for every text, and in generation it is computed once: in the first pass. Their keys and values stay beside the
cache, which holds the text alone, so that its length, the masks and the positions that the library derives from it are
those of the text. A pass that goes on from a cache inserts nothing and finds them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .points import MissingPlace, NothingRead
from .tokens import TokenCarrier

BESIDE = "vpeft_prompts"
"""By this name a cache of transformers holds the keys and values of prompts, by layer."""


@dataclass(frozen=True)
class Reading:
    """What a language model reads in one pass: so many new tokens, perhaps behind those of a cache."""

    length: int
    cache: Any = None


class CausalCarrier(TokenCarrier):
    """Prompts in front of the text of a causal language model.

    Attributes:
        rotary: the module that gives cosines and sines of positions; None where positions are added at the embedding.
    """

    def __init__(self, rotary: nn.Module | None = None) -> None:
        super().__init__(0)
        self.rotary = rotary

    def begin(self, length: int, cache: Any) -> None:
        """The model reads `length` new tokens; `cache` is what it was given, None for nothing."""
        past = 0 if cache is None else int(cache.get_seq_length())
        self._keep(Reading(length, cache if past else None))

    def _keep(self, reading: Reading) -> None:
        if self.memory is None:
            self.plain = reading
        else:
            self.memory.keep(self, reading)

    @property
    def reading(self) -> Reading | None:
        """What the pass under way reads; None where a part of the model runs by itself."""
        found: Reading | None = self.plain if self.memory is None else self.memory.recall(self)
        return found

    @property
    def continues(self) -> bool:
        """Whether the pass goes on from a cache, beside which the prompts are."""
        now = self.reading
        return now is not None and now.cache is not None

    def enter(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, D) and (B, n, D) -> (B, n + N, D); in a pass that goes on from a cache, (B, N, D) as it came.

        Raises:
            NothingRead: the cache was filled without prompts.
        """
        now = self.reading
        if now is None or now.cache is None:
            return super().enter(hidden, tokens)
        if not vars(now.cache).get(BESIDE):
            raise NothingRead(
                "The key-value cache was filled while no prompts were inserted, and now an adapter with prompts is on."
                " Fill the cache with the adapter on, or generate from the start."
            )
        return hidden

    def carried(self, hidden: Tensor, count: int) -> Tensor:
        """The prompts (B, n, D).

        Raises:
            MissingPlace: the pass goes on from a cache, and they are not computed again.
        """
        if self.continues:
            raise MissingPlace(
                "An edit reads what became of inserted tokens, which a pass that goes on from a key-value cache does"
                " not compute again. Generate with use_cache=False, or take another method."
            )
        return super().carried(hidden, count)

    def leave(self, hidden: Tensor, count: int, pooled: bool) -> Tensor:
        """(B, n + N, D) -> (B, N, D); in a pass that goes on from a cache nothing came in."""
        return hidden if self.continues else super().leave(hidden, count, False)

    def attend(self, attention: Any, hidden: Tensor, options: dict[str, Any]) -> Any:
        """The attention's own forward on (B, n + N, D), with positions for prompts and a cache that is told of none.

        Args:
            attention: of transformers, re-expressed; its `plain` is the library's class.
            hidden: the sequence.
            options: the other arguments of its forward, by name.
        """
        now, given = self.reading, options.get("position_embeddings")
        length = given[0].shape[-2] if given is not None else hidden.shape[1] if now is None else now.length
        fresh = hidden.shape[1] - length
        count = fresh
        if given is not None and fresh:
            options["position_embeddings"] = self._with_positions(hidden, given, fresh)
        name = next((key for key in ("cache", "past_key_values") if options.get(key) is not None), None)
        if name is not None:
            beside: dict[int, tuple[Tensor, Tensor]] = vars(options[name]).setdefault(BESIDE, {})
            number = int(attention.layer_idx)
            if not self.continues:
                beside.pop(number, None)
            elif number in beside:
                count = beside[number][0].shape[2]
            if count:
                options[name] = Beside(options[name], beside, fresh)
        if count:
            options["vpeft_prompts"] = count
        return attention.plain.forward(attention, hidden, **options)

    def _with_positions(self, hidden: Tensor, given: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, ...]:
        """Cosines and sines (B, N, d) with those of the positions -count ... -1 in front."""
        assert self.rotary is not None
        before = torch.arange(-count, 0, device=hidden.device)[None]
        front = self.rotary(hidden, position_ids=before)
        return tuple(
            torch.cat([new.expand(len(old), -1, -1), old], dim=1) for new, old in zip(front, given, strict=True)
        )


class Beside:
    """A key-value cache whose `update` keeps the first keys and values apart and gives them in front of all others.

    Args:
        cache: of transformers.
        kept: keys and values of prompts (B, h, n, d), by layer.
        fresh: how many prompts are among the new keys; 0 where `kept` has them.
    """

    def __init__(self, cache: Any, kept: dict[int, tuple[Tensor, Tensor]], fresh: int) -> None:
        self.cache, self.kept, self.fresh = cache, kept, fresh

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """New keys and values (B, h, N, d) -> all keys and values, the prompts' first."""
        if self.fresh:
            self.kept[layer_idx] = keys[:, :, : self.fresh], values[:, :, : self.fresh]
            keys, values = keys[:, :, self.fresh :], values[:, :, self.fresh :]
        keys, values = self.cache.update(keys, values, layer_idx, *more, **named)
        before, told = self.kept[layer_idx]
        return torch.cat([before, keys], dim=2), torch.cat([told, values], dim=2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["cache"], name)


def with_prompts(mask: Tensor, count: int, rows: int) -> Tensor:
    """A mask (..., N, M) of the text -> (..., rows + N, count + M).

    Args:
        mask: boolean (True is seen) or added to the scores.
        count: prompts among the keys, which every token of the text sees.
        rows: prompts among the queries, each of which sees itself and those before it; 0 or `count`.
    """
    seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
    mask = F.pad(mask, (count, 0), value=seen)
    if not rows:
        return mask
    mask = F.pad(mask, (0, 0, rows, 0), value=hidden)
    among = torch.ones(rows, rows, dtype=torch.bool, device=mask.device).tril()
    mask[..., :rows, :rows] = among if mask.dtype == torch.bool else torch.where(among, seen, hidden).to(mask.dtype)
    return mask


def causal_mask(queries: int, keys: int, further: int, device: torch.device) -> Tensor:
    """The boolean mask (1, 1, queries, further + keys) of a causal attention with `further` keys that all see."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
    return F.pad(seen, (further, 0), value=True)[None, None]
