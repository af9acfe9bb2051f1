"""Folders that peft saved become adapters that compute what peft computes, and survive saving."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vpeft
from tests.unit.interop.adapters import answered, backbone, close, images, library_classifier
from vpeft.interop.peft_import import CannotImport, import_peft

peft = pytest.importorskip("peft")

TIMM = r"blocks\.\d+\.(attn\.qkv|mlp\.fc1)"
CONFIGS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 5}},
    "LoHaConfig": {"r": 3, "alpha": 5},
    "LoKrConfig": {"r": 2, "alpha": 5},
    "lokr_whole": {"r": 64, "alpha": 64, "decompose_factor": 4},
    "OFTConfig": {"oft_block_size": 12},
    "oft_exact": {"oft_block_size": 12, "use_cayley_neumann": False},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {"r": 4},
    "VeraConfig": {"r": 6},
    "vera_seed": {"r": 6, "save_projection": False},
    "FourierFTConfig": {"n_frequency": 50, "scaling": 20.0},
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "lora_alpha": 6, "total_step": 10},
}
KINDS = {"rslora": "LoraConfig", "dora": "LoraConfig", "patterns": "LoraConfig", "lokr_whole": "LoKrConfig"} | {
    "oft_exact": "OFTConfig", "vera_seed": "VeraConfig"
}  # fmt: skip


def saved(name: str, folder: Path, family: str = "timm_vit", **more: Any) -> tuple[nn.Module, Path]:
    """A peft model with random tensors, saved to a folder."""
    fields = {"target_modules": TIMM, "modules_to_save": ["head"], **CONFIGS.get(name, {}), **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, KINDS.get(name, name))(**fields)
        torch.manual_seed(4)
        theirs = peft.get_peft_model(library_classifier(family), config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        theirs.save_pretrained(str(folder), save_embedding_layers=False)
        return theirs, folder


FAST = ("LoraConfig", "dora", "patterns", "VeraConfig", "AdaLoraConfig")


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(one, marks=pytest.mark.slow) for one in CONFIGS if one not in FAST)]
)
def test_equals_peft(name: str, tmp_path: Path) -> None:
    theirs, folder = saved(name, tmp_path / "peft")
    base = backbone("timm_vit")
    made = import_peft(base, folder)
    x = images(base)
    assert made.layers == 6 and made.idle == 0
    assert close(made.tuned(x), answered(theirs, x))
    path = made.tuned.save(tmp_path / "a.safetensors", labels=list("abcde"))
    assert close(vpeft.load(backbone("timm_vit"), path).eval()(x), answered(theirs, x))


def test_ia3(tmp_path: Path) -> None:
    theirs, folder = saved("IA3Config", tmp_path / "peft", feedforward_modules=r".*fc1")
    base = backbone("timm_vit")
    made = import_peft(base, folder)
    assert close(made.tuned(images(base)), answered(theirs, images(base)))


def test_layers_that_the_folder_leaves_alone_do_nothing(tmp_path: Path) -> None:
    theirs, folder = saved("LoraConfig", tmp_path / "peft", target_modules=r"blocks\.1\.attn\.(qkv|proj)")
    base = backbone("timm_vit")
    made = import_peft(base, folder)
    assert made.layers == 2 and made.idle == 4
    assert close(made.tuned(images(base)), answered(theirs, images(base)))


def test_norms_that_were_saved_whole_train_too(tmp_path: Path) -> None:
    theirs, folder = saved("LoraConfig", tmp_path / "peft", modules_to_save=["head", "blocks.0.norm1"])
    base = backbone("timm_vit")
    made = import_peft(base, folder)
    assert close(made.tuned(images(base)), answered(theirs, images(base)))
    assert made.tuned.adapter().train_too == ("blocks.0.norm1",)


@pytest.mark.parametrize("name", ["LoraConfig", pytest.param("LoHaConfig", marks=pytest.mark.slow)])
def test_a_classifier_of_transformers(name: str, tmp_path: Path) -> None:
    """Its names have the prefix `vit.`, which the backbone's do not have."""
    theirs, folder = saved(
        name, tmp_path / "peft", "hf_vit", target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
    )
    base = backbone("hf_vit")
    made = import_peft(base, folder)
    x = images(base)
    assert close(made.tuned(x), answered(theirs, x)) and made.layers == 4


def test_convolutions(tmp_path: Path) -> None:
    theirs, folder = saved(
        "LoraConfig", tmp_path / "peft", "timm_resnet", target_modules=r"layer\d\.1\.conv[13]", modules_to_save=["fc"]
    )
    base = backbone("timm_resnet")
    assert close(import_peft(base, folder).tuned(images(base)), answered(theirs, images(base)))


def test_there_and_back(tmp_path: Path) -> None:
    """A LoRA goes to peft and comes back."""
    from tests.unit.interop.adapters import adapted
    from vpeft.interop.peft_export import export_peft
    from vpeft.methods import LoRA

    tuned = adapted("timm_vit", LoRA(rank=3, targets=("qkv", "proj")))
    export_peft(tuned, tmp_path / "peft")
    base = backbone("timm_vit")
    assert close(import_peft(base, tmp_path / "peft").tuned(images(base)), tuned(images(base)))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="is no folder of peft"):
        import_peft(backbone("timm_vit"), tmp_path)
    _, folder = saved("LoraConfig", tmp_path / "peft")
    with pytest.raises(CannotImport, match="peft cannot put|have no place"):
        import_peft(backbone("timm_convnext"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, said in (
        ({"peft_type": "PROMPT_TUNING"}, "'PROMPT_TUNING' is not imported"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CannotImport, match=said):
            import_peft(backbone("timm_vit"), folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CannotImport):
        import_peft(backbone("timm_vit"), folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CannotImport, match="can run code"):
        import_peft(backbone("timm_vit"), folder)


def test_a_layer_outside_of_the_blocks_is_named(tmp_path: Path) -> None:
    _, folder = saved("LoraConfig", tmp_path / "peft", target_modules=["patch_embed.proj", "qkv"])
    base = backbone("timm_vit")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.raises(CannotImport, match=r"patch_embed\.proj"):
        import_peft(base, folder)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
