"""A step in a place's dotted name, and the error of adapters."""

from __future__ import annotations

from torch import nn

from ..errors import VpeftError


class AdapterError(VpeftError):
    """An adapter's name, state or use does not fit."""


class Node(nn.Module):
    """A step in a place's dotted name."""

    def reach(self, path: list[str]) -> Node:
        """The node at `path`, made where it is not there yet."""
        node = self
        for step in path:
            if step not in node._modules:
                node.add_module(step, Node())
            child = node._modules[step]
            assert isinstance(child, Node), f"{step} is both a layer and a place"
            node = child
        return node
