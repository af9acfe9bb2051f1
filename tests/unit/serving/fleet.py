"""Adapters of many methods and tasks on the small backbone that ships, and images for them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vpeft
from vpeft.methods import get
from vpeft.task import get_task

BACKBONE = "pocket_vit"
LABELS = ["ant", "bee", "cat"]
METHODS: dict[str, Any] = {
    "lora": get("lora")(rank=2),
    "lora_b": get("lora")(rank=2),
    "bottleneck": get("adaptformer")(bottleneck=4),
    "prompts": get("vpt_deep")(tokens=2),
    "biases": get("bitfit")(),
    "weights": get("dora")(rank=2),
}
TASKS: dict[str, dict[str, Any]] = {
    "regression": {"labels": ("age", "size"), "mean": (1.0, 2.0), "std": (1.0, 3.0)},
    "multilabel": {"labels": tuple(LABELS)},
    "semantic_segmentation": {"labels": tuple(LABELS)},
    "depth": {},
    "detection": {"labels": tuple(LABELS)},
    "same_or_different": {},
}


def made(folder: Path, name: str, method: Any, task: Any = None) -> Path:
    """An adapter whose tensors are off their start, saved in the folder."""
    model = vpeft.create_backbone(BACKBONE)
    torch.manual_seed(len(name) + sum(map(ord, name)))
    if task is None:
        tuned = vpeft.tune(model, method, num_classes=len(LABELS), show=False, verify=False)
    else:
        tuned = vpeft.tune(model, method, task=task, show=False, verify=False)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    labels = LABELS if task is None else None
    saved: Path = tuned.save(folder / f"{name}.safetensors", labels=labels)
    return saved


def fleet(folder: Path) -> Path:
    """A folder with an adapter for each of the methods."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, method in METHODS.items():
        made(folder, name, method)
    return folder


def of_task(folder: Path, name: str) -> Path:
    """A folder with one adapter of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    made(folder, name, get("lora")(rank=2), get_task(name)(**TASKS[name]))
    return folder


def picture(number: int = 0, size: tuple[int, int] = (72, 80), kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    held = BytesIO()
    Image.fromarray(values).save(held, kind)
    return held.getvalue()
