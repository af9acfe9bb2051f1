"""Tokens one after the other from a causal model: what comes next, and whole continuations with a cache of keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import need_extra

# No token has this number, so that none ends a row of tokens.
NEVER = 2**31 - 1


def continuation(
    model: Any, prompt: Tensor, count: int, *, temperature: float = 0.0, top_p: float = 1.0, cached: bool = True
) -> Tensor:
    """The `count` tokens (B, count) that a causal language model says after a prompt (B, L).

    Args:
        model: with the `generate` of transformers, tuned or not.
        temperature: what logits are divided by; 0 takes the most probable token.
        top_p: only the most probable tokens are drawn from, as few as have this much probability together.
        cached: keep keys and values of what has been read, so that each step runs one token; else each step runs all.
    """
    transformers: Any = need_extra("transformers", "hf")
    drawn: dict[str, Any] = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    asked = transformers.GenerationConfig(
        max_new_tokens=count, eos_token_id=NEVER, pad_token_id=0, do_sample=bool(drawn), use_cache=cached, **drawn
    )
    whole: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=asked)
    return whole[:, prompt.shape[1] :]


def shifted_loss(logits: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """The mean cross-entropy of each token but the first, given those before it, over the positions that count.

    Args:
        logits: (B, L, V).
        tokens: (B, L).
        counts: bool (L,), which tokens count.
    """
    wanted = torch.where(counts, tokens, -100)[:, 1:]
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)


def shifted_divergence(student: Tensor, teacher: Tensor, counts: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of the next token, the mean over the positions that count.

    Args:
        student, teacher: logits (B, L, V).
        counts: bool (L,), which tokens count; the first has nothing before it.
        temperature: T.
    """
    at = counts[1:]
    ours = (student[:, :-1][:, at].float() / temperature).log_softmax(dim=-1)
    theirs = (teacher[:, :-1][:, at].float() / temperature).log_softmax(dim=-1)
    apart = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * apart.mean()
