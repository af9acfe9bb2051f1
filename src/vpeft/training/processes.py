"""The processes of one run: who writes, who waits, and what they tell each other.

`torchrun` and `accelerate launch` start the same command several times. Each process has the whole model and computes
its share of every batch; the sums are in `gradient_sum`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vpeft.errors import VpeftError
from vpeft.training.failures import TrainingFailed

T = TypeVar("T")

# The first process may prepare data for long while the others wait. A process that has died is noticed at once.
_WAIT = timedelta(hours=2)
# How the libraries below torch.distributed say that another process does not answer; they raise a plain RuntimeError.
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl")
_MIXED = "mixed torch.Tensor and DTensor"


class LostProcess(TrainingFailed):
    """Another process of the run has ended."""


class ProcessesDiffer(VpeftError):
    """The processes of one run have different models, data or settings."""


class UnsuitableLaunch(VpeftError):
    """A launcher has started processes that this machine has no devices for, or that cannot find each other."""


class CannotShard(VpeftError):
    """The frozen weights cannot be divided among the processes."""


@dataclass(frozen=True)
class Processes:
    """This process's number among all processes of the run, and their count.

    Methods that talk to other processes must be called by all of them, in the same order.
    """

    number: int = 0
    count: int = 1

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.number == 0

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.several:
            self.gathered(None)

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what `make` gives in the first process; the others do not call it.

        Raises:
            VpeftError: the one that `make` raised in the first process, in every process.
        """
        if not self.several:
            return make()
        told: list[Any] = [None, None]
        if self.main:
            try:
                told[0] = make()
            except VpeftError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        made: T = told[0]
        return made

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A context that the first process goes through before the others enter it."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def require_equal(self, facts: dict[str, Any]) -> None:
        """Compare JSON facts with those of the other processes.

        Raises:
            ProcessesDiffer: with the names of the facts that differ.
        """
        everyones = self.gathered(facts)
        names = [name for name in facts if any(one.get(name) != facts[name] for one in everyones)]
        if names:
            raise ProcessesDiffer(
                f"The {self.count} processes of this run have different {', '.join(names)}. Every process must make the"
                " same model from the same weights, and open the same data: seed torch before a model with random"
                " weights is made."
            )

    @torch.no_grad()
    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.several:
            for tensor in tensors:
                dense = tensor.contiguous()
                dist.broadcast(dense, src=0)
                if dense is not tensor:
                    tensor.copy_(dense)


ALONE = Processes()


def present_processes() -> Processes:
    """Return the processes that have joined; one process alone if there was no launcher."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


def launched() -> tuple[int, int]:
    """Return this process's number and the count of processes that a launcher states; (0, 1) without a launcher."""
    stated = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    number, count = (int(text) if text.isdigit() else 0 for text in stated)
    return (number, count) if count > 1 else (0, 1)


def join(device: str = "auto") -> Processes:
    """Form one group with the other processes that a launcher has started, until the process ends.

    Nothing happens without a launcher, or if there is a group already.

    Args:
        device: "cpu" keeps off the GPUs; otherwise each process takes the GPU of its number on this machine.

    Raises:
        UnsuitableLaunch: there are fewer GPUs than processes on this machine, or the launcher did not say enough.
        LostProcess: another process has ended in the meantime.
    """
    _, count = launched()
    if count < 2 or not dist.is_available() or dist.is_initialized():
        return present_processes()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UnsuitableLaunch(
            f"WORLD_SIZE says {count} processes, but {', '.join(missing)} is not set. Start it with torchrun or"
            " accelerate launch, which set them, or unset WORLD_SIZE."
        )
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UnsuitableLaunch(
                f"The launcher started more processes than this machine has GPUs ({torch.cuda.device_count()}). Start"
                " one process for each GPU, or use --device cpu."
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # objects travel between processors
    with explained():
        dist.init_process_group(backend, timeout=_WAIT)
    atexit.register(_leave)
    return present_processes()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def explained() -> Iterator[None]:
    """A context that turns errors of torch.distributed into errors for users.

    Raises:
        LostProcess: another process of the run has ended.
        CannotShard: a method reads divided weights where they are not whole.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, VpeftError) or not present_processes().several:
            raise
        lost = _explained_loss(error)
        if lost is not None:
            raise lost from error
        if _MIXED in str(error):
            raise CannotShard(
                "A method of this run reads frozen weights outside of the block that they belong to, and divided"
                " weights are whole only while their block runs. Train it without shard, or use another method."
            ) from error
        raise


def _explained_loss(error: BaseException) -> LostProcess | None:
    """Return the error for users if `error` says that another process does not answer; otherwise None."""
    said = str(error)
    if isinstance(error, VpeftError) or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, dist.DistError) and not any(word in said.lower() for word in _LOST):
        return None
    return LostProcess(
        "Another process of this run has ended: it was killed, or it failed and its own message says why. All"
        " processes stop. Start the run again with the same command: it continues from its last checkpoint."
    )
