"""What adapters put in place of the backbone's own tensors, each for its own images of a common batch.

With one adapter on, its trained tensors stand in the backbone's modules. In a batch of several adapters the frozen ones
stay there, and a hook puts right the rows of each adapter: a trained bias b' adds b' - b to what the module gives; with
a trained weight, the module's function is computed again on these rows. No gradients are recorded there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .adapter import Unfrozen
    from .switch import Switch

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = (nn.Linear, nn.LayerNorm, *_CONVOLUTIONS)


def _again(module: nn.Module, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the module gives with another weight and bias."""
    if isinstance(module, nn.Linear):
        return F.linear(hidden, weight, bias)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(hidden, module.normalized_shape, weight, bias, module.eps)
    forward: Callable[..., Tensor] = module._conv_forward  # type: ignore[assignment]
    return forward(hidden, weight, bias)


class OwnRows:
    """A forward hook on a module of which some adapters train tensors."""

    def __init__(self, switch: Switch, module: nn.Module) -> None:
        self.switch, self.handle = switch, module.register_forward_hook(self, prepend=True)
        self.own: dict[str, dict[str, tuple[Unfrozen, int]]] = {}  # by adapter, then by the tensor's name
        self.acted: set[str] = set()  # adapters whose rows it has put right

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        now = self.switch.present
        if now.shares is None or torch.is_grad_enabled():
            return None
        acting = {name for name, _ in now.shares.counts if name in self.own}
        if not acting:
            return None
        biases = dict[int, list[tuple[str, int]]]()  # by the first image, neighbours that train the bias alone
        first, start = 0, None
        for name, count, (rows, given) in now.shares.of(output, args[0], acting=acting):
            own = self.own[name] if name is not None else {}
            if name is not None and set(own) != {"bias"}:
                weight, bias = (self._tensor(module, own, key) for key in ("weight", "bias"))
                assert weight is not None
                rows.copy_(_again(module, given, weight, bias))
            if name is not None and set(own) == {"bias"}:
                start = first if start is None else start
                biases.setdefault(start, []).append((name, count))
            else:
                start = None
            first += count
        for start, neighbours in biases.items():
            self._shift(module, output, start, neighbours, now.shares.images)
        self.acted |= acting
        return None

    def _tensor(self, module: nn.Module, own: dict[str, tuple[Unfrozen, int]], key: str) -> Tensor | None:
        if key in own:
            unfrozen, number = own[key]
            return unfrozen.trained(number)
        return module._parameters[key]

    def _shift(
        self, module: nn.Module, output: Tensor, start: int, neighbours: list[tuple[str, int]], images: int
    ) -> None:
        """Add b' - b to the rows of adapters that stand beside each other, from the image `start` on."""
        frozen = module._parameters["bias"]
        assert frozen is not None  # what is trained stands in for it
        trained = torch.stack([unfrozen.trained(number) for unfrozen, number in map(self._bias, neighbours)])
        counts = [count for _, count in neighbours]
        change = (trained - frozen).to(output.dtype)
        if max(counts) > 1:
            change = change.repeat_interleave(torch.tensor(counts, device=change.device), dim=0)
        per, many = len(output) // images, len(change)
        rows = output[start * per : (start + many) * per]
        rows = rows.view(many, per, *rows.shape[1:])
        spare = rows.dim() - 3  # axes of a map or of tokens
        channels_last = not isinstance(module, _CONVOLUTIONS)
        shape = (many, 1, *(1,) * spare, -1) if channels_last else (many, 1, -1, *(1,) * spare)
        rows.add_(change.view(shape))

    def _bias(self, neighbour: tuple[str, int]) -> tuple[Unfrozen, int]:
        return self.own[neighbour[0]]["bias"]


class OwnTensors:
    """The hooks of one model. They are there from the first common batch of an adapter until it is detached."""

    def __init__(self) -> None:
        self._hooks: list[tuple[nn.Module, OwnRows]] = []

    def install(self, name: str, unfrozen: Unfrozen, switch: Switch) -> bool:
        """Let the adapter's own tensors act on its rows; False if some of them lie where that cannot be said."""
        for (module, attribute, _, _), frozen in zip(unfrozen.targets, unfrozen.frozen, strict=True):
            if frozen is None or not isinstance(module, _KINDS) or attribute not in ("weight", "bias"):
                return False
        hooks = {id(module): hook for module, hook in self._hooks}
        with switch.guard.alone():
            for number, (module, attribute, _, _) in enumerate(unfrozen.targets):
                hook = hooks.get(id(module))
                if hook is None:
                    hook = hooks[id(module)] = OwnRows(switch, module)
                    self._hooks.append((module, hook))
                hook.own.setdefault(name, {})[attribute] = (unfrozen, number)
        return True

    def acted(self, name: str) -> bool:
        """Whether each module of which the adapter trains tensors has put its rows right."""
        return all(name in hook.acted for _, hook in self._hooks if name in hook.own)

    def forget(self, name: str) -> None:
        """The adapter is gone."""
        for _, hook in self._hooks:
            hook.own.pop(name, None)
            hook.acted.discard(name)
            if not hook.own:
                hook.handle.remove()
        self._hooks = [(module, hook) for module, hook in self._hooks if hook.own]
