"""Networks that make the weights of bottleneck adapters from a vector that stands for a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEVIATION = 0.01  # of every linear map of a hypernetwork at its start; biases start at zero (Hyperformer's code)


class AdapterWeights(NamedTuple):
    """The tensors of one adapter of width D and R inner channels; the norms' gain and shift are None where it has none.

    Attributes:
        down, up: (R, D) and (D, R).
        b_down, b_up: (R,) and (D,).
        before, after: gain and shift, (D,) each, of the norm before the adapter and of the norm behind it.
    """

    down: Tensor
    b_down: Tensor
    up: Tensor
    b_up: Tensor
    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor] | None


def adapted(x: Tensor, weights: AdapterWeights) -> Tensor:
    """x (..., D) -> the branch LN(up GELU(down LN(x))), without x itself; GELU is the tanh form."""
    if weights.before is not None:
        x = _normed(x, *weights.before)
    inner = F.gelu(F.linear(x, weights.down, weights.b_down), approximate="tanh")
    out = F.linear(inner, weights.up, weights.b_up)
    return out if weights.after is None else _normed(out, *weights.after)


def _normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """x (..., D) normed, in the precision of the gain."""
    return F.layer_norm(x.to(gain.dtype), x.shape[-1:], gain, shift.to(gain.dtype))


def linear(width_in: int, width: int) -> nn.Linear:
    """A linear map that starts as all those of a hypernetwork do."""
    made = nn.Linear(width_in, width)
    nn.init.normal_(made.weight, std=DEVIATION)
    nn.init.zeros_(made.bias)
    return made


class TaskEmbeddings(nn.Module):
    """One vector (E,) of each task, N(0, 1)."""

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.of = nn.ParameterDict({task: nn.Parameter(torch.randn(width)) for task in tasks})

    def forward(self, task: str) -> Tensor:
        found: Tensor = self.of[task]
        return found


class Projector(nn.Module):
    """z (..., E) -> LN(W_2 ReLU(W_1 z + b_1) + b_2), (..., P)."""

    def __init__(self, width_in: int, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(width_in, hidden), linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.norm(self.fc2(F.relu(self.fc1(z))))
        return out


class MatrixGenerator(nn.Module):
    """v (..., P) -> a matrix (..., rows, columns) and a bias (..., rows).

    Args:
        width: P.
        rows, columns: of the matrix.
        rank: R of the product (rows, R) (R, columns) that is the matrix; None makes the matrix itself.
    """

    def __init__(self, width: int, rows: int, columns: int, rank: int | None) -> None:
        super().__init__()
        self.shape, self.rank = (rows, columns), rank
        self.weight = linear(width, rows * columns if rank is None else (rows + columns) * rank)
        self.bias = linear(width, rows)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        flat, (rows, columns) = self.weight(v), self.shape
        if self.rank is None:
            return flat.unflatten(-1, (rows, columns)), self.bias(v)
        left, right = flat.split((rows * self.rank, columns * self.rank), dim=-1)
        matrix = left.unflatten(-1, (rows, self.rank)) @ right.unflatten(-1, (self.rank, columns))
        return matrix, self.bias(v)


class NormGenerator(nn.Module):
    """v (..., P) -> gain and shift of a norm, each (..., D)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = linear(width, channels), linear(width, channels)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain(v), self.shift(v)


class AdapterGenerator(nn.Module):
    """v (..., P) -> the tensors of an adapter, each with the leading axes of v.

    Args:
        width: P.
        channels, bottleneck: D and R of the adapter.
        rank: of each matrix; None makes whole matrices.
        norms: which norms the adapter has, of "before" and "after".
    """

    def __init__(self, width: int, channels: int, bottleneck: int, rank: int | None, norms: Sequence[str]) -> None:
        super().__init__()
        self.down = MatrixGenerator(width, bottleneck, channels, rank)
        self.up = MatrixGenerator(width, channels, bottleneck, rank)
        self.before = NormGenerator(width, channels) if "before" in norms else None
        self.after = NormGenerator(width, channels) if "after" in norms else None

    def forward(self, v: Tensor) -> AdapterWeights:
        before = None if self.before is None else self.before(v)
        after = None if self.after is None else self.after(v)
        down, b_down = self.down(v)
        up, b_up = self.up(v)
        return AdapterWeights(down, b_down, up, b_up, before, after)


