"""Any method that can be merged becomes a stock LoRA folder; peft loads it on the library's own model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from tests.unit.interop.adapters import adapted, answered, backbone, close, images, library_classifier
from vpeft.injection.merge import CannotMerge
from vpeft.interop.library_format import CannotExport
from vpeft.interop.peft_export import export_peft
from vpeft.methods import (
    SSF,
    AdaptFormer,
    BitFit,
    DoRA,
    FacTTT,
    Hydra,
    LinearProbe,
    LoRA,
    Method,
    RepAdapter,
    VPTDeep,
)

peft = pytest.importorskip("peft")

FAST = ("timm_vit", "hf_vit", "timm_convnext")
SLOW = (
    "timm_swin", "timm_beit", "timm_eva", "timm_resnet", "timm_efficientnet", "timm_deit", "timm_cait", "timm_xcit",
    "timm_pvt_v2", "timm_mlp_mixer", "timm_swin_v2", "timm_regnet",
    "hf_beit", "hf_dinov2_registers", "hf_swin", "hf_convnext", "hf_resnet",
)  # fmt: skip


def loaded(family: str, folder: Path) -> nn.Module:
    """The folder on the library's model, by peft alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(library_classifier(family), str(folder)).eval()


def holds(family: str, method: Method, folder: Path) -> None:
    tuned = adapted(family, method)
    x = images(tuned.backbone)
    before = tuned(x)
    made = export_peft(tuned, folder, energy=1.0)
    assert made.error <= 1e-5 and made.exact
    assert close(answered(loaded(family, folder), x), before)
    assert torch.equal(tuned(x), before)  # the model is as it was
    assert not close(answered(library_classifier(family), x), before, 1e-2)


@pytest.mark.parametrize("family", FAST)
def test_peft_computes_the_same(family: str, tmp_path: Path) -> None:
    holds(family, LoRA(rank=3), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW)
def test_peft_computes_the_same_on_further_families(family: str, tmp_path: Path) -> None:
    holds(family, LoRA(rank=3), tmp_path / "out")


# Shifts that have no place in the library's model, and what is said of them.
NO_PLACE = {
    "timm_eva": r"changes blocks\.0\.attn\.k_bias, .* does not save",
    "timm_swin_v2": r"changes layers\.0\.blocks\.0\.attn\.k_bias, .* does not save",
    "timm_resnet": "a bias that the architecture does not have",
    "timm_efficientnet": "a bias that the architecture does not have",
    "timm_regnet": "a bias that the architecture does not have",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW)
def test_scales_and_shifts_on_further_families(family: str, tmp_path: Path) -> None:
    if family not in NO_PLACE:
        holds(family, SSF(), tmp_path / "out")
        return
    with pytest.raises(CannotExport, match=NO_PLACE[family]):
        export_peft(adapted(family, SSF()), tmp_path / "out", energy=1.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm_levit", "timm_caformer", "open_clip_vision"])
def test_a_library_without_such_a_classifier(family: str, tmp_path: Path) -> None:
    with pytest.raises(CannotExport, match="has no classifier in its library that reads what the head reads"):
        export_peft(adapted(family, LoRA(rank=3)), tmp_path / "out")


def slowly(method: Method) -> object:
    return pytest.param(method, marks=pytest.mark.slow, id=method.name)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(SSF(), id="ssf"),
        slowly(FacTTT(rank=4)),
        slowly(RepAdapter()),
        slowly(Hydra()),
        slowly(BitFit()),
        slowly(DoRA(rank=2)),
    ],
)
def test_every_mergeable_method_becomes_a_lora(method: Method, tmp_path: Path) -> None:
    holds("timm_vit", method, tmp_path / "out")


def test_ranks_are_those_of_the_change(tmp_path: Path) -> None:
    """q and v of a fused qkv, each of rank 3, make 6; nothing is kept of k."""
    made = export_peft(adapted("timm_vit", LoRA(rank=3, targets=("q", "v", "fc1"))), tmp_path / "out")
    assert {layer.layer.rpartition(".")[2]: layer.rank for layer in made.layers} == {"qkv": 6, "fc1": 3}
    assert made.whole == ("head",) and "timm.create_model" not in made.usage and "PeftModel" in made.usage
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and sorted(config["rank_pattern"].values()) == [3, 3, 3, 6, 6, 6]


def test_what_is_lost_of_a_full_rank_is_stated(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", SSF())
    x = images(tuned.backbone)
    made = export_peft(tuned, tmp_path / "out", energy=0.9)
    worst = max(made.layers, key=lambda layer: layer.error)
    assert not made.exact and 0.05 < worst.error <= 0.1**0.5 and worst.rank < worst.full
    difference = answered(loaded("timm_vit", tmp_path / "out"), x) - tuned(x)
    assert 1e-4 < difference.abs().max() < 20 * made.error
    assert f"{made.error:.1e}" in (tmp_path / "out" / "README.md").read_text()


def test_a_head_alone(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", LinearProbe())
    made = export_peft(tuned, tmp_path / "out")
    x = images(tuned.backbone)
    assert [layer.error for layer in made.layers] == [0.0]
    assert close(answered(loaded("timm_vit", tmp_path / "out"), x), tuned(x))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CannotMerge, match="cannot be folded into the weights"):
        export_peft(adapted("timm_vit", VPTDeep(tokens=2)), tmp_path / "a")
    with pytest.raises(CannotMerge, match="is not a linear map|cannot be"):
        export_peft(adapted("timm_vit", AdaptFormer()), tmp_path / "a")
    with pytest.raises(CannotExport, match="must be above 0"):
        export_peft(adapted("timm_vit", LoRA()), tmp_path / "a", energy=0.0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(CannotExport, match="not an empty folder"):
        export_peft(adapted("timm_vit", LoRA()), tmp_path / "full")
    tuned = vpeft.tune(backbone("timm_vit"), LoRA(), head=nn.Sequential(nn.Linear(48, 5)), verify=False)
    with pytest.raises(CannotExport, match="no linear layer"):
        export_peft(tuned, tmp_path / "a")
    assert not (tmp_path / "a").exists()
