"""The retrieval recipes: their method counts what the paper's parts count, and one of them runs on a small set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vpeft
from vpeft.cli import main
from vpeft.method_spec import parse_one
from vpeft.methods import get
from vpeft.recipes import recipe_file, shipped_recipes
from vpeft.training.recipe import Recipe

# Classes, and by hand: shared prompts (n_i of all blocks), class prompts (m_i), of ViT-B with D = 768.
SETS: dict[str, tuple[int, int, int]] = {
    "cub": (100, 20 * 12, 5),
    "cars196": (98, sum(80 - 2 * i for i in range(10)), sum(50 - 2 * i for i in range(8))),
    "sop": (11_318, sum(90 - 5 * i for i in range(12)), 5),
    "in-shop": (3_997, 90 * 12, 60 * 12),
}
COUNTS = {f"{name}-retrieval-vit-b@{kind}": one for name, one in SETS.items() for kind in ("vptsp-g", "1")}
BIASES = 12 * (3 * 768 + 768 + 3072 + 768 + 2 * 768) + 2 * 768  # qkv, proj, fc1, fc2, two norms; patch, last norm


@pytest.mark.parametrize("name", COUNTS)
def test_counts_at_full_size(name: str) -> None:
    classes, shared, of_class = COUNTS[name]
    stated = Recipe.from_toml(recipe_file(Path(name)), {"method": "vptsp_g", "data.source": "unread"})
    text = re.search(r"vptsp_g\([^)]*\)", " ".join(recipe_file(Path(name)).read_text().replace("\n# ", " ").split()))
    assert text is not None
    spec = parse_one(text[0])
    task = stated.task.build().model_copy(update={"labels": tuple(map(str, range(classes))), "loss_kind": "none"})
    with torch.device("meta"):
        backbone = timm.create_model(stated.backbone.partition(".")[0], num_classes=0)
        tuned = vpeft.tune(backbone, get(spec.name)(**spec.fields), task=task, verify=False, show=False)
    counts = {"shared": 0, "of_class": 0, "biases": 0, "proxies": 0, "head": 0}
    for key, value in tuned.trainable():
        part = "head" if key.startswith("head.") else "proxies" if key.startswith("outlet.tap") else "biases"
        part = "of_class" if key.endswith("class_tokens") else "shared" if key.endswith(".tokens") else part
        counts[part] += value.numel()
    branch = 768 * 512 + 512 + 2 * 768 + 6 * 512**2 + 3 * 512 + classes * 512
    assert counts == {
        "shared": 768 * shared,
        "of_class": 768 * of_class * classes,
        "biases": BIASES,
        "proxies": branch,
        "head": 768 * 512 + 512 + 2 * 768,
    }


def test_recipes_name_the_reported_rows() -> None:
    for name in COUNTS:
        one = shipped_recipes()[name]
        assert one.reported == ("retrieval" if name.endswith("vptsp-g") else None)


@pytest.mark.slow
def test_a_recipe_runs_on_a_small_cub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six kinds of noise, in CUB's files, on a small backbone."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split", "classes")}
    for number in range(24):
        kind, name = number // 4, f"k{number // 4}/{number}.png"
        (tmp_path / "cub" / "images" / f"k{kind}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 40 * (kind + 1), (64, 64, 3), np.uint8)).save(tmp_path / "cub/images" / name)
        lines["images"].append(f"{number + 1} {name}")
        lines["image_class_labels"].append(f"{number + 1} {kind + 1}")
        lines["train_test_split"].append(f"{number + 1} 1")
    lines["classes"] = [f"{kind + 1} k{kind}" for kind in range(6)]
    for name, content in lines.items():
        (tmp_path / "cub" / f"{name}.txt").write_text("\n".join(content) + "\n")
    method = "vptsp_g(tokens=4, class_tokens=2, class_depth=2, dimensions=32)"
    words = ["--data", "cub", "--backbone", "pocket_vit", "--method", method]
    words += ["--task", "retrieval(loss=none, dimensions=32, sampler='m_per_class(m=2)', recall_at=[1, 8])"]
    more = ["--epochs", "2", "--batch", "4", "--precision", "fp32", "--out", "a"]
    assert main(["train", "cub-retrieval-vit-b@vptsp-g", *words, *more]) == 0
    record = json.loads(Path("a/run.json").read_text())
    assert record["data"]["layout"] == "cub" and record["test"]["count"] == 12
    assert {"recall_at_1", "recall_at_8"} <= set(record["test"]["values"])
