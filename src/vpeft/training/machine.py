"""Device, precision, and what `accelerate` does for the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from vpeft.errors import VpeftError
from vpeft.training.optimisation import Precision

_NAMES: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class UnsuitableMachine(VpeftError):
    """This machine does not offer what the settings ask for."""


def accelerator(precision: Precision, device: str = "auto") -> Accelerator:
    """Return an `Accelerator` for one run. Runs of one process may differ in precision and device.

    Raises:
        UnsuitableMachine: fp16 without an accelerator.
    """
    # accelerate keeps one state per process and refuses a second precision; between runs it may well be another.
    # The group of processes is ours (see `processes`); of several, each has the device that was set for it.
    count = torch.distributed.get_world_size() if torch.distributed.is_initialized() else None
    stale = PartialState._shared_state.get("num_processes") != count
    AcceleratorState._reset_state(reset_partial_state=count is None or stale)
    off_gpu = device == "cpu" and torch.accelerator.is_available()  # else it is the processor anyway
    try:
        made = Accelerator(mixed_precision=_NAMES[precision], cpu=off_gpu)
    except ValueError as error:
        raise UnsuitableMachine(f"precision = {precision!r} does not work on this machine: {error}") from error
    if precision == "fp16" and made.device.type == "cpu":
        # accelerate would say nothing and compute in fp32.
        raise UnsuitableMachine('precision = "fp16" needs an accelerator; on the CPU use "bf16" or "fp32".')
    return made


def bf16_is_emulated(device: torch.device) -> bool:
    """Whether the CPU has no bf16 instructions, so that products are many times slower than in fp32."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def remarks(precision: Precision, device: torch.device) -> list[str]:
    """Return remarks on this machine to print before training."""
    if precision == "bf16" and bf16_is_emulated(device):
        return ["this processor has no bf16 instructions, so bf16 is slower than fp32: use --precision fp32"]
    return []


@contextmanager
def repeatable_kernels(wanted: bool) -> Iterator[None]:
    """A context in which torch uses only deterministic kernels, if `wanted`; torch raises if it has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
