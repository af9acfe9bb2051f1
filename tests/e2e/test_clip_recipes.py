"""The shipped recipes for image-text models: they name what exists and train what their sources count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vpeft
from vpeft.heads.class_names import ClassNames
from vpeft.recipes import recipe_file
from vpeft.tasks.classification_by_name import ClassificationByName
from vpeft.training.recipe import Recipe

COUNTS = {"few-shot-clip-vit-b@clip-lora": 184_320}  # 12 blocks, three matrices, two of rank 2, 768 and 512 wide


@pytest.mark.parametrize("name", COUNTS)
def test_counts_at_full_size_are_those_of_the_sources(name: str) -> None:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    stated = Recipe.from_toml(recipe_file(Path(name)), {"data.source": "unread"})
    task = stated.task.build()
    assert isinstance(task, ClassificationByName) and task.templates == ("a photo of a {}.",)
    with torch.device("meta"):
        model = CLIP(512, CLIPVisionCfg(layers=12, width=768, patch_size=16, image_size=224), CLIPTextCfg())
        head = ClassNames(["a"] * 10, length=77)
        tuned = vpeft.tune(model, *stated.placed(True), head=head, verify=False)
    assert tuned.plan().trainable == COUNTS[name]
    assert tuned.plan().mergeable
