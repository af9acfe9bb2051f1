"""The shipped recipes of video benchmarks: they name what exists, and count what their sources count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from vpeft.backbones.clip_frames import for_clips
from vpeft.backbones.create import create_backbone
from vpeft.batch import Batch
from vpeft.method_spec import parse_one
from vpeft.methods import get
from vpeft.recipes import recipe_file, shipped_recipes
from vpeft.report.published import published
from vpeft.training.groups import make_optimiser
from vpeft.training.recipe import Recipe

# Trained numbers in the backbone, as derived on the methods' cards, and what the table prints for them.
VIDEOMAE = {"adaptformer(layer_norm=none)": (1_189_632, 1.19e6), "bapat(hidden=32)": (2_093_184, 2.06e6)}
SWIN3D = {"adaptformer(layer_norm=none)": (1_553_664, 1.56e6), "bapat": (6_201_088, 6.18e6)}
COUNTS = {
    f"{data}-{backbone}@{version}": (classes, counts)
    for data, classes in (("ssv2", 174), ("hmdb51", 51))
    for backbone, counts in (("videomae-b", VIDEOMAE), ("swin3d-b", SWIN3D))
    for version in ("v-petl", "1")
}


def recipe(name: str, **changes: object) -> Recipe:
    return Recipe.from_toml(recipe_file(Path(name)), {"method": "adaptformer", "data.source": "unread", **changes})


def backbone_of(stated: Recipe) -> nn.Module:
    """The backbone of a recipe at full size, without tensors: VideoMAE's by its config, which the hub would give."""
    assert stated.data.clip is not None and stated.data.clip.frames is not None
    frames = stated.data.clip.frames
    with torch.device("meta"):
        if not stated.backbone.startswith("hf:"):
            return create_backbone(stated.backbone, pretrained=False, frames=frames)
        transformers = pytest.importorskip("transformers")
        model = transformers.VideoMAEModel(transformers.VideoMAEConfig())
        return for_clips(model, frames, stated.frames_rule)[0]


def test_every_video_recipe_is_counted_here() -> None:
    found = {name for name in shipped_recipes() if name.split("-")[0] in ("ssv2", "hmdb51")}
    assert found == set(COUNTS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith("ssv2") and "@v" in name else [pytest.mark.slow])
        for name in COUNTS
    ],
)
def test_counts_at_full_size_are_those_of_the_sources(name: str) -> None:
    classes, counts = COUNTS[name]
    stated = recipe(name)
    model = backbone_of(stated)
    task = stated.task.build().model_copy(update={"labels": tuple(map(str, range(classes)))})
    for text, (count, printed) in counts.items():
        spec = parse_one(text)
        with torch.device("meta"):
            tuned = vpeft.tune(model, get(spec.name)(**spec.fields), task=task, verify=False, show=False)
            clips = tuned.description.inputs.blank(2, "meta")
            assert tuned(clips).shape == (2, classes)
        assert clips.shape[2] == stated.data.clip.frames  # type: ignore[union-attr]
        assert tuned.plan().trainable == count and abs(count - printed) < 0.02 * printed, text
        tuned.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_two_steps_at_full_size(name: str) -> None:
    """A method of the table, at the size of the recipe: forward, backward and the recipe's optimiser, on the meta
    device, where shapes are real and numbers are none; every trained tensor is stepped, and no other."""
    classes, _ = COUNTS[name]
    stated = recipe(name)
    model = backbone_of(stated)
    task = stated.task.build().model_copy(update={"labels": tuple(map(str, range(classes)))})
    method = get("bapat")() if name.endswith("@1") else get("adaptformer")(layer_norm="in", scale=1.0)
    with torch.device("meta"):
        tuned = vpeft.tune(model, method, task=task, verify=False, show=False).train()
        clips = tuned.description.inputs.blank(2, "meta")
        targets = torch.zeros(2, dtype=torch.long)
        optimiser = make_optimiser(tuned.trainable(), stated.optimisation)
        for _ in range(2):
            optimiser.zero_grad()
            loss = torch.stack(list(task.loss(tuned(clips), Batch(clips, targets)).values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    trained = {id(one) for _, one in tuned.trainable()}
    stepped = {id(one) for one in tuned.parameters() if one.grad is not None and one.grad.shape == one.shape}
    assert stepped == trained == {id(one) for one in optimiser.state}


@pytest.mark.parametrize("name", [name for name in COUNTS if name.endswith("@v-petl")])
def test_each_method_of_the_comment_has_a_published_row(name: str) -> None:
    one = shipped_recipes()[name]
    assert one.reported is not None
    asked = one.source.partition("Methods of the table: ")[2].rstrip(".")
    methods = set(re.findall(r"(?:^|, )(\w+)(?=\W|$)", re.sub(r"\([^)]*\)", "", asked)))
    assert methods == set(published(one.reported).about.names)


def test_honest_recipes_choose_on_validation_and_test_all_views() -> None:
    for name in COUNTS:
        stated = recipe(name)
        assert stated.data.clip is not None and stated.data.clip.views == "4x3"
        if name.endswith("@1"):
            assert stated.data.val_fraction > 0 and stated.optimisation.keep == "best"
            assert shipped_recipes()[name].reported is None
