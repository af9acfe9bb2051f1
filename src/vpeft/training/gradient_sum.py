"""Sum the gradients of what trains over the processes of a run; frozen tensors are never sent.

It stands in for torch's DistributedDataParallel, which wraps the forward pass and so does not see penalties and further
passes of methods, expects as many samples in each process, and sends zeros for tensors that no sample uses. Adapters
are small: there is nothing to gain from sending them while the backward pass still runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vpeft.training.processes import CannotShard, Processes

# Values from which on a tensor is sent by itself; smaller ones are put together, as each message has its latency.
_LARGE = 1 << 18


@dataclass(frozen=True)
class Summed:
    """The numbers of one batch over all processes.

    Attributes:
        images: in the batch.
        loss: mean over the batch.
        monitored: sums over the samples of the batch.
        stop: whether a process was asked to stop.
    """

    images: int
    loss: float
    monitored: dict[str, float]
    stop: bool


class GradientSum:
    """Turns the gradients of each process's share of a batch into those of the whole batch, in every process.

    Attributes:
        sent: bytes that a call has handed to torch.distributed, of gradients and of numbers; see `bytes_of_gradients`.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], processes: Processes, device: torch.device) -> None:
        self.named, self.processes, self.device = list(named), processes, device
        self.sent = 0
        self._mine: list[bool] | None = None  # which tensors had a gradient here at the last step
        self._someones: list[bool] = []  # and in any process
        for name, parameter in self.named:
            if hasattr(parameter, "full_tensor"):
                raise CannotShard(f"What trains stays whole in every process, and {name!r} is divided among them.")

    @property
    def bytes_of_gradients(self) -> int:
        """Bytes of the gradients at the last step."""
        return sum(p.numel() * p.element_size() for _, p in self.named if p.grad is not None)

    @torch.no_grad()
    def __call__(self, images: int, loss: float, monitored: Mapping[str, float], stop: bool) -> Summed:
        """Replace each gradient, of the mean over this share, by that of the mean over the whole batch.

        Args:
            images: in this share; 0 where a batch is too small and this process computed a sample in vain.
            loss: mean over this share.
            monitored: sums over this share, with the same names in every process.
            stop: whether this process was asked to stop.
        """
        self.sent = 0
        here = [parameter.grad is not None for _, parameter in self.named]
        names = sorted(monitored)
        counts = bool(images)
        numbers = [float(images), loss * images if counts else 0.0, float(stop), float(here != self._mine)]
        numbers += [monitored[name] if counts else 0.0 for name in names]
        # double precision is exact for counts, and MPS, which lacks it, has one process
        told = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._add(told).wait()
        whole, loss_sum, asked, differs, *values = told.tolist()
        if differs:
            everyones = self.processes.gathered(here)
            self._mine, self._someones = here, [any(column) for column in zip(*everyones, strict=True)]
        self._sum(images / whole)
        return Summed(round(whole), loss_sum / whole, dict(zip(names, values, strict=True)), asked > 0)

    @torch.no_grad()
    def average(self, statistics: Sequence[Tensor], share: float) -> None:
        """Replace running statistics by the means over the processes, weighted by their shares of the batch."""
        if statistics:
            flat = torch.cat([one.reshape(-1) for one in statistics]) * share
            self._add(flat).wait()
            pieces = torch.split(flat, [one.numel() for one in statistics])
            for one, piece in zip(statistics, pieces, strict=True):
                one.copy_(piece.view_as(one))

    def _sum(self, share: float) -> None:
        """Sum the gradients, each weighted by this process's share of the batch."""
        used = [p for (_, p), someones in zip(self.named, self._someones, strict=True) if someones]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            else:
                parameter.grad = parameter.grad.mul_(share).contiguous()
        gradients = [p.grad for p in used if p.grad is not None]
        waiting = []
        small: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            if gradient.numel() >= _LARGE:
                waiting.append(self._add(gradient))
            else:
                small.setdefault(gradient.dtype, []).append(gradient)
        for members in small.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in members])
            self._add(flat).wait()
            pieces = torch.split(flat, [gradient.numel() for gradient in members])
            for gradient, piece in zip(members, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        for one in waiting:
            one.wait()

    def _add(self, tensor: Tensor) -> dist.Work:
        """Begin to sum a tensor over the processes, in place."""
        self.sent += tensor.numel() * tensor.element_size()
        begun: dist.Work | None = dist.all_reduce(tensor, async_op=True)
        assert begun is not None
        return begun
