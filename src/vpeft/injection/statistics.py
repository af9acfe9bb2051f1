"""BatchNorm statistics that belong to an adapter: they move while it trains, are saved with it, and go with it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .node import AdapterError, Node


class Statistics:
    """Running statistics of the backbone's BatchNorm layers under one adapter, and the frozen ones they stand in for.

    While the adapter is on, the layers hold the adapter's buffers; otherwise the frozen ones. Both are objects that
    change places, so that the frozen values are never written to.
    """

    def __init__(self) -> None:
        self.targets: list[tuple[nn.Module, str, Node, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self.targets)

    def add(self, top: Node, backbone: nn.Module) -> None:
        """Give the adapter its own statistics of every BatchNorm layer, as `statistics.<module>.<buffer>`.

        Raises:
            AdapterError: the backbone has no such layer.
        """
        for prefix, module in batch_norms(backbone):
            node = top.reach(["statistics", *prefix.split(".")])
            for key, buffer in module.named_buffers(recurse=False):
                node.register_buffer(key, buffer.detach().clone())
                self.targets.append((module, key, node, buffer))
        if not self.targets:
            raise AdapterError(
                f"{type(backbone).__name__} has no BatchNorm layer, so there are no statistics to adapt."
                ' Leave out statistics="adapt".'
            )

    def switch(self, on: bool) -> None:
        """Put the adapter's (on) or the frozen (off) statistics into the backbone, on the device where it is."""
        for i, (module, key, node, frozen) in enumerate(self.targets):
            own = node._buffers[key]
            assert own is not None
            if not on and frozen.device != own.device:
                frozen = frozen.to(own.device)
                self.targets[i] = (module, key, node, frozen)
            module._buffers[key] = own if on else frozen


def batch_norms(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every BatchNorm layer that keeps running statistics, by name."""
    for prefix, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield prefix, module


def hold_still(backbone: nn.Module, training: bool) -> None:
    """Let BatchNorm layers use and move their statistics of the batch (training), or their running ones."""
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.training = training
