"""Compile every block separately with torch.compile, including its edits; equal blocks share one graph.

Only training steps are compiled; evaluation and all passes without gradients use the plain computation. The batch size
is dynamic, so a smaller last batch needs no further graph; a single image is computed without the graph. Random numbers
are drawn by torch's own kernels in the same order, so dropout and drop path do not change. On CUDA, the kernels of a
block are replayed as a CUDA graph ("reduce-overhead"); this has not been tested on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.bit_masks import DroppedBits, PositiveBits
from vpeft.acceleration.frozen_prefix import SkippedBlock
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.recompute import RecomputableOutput, RecomputingGelu
from vpeft.acceleration.recompute_blocks import CheckpointedBlock
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method

# Largest number of graphs of one model. torch's own limit is 8; with drop path every block needs its own graph.
MOST = 128


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a block with its hooks. It is copied before compiling, as torch stores graphs with a function's code."""
    return module._call_impl(*args, **kwargs)


class Compiled:
    """The compiled call of a block.

    Args:
        module: the block.
        run: the compiled `_call`.
        beside: objects whose tensors the block reads in addition to its arguments.
        trained: the trained parameters, for the first block on CUDA; otherwise empty.
    """

    def __init__(
        self, module: nn.Module, run: Callable[..., Any], beside: tuple[Any, ...], trained: list[nn.Parameter]
    ) -> None:
        self.module: Any = module
        self.run, self.beside, self.trained = run, beside, trained

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not (self.module.training and torch.is_grad_enabled()) or not given or len(given[0]) < 2:
            return self.module._call_impl(*args, **kwargs)
        from torch._dynamo import config, maybe_mark_dynamic

        given += [value for one in self.beside for value in vars(one).values() if isinstance(value, Tensor)]
        for value in given:
            if value.dim() and len(value) == len(given[0]):
                maybe_mark_dynamic(value, 0)
        if self.trained and all(p.grad is None for p in self.trained):
            # A new step: its CUDA graphs may overwrite tensors of the last step, but not those of parts of a batch.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with config.patch(recompile_limit=MOST):
            return self.run(self.module, *args, **kwargs)


class CompileBlocks(Acceleration):
    """Run blocks as compiled graphs in training."""

    name = "compile_blocks"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        ends = [(block.name, block.enter, block.exit) for block in tuned.description.blocks]
        other = next((name for name, enter, end in ends if not (enter and end and enter.module is end.module)), None)
        if other is not None:
            raise NotApplicable(f"{other} is not a single module, so it cannot be compiled")
        blocks = list({id(end.module): end.module for _, _, end in ends if end is not None}.values())
        _refuse(tuned, blocks)
        left = [block for block in blocks if not isinstance(block, SkippedBlock)]
        if not left:
            raise NotApplicable("the outputs of all blocks are cached")
        _refuse_machine(tuned)
        options: dict[str, Any] = {"fallback_random": True}
        on_cuda = next(tuned.parameters()).device.type == "cuda"
        if on_cuda:
            options |= torch._inductor.list_mode_options("reduce-overhead")
        run = torch.compile(FunctionType(_call.__code__.replace(), globals()), fullgraph=True, options=options)
        carrier = tuned.description.trunk.carrier
        beside = tuple(one for one in (carrier, getattr(blocks[0], "vpeft_prefix", None)) if one is not None)
        trained = [p for _, p in tuned.trainable()] if on_cuda else []
        switch = tuned._wiring.switch
        switch.compiled += 1
        patches.on_undo(lambda: setattr(switch, "compiled", switch.compiled - 1))
        for block in left:
            compiled = Compiled(block, run, beside, trained if block is left[0] else [])
            patches.note(block, _compiled_call_impl=compiled)
        return f"{len(left)} blocks are compiled"

    def warm(self, step: Callable[[int], object]) -> str:
        """Compile before the test; return the time and the number of graphs as text.

        Raises:
            NotApplicable: later steps would compile again.
        """
        start, before = time.perf_counter(), _graphs()
        step(3)
        step(2)  # from here on the batch size is dynamic
        settled = _graphs()
        step(2)  # CUDA graphs are recorded
        if _graphs() != settled:
            raise NotApplicable("something in a block changes with every step, so it would compile again at each step")
        return f" in {time.perf_counter() - start:.0f} s, in {settled - before} graphs"


def _graphs() -> int:
    """Return the number of graphs that this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _refuse(tuned: TunedModel, blocks: Iterable[nn.Module]) -> None:
    modules = [module for block in blocks for module in block.modules()]
    if any(isinstance(module, CheckpointedBlock) for module in modules):
        raise NotApplicable("recompute_blocks runs every block again, which a compiled block does not allow")
    if any(isinstance(module, (RecomputableOutput, RecomputingGelu, DroppedBits, PositiveBits)) for module in modules):
        raise NotApplicable("low_memory decides what is recomputed, and so does the compiler")
    if any(type(method).advance is not Method.advance for method in tuned.methods()):
        raise NotApplicable("the method changes the model during training, so it would compile again each time")
    if any(module._compiled_call_impl is not None for module in modules):
        raise NotApplicable("parts of the backbone are compiled already")


def _refuse_machine(tuned: TunedModel) -> None:
    """Raise `NotApplicable` if torch.compile cannot run on this machine."""
    kind = next(tuned.parameters()).device.type
    if kind not in ("cpu", "cuda"):
        raise NotApplicable(f"it does not support {kind}")
    from torch._dynamo.eval_frame import is_dynamo_supported
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if not is_dynamo_supported():
        raise NotApplicable("torch.compile does not run with this version of Python")
    if kind == "cuda":
        if not has_triton():
            raise NotApplicable("torch.compile needs Triton here; install triton")
        return
    try:
        get_cpp_compiler()
    except RuntimeError:
        raise NotApplicable(
            "torch.compile needs a C++ compiler here, and there is none; install g++ or clang++, or name one in CXX"
        ) from None
