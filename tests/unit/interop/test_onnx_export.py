"""Graphs run in onnxruntime give the model's answers, for batches of any size and for other adapters of the shape."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import vpeft
from tests.unit.interop.adapters import adapted, close, images, shaken
from vpeft.injection.merge import CannotMerge
from vpeft.interop.library_format import CannotExport
from vpeft.interop.onnx_export import _Outputs, export_onnx
from vpeft.methods import SSF, AdaptFormer, BitFit, LoRA, VPTDeep

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        (VPTDeep(tokens=2), "unmerged"),
        pytest.param(LoRA(rank=2), "merged", marks=pytest.mark.slow),
        pytest.param(LoRA(rank=2), "unmerged", marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_computes_the_same(method: vpeft.Method, weights: str, tmp_path: Path) -> None:
    tuned = adapted("timm_vit", method)
    stated = {"size": [32, 32], "mean": [0.5, 0.5, 0.5]}
    made = export_onnx(
        tuned, tmp_path / "a.onnx", weights=weights, labels=list("abcde"), preprocessing=stated, task="classification"
    )
    assert made.error <= 1e-4 and made.weights == weights and made.inputs == ("images",)
    run = session(made.file)
    for count in (1, 4):
        x = torch.randn(count, 3, 32, 32)
        (seen,) = run.run(None, {"images": x.numpy()})
        assert close(torch.from_numpy(seen), tuned(x), 1e-4)
    said = run.get_modelmeta().custom_metadata_map
    assert json.loads(said["vpeft.labels"]) == list("abcde") and json.loads(said["vpeft.preprocessing"]) == stated


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA(rank=2), BitFit()], ids=lambda one: one.name)
def test_adapters_as_inputs(method: vpeft.Method, tmp_path: Path) -> None:
    """One graph, two adapter files: what is in a file is fed to the graph."""
    first, second = adapted("timm_vit", method), adapted("timm_vit", method)
    shaken(second, seed=9, size=0.2)
    made = export_onnx(first, tmp_path / "a.onnx", weights="inputs")
    run = session(made.file)
    x = torch.randn(2, 3, 32, 32)
    answers = []
    for number, tuned in enumerate((first, second)):
        path = tuned.save(tmp_path / f"{number}.safetensors")
        tensors = load_file(path)
        assert set(made.inputs) == {"images", *tensors}
        (seen,) = run.run(None, {"images": x.numpy(), **tensors})
        assert close(torch.from_numpy(seen), tuned(x), 1e-4)
        answers.append(seen)
    assert np.abs(answers[0] - answers[1]).max() > 1e-2


@pytest.mark.slow
def test_switching_adapters_costs_little(tmp_path: Path) -> None:
    """Other tensors with the same session: less than 5 ms more than the same tensors again."""
    tuned = adapted("timm_vit", LoRA(rank=2))
    run = session(export_onnx(tuned, tmp_path / "a.onnx", weights="inputs").file)
    feeds = []
    for seed in range(2):
        shaken(tuned, seed)
        feeds.append(
            {"images": np.zeros((1, 3, 32, 32), np.float32)} | load_file(tuned.save(tmp_path / "a.safetensors"))
        )
    run.run(None, feeds[0])

    def fastest(order: list[int]) -> float:
        found = []
        for _ in range(10):
            start = time.perf_counter()
            for number in order:
                run.run(None, feeds[number])
            found.append(time.perf_counter() - start)
        return min(found)

    assert fastest([0, 1, 0, 1]) - fastest([0, 0, 0, 0]) < 4 * 0.005


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["merged", "unmerged"])
def test_a_convolutional_net(weights: str, tmp_path: Path) -> None:
    tuned = adapted("timm_convnext", SSF())
    made = export_onnx(tuned, tmp_path / "a.onnx", weights=weights)
    x = images(tuned.backbone)
    (seen,) = session(made.file).run(None, {"images": x.numpy()})
    assert close(torch.from_numpy(seen), tuned(x), 1e-4)


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", AdaptFormer())
    with pytest.raises(CannotMerge, match="cannot be folded"):
        export_onnx(tuned, tmp_path / "a.onnx", weights="merged")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("family", ["timm_vit", "timm_convnext", "torchvision_swin"])
def test_no_size_of_a_batch_is_fixed(family: str) -> None:
    """What every graph of ONNX is made of."""
    tuned = adapted(family, LoRA(rank=2))
    x = images(tuned.backbone)
    free = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(_Outputs(tuned), (x[:2],), dynamic_shapes=free, strict=False)
    for count in (1, 3):
        (seen,) = program.module()(x[:count])
        assert close(seen, tuned(x[:count]))


FAMILIES = (
    "timm_vit", "timm_swin", "timm_beit", "timm_eva", "timm_deit", "timm_cait", "timm_xcit", "timm_convnext",
    "timm_resnet", "timm_efficientnet", "timm_pvt_v2", "timm_mlp_mixer", "timm_regnet", "timm_levit",
    "hf_vit", "hf_swin", "hf_convnext", "hf_dinov2_registers", "torchvision_vit", "torchvision_swin",
    "torchvision_convnext",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_further_families(family: str, tmp_path: Path) -> None:
    tuned = adapted(family, LoRA(rank=2))
    assert export_onnx(tuned, tmp_path / "a.onnx", weights="unmerged").error <= 1e-4


@pytest.mark.slow
def test_what_onnx_cannot_say_is_said(tmp_path: Path) -> None:
    """torch exports Twins, and its converter to ONNX does not take the result."""
    with pytest.raises(CannotExport, match="torch cannot export this model with a batch of any size"):
        export_onnx(adapted("timm_twins", LoRA(rank=2)), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


# Graphs that would compute something else, or have one size of batch.
REFUSED = {"adaptir": "differ by", "lpt": "a batch of any size"}
# What the defaults of some methods do not fit: the tiny backbone has 32 x 32 pixels, 48 channels, and no map.
ELSEWHERE = {"consolidator", "conv_adapter", "dam_vp", "evp"}


@pytest.mark.cells
@pytest.mark.parametrize("name", sorted(set(vpeft.methods.all_methods()) - ELSEWHERE))
def test_every_method(name: str, tmp_path: Path) -> None:
    """Each method with its defaults on one backbone of tokens; those for clips are left out."""
    try:
        tuned = adapted("timm_vit", vpeft.methods.get(name)())
    except vpeft.MissingPlace as refusal:
        pytest.skip(str(refusal))
    if name in REFUSED:
        with pytest.raises(CannotExport, match=REFUSED[name]):
            export_onnx(tuned, tmp_path / "a.onnx")
        return
    assert export_onnx(tuned, tmp_path / "a.onnx").error <= 1e-4
