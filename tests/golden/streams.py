"""Streams of tasks as the authors' own Swin gives them, and the check that ours gives the same.

Each `vectors/<name>.safetensors` holds, of tiny Swin with tasks a and b, the trained tensors under the reference's
names (`param/...`), what a decoder of each task reads of both stages (`y/<stage>/<task>`, of the first stage behind the
merging of patches), and the gradients (`grad/...`) of the sum of y * `direction/...`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import vpeft
from tests.golden.parity import GRADIENT, OUTPUT, VECTORS, base_swin, vectors
from vpeft.head import Head
from vpeft.methods import Method

TASKS = ("a", "b")


class BothStages(Head):
    """What the authors' decoders read."""

    reads = ("stages.1.downsample.reduction", "stages.1")

    def forward(self, features: Any, batch: Any = None) -> list[Tensor]:
        return [features[place] for place in self.reads]


RENAMED = (
    (r"^embedding\.tap\.of\.(\w)$", r"task_prompts"),
    (r"^stages\.1\.downsample\.reduction\.tap\w*\.up\.weight$", "layers.0.downsample.task_prompts_up.weight"),
    (r"^stages\.1\.downsample", "layers.0.downsample"),
    (r"^patch\.unfreeze", "patch_embed.proj"),
    (r"^patch_norm\.unfreeze", "patch_embed.norm"),
    (r"^blocks\.[13]\.after\.gate$", lambda m: f"layers.{int(m[0][7]) // 2}.prompt_gate"),
    (r"^blocks\.(\d)", lambda m: f"layers.{int(m[1]) // 2}.blocks.{int(m[1]) % 2}"),
    (r"\.unfreeze", ""),
    (r"(proj|fc1|fc2)\.after\.norm\.", r"\1.prompt_layernorm."),
    (r"\.after\.filters\.for_all\.make\.", ".lora_filter.a.conv."),
    (r"\.after\.filters\.for_all\.scale", ".lora_filter.a.chan_FilterNorm.std"),
    (r"\.after\.filters\.for_all\.shift", ".lora_filter.a.chan_FilterNorm.mean"),
    (r"\.after\.filters\.(\w)\.conv\.", r".lora_filter.\1.conv2d."),
    (r"\.after\.own\.(\w)\.([AB])$", r".lora_tasks_\2.\1"),
    (r"\.(?:parallel|after\.shared|after\.update)\.([AB])$", r".lora_shared_\1"),
)


def theirs(name: str) -> str:
    """The reference's name of one of our tensors."""
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def taken(name: str, stored: Mapping[str, Tensor], kind: str, like: Tensor) -> Tensor:
    """The reference's tensor, or its gradient, in the shape of ours."""
    found = stored[f"{kind}/{theirs(name)}"]
    if name.startswith("embedding.tap.of."):
        found = found[TASKS.index(name[-1])]
    return found.reshape(like.shape)


def reproduce_streams(name: str, method: Method) -> vpeft.TunedModel:
    """Compare outputs and gradients with those that the authors' code gave; only the last norm is left out there."""
    stored = vectors(name)
    heads = {task: BothStages() for task in TASKS}
    tuned = vpeft.tune(base_swin().double(), method, head=heads, verify=False).eval()
    ours = {key: p for key, p in tuned.trainable() if not key.startswith("norm.")}
    known = {key.removeprefix("param/") for key in stored if key.startswith("param/")}
    assert {theirs(key) for key in ours} >= known, known - {theirs(key) for key in ours}
    silent = [key for key in ours if theirs(key) not in known]
    assert all(re.search(r"blocks\.3\.mlp\.fc2\.after\.shared\.", key) for key in silent), silent
    with torch.no_grad():
        for key, parameter in ours.items():
            if key not in silent:
                parameter.copy_(taken(key, stored, "param", parameter))
    out = tuned(load_file(VECTORS / "inputs.safetensors")["x"].double())
    loss = torch.zeros((), dtype=torch.float64)
    for task in TASKS:
        for stage, y in enumerate(out[task]):
            expected = stored[f"y/{stage}/{task}"]
            error = (y.flatten(1, 2) - expected).abs().max() / expected.abs().max().clamp(min=1.0)
            assert error <= OUTPUT, f"stage {stage} of {task} differs by {error:.1e}"
            loss = loss + (y.flatten(1, 2) * stored[f"direction/{stage}/{task}"]).sum()
    loss.backward()
    for key, parameter in ours.items():
        if key in silent:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        expected = taken(key, stored, "grad", parameter)
        assert parameter.grad is not None, key
        error = (parameter.grad - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= GRADIENT, f"gradient of {key} differs by {error:.1e} of its size"
    return tuned
