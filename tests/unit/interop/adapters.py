"""Adapters with tensors off their start, on tiny backbones, and the models that the libraries themselves would have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY
from tests.models import images_for
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method

CLASSES = 5


def backbone(family: str) -> nn.Module:
    """The tiny backbone, with the same weights at each call."""
    torch.manual_seed(0)
    return EVERY[family]().eval()


def adapted(family: str, *methods: Method, classes: int | None = CLASSES) -> TunedModel:
    """Methods on the tiny backbone, every trained tensor moved by a random step."""
    torch.manual_seed(1)
    tuned = vpeft.tune(backbone(family), *methods, num_classes=classes, verify=False, show=False).eval()
    shaken(tuned)
    return tuned


def shaken(tuned: TunedModel, seed: int = 2, size: float = 0.05) -> None:
    """Move every trained tensor of the active adapter by a random step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def images(model: nn.Module) -> Tensor:
    return images_for(model, 3)


def library_classifier(family: str, classes: int = CLASSES) -> nn.Module:
    """The library's own model with a fresh classifier and the tiny backbone's weights, made without vpeft."""
    base = backbone(family)
    if hasattr(base, "reset_classifier"):
        base.reset_classifier(classes)
        return base.eval()
    if type(base).__module__.startswith("transformers."):
        import transformers

        config = base.config
        config.num_labels = classes
        found = transformers.AutoModelForImageClassification._model_mapping[type(config)]
        kind = found[0] if isinstance(found, tuple) else found
        if isinstance(base, kind):
            base.classifier = kind(config).classifier
            return base.eval()
        whole = kind(config)
        inner = getattr(whole, kind.base_model_prefix)
        inner.load_state_dict({key: value for key, value in base.state_dict().items() if key in inner.state_dict()})
        return whole.eval()
    *path, last = next(reversed([name for name, one in base.named_modules() if isinstance(one, nn.Linear)])).split(".")
    owner = base.get_submodule(".".join(path))
    setattr(owner, last, nn.Linear(getattr(owner, last).in_features, classes))
    return base.eval()


def answered(model: nn.Module, x: Tensor) -> Tensor:
    """The logits, or whatever the library's model answers."""
    with torch.no_grad():
        out = model(x)
    out = getattr(out, "logits", out)
    return out[0] if isinstance(out, tuple) else out


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1.0))
