"""Proxies of classes that a recurrent network makes of embeddings, and prompts that depend on the class of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class AskedClasses:
    """The class numbers (B,) of the images of a pass with class prompts; None in every other pass."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None

    @contextmanager
    def of(self, numbers: Tensor) -> Iterator[None]:
        """A context in which passes are for images of these classes."""
        self.numbers = numbers
        try:
            yield
        finally:
            self.numbers = None


class SharedOrClassPrompts(nn.Module):
    """h (B, ...) -> (B, n, D), the same n tokens for every image; in a pass with class prompts (B, m, D), G[y].

    Args:
        tokens: where the shared tokens (n, D) start; None for none.
        class_tokens: where those of the classes (C, m, D) start; None for none.
        width: D.
        asked: says whether a pass is one with class prompts.
    """

    tokens: nn.Parameter | None
    class_tokens: nn.Parameter | None

    def __init__(self, tokens: Tensor | None, class_tokens: Tensor | None, width: int, asked: AskedClasses) -> None:
        super().__init__()
        self.width, self.asked = width, asked
        self.tokens = None if tokens is None else nn.Parameter(tokens)
        self.class_tokens = None if class_tokens is None else nn.Parameter(class_tokens)
        self.training_only = () if class_tokens is None else ("class_tokens",)
        self.dormant = dict.fromkeys(self.training_only, "it acts in the pass with class prompts, in training alone")

    def forward(self, hidden: Tensor) -> Tensor:
        numbers, count = self.asked.numbers, hidden.shape[0]
        if numbers is not None:
            found = None if self.class_tokens is None else self.class_tokens[numbers]
        else:
            found = None if self.tokens is None else self.tokens.expand(count, -1, -1)
        return hidden.new_zeros(count, 0, self.width) if found is None else found


class SemanticProxies(nn.Module):
    """Embeddings s (B, E) of a pass with class prompts -> proxies (C, E): beta F + (1 - beta) A.

    A (C, E) is a memory, whose row of class c goes through a gated recurrent unit with each s of that class:

        z = sigmoid(s W_iz + h W_hz + b_z)      r = sigmoid(s W_ir + h W_hr + b_r)
        n = act(s W_in + r (h W_hn) + b_n)      h <- dropout((1 - z) n + z h)

    Rows of A are divided by their lengths after each batch; gradients reach the rows of the present batch alone. F
    (C, E) trains freely. s = g / |g|, g = W norm(f) + b for the pooled feature f (B, D) of that pass. All matrices
    start Xavier-uniform, F divided by 8; biases at 0.

    Args:
        classes: C.
        width: D.
        size: E.
        mix: beta.
        activation: act.
        dropout: on h.
        rate: factor of the learning rate of F.
        asked: which a pass with class prompts is told.
    """

    memory: Tensor

    def __init__(
        self,
        classes: int,
        width: int,
        size: int,
        *,
        mix: float,
        activation: Literal["relu", "tanh"],
        dropout: float,
        rate: float,
        asked: AskedClasses,
    ) -> None:
        super().__init__()
        self.mix, self.activation, self.asked = mix, activation, asked
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, size)
        # the gates z, r and n, side by side, of s and of h
        self.of_input = nn.Parameter(torch.cat([_xavier(size, size) for _ in range(3)], dim=1))
        self.of_state = nn.Parameter(torch.cat([_xavier(size, size) for _ in range(3)], dim=1))
        self.bias = nn.Parameter(torch.zeros(3 * size))
        self.free = nn.Parameter(_xavier(classes, size) / 8)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("memory", functional.normalize(_xavier(classes, size), dim=1))
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.training_only = ("norm", "linear", "of_input", "of_state", "bias", "free", "memory")
        self.rate_factors = {"free": rate}
        self.dormant = dict.fromkeys(
            (name for name, _ in self.named_parameters()), "it makes proxies, in training alone"
        )

    def forward(self, feature: Tensor) -> Tensor:
        """What is read at the outlet stays as it is; see `proxies`."""
        return feature

    def embeddings(self, features: Tensor) -> Tensor:
        """Pooled features (B, D) of a pass with class prompts -> s (B, E)."""
        return functional.normalize(self.linear(self.norm(features)), dim=-1)

    def step(self, inputs: Tensor, state: Tensor) -> Tensor:
        """One step of the recurrence, (K, E), (K, E) -> (K, E)."""
        of_input = (inputs @ self.of_input + self.bias).chunk(3, dim=1)
        of_state = (state @ self.of_state).chunk(3, dim=1)
        keep = torch.sigmoid(of_input[0] + of_state[0])
        reset = torch.sigmoid(of_input[1] + of_state[1])
        fresh = of_input[2] + reset * of_state[2]
        fresh = fresh.relu() if self.activation == "relu" else fresh.tanh()
        found: Tensor = self.dropout((1 - keep) * fresh + keep * state)
        return found

    def proxies(self, embeddings: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take a batch into the memory.

        Args:
            embeddings: s (B, E), in single precision.
            numbers: classes (B,); images of one class count in their order.

        Returns:
            the proxies (C, E) of all classes; those of the K classes of the batch (K, E), of the state as the
            recurrence left it; the classes (K,).
        """
        present, counts = numbers.unique(return_counts=True)  # type: ignore[no-untyped-call]
        order = numbers.argsort(stable=True)
        first = counts.cumsum(0) - counts
        state = self.memory[present]
        for turn in range(int(counts.max())):
            there = turn < counts
            rows = order[(first + turn).clamp(max=len(order) - 1)]
            state = torch.where(there[:, None], self.step(embeddings[rows], state), state)
        memory = functional.normalize(self.memory.index_copy(0, present, state), dim=1)
        with torch.no_grad():
            self.memory.copy_(memory)
        of_all = self.mix * self.free + (1 - self.mix) * memory
        return of_all, self.mix * self.free[present] + (1 - self.mix) * state, present


def proxy_anchor(embeddings: Tensor, proxies: Tensor, own: Tensor, alpha: float, margin: float) -> Tensor:
    """mean_c log(1 + sum_{own} exp(-alpha (cos - margin))) + mean_c log(1 + sum_{others} exp(alpha (cos + margin))).

    Both means are over all proxies, also over those of classes that the batch lacks; Proxy-Anchor itself divides the
    first by the classes that are there.

    Args:
        embeddings: (B, E).
        proxies: (C, E).
        own: whether a proxy is of the image's class, (B, C).
    """
    cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(proxies, dim=1).T
    return _log_one_plus(-alpha * (cosines - margin), own) + _log_one_plus(alpha * (cosines + margin), ~own)


def _log_one_plus(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean over columns of log(1 + sum of exp over the chosen rows)."""
    kept = torch.cat([values.masked_fill(~chosen, -torch.inf), values.new_zeros(1, values.shape[1])])
    return kept.logsumexp(0).mean()


def _xavier(rows: int, columns: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))
