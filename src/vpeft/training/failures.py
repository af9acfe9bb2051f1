"""Find and explain why a run failed: a number that is not finite, or too little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.names import FOR_MEMORY
from vpeft.batch import Batch, run_model
from vpeft.errors import VpeftError
from vpeft.training.memory import readable, saved_bytes
from vpeft.training.modes import evaluation_mode
from vpeft.training.randomness import untouched_randomness

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel
    from vpeft.training.optimisation import Optimisation
    from vpeft.training.result import Result


class TrainingFailed(VpeftError):
    """Training ended early because of an error; `result` holds what was reached."""

    result: Result | None = None


class NonFinite(TrainingFailed):
    """A tensor contains NaN or infinity."""


class OutOfMemory(TrainingFailed):
    """A step needs more memory than is available."""


def first_not_finite(tuned: nn.Module, batch: Batch) -> str | None:
    """Return the name of the first tensor from the inputs to the outputs that is not finite, or None.

    It checks the parameters, then runs the forward pass again, in evaluation mode and without gradients.
    """
    images = batch.inputs
    if isinstance(images, Tensor) and not _finite(images):
        broken = [i for i in range(len(images)) if not _finite(images[i])]
        return f"the input: {len(broken)} of {len(images)} images of the batch, the first at position {broken[0]}"
    for kind, named in (("parameter", tuned.named_parameters()), ("buffer", tuned.named_buffers())):
        for name, tensor in named:
            if not _finite(tensor):
                return f"the {kind} {name!r} ({_what(tensor)})"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_Watch(name or type(tuned).__name__, found))
        for name, module in tuned.named_modules()
    ]
    try:
        with torch.no_grad(), evaluation_mode(tuned), untouched_randomness():
            run_model(tuned, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def not_finite_gradients(named: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Return the names of the parameters whose gradient contains NaN or infinity."""
    return [name for name, parameter in named if parameter.grad is not None and not _finite(parameter.grad)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error of torch or the system."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text.lower())


def memory_message(tuned: nn.Module, sample: Tensor, settings: Optimisation, said: str) -> str:
    """Say what memory a step needs, measured with two and three images, and what to change.

    Args:
        tuned: in training mode, without gradients.
        sample: at least one image, (B, C, H, W), on the model's device.
        said: torch's own message.
    """
    part = -(-settings.batch // settings.accumulate)
    head = f"Out of memory at {part} images at a time (batch {settings.batch}, accumulate {settings.accumulate}"
    head += f", precision {settings.precision}). "
    advice = []
    if part > 1:
        split = min(settings.batch, settings.accumulate * 2)
        advice.append(f"accumulate = {split} (the same steps, with about half of it)")
        advice.append(f"batch = {max(1, settings.batch // 2)} (another recipe)")
    if settings.precision == "fp32":
        advice.append('precision = "bf16"')
    advice.append(
        "a smaller image size or backbone" if part > 1 else "a smaller image size or backbone: one image is the least"
    )
    try:
        with untouched_randomness(), buffers_as_they_were(tuned):
            # Not one: BatchNorm in training mode refuses it.
            two, three = _of_two_and_three(tuned, sample)
            profiles = _profiles(tuned, sample, part, settings.acceleration)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        measured = "Not even three images fit, so the need could not be measured. "
    else:
        each = max(three - two, 0)
        need = two + each * (part - 2)
        trained = sum(p.numel() * p.element_size() for p in tuned.parameters() if p.requires_grad)
        measured = (
            f"Measured: {readable(each)} per image are saved for the backward pass in fp32, hence {readable(need)} for "
            f"{part} images, besides {readable(_bytes(tuned))} of weights and {readable(3 * trained)} of gradients and "
            f"AdamW's state; {_available(sample.device)}. "
        )
        # The largest part that would have fitted is not known, so no number is promised beyond the halving.
        advice[:0] = profiles
        advice.append('fit_memory = "8GB" or another limit, which chooses among these')
    first_line = said.strip().splitlines()[0] if said.strip() else ""
    return f"{head}{measured}Change one of: {'; '.join(advice)}.\n({first_line})"


def _of_two_and_three(tuned: nn.Module, sample: Tensor) -> tuple[int, int]:
    """Return the bytes saved for the backward pass with two and with three images."""
    two, three = (saved_bytes(tuned, sample[:1].expand(n, *sample.shape[1:]).contiguous()) for n in (2, 3))
    return two, three


def _profiles(tuned: nn.Module, sample: Tensor, part: int, acceleration: str) -> list[str]:
    """Return the need of each memory-saving acceleration for `part` images, where it is smaller."""
    found: list[str] = []
    asked = [] if acceleration == "off" else acceleration.split(",")
    for name in sorted(FOR_MEMORY - set(asked)):
        made = accelerate(cast("TunedModel", tuned), name)
        try:
            if made.outcomes[0].applied:
                two, three = _of_two_and_three(tuned, sample)
                need = two + max(three - two, 0) * (part - 2)
                found.append(f'acceleration = "{",".join([*asked, name])}" (about {readable(need)} kept)')
        finally:
            made.close()
    return found


@contextmanager
def buffers_as_they_were(module: nn.Module) -> Iterator[None]:
    """A context that restores every buffer at its end."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


class _Watch:
    """A forward hook that notes the first output that is not finite."""

    def __init__(self, name: str, found: list[str]) -> None:
        self.name, self.found = name, found

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor) and not self.found and not _finite(tensor):
                self.found.append(f"the output of {self.name!r} ({type(module).__name__}, {_what(tensor)})")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _what(tensor: Tensor) -> str:
    broken = int((~torch.isfinite(tensor)).sum())
    return f"{broken} of {tensor.numel()} values, shape {tuple(tensor.shape)}"


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _available(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"the accelerator has {readable(total)}, {readable(free)} of them free"
    return "the processor's memory did not suffice"
