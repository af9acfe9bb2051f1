"""Parameter-efficient fine-tuning of pre-trained vision models.

    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=8), num_classes=10)
    result = vpeft.fit(tuned, train, val, epochs=20)
    tuned.save("a.safetensors"); again = vpeft.load(base, "a.safetensors")

Names are imported when they are first used, so that `import vpeft` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import methods, suites
    from .backbones.backbone import Backbone
    from .backbones.create import create_backbone
    from .backbones.describe import describe
    from .backbones.own_model import Anatomy
    from .backbones.points import MissingPlace
    from .errors import VpeftError
    from .injection.adapter_file import load
    from .injection.tune import tune
    from .injection.tuned_model import TunedModel
    from .injection.verify import DeadPlace
    from .training.concurrent_run import Run
    from .training.evaluate import evaluate
    from .training.fit import fit
    from .training.recipe import Recipe
    from .training.together import fit_together

_HOMES = {
    "Anatomy": ".backbones.own_model",
    "Backbone": ".backbones.backbone",
    "create_backbone": ".backbones.create",
    "describe": ".backbones.describe",
    "MissingPlace": ".backbones.points",
    "VpeftError": ".errors",
    "load": ".injection.adapter_file",
    "tune": ".injection.tune",
    "TunedModel": ".injection.tuned_model",
    "DeadPlace": ".injection.verify",
    "evaluate": ".training.evaluate",
    "fit": ".training.fit",
    "fit_together": ".training.together",
    "Run": ".training.member",
    "Recipe": ".training.recipe",
}

__all__ = [
    "Anatomy",
    "Backbone",
    "DeadPlace",
    "MissingPlace",
    "Recipe",
    "Run",
    "TunedModel",
    "VpeftError",
    "__version__",
    "create_backbone",
    "describe",
    "evaluate",
    "fit",
    "fit_together",
    "load",
    "methods",
    "suites",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in ("methods", "suites"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"vpeft has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
