"""The recipes that ship with the package: they name what exists, count what their sources count, and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vpeft
from tests.e2e.test_clip_recipes import COUNTS as CLIP
from tests.e2e.test_few_shot_recipe import NAME as FEW_SHOT
from tests.e2e.test_multi_task_recipes import COUNTS as MULTI_TASK
from tests.e2e.test_retrieval_recipes import COUNTS as RETRIEVAL
from tests.e2e.test_video_recipes import COUNTS as VIDEO
from vpeft.cli import main
from vpeft.method_spec import parse_one
from vpeft.methods import get
from vpeft.recipes import NoSuchRecipe, recipe_file, shipped_recipes
from vpeft.report.published import published
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

# Trained numbers in the backbone, without the norms of the levels, which belong to the head here. Derived by hand or
# by the authors' code: shared cards of mona, lorand, adapter, lora; printed by V-PETL Bench: 3.11, 3.03, 1.20 (Swin-B).
SWIN_B = {"mona": 3_667_456, "lorand": 1_203_456, "adapter(variant=houlsby)": 3_107_328, "lora(rank=64)": 3_080_192}
SWIN_L = {"mona": 5_267_712, "lorand": 1_799_040, "adapter(variant=houlsby)": 4_659_456, "lora(rank=64)": 4_620_288}
COUNTS = {
    "coco-cascade-swin-b@v-petl": (80, SWIN_B),
    "voc-retinanet-swin-l@v-petl": (20, SWIN_L),
    "ade20k-upernet-swin-l@v-petl": (150, SWIN_L),
}


def recipe(name: str, **changes: object) -> Recipe:
    return Recipe.from_toml(recipe_file(Path(name)), {"method": "mona", "data.source": "unread", **changes})


def test_every_shipped_recipe_is_counted_here() -> None:
    elsewhere = {*VIDEO, *RETRIEVAL, *CLIP, *MULTI_TASK, FEW_SHOT}
    # tests/e2e/test_applications.py has those of applications
    compared = {name for name, one in shipped_recipes().items() if one.application is None}
    assert compared == {*COUNTS, *elsewhere}
    assert all(one.title and "Source" in one.source for one in shipped_recipes().values())


@pytest.mark.parametrize("name", COUNTS)
def test_counts_at_full_size_are_those_of_the_sources(name: str) -> None:
    classes, counts = COUNTS[name]
    stated = recipe(name)
    task = stated.task.build().model_copy(update={"labels": tuple(map(str, range(classes)))})
    for text, count in counts.items():
        method = parse_one(text)
        with torch.device("meta"):
            backbone = timm.create_model(stated.backbone.partition(".")[0])
            tuned = vpeft.tune(backbone, get(method.name)(**method.fields), task=task)
        assert tuned.plan().trainable == count, text


def test_an_unknown_recipe_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoSuchRecipe, match=r"coco-cascade-swin-b@v-petl"):
        recipe_file(Path("coco-cascade-swin-b@vpetl"))
    assert main(["recipes", "coco-cascade-swin-b@v-petl"]) == 0
    assert "cascade_mask_rcnn" in capsys.readouterr().out


def test_a_recipe_names_the_published_rows_that_were_made_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Every method of the recipe's comment has a row there, and `vpeft recipes` lists the name."""
    for one in map(shipped_recipes().__getitem__, COUNTS):
        assert one.reported is not None
        asked = one.source.partition("Methods of the table: ")[2].split("(frozen)")[0]
        methods = {parse_one(text.strip()).name for text in asked.split(", ")}
        assert len(methods) == 11 and methods == set(published(one.reported).about.names)
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert "voc_ade20k" in told and "--reported NAME" in told


def coco_folder(folder: Path) -> Path:
    """Four pictures with two boxes each, in COCO's layout: train and val."""
    (folder / "images").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for split, numbers in (("train", range(2)), ("val", range(2, 4))):
        images, objects = [], []
        for number in numbers:
            pixels = drawn.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            for k in range(2):
                left, top = 4 + 40 * k, 10
                pixels[top : top + 30, left : left + 30] = 255 * k
                corners = [left, top, left + 30, top, left + 30, top + 30, left, top + 30]
                objects.append(
                    {
                        "id": 10 * number + k + 1,
                        "image_id": number,
                        "category_id": k + 1,
                        "bbox": [left, top, 30, 30],
                        "area": 900,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 96})
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(
            json.dumps(
                {
                    "images": images,
                    "annotations": objects,
                    "categories": [{"id": 1, "name": "black"}, {"id": 2, "name": "white"}],
                }
            )
        )
    return folder


def mask_folder(folder: Path) -> Path:
    """Six pictures with masks of two classes."""
    drawn = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(6):
        pixels = drawn.integers(0, 128, (64, 96, 3), dtype=np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        mask[:, :48] = 1
        pixels[:, :48] += 100
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_two_steps_at_the_full_size_of_the_model(name: str, tmp_path: Path) -> None:
    source = (mask_folder if "upernet" in name else coco_folder)(tmp_path / "data")
    small = {"shortest": 128, "longest": 192} | ({"size": 128} if "upernet" in name else {})
    outcome = run_recipe(
        recipe(
            name,
            **{
                "pretrained": False,
                "out": str(tmp_path / "out"),
                "data.source": str(source),
                **{f"task.{key}": value for key, value in small.items()},
                "optimisation.epochs": 2,
                "optimisation.batch": 2,
                "optimisation.warmup": 0.0,
                "optimisation.schedule": "constant",
                "optimisation.milestones": (),
                "optimisation.precision": "fp32",
                "optimisation.device": "cpu",
            },
        ),
        show=False,
    )
    assert outcome.state == "done" and outcome.result.steps >= 2
    losses = [epoch.train_loss for epoch in outcome.result.history]
    assert all(np.isfinite(losses))
