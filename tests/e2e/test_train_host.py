"""The command line with whole models: train, evaluate and predict with a model that keeps its own heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vpeft
from tests.host_models import HOSTS, SIDE, scenes
from vpeft.backbones.create import NoWeights, create_backbone
from vpeft.backbones.host_create import NoHost
from vpeft.backbones.origin import origin_of
from vpeft.backbones.trust import NotTrusted, Trust
from vpeft.cli import main
from vpeft.host_formats.host_format import format_of

pytest.importorskip("transformers")
CLASSES = ("red", "green", "blue")


def coco(folder: Path, count: int = 10) -> Path:
    """Images of squares in COCO's layout, with three classes; `tests.host_models` have two."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number, scene in enumerate(scenes(count)):
        pixels = (scene.image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        left, top, right, bottom = scene.box.tolist()
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": number % 3 + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def masks(folder: Path, count: int = 8) -> Path:
    """Images and class maps as a pair of folders."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, scene in enumerate(scenes(count)):
        Image.fromarray((scene.image.permute(1, 2, 0) * 255).byte().numpy()).save(folder / "images" / f"{number}.png")
        found = 2 * scene.mask
        found[:4] = 1
        Image.fromarray(found.numpy()).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("ground\nwater\nsquare\n", encoding="utf-8")
    return folder


def saved(name: str, folder: Path) -> Path:
    """A tiny host as a folder of transformers."""
    host: Any = HOSTS[name].make()
    host.save_pretrained(folder / name)
    return folder / name


def arguments(host: str, data: Path, out: Path, *more: str, method: str = "adaptformer(bottleneck=4)") -> list[str]:
    """Of one epoch on 64 x 64 pixels."""
    method_and_size = ["--method", method, "--epochs", "1", "--batch", "2", "--data.image-size", str(SIDE)]
    return ["train", "--host", host, "--data", str(data), *method_and_size, "--out", str(out), "--no-resume", *more]


CASES = [
    pytest.param("segformer", masks, "semantic_segmentation", "decode_head.classifier", id="segformer"),
    pytest.param("detr", coco, "detection", "class_labels_classifier", id="detr", marks=pytest.mark.slow),
    pytest.param("mask2former", coco, "instance_segmentation", "class_predictor", id="m2f", marks=pytest.mark.slow),
    pytest.param("eomt", coco, "instance_segmentation", "class_predictor", id="eomt", marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:.*has no preprocessor_config.json")
@pytest.mark.parametrize(("name", "data", "task", "fresh"), CASES)
def test_a_host_of_transformers_is_trained_for_the_classes_of_the_data(
    name: str, data: Any, task: str, fresh: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, source, out = saved(name, tmp_path), data(tmp_path / "data"), tmp_path / "run"
    assert main(arguments(f"hf:{host}", source, out)) == 0
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["result"]["state"] == "done" and record["recipe"]["host"] == f"hf:{host}"
    origin = record["backbone"]["origin"]
    assert origin["name"] == f"host:3:hf:{host}" and fresh in origin["fresh"] and origin["seed"] is not None
    manifest = vpeft.read_manifest(out / "adapter.safetensors")
    assert manifest.task.name == task and fresh in manifest.train
    capsys.readouterr()
    assert main(["evaluate", str(out / "adapter.safetensors"), "--data", str(source), "--include-used"]) == 0
    assert "3 classes" not in capsys.readouterr().err
    picture = next((source / "images").glob("*.png"))
    assert main(["predict", str(out / "adapter.safetensors"), str(picture)]) == 0


TORCHVISION = [
    pytest.param(
        "lraspp_mobilenet_v3_large",
        masks,
        "semantic_segmentation",
        {"classifier.low_classifier", "classifier.high_classifier"},
        id="lraspp",
    ),
    pytest.param(
        "deeplabv3_mobilenet_v3_large",
        masks,
        "semantic_segmentation",
        {"classifier.4"},
        id="deeplabv3",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        coco,
        "detection",
        {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
        id="faster_rcnn",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "data", "task", "fresh"), TORCHVISION)
def test_a_host_of_torchvision_is_trained_for_the_classes_of_the_data(
    name: str, data: Any, task: str, fresh: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = data(tmp_path / "data"), tmp_path / "run"
    assert main(arguments(f"torchvision:{name}", source, out, "--no-pretrained", method="bitfit")) == 0
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    origin = record["backbone"]["origin"]
    assert origin["name"] == f"host:3:torchvision:{name}" and not origin["pretrained"] and origin["seed"] is not None
    assert set(origin["fresh"]) == fresh
    assert record["result"]["state"] == "done"
    manifest = vpeft.read_manifest(out / "adapter.safetensors")
    assert manifest.task.name == task and set(manifest.train) == fresh
    assert (out / "validation_predictions.png").is_file()
    capsys.readouterr()
    # Loading compares the digest of the weights: the random ones come back from their seed.
    assert main(["evaluate", str(out / "adapter.safetensors"), "--data", str(source), "--include-used"]) == 0
    picture = next((source / "images").glob("*.png"))
    assert main(["predict", str(out / "adapter.safetensors"), str(picture)]) == 0


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"])
def test_weights_fill_all_layers_of_a_torchvision_host_but_those_of_the_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    torch.manual_seed(3)
    theirs = models.get_model(name, weights=None, weights_backbone=None).state_dict()
    url = models.get_model_weights(name).DEFAULT.url
    kept = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _no_network)
    with pytest.raises(NoWeights, match=r"cannot be downloaded: no network .*--weights FILE.*--no-pretrained"):
        create_backbone(f"host::torchvision:{name}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs, kept)
    for made in (
        create_backbone(f"host:3:torchvision:{name}"),
        create_backbone(f"host:3:torchvision:{name}", weights=kept),
    ):
        origin = origin_of(made)
        assert origin is not None and origin.fresh
        own = dict(made.named_parameters())
        anew = {key for key in own if key.rpartition(".")[0] in origin.fresh}
        assert all(torch.equal(value, theirs[key]) for key, value in own.items() if key not in anew)
        assert all(value.shape != theirs[key].shape for key, value in own.items() if key in anew)
        assert format_of(made, "mask" if "lraspp" in name else "objects").classes == 3


def _no_network(*_: Any, **__: Any) -> None:
    raise OSError("no network")


@pytest.mark.slow
def test_a_host_of_your_own_code_is_trained(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from tests.host_models import HOSTS\n\n\ndef make():\n    return HOSTS['mask_rcnn'].make()\n", encoding="utf-8"
    )
    source = coco(tmp_path / "data")
    found = json.loads((source / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    found["categories"] = found["categories"][:2]
    for one in found["annotations"]:
        one["category_id"] = min(one["category_id"], 2)
    (source / "annotations" / "instances_train.json").write_text(json.dumps(found), encoding="utf-8")
    out = tmp_path / "run"
    more = ("--train", "roi_heads.box_predictor", "--train", "roi_heads.mask_predictor")
    assert main(arguments(f"py:{code}:make", source, out, *more)) == 0
    manifest = vpeft.read_manifest(out / "adapter.safetensors")
    assert manifest.task.name == "instance_segmentation"
    assert set(manifest.train) == {"roi_heads.box_predictor", "roi_heads.mask_predictor"}


def test_names_of_hosts_are_read_and_refused(tmp_path: Path) -> None:
    folder = saved("segformer", tmp_path)
    same: Any = create_backbone(f"host::hf:{folder}")
    made = HOSTS["segformer"].make().state_dict()
    assert all(torch.equal(value, made[key]) for key, value in same.state_dict().items())
    assert origin_of(same).fresh == ()  # type: ignore[union-attr]
    other: Any = create_backbone(f"host:5:hf:{folder}")
    assert other.config.num_labels == 5 and origin_of(other).fresh == ("decode_head.classifier",)  # type: ignore[union-attr]
    with pytest.raises(NoHost, match="torchvision has no detector or segmenter 'fcos_resnet51_fpn'"):
        create_backbone("host::torchvision:fcos_resnet51_fpn")
    with pytest.raises(NoHost, match="A whole model is named hf:FOLDER"):
        create_backbone("host::resnet18")
    with pytest.raises(NoHost, match="is no name of a whole model"):
        create_backbone("host:many:hf:here")
    with pytest.raises(NotTrusted):
        create_backbone("host::py:evil.py:make", trust=Trust(code=False, download=False))


def test_a_host_and_another_backbone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments("hf:here", tmp_path, tmp_path / "out", "--backbone", "pocket_vit")
    assert main(given) == 1
    assert "are two models; give one of them" in capsys.readouterr().err
