"""An adapter file of today that must load for ever after.

`tests/fixtures/adapter_of_2026.safetensors` was written once by this file (`python -m tests.e2e.test_kept_adapter`) and
is never written again: LoRA, SSF, prompts and an unfrozen norm on a ViT whose weights are arithmetic, so that no random
generator and no library's initialisation takes part. `adapter_of_2026.json` has the logits it gave.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from vpeft.injection.adapter_file import probe_images, read_manifest
from vpeft.methods import SSF, LNTune, LoRA, VPTShallow

FOLDER = Path(__file__).parents[1] / "fixtures"
FILE, LOGITS = FOLDER / "adapter_of_2026.safetensors", FOLDER / "adapter_of_2026.json"


def kept_vit() -> nn.Module:
    """A ViT of width 48 and depth 3 whose n-th parameter holds whole numbers over 512, the same on every machine."""
    return arithmetic(tiny_vit())


@torch.no_grad()
def arithmetic(module: nn.Module) -> nn.Module:
    for number, (name, parameter) in enumerate(sorted(module.named_parameters())):
        index = torch.arange(parameter.numel(), dtype=torch.int64)
        values = ((index * 7919 + number * 104729) % 129 - 64).to(torch.float64) / 512
        centre = 1.0 if name.endswith("scale") or ("norm" in name and name.endswith("weight")) else 0.0
        parameter.copy_((values + centre).reshape(parameter.shape))
    return module


def test_the_file_of_2026_loads_and_gives_its_logits() -> None:
    told = json.loads(LOGITS.read_text())
    tuned = vpeft.load(kept_vit(), FILE).eval()
    images = probe_images(tuned.description) * 0.7
    expected = torch.tensor(told["logits"])
    assert torch.allclose(tuned(images)[0], expected, atol=1e-5, rtol=1e-5)
    assert [type(method).__name__ for method in tuned.methods()] == ["LoRA", "SSF", "VPTShallow", "LNTune"]
    manifest = read_manifest(FILE)
    assert manifest.format == 1 and manifest.labels == ["circle", "square", "star"]
    assert manifest.base_digest == told["base_digest"], "the base's digest is computed in another way than in 2026"
    with tuned.disable():
        assert not torch.allclose(tuned(images)[0, :3], expected, atol=1e-2)


def test_it_matters() -> None:
    """The adapter changes the features by far more than the tolerance of the comparison."""
    tuned = vpeft.load(kept_vit(), FILE).eval()
    images = probe_images(tuned.description) * 0.7
    changed = tuned.features(images)
    with tuned.disable():
        assert (tuned.features(images) - changed).abs().max() > 0.1


def write() -> None:
    """Makes the two files once; then it refuses, as they are kept."""
    if FILE.exists():
        raise SystemExit(f"{FILE} is kept for ever; it is not written again.")
    methods = LoRA(rank=2, targets=("q", "v", "fc1")), SSF(), VPTShallow(tokens=2), LNTune()
    tuned = vpeft.tune(kept_vit(), *methods, num_classes=3, verify=False, show=False).eval()
    arithmetic(tuned.adapter())
    FOLDER.mkdir(exist_ok=True)
    tuned.save(FILE, labels=["circle", "square", "star"], preprocessing={"size": [32, 32]}, scores={"val/top1": 0.5})
    with torch.no_grad():
        logits = tuned(probe_images(tuned.description) * 0.7)[0].tolist()
    LOGITS.write_text(json.dumps({"logits": logits, "base_digest": read_manifest(FILE).base_digest}, indent=1) + "\n")


if __name__ == "__main__":
    write()
