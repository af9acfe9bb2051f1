"""An adapter on the same weights in another precision: recognised and said; other weights are still refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from tests.models import tiny_convnext as _convnext
from tests.models import tiny_vit as _vit
from vpeft.backbones.digest import compared_values, precision_of, rounded_digests
from vpeft.injection.adapter_file import BadAdapterFile
from vpeft.injection.other_precision import OtherPrecision
from vpeft.methods import LoRA

KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return _vit()


def tiny_convnext() -> nn.Module:
    torch.manual_seed(0)
    return _convnext()


def _transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    return model.eval()  # type: ignore[no-any-return]


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 32, 64)
    model.heads = nn.Identity()
    return model.eval()


def _open_clip() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.transformer.VisionTransformer(32, 8, 32, 2, 2, 2.0, output_dim=16)
    return model.eval()  # type: ignore[no-any-return]


LIBRARIES: dict[str, Callable[[], nn.Module]] = {
    "timm": tiny_vit,
    "transformers": _transformers,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
}


def _saved(model: nn.Module, path: Path) -> Path:
    tuned = vpeft.tune(model, LoRA(rank=2), num_classes=3)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return tuned.save(path, labels=list("abc"))


@pytest.mark.parametrize("there", KINDS[1:], ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_precision_into_every_other(tmp_path: Path, library: str, there: torch.dtype) -> None:
    make = LIBRARIES[library]
    path = _saved(make().to(there), tmp_path / "a.safetensors")
    expected = vpeft.load(make().to(there), path)(torch.ones(1, 3, 32, 32)).float()
    for here in KINDS[1:]:
        if here == there:
            continue
        with pytest.warns(OtherPrecision, match=f"weights in {str(there)[6:]}.*same weights in {str(here)[6:]}"):
            tuned = vpeft.load(make().to(here), path)
        seen = tuned(torch.ones(1, 3, 32, 32)).float()
        assert torch.allclose(seen, expected, atol=0.1 * float(expected.detach().abs().max()))


def test_double_precision_and_a_checkpoint_that_was_converted_back(tmp_path: Path) -> None:
    path = _saved(tiny_vit(), tmp_path / "a.safetensors")
    for model in (tiny_vit().double(), tiny_vit().bfloat16().float(), tiny_vit().half().float()):
        with pytest.warns(OtherPrecision):
            vpeft.load(model, path)


def test_a_tuned_model_that_was_converted_and_saved_again(tmp_path: Path) -> None:
    path = _saved(tiny_convnext(), tmp_path / "a.safetensors")
    again = vpeft.load(tiny_convnext(), path).bfloat16().save(tmp_path / "b.safetensors", labels=list("abc"))
    vpeft.load(tiny_convnext().bfloat16(), again)
    with pytest.warns(OtherPrecision):
        vpeft.load(tiny_convnext(), again)


@pytest.mark.parametrize("there", KINDS[1:], ids=str)
@pytest.mark.parametrize("here", KINDS[1:], ids=str)
def test_other_weights_are_refused_in_every_precision(tmp_path: Path, there: torch.dtype, here: torch.dtype) -> None:
    path = _saved(tiny_vit().to(there), tmp_path / "a.safetensors")
    model = tiny_vit()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.03)
    with pytest.raises(BadAdapterFile, match="was made on") as refused:
        vpeft.load(model.to(here), path)
    assert ("convert the result" in str(refused.value)) == (there != here)


def test_training_starts_from_an_adapter_in_another_precision(tmp_path: Path) -> None:
    from vpeft.injection.load_adapter import start_from

    path = _saved(tiny_vit(), tmp_path / "a.safetensors")
    tuned = vpeft.tune(tiny_vit().bfloat16(), LoRA(rank=2), num_classes=3)
    with pytest.warns(OtherPrecision):
        start_from(tuned, path)


def test_the_digest_of_a_precision_does_not_depend_on_the_order_of_conversions() -> None:
    whole, half = vpeft.describe(tiny_vit()), vpeft.describe(tiny_vit().half())
    assert rounded_digests(whole)["float16"] == rounded_digests(half)["float16"]
    assert rounded_digests(whole)["float32"] != rounded_digests(half)["float32"]
    assert (precision_of(whole), precision_of(half)) == ("float32", "float16")
    mixed = tiny_vit().bfloat16()
    mixed.norm.float()  # type: ignore[union-attr, operator]
    assert precision_of(vpeft.describe(mixed)) == "bfloat16"
    assert rounded_digests(vpeft.describe(mixed))["bfloat16"] == rounded_digests(whole)["bfloat16"]
    values = compared_values(whole)
    assert len(values) == 64 and torch.allclose(torch.tensor(values), torch.tensor(compared_values(half)), rtol=1e-3)
