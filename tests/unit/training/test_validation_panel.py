"""The panel of validation samples: for tasks whose targets can be drawn, and without a trace in the model."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import vpeft
from tests.contract.task_cells import TinySet, learnt
from tests.models import tiny_vit
from vpeft.data.preprocessing import Preprocessing
from vpeft.drawing import CAPTION, CELL, MARGIN
from vpeft.methods import LoRA
from vpeft.training.evaluate import evaluate
from vpeft.training.validation_panel import CLASSES, PANEL, validation_panel, validation_pictures


@pytest.mark.parametrize("name", ["instance_segmentation", "semantic_segmentation", "depth"])
def test_a_row_for_each_sample_with_the_image_the_prediction_and_the_truth(name: str) -> None:
    data = TinySet(learnt(name).target_kind, (3, 32, 32), count=8)
    task = learnt(name).bind(data)
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), LoRA(), task=task, show=False).train()
    modes, before = [module.training for module in tuned.modules()], torch.get_rng_state()
    made = validation_panel(tuned, data, task, Preprocessing(size=(32, 32)), count=3)
    assert made is not None and made.size == (MARGIN + 3 * (CELL + MARGIN), CAPTION + 3 * (CELL + CAPTION))
    assert [module.training for module in tuned.modules()] == modes and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["instance_segmentation", "semantic_segmentation"])
def test_pictures_are_the_panel_and_the_scores_of_each_class(name: str) -> None:
    data = TinySet(learnt(name).target_kind, (3, 32, 32), count=8)
    task = learnt(name).bind(data)
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), LoRA(), task=task, show=False)
    details = evaluate(tuned, data, task=task).details
    made = validation_pictures(tuned, data, task, Preprocessing(size=(32, 32)), details, count=2)
    assert set(made) == {PANEL, CLASSES}
    beside = validation_panel(tuned, data, task, Preprocessing(size=(32, 32)), count=2)
    with Image.open(io.BytesIO(made[PANEL])) as panel, Image.open(io.BytesIO(made[CLASSES])) as classes:
        assert beside is not None and panel.size == beside.size and panel.mode == "P"
        assert len(set(classes.convert("L").get_flattened_data())) > 2  # something is drawn
    assert set(validation_pictures(tuned, data, task, Preprocessing(size=(32, 32)), {}, count=1)) == {PANEL}


def test_a_task_without_drawn_targets_has_no_panel() -> None:
    data = TinySet("label", (3, 32, 32))
    task = learnt("classification").bind(data)
    tuned = vpeft.tune(tiny_vit(), LoRA(), task=task, show=False)
    assert validation_panel(tuned, data, task, Preprocessing(size=(32, 32))) is None
    assert validation_pictures(tuned, data, task, Preprocessing(size=(32, 32)), {}) == {}
