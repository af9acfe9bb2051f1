"""One prompt of each task beside the tokens: how they attend, and how they gate what belongs to their tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.blocks import Block
from ..backbones.places import Place
from ..backbones.rows import Rows
from .frozen_block import FrozenAttention
from .low_rank import LowRank
from .task_rows import streams

FOR_ALL = "for_all"


class PromptBlock:
    """The norms, projections and MLP of one block with its shared low-rank updates, as prompts (B, T, D) pass them.

    It holds live modules and is no module itself. Hooks are passed by: they belong to the tokens of the images.

    Args:
        block: of the backbone.
        updates: for each of "q", "k", "v" the update, and its rows where one serves all three; "proj", "fc1", "fc2".
        activation: the module between fc1 and fc2.
    """

    def __init__(self, block: Block, updates: Mapping[str, tuple[LowRank, Rows | None]], activation: nn.Module) -> None:
        self.attention = FrozenAttention(block.attn)
        self.updates, self.activation = dict(updates), activation
        self.norms: dict[str, Place] = {"norm1": block.norm1, "norm2": block.norm2}
        self.linear: dict[str, Place] = {"fc1": block.mlp.fc1, "fc2": block.mlp.fc2}

    def _updated(self, name: str, x: Tensor, frozen: Tensor) -> Tensor:
        update, rows = self.updates[name]
        change = update(x)
        return frozen + (change if rows is None else rows.take(change, -1))

    def heads(self, prompts: Tensor, names: str) -> list[Tensor]:
        """q, k or v of the normed prompts (B, T, D), each (B, h, T, d)."""
        x = _run(self.norms["norm1"], prompts)
        made = [self._updated(name, x, self.attention.project(name, x)) for name in names]
        return [self.attention.split(name, one) for name, one in zip(names, made, strict=True)]

    def projected(self, mixed: Tensor) -> Tensor:
        """(..., D) through the projection behind the attention."""
        return self._updated("proj", mixed, self.attention.project("proj", mixed))

    def mlp(self, prompts: Tensor) -> Tensor:
        """MLP(LN(prompts)), (B, T, D)."""
        x = _run(self.norms["norm2"], prompts)
        x = self.activation.forward(self._updated("fc1", x, _run(self.linear["fc1"], x)))
        return self._updated("fc2", x, _run(self.linear["fc2"], x))


def _run(place: Place, x: Tensor) -> Tensor:
    """What the module of a place makes of x, in the precision of its weights."""
    assert place.enter is not None
    own = next(place.enter.module.parameters(), None)
    return place.run(x if own is None else x.to(own.dtype))


class StartPrompts(nn.Module):
    """h (B, ...) -> the prompts of all tasks (B, T, D); those of tasks that are off are constants in this pass.

    They start N(1, 1) cut at -2 and 2, as in the authors' code.
    """

    wants_tasks = takes_time = True

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.of = nn.ParameterDict()
        for task in tasks:
            self.of[task] = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), mean=1.0, std=1.0))

    def forward(self, hidden: Tensor, *, tasks: Sequence[str]) -> Tensor:
        all_of_them = [prompt if task in tasks else prompt.detach() for task, prompt in self.of.items()]
        return torch.stack(all_of_them).expand(len(hidden), -1, -1)


class RaisePrompts(nn.Module):
    """(h, prompts (B, T, D)) -> (B, T, D'), where patches are merged."""

    takes_time = True

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width_in, width, bias=False)
        nn.init.trunc_normal_(self.up.weight, std=0.02)

    def forward(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        out: Tensor = self.up(prompts)
        return out


class PromptKeys(nn.Module):
    """(q, k, v, prompts) -> q, and k, v with those of the prompts in front, in every window.

    Args:
        block: how prompts pass this block.
        split: whether the rows are of streams: the shared one and those of the tasks that are on.
    """

    wants_tasks = True

    def __init__(self, block: PromptBlock, split: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block
        self.split = split

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, prompts: Tensor, *, tasks: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        block: PromptBlock = self.__dict__["block"]
        streams_here = 1 + len(tasks) if self.split else 1
        windows = len(k) // (streams_here * len(prompts))
        own = [one.repeat_interleave(windows, 0).repeat(streams_here, 1, 1, 1) for one in block.heads(prompts, "kv")]
        return q, torch.cat([own[0].to(k.dtype), k], dim=2), torch.cat([own[1].to(v.dtype), v], dim=2)


class PromptStep(nn.Module):
    """(mixed tokens, k, v of the tokens, prompts) -> the prompts p + MLP(LN(a)) for the next block, (B, T, D).

    a is what the prompts attend to, projected: themselves and the tokens of a window; the mean over windows.

    Args:
        block: how prompts pass this block.
        split: whether the rows are of streams, of which the shared one counts.
    """

    wants_tasks = True

    def __init__(self, block: PromptBlock, split: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block
        self.split = split

    def forward(self, mixed: Tensor, keys: Tensor, values: Tensor, prompts: Tensor, *, tasks: Sequence[str]) -> Tensor:
        block: PromptBlock = self.__dict__["block"]
        rows = len(keys) // (1 + len(tasks)) if self.split else len(keys)
        windows = rows // len(prompts)
        k, v = (block.attention.split(name, one[:rows]) for name, one in (("k", keys), ("v", values)))
        own = [one.repeat_interleave(windows, 0) for one in block.heads(prompts, "qkv")]
        attended = F.scaled_dot_product_attention(own[0], torch.cat([own[1], k], 2), torch.cat([own[2], v], 2))
        out = block.projected(attended.transpose(1, 2).flatten(2))
        mean = out.reshape(len(prompts), windows, *out.shape[1:]).mean(1)
        return prompts + block.mlp(mean)


class Gates(NamedTuple):
    """What the prompts of the tasks single out in one block.

    Attributes:
        mixed: tokens (B W, N, D) behind the attention, after dropout, of the shared stream.
        own: for each task that is on, the same times the gate, (B W, N, D).
    """

    mixed: Tensor
    own: dict[str, Tensor]


class PromptGates(nn.Module):
    """(mixed tokens ((1 + T) B W, N, D), k of the tokens, prompts) -> `Gates`: GELU(q_t k) of a head times the tokens.

    Args:
        block: how prompts pass this block.
        tasks: all of them, in the order of the prompts.
        dropout: on the mixed tokens.
    """

    wants_tasks = True

    def __init__(self, block: PromptBlock, tasks: Sequence[str], dropout: float) -> None:
        super().__init__()
        self.__dict__["block"] = block
        self.names, self.dropout = tuple(tasks), nn.Dropout(dropout)

    def forward(self, mixed: Tensor, keys: Tensor, prompts: Tensor, *, tasks: Sequence[str]) -> Gates:
        block: PromptBlock = self.__dict__["block"]
        shared = self.dropout(streams(mixed, tasks)[0])
        k = block.attention.split("k", streams(keys, tasks)[0])
        (q,) = block.heads(prompts, "q")
        weights = F.gelu(q.repeat_interleave(len(k) // len(q), 0) @ k.transpose(-2, -1))  # (B W, h, T, N)
        by_head = shared.reshape(*shared.shape[:-1], k.shape[1], -1)  # (B W, N, h, d)
        own = {
            task: (by_head * weights[:, :, self.names.index(task)].transpose(1, 2)[..., None]).flatten(2)
            for task in tasks
        }
        return Gates(shared, own)


class DynamicFilter(nn.Module):
    """z (B, H, W, R) -> its depthwise 3 x 3 convolution with kernels that each sample makes from the mean of its z.

    The kernels are normed over their nine numbers, scaled and shifted (the channel filter norm of DDF).
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.make = nn.Linear(rank, 9 * rank)
        self.scale = nn.Parameter(torch.randn(9 * rank) * math.sqrt(2.0) / 3)
        self.shift = nn.Parameter(torch.randn(9 * rank))

    def forward(self, z: Tensor) -> Tensor:
        kernel = self.make(z.mean((1, 2))).unflatten(-1, (-1, 9))
        kernel = (kernel - kernel.mean(-1, keepdim=True)) / (kernel.std(-1, keepdim=True) + 1e-10)
        kernel = kernel.flatten(1) * self.scale + self.shift
        batch, rank = len(z), z.shape[-1]
        flat = z.permute(0, 3, 1, 2).reshape(1, batch * rank, *z.shape[1:3])
        out = F.conv2d(flat, kernel.reshape(batch * rank, 1, 3, 3).to(z.dtype), padding=1, groups=batch * rank)
        return out.reshape(batch, rank, *z.shape[1:3]).permute(0, 2, 3, 1)


class StaticFilter(nn.Module):
    """z (B, H, W, R) -> its depthwise 3 x 3 convolution with bias."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(rank, rank, 3, padding=1, groups=rank)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.conv(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class FilteredForTasks(nn.Module):
    """W x + b + s B A drop(x) for the shared rows, W x + b + s B F_t(A x_t) for those of a task; W x of the shared x.

    F filters the map of A x_t; tokens in front of the map, such as a class token, keep A x_t.

    Args:
        update: B A.
        filters: of each task by its name, or one for all under `FOR_ALL`.
    """

    wants_tasks = wants_grid = True
    dormant: dict[str, str]

    def __init__(self, update: LowRank, filters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.update, self.filters, self.dormant = update, nn.ModuleDict(filters), {}

    def _own(self, x: Tensor, task: str, grid: Sequence[int]) -> Tensor:
        z = F.linear(x, self.update.A)
        count = math.prod(grid)
        before, cells = z[:, : z.shape[1] - count], z[:, z.shape[1] - count :]
        laid = cells.reshape(len(cells), *grid, cells.shape[-1])
        filtered = self.filters[task if task in self.filters else FOR_ALL](laid).flatten(1, 2)
        return F.linear(torch.cat([before, filtered], dim=1), self.update.B) * self.update.scale

    def forward(self, y: Tensor, x: Tensor, *, tasks: Sequence[str], grid: Sequence[int]) -> Tensor:
        frozen, (came, own) = streams(y, tasks)[0], streams(x, tasks)
        shared = frozen + self.update(came)
        return torch.cat([shared, *(frozen + self._own(own[task], task, grid) for task in tasks)])


class GatedForTasks(FilteredForTasks):
    """`FilteredForTasks` where the streams begin: x_t = LN(f + g_t) of the gated tokens.

    Args:
        width: D of the norm.
    """

    def __init__(self, update: LowRank, filters: Mapping[str, nn.Module], width: int) -> None:
        super().__init__(update, filters)
        self.norm = nn.LayerNorm(width)

    def forward(  # type: ignore[override]
        self, y: Tensor, gates: Gates, *, tasks: Sequence[str], grid: Sequence[int]
    ) -> Tensor:
        frozen = streams(y, tasks)[0]
        rows = [frozen + F.linear(F.linear(gates.mixed, self.update.A), self.update.B) * self.update.scale]
        for task in tasks:
            rows.append(frozen + self._own(self.norm(gates.mixed + gates.own[task]), task, grid))
        return torch.cat(rows)


class StageGate(nn.Module):
    """(h of ((1 + T) B, ...), gates) -> the same with u g_t + (1 - u) h_t for a task; u = sigmoid of a trained number.

    Args:
        cells_in_windows: where the map's cells stand among the windows' tokens; None without windows.
        as_released: read the numbers of g_t, which lie as (D, N) in the authors' code, as (N, D), as that code does.
    """

    wants_tasks = True
    dormant: dict[str, str]

    def __init__(self, cells_in_windows: Callable[[int, int], Tensor] | None, as_released: bool = False) -> None:
        super().__init__()
        self.as_released = as_released
        self.gate, self.dormant = nn.Parameter(torch.zeros(1)), {}
        self.__dict__["cells"] = cells_in_windows

    def forward(self, hidden: Tensor, gates: Gates, *, tasks: Sequence[str]) -> Tensor:
        (shared, own), share = streams(hidden, tasks), self.gate.sigmoid()
        cells: Callable[[int, int], Tensor] | None = self.__dict__["cells"]
        rows = [shared]
        for task in tasks:
            gated = gates.own[task]
            if self.as_released:
                gated = gated.transpose(1, 2).reshape(gated.shape)
            if cells is not None:
                at = cells(*shared.shape[1:3]).to(gated.device)
                gated = gated.reshape(len(shared), -1, gated.shape[-1])[:, at]
            rows.append(gated.reshape(shared.shape) * share + (1.0 - share) * own[task])
        return torch.cat(rows)