class GeneratedAdapter(nn.Module):
    """x (..., D) -> the branch of an adapter whose weights a network makes for the task that is on; plus x if `whole`.

    Args:
        embeddings: of the tasks; shared by all adapters.
        projector, generator: from a task's vector to the weights; shared with other adapters where the method says so.
        places: further vectors (E,) that stand for the block or the position; they join the task's.
        whole: whether x itself is added, for use in series.
    """

    wants_tasks = True

    def __init__(
        self,
        embeddings: TaskEmbeddings,
        projector: Projector,
        generator: AdapterGenerator,
        places: Sequence[nn.Module] = (),
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings, self.projector, self.generator = embeddings, projector, generator
        self.places, self.whole = nn.ModuleList(places), whole

    def weights(self, task: str) -> AdapterWeights:
        """The adapter of one task."""
        parts = [self.embeddings(task), *(place() for place in self.places)]
        made: AdapterWeights = self.generator(self.projector(torch.cat(parts)))
        return made

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        (task,) = tasks
        out = adapted(x, self.weights(task))
        return x + out if self.whole else out


class PlaceEmbedding(nn.Module):
    """A vector (E,), or several (S, E), that stand for a block or a position; N(0, 1)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(*shape))

    def forward(self) -> Tensor:
        return self.vector


class ScaledAdapter(nn.Module):
    """x (..., s D_0) -> the branch of an adapter that Kronecker kernels scale up from s small ones of width D_0.

    W = sum_i K_i (x) T_i with K (s, s, s) for both matrices, and b = sum_i k_i (x) b_i with k (s, s) for the biases and
    each norm; T_i and b_i are made from the vector of the task joined with the i-th of the block. With s = 1 the small
    adapter is taken as it is.

    Args:
        embeddings, projector, generator: shared by all blocks.
        width: E of a vector.
        scale: s.
        norms: as the generator's.
        kernel_first: K_i (x) T_i; otherwise T_i (x) K_i.
        whole: whether x itself is added, for use in series.
    """

    wants_tasks = True

    def __init__(
        self,
        embeddings: TaskEmbeddings,
        projector: Projector,
        generator: AdapterGenerator,
        width: int,
        scale: int,
        norms: Sequence[str],
        *,
        kernel_first: bool,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings, self.projector, self.generator = embeddings, projector, generator
        self.kernel_first, self.whole = kernel_first, whole
        self.block = PlaceEmbedding(scale, width)
        self.kernels = nn.ParameterDict()
        if scale > 1:
            self.kernels["matrix"] = nn.Parameter(torch.randn(scale, scale, scale))
            for name in ("bias", *norms):
                self.kernels[name] = nn.Parameter(torch.randn(scale, scale))

    def weights(self, task: str) -> AdapterWeights:
        """The adapter of one task."""
        vectors = self.block()
        joined = torch.cat([self.embeddings(task).expand_as(vectors), vectors], dim=-1)
        small: AdapterWeights = self.generator(self.projector(joined))
        return AdapterWeights(
            self._matrix(small.down),
            self._vector("bias", small.b_down),
            self._matrix(small.up),
            self._vector("bias", small.b_up),
            self._norm("before", small.before),
            self._norm("after", small.after),
        )

    def _matrix(self, small: Tensor) -> Tensor:
        """(s, a, b) -> (s a, s b)."""
        if "matrix" not in self.kernels:
            return small[0]
        kernel = self.kernels["matrix"]
        order = "ijk,iab->jakb" if self.kernel_first else "ijk,iab->ajbk"
        out: Tensor = torch.einsum(order, kernel, small).flatten(2).flatten(0, 1)
        return out

    def _vector(self, name: str, small: Tensor) -> Tensor:
        """(s, a) -> (s a,)."""
        if name not in self.kernels:
            return small[0]
        order = "ij,ia->ja" if self.kernel_first else "ij,ia->aj"
        out: Tensor = torch.einsum(order, self.kernels[name], small).flatten()
        return out

    def _norm(self, name: str, small: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        return None if small is None else (self._vector(name, small[0]), self._vector(name, small[1]))

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        (task,) = tasks
        out = adapted(x, self.weights(task))
        return x + out if self.whole else out
