"""Divide the frozen weights among the processes of a run (FSDP2), where one device cannot hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vpeft.training.memory import readable
from vpeft.training.processes import CannotShard, Processes

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel


def shard_frozen(tuned: TunedModel, device: torch.device, processes: Processes) -> str:
    """Divide the frozen weights of every block among the processes; return a line to print.

    A block's weights are gathered while it runs, forward and backward, and given up afterwards. What trains stays whole
    in every process, so that optimiser, checkpoints and adapter files are those of one process.

    Args:
        tuned: the model, on the processor; each block is moved to the device when it has been divided.
        device: of this process.
        processes: among which to divide.

    Raises:
        CannotShard: there is one process only, the model has no blocks, nothing in them is frozen, or the weights are
            quantised or compiled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not processes.several:
        raise CannotShard(
            "shard divides the frozen weights among several processes, and this is one. Start the command with"
            " `torchrun --nproc-per-node N -m vpeft ...` or `accelerate launch`, or leave shard out."
        )
    if tuned.quantised is not None:
        raise CannotShard(
            f"The frozen weights are {tuned.quantised}, and such weights cannot be divided. Leave out one."
        )
    modules = [block.exit.module for block in tuned.description.blocks if block.exit is not None]
    modules = list({id(module): module for module in modules}.values())
    trained = {parameter for _, parameter in tuned.trainable()}
    frozen = {p for module in modules for p in module.parameters()} - trained
    if not frozen:
        why = "has no blocks" if not modules else "has no frozen weights in its blocks: what trains is never divided"
        raise CannotShard(f"shard has nothing to divide: {tuned.description.facts.architecture} {why}. Leave it out.")
    mesh = init_device_mesh(device.type, (processes.count,))
    for module in modules:
        if not isinstance(module, FSDPModule):  # of an earlier training
            # Each block stands for itself, and FSDP would keep what it takes for the outermost module whole.
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    size = sum(p.numel() * p.element_size() for p in frozen)
    return f"{readable(size)} of frozen weights are divided among {processes.count} processes"
