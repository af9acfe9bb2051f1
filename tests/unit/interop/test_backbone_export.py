"""Merged weights in the library's own format, loaded by the library in another process that never sees vpeft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vpeft
from tests.unit.interop.adapters import adapted, answered, backbone, close, images, shaken
from vpeft.injection.merge import CannotMerge
from vpeft.interop.backbone_export import export_backbone
from vpeft.interop.library_format import CannotExport
from vpeft.methods import SSF, BitFit, FullFinetuning, LNTune, LoRA, VPTDeep

LABELS = list("abcde")
PREPROCESSING = {
    "size": [32, 32], "resize": "shorter", "interpolation": "bicubic", "crop_pct": 0.9,
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
}  # fmt: skip
RUN = """
import sys, torch
from safetensors.torch import load_file, save_file
folder, images, answers = sys.argv[1:]
{load}
out = model.eval()(load_file(images)["x"])
out = getattr(out, "logits", out)
save_file({{"y": out.detach().contiguous()}}, answers)
assert not any(name.partition(".")[0] == "vpeft" for name in sys.modules), "vpeft was imported"
"""


def alone(load: str, folder: Path, x: torch.Tensor) -> torch.Tensor:
    """The answers of a fresh process that runs `load` and has no vpeft."""
    save_file({"x": x}, folder.parent / "x.safetensors")
    files = [str(folder), str(folder.parent / "x.safetensors"), str(folder.parent / "y.safetensors")]
    done = subprocess.run([sys.executable, "-c", RUN.format(load=load), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder.parent / "y.safetensors")["y"]


def created(name: str, method: vpeft.Method, classes: int | None = 5, **options: object) -> vpeft.TunedModel:
    torch.manual_seed(0)
    base = vpeft.create_backbone(name, pretrained=False, **options)
    tuned = vpeft.tune(base, method, num_classes=classes, verify=False, show=False).eval()
    shaken(tuned)
    return tuned


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "pocket_vit"])
def test_timm_in_another_process(name: str, tmp_path: Path) -> None:
    tuned = created(name, LoRA(rank=4))
    export_backbone(tuned, tmp_path / "out", labels=LABELS)
    load = "import timm; model = timm.create_model('local-dir:' + folder, pretrained=True)"
    x = images(tuned.backbone)
    assert close(alone(load, tmp_path / "out", x), tuned(x))


def test_timm(tmp_path: Path) -> None:
    tuned = created("test_vit", LoRA(rank=4))
    made = export_backbone(tuned, tmp_path / "out", labels=LABELS, preprocessing=PREPROCESSING)
    x = images(tuned.backbone)
    assert made.usage == f"model = timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True)"
    import timm

    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert made.error <= 1e-5 and close(answered(again.eval(), x), tuned(x))
    assert again.num_classes == 5 and again.pretrained_cfg["label_names"] == LABELS
    assert timm.data.resolve_model_data_config(again)["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.slow
def test_transformers_with_its_pipeline(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tuned = adapted("hf_vit", LoRA(rank=4))
    made = export_backbone(tuned, tmp_path / "out", labels=LABELS, preprocessing=PREPROCESSING)
    x = images(tuned.backbone)
    load = "import transformers; model = transformers.AutoModelForImageClassification.from_pretrained(folder)"
    assert close(alone(load, tmp_path / "out", x), tuned(x)) and not made.head_apart
    ask = transformers.pipeline("image-classification", model=str(tmp_path / "out"))
    from PIL import Image

    answers = ask(Image.new("RGB", (40, 40), (90, 120, 30)), top_k=5)
    preprocessing = vpeft.Preprocessing.model_validate(PREPROCESSING)
    picture = preprocessing.transform()(Image.new("RGB", (40, 40), (90, 120, 30)))
    expected = tuned(picture[None]).detach().softmax(dim=-1)[0]
    assert {one["label"] for one in answers} == set(LABELS)
    for one in answers:
        assert abs(one["score"] - float(expected[LABELS.index(one["label"])])) < 1e-3


@pytest.mark.slow
def test_torchvision(tmp_path: Path) -> None:
    tuned = created("torchvision:resnet18", LoRA(rank=3, targets=("conv",)))
    made = export_backbone(tuned, tmp_path / "out")
    x = torch.randn(2, 3, 64, 64)
    load = (
        "import torchvision; model = torchvision.models.get_model('resnet18', num_classes=5)\n"
        "model.load_state_dict(load_file(folder + '/model.safetensors'))"
    )
    assert close(alone(load, tmp_path / "out", x), tuned(x)) and "get_model('resnet18', num_classes=5)" in made.usage


def test_open_clip_has_no_classifier(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    tuned = adapted("open_clip_vision", LoRA(rank=2))
    made = export_backbone(tuned, tmp_path / "out")
    x = images(tuned.backbone)
    assert made.head_apart and made.library == "open_clip"
    head = load_file(tmp_path / "out" / "head.safetensors")
    plain = backbone("open_clip_vision")
    plain.load_state_dict(load_file(tmp_path / "out" / "visual.safetensors"))
    with torch.no_grad():
        features = vpeft.describe(plain).pooled(x)
    assert close(features @ head["weight"].T + head["bias"], tuned(x))


@pytest.mark.parametrize("method", [BitFit(), LNTune(), FullFinetuning()], ids=lambda method: method.name)
def test_unfrozen_parameters(method: vpeft.Method, tmp_path: Path) -> None:
    tuned = adapted("timm_vit", method)
    x = images(tuned.backbone)
    export_backbone(tuned, tmp_path / "out")
    base = backbone("timm_vit")
    base.reset_classifier(5)
    base.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert close(answered(base.eval(), x), tuned(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["timm_swin", "timm_convnext", "timm_beit", "timm_eva", "timm_cait", "torchvision_vit", "torchvision_swin",
     "torchvision_convnext", "hf_dinov2_registers", "hf_swin", "hf_convnext", "hf_clip"],
)  # fmt: skip
def test_further_families(family: str, tmp_path: Path) -> None:
    tuned = adapted(family, LoRA(rank=3))
    made = export_backbone(tuned, tmp_path / "out", labels=LABELS)
    assert made.error <= 1e-5


def test_the_model_stays_as_it_was_and_refusals(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", LoRA(rank=3))
    x = images(tuned.backbone)
    before, frozen = tuned(x), {key: value.clone() for key, value in tuned.backbone.state_dict().items()}
    export_backbone(tuned, tmp_path / "out")
    assert torch.equal(tuned(x), before)
    assert all(torch.equal(value, frozen[key]) for key, value in tuned.backbone.state_dict().items())
    with pytest.raises(CannotExport, match="not an empty folder"):
        export_backbone(tuned, tmp_path / "out")
    with pytest.raises(CannotExport, match=r"does not have \(conv1\.0\.bias"):  # what the library cannot load
        export_backbone(adapted("timm_resnet", SSF()), tmp_path / "b")
    with pytest.raises(CannotMerge, match="cannot be folded"):
        export_backbone(adapted("timm_vit", VPTDeep(tokens=2)), tmp_path / "b")
    assert not (tmp_path / "b").exists()
