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
    from . import layers, methods, suites, tasks
    from .acceleration.apply import accelerate
    from .backbones.backbone import Backbone
    from .backbones.create import create_backbone
    from .backbones.describe import describe
    from .backbones.edits import Edit
    from .backbones.own_model import Anatomy
    from .backbones.points import MissingPlace
    from .batch import Batch, Sample
    from .bench.config import BenchConfig
    from .bench.runner import run_bench
    from .data.config import DataConfig
    from .data.datasets import open_data
    from .data.preprocessing import Preprocessing
    from .errors import VpeftError
    from .head import Head, get_head
    from .injection.adapter_file import read_manifest
    from .injection.load_adapter import load
    from .injection.rename_classes import rename_classes
    from .injection.tune import tune
    from .injection.tuned_model import TunedModel
    from .injection.verify import DeadPlace
    from .interop import hf, hub
    from .interop.timm_model import timm_model
    from .interop.tracker import Tracked, tracker
    from .method import Method, register
    from .regimes.fusion.fuse import fuse
    from .regimes.multi_task import fit_tasks
    from .task import Leading, Prediction, Task, get_task, register_task
    from .training.concurrent_run import Run
    from .training.evaluate import evaluate
    from .training.fit import fit
    from .training.optimisation import Optimisation
    from .training.recipe import Recipe
    from .training.result import Scores
    from .training.run import run_recipe
    from .training.runs import run_recipes
    from .training.together import fit_together

_HOMES = {
    "Anatomy": ".backbones.own_model",
    "Backbone": ".backbones.backbone",
    "Batch": ".batch",
    "BenchConfig": ".bench.config",
    "DataConfig": ".data.config",
    "DeadPlace": ".injection.verify",
    "Edit": ".backbones.edits",
    "Head": ".head",
    "Leading": ".task",
    "Method": ".method",
    "MissingPlace": ".backbones.points",
    "Optimisation": ".training.optimisation",
    "Prediction": ".task",
    "Preprocessing": ".data.preprocessing",
    "Recipe": ".training.recipe",
    "Run": ".training.concurrent_run",
    "Sample": ".batch",
    "Scores": ".training.result",
    "Task": ".task",
    "Tracked": ".interop.tracker",
    "TunedModel": ".injection.tuned_model",
    "VpeftError": ".errors",
    "accelerate": ".acceleration.apply",
    "create_backbone": ".backbones.create",
    "describe": ".backbones.describe",
    "evaluate": ".training.evaluate",
    "fit": ".training.fit",
    "fit_tasks": ".regimes.multi_task",
    "fit_together": ".training.together",
    "fuse": ".regimes.fusion.fuse",
    "get_head": ".head",
    "get_task": ".task",
    "load": ".injection.load_adapter",
    "open_data": ".data.datasets",
    "read_manifest": ".injection.adapter_file",
    "register": ".method",
    "register_task": ".task",
    "rename_classes": ".injection.rename_classes",
    "run_bench": ".bench.runner",
    "run_recipe": ".training.run",
    "run_recipes": ".training.runs",
    "timm_model": ".interop.timm_model",
    "tracker": ".interop.tracker",
    "tune": ".injection.tune",
}
_MODULES = {"hf": ".interop.hf", "hub": ".interop.hub"} | {
    name: f".{name}" for name in ("layers", "methods", "suites", "tasks")
}

__all__ = [
    "Anatomy",
    "Backbone",
    "Batch",
    "BenchConfig",
    "DataConfig",
    "DeadPlace",
    "Edit",
    "Head",
    "Leading",
    "Method",
    "MissingPlace",
    "Optimisation",
    "Prediction",
    "Preprocessing",
    "Recipe",
    "Run",
    "Sample",
    "Scores",
    "Task",
    "Tracked",
    "TunedModel",
    "VpeftError",
    "__version__",
    "accelerate",
    "create_backbone",
    "describe",
    "evaluate",
    "fit",
    "fit_tasks",
    "fit_together",
    "fuse",
    "get_head",
    "get_task",
    "hf",
    "hub",
    "layers",
    "load",
    "methods",
    "open_data",
    "read_manifest",
    "register",
    "register_task",
    "rename_classes",
    "run_bench",
    "run_recipe",
    "run_recipes",
    "suites",
    "tasks",
    "timm_model",
    "tracker",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"vpeft has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return list(__all__)
