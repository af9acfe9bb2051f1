"""Numbers that the papers' authors' own code gives on one tiny backbone, and the check that ours gives the same.

Each `vectors/<method>.safetensors` holds the trained tensors under the reference's names (`param/...`), the pooled
feature `y`, and the gradients of (y * direction).sum() (`grad/...`). A test maps the reference's tensors onto ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vpeft
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method

VECTORS = Path(__file__).parent / "vectors"
OUTPUT, GRADIENT = 1e-5, 1e-4
Take = Callable[[Mapping[str, Tensor]], Tensor]  # reference tensors -> one of our tensors


def base_vit() -> nn.Module:
    """The reference ViT: 16 patches of 8x8 and a class token, width 48, three blocks."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0, global_pool="token"
    )
    model.load_state_dict(load_file(VECTORS / "base_vit.safetensors"))
    return model.eval()


def base_swin() -> nn.Module:
    """The reference Swin: patches of 2x2, widths 24 and 48, windows of 4."""
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0
    )
    model.load_state_dict(load_file(VECTORS / "base_swin.safetensors"), strict=False)
    return model.eval()


def vectors(name: str) -> dict[str, Tensor]:
    """All tensors of one method's file."""
    return load_file(VECTORS / f"{name}.safetensors")


def reproduce(
    name: str,
    base: str,
    method: Method | tuple[Method, ...],
    mapping: Mapping[str, Take],
    silent: Collection[str] = (),
    batches: Collection[tuple[Tensor, Tensor]] = (),
    faint: Mapping[str, float] | None = None,
) -> TunedModel:
    """Put the reference's tensors into our adapter and compare output and gradients with the reference's.

    Args:
        name: the vector file.
        base: "vit" or "swin".
        method: ours, configured as the reference was.
        mapping: for every one of our trained tensors, how to take it from the reference's tensors. The same function
            is applied to the reference's gradients, so it must be a rearrangement (slice, transpose, reshape).
        silent: our tensors whose gradient is zero in exact arithmetic (a bias of keys): only its size is checked.
        batches: images and labels for methods that look at data before they train.
        faint: our tensors whose gradient is as small as rounding, and how far apart both may be.
    """
    stored = vectors(name)
    model = base_vit() if base == "vit" else base_swin()
    methods = method if isinstance(method, tuple) else (method,)
    tuned = vpeft.tune(model, *methods, verify=False, show=False).eval()
    tuned.prepare(batches)
    ours = dict(tuned.trainable())
    assert set(ours) == set(mapping), f"unmapped {set(ours) - set(mapping)}, unknown {set(mapping) - set(ours)}"
    values = {key.removeprefix("param/"): value for key, value in stored.items() if key.startswith("param/")}
    slopes = {key.removeprefix("grad/"): value for key, value in stored.items() if key.startswith("grad/")}
    with torch.no_grad():
        for key, take in mapping.items():
            ours[key].copy_(take(values).reshape(ours[key].shape))
    inputs = load_file(VECTORS / "inputs.safetensors")
    y = tuned.features(inputs["x"])
    assert (y - stored["y"]).abs().max() <= OUTPUT, f"output differs by {(y - stored['y']).abs().max():.1e}"
    (y * inputs[f"direction_{base}"]).sum().backward()
    for key, take in mapping.items():
        expected = take(slopes).reshape(ours[key].shape)
        grad = ours[key].grad
        grad = torch.zeros_like(expected) if grad is None else grad
        if key in silent:
            assert max(grad.abs().max(), expected.abs().max()) <= OUTPUT, f"{key} has a gradient"
            continue
        if faint is not None and key in faint:
            assert (grad - expected).abs().max() <= faint[key], f"gradient of {key} differs"
            continue
        error = (grad - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= GRADIENT, f"gradient of {key} differs by {error:.1e} of its size"
    return tuned
