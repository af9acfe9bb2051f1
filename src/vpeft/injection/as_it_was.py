"""A model before an adapter file is put on it, so that a file that fails to load leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class AsItWas:
    """Remembers what attaching, loading and quantising change; `restore` puts it back bit by bit.

    Nothing is copied but the parameters that an adapter trains in place, by `note_written`.

    Args:
        description: of the backbone.
        tuned: the model that has it already, or None where there is none yet.
    """

    def __init__(self, description: Backbone, tuned: TunedModel | None) -> None:
        root = description.root
        self._flags = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
        self._linear = [(module, dict(module._parameters)) for module in root.modules() if type(module) is nn.Linear]
        self._names = set() if tuned is None else set(tuned.adapters)
        self._choice = None if tuned is None else tuned._wiring.switch.choice
        self._facts = (None, None) if tuned is None else (tuned.origin, tuned.quantised)
        self._written: dict[nn.Parameter, Tensor] = {}

    def note_written(self, tuned: TunedModel, name: str) -> None:
        """Copy the backbone's own parameters that the adapter just attached trains in place."""
        unfrozen = tuned.adapter(name).unfrozen
        for number, frozen in enumerate(unfrozen.frozen):
            if frozen is None:
                trained = unfrozen.trained(number)
                self._written[trained] = trained.detach().clone()

    @torch.no_grad()
    def restore(self, tuned: TunedModel | None) -> None:
        """Take off what was attached since, and put back what was written, rounded or switched."""
        for module, parameters in self._linear:
            if type(module) is not nn.Linear:  # rounded since
                module.__class__ = nn.Linear
                module._buffers.clear()
                module.__dict__.pop("kind", None)
                module._parameters.clear()
                module._parameters.update(parameters)
        for parameter, value in self._written.items():
            parameter.copy_(value)
        if tuned is not None:
            tuned.origin, tuned.quantised = self._facts
            for name in [name for name in tuned.adapters if name not in self._names]:
                unfrozen = tuned.adapter(name).unfrozen
                for number, frozen in enumerate(unfrozen.frozen):
                    if frozen is None:
                        unfrozen.frozen[number] = unfrozen.trained(number)  # it holds the frozen values again
                tuned.detach(name)
            if self._choice is not None:
                tuned._wiring.switch.set_default(self._choice)
                tuned._stand_in()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
